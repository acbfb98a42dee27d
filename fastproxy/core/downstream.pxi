# Downstream connections: accepted, read head by head, answered in order, ended without losing the last answer.

cdef void listener_on_event(Worker *w, Listener *listener, bint whole) noexcept nogil:
    """Accept what waits; `whole`: all of it, whoever has fewer connections. Level-triggered: the rest is told again."""
    cdef sockaddr_storage storage
    cdef socklen_t length
    cdef Conn *d
    cdef int fd
    cdef int turn
    cdef int alone = 0
    if whole or w.live.header.workers == 1:
        alone = 4096
    elif listener.deferred:
        alone = 8
    if not alone and workers_ahead(w):
        listener.deferred = True
        listener.paused = True
        epoll_ctl(w.epfd, EPOLL_CTL_DEL, listener.fd, NULL)
        timer_set(w, &w.pacer.timer, w.now_ms + 1)
        return
    listener.deferred = False
    for turn in range(alone if whole else 64):
        if turn > alone and workers_ahead(w):
            return                              # the rest is told again, to all
        if w.options.max_connections and w.connection_count >= w.options.max_connections:
            listeners_pause(w)
            return
        length = sizeof(storage)
        fd = c_accept4(listener.fd, <sockaddr *>&storage, &length, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd < 0:
            if errno == EMFILE or errno == ENFILE or errno == ENOBUFS or errno == ENOMEM:
                w.live.gauges.descriptors_exhausted += 1
                listeners_pause(w)
            elif errno == EINTR or errno == ECONNABORTED:
                continue
            return
        d = <Conn *>spare_acquire(&w.conns, sizeof(Conn))
        if d == NULL:
            c_close(fd)
            return
        down_open(w, d, listener, fd, &storage)

cdef bint workers_ahead(Worker *w) noexcept nogil:
    """This worker has more connections than another that is running: who wakes first would otherwise take them all. It
    steps back once; a connection that nobody took meanwhile is taken after all."""
    cdef uint64_t least = w.connection_count
    cdef const Gauges *g
    cdef uint32_t i
    for i in range(w.live.header.workers):
        g = <const Gauges *>(w.live.columns + i * w.live.column)
        if g.ticks and g.downstream_connections < least:
            least = g.downstream_connections
    return w.connection_count > least + 2 + (least >> 3)

cdef void down_open(Worker *w, Conn *d, Listener *listener, int fd, const sockaddr_storage *peer) noexcept nogil:
    d.side = SIDE_DOWN
    d.fd = fd
    d.state = STATE_HEAD
    d.flags = CONN_FRESH
    d.listener = listener
    listener.connections += 1
    d.family = listener.family
    if listener.family == AF_INET:
        memcpy(d.address, &(<sockaddr_in *>peer).sin_addr, 4)
        d.port = ntohs((<sockaddr_in *>peer).sin_port)
    elif listener.family == AF_INET6:
        memcpy(d.address, &(<sockaddr_in6 *>peer).sin6_addr, 16)
        d.port = ntohs((<sockaddr_in6 *>peer).sin6_port)
    else:
        d.flags |= CONN_UNIX
    d.next = w.connections
    if d.next != NULL:
        d.next.prev = d
    w.connections = d
    w.connection_count += 1
    w.live.gauges.accepted += 1
    w.live.gauges.downstream_connections += 1
    w.live.gauges.downstream_idle += 1
    if not conn_watch(w, d, EPOLL_CTL_ADD, not (d.flags & CONN_UNIX)):
        conn_close(w, d, False)
        return
    timer_set(w, &d.timer, w.now_ms + w.options.header_timeout)

cdef void down_forget(Worker *w, Conn *d) noexcept nogil:
    """Part of conn_close: out of list and counts."""
    if d.prev != NULL:
        d.prev.next = d.next
    else:
        w.connections = d.next
    if d.next != NULL:
        d.next.prev = d.prev
    d.next = NULL
    d.prev = NULL
    d.listener.connections -= 1
    w.connection_count -= 1
    w.live.gauges.downstream_connections -= 1
    if d.state == STATE_HEAD:
        w.live.gauges.downstream_idle -= 1
    if w.accept_paused:
        w.accept_paused = False
        listeners_resume(w)

cdef void listeners_pause(Worker *w) noexcept nogil:
    """Out of descriptors or at the limit: serve who is there, leave the others in the kernel's queue."""
    cdef Listener *listener = w.listeners
    w.accept_paused = True
    while listener != NULL:
        if not listener.paused and not listener.closing:
            epoll_ctl(w.epfd, EPOLL_CTL_DEL, listener.fd, NULL)
            listener.paused = True
        listener = listener.next
    timer_set(w, &w.pacer.timer, w.now_ms + 100)        # others may have freed descriptors meanwhile

cdef void listeners_resume(Worker *w) noexcept nogil:
    cdef Listener *listener = w.listeners
    while listener != NULL:
        if listener.paused and not listener.closing and listener_watch(w, listener):
            listener.paused = False
        listener = listener.next

cdef bint listener_watch(Worker *w, Listener *listener) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN              # not exclusive: when one worker steps back, the others must have been told
    event.data.ptr = listener
    return epoll_ctl(w.epfd, EPOLL_CTL_ADD, listener.fd, &event) == 0

cdef bint down_keep_input(Worker *w, Conn *d, const uint8_t *p, size_t n) noexcept nogil:
    """Keep bytes of the next request until its turn. False: no memory, or more than a connection may hold."""
    cdef Chunk *chunk = d.input
    cdef Chunk *larger
    if chunk == NULL:
        chunk = chunk_acquire(w, <uint32_t>n)
        if chunk == NULL:
            return False
        d.input = chunk
    elif chunk_room(chunk) < n:
        larger = chunk_acquire(w, <uint32_t>(chunk.end - chunk.at + n))
        if larger == NULL:
            return False
        memcpy(chunk_data(larger), chunk_data(chunk) + chunk.at, chunk.end - chunk.at)
        larger.end = chunk.end - chunk.at
        chunk_release(w, chunk)
        d.input = larger
        chunk = larger
    memcpy(chunk_data(chunk) + chunk.end, p, n)
    chunk.end += <uint32_t>n
    return True

cdef void down_read_head(Worker *w, Conn *d) noexcept nogil:
    """One head at a time. What is parked was scanned before, unless CONN_UNSCANNED; it is scanned again only when a
    line has been completed, so that a head sent byte by byte costs no more than its fields allow."""
    cdef size_t have = 0
    cdef ssize_t n
    cdef int64_t used
    if d.flags & CONN_UNSCANNED:
        down_scan_kept(w, d)
        return
    if d.input != NULL:
        have = d.input.end - d.input.at
        memcpy(w.input, chunk_data(d.input) + d.input.at, have)
    n = conn_recv(w, d, w.input + have, w.options.read_size)
    if n == IO_AGAIN:
        return
    if n <= 0:
        conn_close(w, d, False)                 # the peer went away between requests, or within a head
        return
    used = 0
    if have == 0 or memchr(w.input + have, 10, n) != NULL or have + n >= w.request_limits.target:
        used = scan_request(w.input, have + n, &w.request_limits, &w.head)
    if likely(used > 0):
        if d.input != NULL:
            chunk_release(w, d.input)
            d.input = NULL
        exchange_start(w, d, w.input, used, have + n)
    elif used == 0:
        down_wait_head(w, d, w.input + have, n)
        if d.flags & CONN_READABLE and not (d.flags & CONN_CLOSED):
            conn_queue(w, d)
    else:
        down_refuse(w, d, <uint8_t>(-used), w.input, have + n)

cdef void down_scan_kept(Worker *w, Conn *d) noexcept nogil:
    """The next of several requests that came together, read where it lies: copying what is left for each of them would
    cost a sender of many small ones little and us much."""
    cdef Chunk *chunk = d.input
    cdef uint8_t *p = chunk_data(chunk) + chunk.at
    cdef size_t n = chunk.end - chunk.at
    cdef int64_t used = scan_request(p, n, &w.request_limits, &w.head)
    d.flags &= ~CONN_UNSCANNED
    if used > 0:
        d.input = NULL
        w.kept = chunk                          # given back to `input` when there is more behind this request
        exchange_start(w, d, p, used, n)
        chunk_release(w, w.kept)
        w.kept = NULL
    elif used == 0:
        down_wait_head(w, d, NULL, 0)
        if d.flags & CONN_READABLE:
            conn_queue(w, d)
    else:
        down_refuse(w, d, <uint8_t>(-used), p, n)

cdef void down_wait_head(Worker *w, Conn *d, const uint8_t *p, size_t n) noexcept nogil:
    """The head is not whole: keep what came, and let the header timeout run from its first byte."""
    if n and not down_keep_input(w, d, p, n):
        conn_close(w, d, True)
        return
    if not (d.flags & CONN_HEAD_TIMED):
        d.flags |= CONN_HEAD_TIMED
        d.head_us = w.now_us
        timer_set(w, &d.timer, w.now_ms + w.options.header_timeout)

cdef void down_refuse(Worker *w, Conn *d, uint8_t kind, const uint8_t *p, size_t n) noexcept nogil:
    """A head that is not understood, or did not come in time: answered, recorded, closed."""
    cdef Exchange *ex
    ex = exchange_begin(w, d)
    if ex == NULL:
        return
    exchange_note_refused(w, ex, p, n)          # p may lie in `input`
    chunks_release(w, d.input)
    d.input = NULL
    exchange_fail(w, ex, kind, 0)

cdef void down_linger(Worker *w, Conn *d, bint done) noexcept nogil:
    """End it so that the last answer arrives: close() with unread input would reset the connection and take the answer
    with it, so the write side goes first and the rest is read and thrown away for a while (RFC 9112 §9.6)."""
    if d.output != NULL:
        d.state = STATE_FLUSH
        down_watch_write(w, d)
        return
    if done and d.input == NULL and not (d.flags & CONN_READABLE) or d.flags & (CONN_DEAD | CONN_EOF):
        conn_close(w, d, False)
        return
    chunks_release(w, d.input)
    d.input = NULL
    c_shutdown(d.fd, SHUT_WR)
    d.state = STATE_LINGER
    timer_set(w, &d.timer, w.now_ms + 5000)
    d.total = 0
    d.flags |= CONN_READABLE
    conn_queue(w, d)

cdef void down_drain_input(Worker *w, Conn *d) noexcept nogil:
    cdef ssize_t n
    cdef int turn
    for turn in range(8):
        if not (d.flags & CONN_READABLE):
            return
        n = conn_recv(w, d, w.input, w.options.read_size)
        if n == IO_AGAIN:
            return
        if n <= 0:
            conn_close(w, d, False)
            return
        d.total += n
        if d.total > (16 << 20):
            conn_close(w, d, True)
            return
    conn_queue(w, d)

cdef inline void down_watch_write(Worker *w, Conn *d) noexcept nogil:
    """While it takes nothing, the write timeout runs."""
    timer_set(w, &d.timer, w.now_ms + w.options.write_timeout)

cdef inline void down_half_closed(Worker *w, Conn *d) noexcept nogil:
    """FIN while an answer is awaited: a client that is done sending, or one that has gone and whose request should not
    burden the upstream any longer. TCP does not tell, so it gets its answer for a while."""
    if not (d.exchange.flags & EX_ANSWERED) and d.timer.deadline_ms == 0:
        timer_set(w, &d.timer, w.now_ms + w.options.half_close_timeout)

cdef void down_on_event(Worker *w, Conn *d, bint writable) noexcept nogil:
    cdef Exchange *ex = d.exchange
    if writable and d.flags & CONN_BLOCKED:
        if not down_on_writable(w, d):
            return
        ex = d.exchange
    if not (d.flags & CONN_READABLE) and not (d.flags & CONN_UNSCANNED):
        return
    if d.state == STATE_HEAD:
        down_read_head(w, d)
    elif d.state == STATE_EXCHANGE:
        if d.flags & CONN_DEAD and (ex.flags & EX_REQUEST_DONE or ex.up == NULL or ex.up.output != NULL
                                    or ex.up.state == STATE_CONNECTING):
            exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED)
        elif not (ex.flags & EX_REQUEST_DONE):
            request_pump(w, ex)
        elif d.flags & CONN_FIN:
            down_half_closed(w, d)
    elif d.state == STATE_LINGER:
        down_drain_input(w, d)
    elif d.state == STATE_TUNNEL:
        tunnel_on_event(w, ex, d, False)
    elif d.state == STATE_FLUSH and d.flags & CONN_DEAD:
        conn_close(w, d, False)

