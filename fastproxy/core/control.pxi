# The Python side of the core: made, fed with plans and sockets, ticked. Nothing here runs per request.

import os
import resource


cdef class Core:
    """One worker's forwarding loop. Exactly one per process.

    ``settings`` is ``Settings.to_json()``; ``errors`` is ``errors.core_rows()``; ``live`` and ``journal`` are
    descriptors of shared memory made by the agent; ``command`` is the agent's socket, which interrupts a tick.
    """

    cdef Worker *w
    cdef readonly int fd

    def __cinit__(self, uint32_t index, dict settings, list errors, int live, int journal, int command):
        self.w = <Worker *>calloc(1, sizeof(Worker))
        if self.w == NULL:
            raise MemoryError
        self.fd = -1
        self.w.epfd = self.w.timerfd = self.w.wakefd = -1
        self.w.index = index
        self.w.command_fd = command
        self._options(settings)
        self._errors(errors)
        self._memory(settings, live, journal)
        self._epoll()
        if getrandom(self.w.random, 16, 0) != 16:
            raise OSError(errno, "getrandom")
        clock_read(self.w)
        self.w.wheel.now_slot = self.w.now_ms >> WHEEL_SHIFT
        self.w.pacer.side = SIDE_TIMER

    cdef int _options(self, dict s) except -1:
        cdef Options *o = &self.w.options
        cdef bytes via = f"Via: 1.1 {s['via']}\r\n".encode() if s["via"] else b""
        cdef bytes server = f"Server: {s['server']}\r\n".encode() if s["server"] else b""
        o.header_timeout = milliseconds(s["header_timeout"])
        o.body_timeout = milliseconds(s["body_timeout"])
        o.idle_timeout = milliseconds(s["idle_timeout"])
        o.write_timeout = milliseconds(s["write_timeout"])
        o.half_close_timeout = milliseconds(s["half_close_timeout"])
        o.connect_timeout = milliseconds(s["connect_timeout"])
        o.upstream_idle_timeout = milliseconds(s["upstream_idle_timeout"])
        o.upstream_read_timeout = milliseconds(s["upstream_read_timeout"])
        o.tunnel_idle_timeout = milliseconds(s["tunnel_idle_timeout"])
        o.max_body = s["max_body"]
        o.max_connections = s["max_connections"] or connections_allowed()
        o.max_pooled = s["max_pooled"]
        o.read_size = s["buffer"] + 16384       # a full buffer of body behind its head in one read
        o.trusted_hops = s["trusted_hops"]
        o.forwarded = s["forwarded"]
        o.tick_events = s["tick_events"]
        o.tick_us = s["tick_us"]
        o.slashes = ("keep", "reject", "decode").index(s["slashes"])
        o.merge_slashes = s["merge_slashes"]
        o.raw_path = s["raw_path"]
        if len(via) > 128 or len(server) > 128:
            raise ValueError("via and server: at most 100 bytes each")
        memcpy(o.via, <char *>via, len(via))
        o.via_len = len(via)
        memcpy(o.server, <char *>server, len(server))
        o.server_len = len(server)
        self.w.request_limits.head = s["max_head"]
        self.w.request_limits.fields = min(s["max_fields"], MAX_FIELDS)
        self.w.request_limits.target = s["max_target"]
        self.w.response_limits = self.w.request_limits
        self.w.response_limits.fields = MAX_FIELDS
        for known in (KNOWN_CONNECTION, KNOWN_KEEP_ALIVE, KNOWN_PROXY_CONNECTION, KNOWN_TE, KNOWN_HTTP2_SETTINGS,
                      KNOWN_NOMINATED):
            self.w.drop_request[known] = 1
            self.w.drop_response[known] = 1
        for known in (KNOWN_HOST, KNOWN_X_FORWARDED_FOR, KNOWN_X_FORWARDED_PROTO, KNOWN_X_FORWARDED_HOST):
            self.w.drop_request[known] = 1
        self.w.drop_request[KNOWN_FORWARDED] = not o.trusted_hops or o.forwarded
        self._own_fields((b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded", b"x-request-id",
                          b"via", b"date"))
        self.w.accept_hash = field_hash(b"accept", 6)
        self.w.max_forwards_hash = field_hash(b"max-forwards", 12)
        return 0

    cdef int _own_fields(self, tuple names) except -1:
        cdef uint32_t at = 0
        cdef Field *field = self.w.own
        for name in names:
            memcpy(self.w.own_names + at, <char *>name, len(name))
            field.name = at
            field.name_len = len(name)
            field.hash = field_hash(<const uint8_t *>self.w.own_names + at, len(name))
            at += len(name)
            field += 1
        return 0

    cdef int _errors(self, list rows) except -1:
        cdef ErrorRow *row
        for kind, status, flag, message in rows:
            if not 0 <= kind < 128 or len(flag) > 7 or len(message) > 115:
                raise ValueError(f"error row {kind} does not fit")
            row = &self.w.errors[<int>kind]
            row.status = status
            row.flag_len = len(flag)
            row.message_len = len(message)
            memcpy(row.flag, <char *>flag, len(flag))
            memcpy(row.message, <char *>message, len(message))
        return 0

    cdef int _memory(self, dict s, int live, int journal) except -1:
        cdef Worker *w = self.w
        cdef void *p
        w.live_size = os.fstat(live).st_size
        w.ring_size = os.fstat(journal).st_size
        p = c_mmap(NULL, w.live_size, PROT_READ | PROT_WRITE, MAP_SHARED, live, 0)
        if <size_t>p == <size_t>-1 or live_open(&w.live, <uint8_t *>p, w.live_size, w.index) != 0:
            raise ValueError("live memory is not what it should be")
        p = c_mmap(NULL, w.ring_size, PROT_READ | PROT_WRITE, MAP_SHARED, journal, 0)
        if <size_t>p == <size_t>-1 or ring_open(&w.ring, <uint8_t *>p, w.ring_size) != 0:
            raise ValueError("journal is not what it should be")
        w.pools = <Pool *>calloc(w.live.header.endpoints, sizeof(Pool))
        # a chunk holds the largest head with all that one read may bring behind it
        w.large_size = w.request_limits.head + w.options.read_size + HEAD_ROOM + 8192
        w.input_size = w.request_limits.head + 2 * w.options.read_size
        w.output_size = w.request_limits.head + 32768
        w.input = <uint8_t *>malloc(w.input_size)
        w.output = <uint8_t *>malloc(w.output_size)
        w.path = <uint8_t *>malloc(4 * <size_t>w.request_limits.target)
        if w.pools == NULL or w.input == NULL or w.output == NULL or w.path == NULL:
            raise MemoryError
        w.small.keep = 1024
        w.large.keep = 32
        w.conns.keep = 1024
        w.exchanges.keep = 1024
        return 0

    cdef int _epoll(self) except -1:
        cdef Worker *w = self.w
        cdef epoll_event event
        w.timer_side = SIDE_TIMER
        w.command_side = SIDE_COMMAND
        w.wake_side = SIDE_WAKE
        w.epfd = epoll_create1(EPOLL_CLOEXEC)
        w.timerfd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        w.wakefd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        if w.epfd < 0 or w.timerfd < 0:
            raise OSError(errno, "epoll or timerfd")
        event.events = EPOLLIN
        event.data.ptr = &w.timer_side
        epoll_ctl(w.epfd, EPOLL_CTL_ADD, w.timerfd, &event)
        event.data.ptr = &w.wake_side
        epoll_ctl(w.epfd, EPOLL_CTL_ADD, w.wakefd, &event)
        event.events = <uint32_t>(EPOLLIN | EDGE)
        event.data.ptr = &w.command_side
        if w.command_fd >= 0:
            epoll_ctl(w.epfd, EPOLL_CTL_ADD, w.command_fd, &event)
        self.fd = w.epfd
        return 0

    def tick(self):
        """Serve what is ready. Called by the event loop when :attr:`fd` is readable; gives the GIL up meanwhile."""
        with nogil:
            run_tick(self.w)

    def plan(self, int fd):
        """Swap to the plan in the sealed memory ``fd``; the descriptor stays the caller's. Returns (version, µs).

        Raises ValueError for a block that is not a plan; the current one goes on.
        """
        cdef size_t size = os.fstat(fd).st_size
        cdef void *p = c_mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0) if size else <void *><size_t>-1
        cdef Plan *plan
        if <size_t>p == <size_t>-1:
            raise ValueError("cannot map the plan")
        plan = <Plan *>calloc(1, sizeof(Plan))
        if plan == NULL or plan_open(plan, <const uint8_t *>p, size) != 0:
            c_munmap(p, size)
            free(plan)
            raise ValueError("not a plan of this build")
        plan_adopt(self.w, plan)
        return plan.version, self.w.live.gauges.plan_swap_us

    def listen(self, bytes name, int fd):
        """Accept from a listening socket; the descriptor becomes the core's. A name that is there is replaced."""
        cdef Listener *listener
        cdef socklen_t length = sizeof(sockaddr_storage)
        cdef sockaddr_storage storage
        if len(name) > 256:
            raise ValueError("listener name too long")
        self.unlisten(name)
        listener = <Listener *>calloc(1, sizeof(Listener))
        if listener == NULL:
            raise MemoryError
        getsockname(fd, <sockaddr *>&storage, &length)
        listener.side = SIDE_LISTENER
        listener.family = storage.ss_family
        listener.fd = fd
        listener.name_len = len(name)
        memcpy(listener.name, <char *>name, len(name))
        listener.plan_index = NO_INDEX
        if self.w.plan != NULL:
            listener.plan_index = plan_listener(self.w.plan, <const uint8_t *>listener.name, listener.name_len)
        listener.next = self.w.listeners
        self.w.listeners = listener
        if not listener_watch(self.w, listener):
            self.unlisten(name)
            raise OSError(errno, "epoll")

    def unlisten(self, bytes name):
        """Stop accepting from it; its connections go on. False: there is no such listener."""
        cdef Listener *listener = self.w.listeners
        while listener != NULL:
            if not listener.closing and listener.name[:listener.name_len] == name:
                clock_read(self.w)
                listener_end(self.w, listener)
                listeners_sweep(self.w)
                timers_settle(self.w)
                return True
            listener = listener.next
        return False

    def drain(self):
        """Stop accepting, end idle connections, let exchanges finish; :meth:`connections` reaches 0."""
        clock_read(self.w)
        worker_drain(self.w)
        timers_settle(self.w)           # no tick may come before the deadlines set here

    def connections(self):
        """Downstream connections that are open."""
        return self.w.connection_count

    def counts(self):
        """What is taken and not given back, by kind; all zero when idle and without connections."""
        return {
            "connections": self.w.conns.out,
            "exchanges": self.w.exchanges.out,
            "small_chunks": self.w.small.out,
            "large_chunks": self.w.large.out,
            "pipes": self.w.live.gauges.pipes,
            "plans": self.w.live.gauges.plans,
        }


cdef uint64_t connections_allowed() except 0:
    """Downstream connections that leave room for upstreams: a crowd of idle clients must not stop those who ask. A
    quarter of the descriptors is for upstreams and pipes, two dozen are the worker's own."""
    most, _hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, most - most // 4 - 24)


cdef uint64_t milliseconds(object seconds):
    """Of a setting; 0 means never, which is some centuries."""
    return <uint64_t>(float(seconds) * 1000) or <uint64_t>1 << 45