cdef bint down_on_writable(Worker *w, Conn *d) noexcept nogil:
    """Flush what is parked, then let the answer go on. False: the connection or its exchange is over."""
    cdef Exchange *ex = d.exchange
    d.flags &= ~CONN_BLOCKED
    if not conn_flush(w, d):
        if ex != NULL:
            exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED)
        else:
            conn_close(w, d, False)
        return False
    if d.output != NULL:
        down_watch_write(w, d)
        return True
    timer_clear(&d.timer)
    if d.state == STATE_FLUSH:
        down_linger(w, d, False)
        return False
    if d.state == STATE_TUNNEL:
        timer_set(w, &d.timer, w.now_ms + w.options.tunnel_idle_timeout)
        tunnel_on_event(w, ex, d, True)
        return not (d.flags & CONN_CLOSED)
    if ex == NULL:
        return True
    if not (ex.flags & EX_REQUEST_DONE):
        timer_set(w, &d.timer, w.now_ms + w.options.body_timeout)
    if ex.piped:
        response_unpipe(w, ex)
        if d.exchange != ex or ex.piped:
            return d.exchange == ex
    if ex.flags & EX_RESPONSE_DONE:
        exchange_finish(w, ex)
        return not (d.flags & CONN_CLOSED)
    if ex.up != NULL and ex.up.state == STATE_EXCHANGE and ex.up.flags & CONN_READABLE:
        response_pump(w, ex)
    return d.exchange == ex

cdef void down_on_timeout(Worker *w, Conn *d) noexcept nogil:
    cdef Exchange *ex = d.exchange
    if d.state == STATE_HEAD:
        if d.flags & CONN_HEAD_TIMED and d.input != NULL:
            down_refuse(w, d, KIND_HEADER_TIMEOUT, chunk_data(d.input) + d.input.at, d.input.end - d.input.at)
        else:
            conn_close(w, d, False)
    elif d.state == STATE_EXCHANGE:
        if d.output != NULL or ex.piped:
            exchange_abort(w, ex, KIND_DOWNSTREAM_TIMEOUT)
        elif ex.flags & EX_REQUEST_DONE:
            if not (ex.flags & EX_ANSWERED):
                exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED)
        elif ex.up == NULL or ex.up.state == STATE_CONNECTING or not body_awaited(ex):
            timer_set(w, &d.timer, w.now_ms + w.options.body_timeout)      # the upstream is slow, its timer sees to it
        else:
            exchange_fail(w, ex, KIND_BODY_TIMEOUT, 0)
    elif d.state == STATE_TUNNEL:
        exchange_abort(w, ex, KIND_DOWNSTREAM_TIMEOUT)
    else:
        conn_close(w, d, False)

cdef void conn_timeout(Worker *w, Conn *c) noexcept nogil:
    if c.side == SIDE_DOWN:
        down_on_timeout(w, c)
    elif c.side == SIDE_UP:
        up_on_timeout(w, c)
    else:
        w.accept_paused = False
        listeners_resume(w)
