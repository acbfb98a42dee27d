# Upstream connections: opened when no idle one is pooled, kept per endpoint, newest used first.

cdef uint64_t up_deadline(Worker *w, Exchange *ex, uint64_t wait_ms) noexcept nogil:
    """When the wait for the upstream is over: its own limit, or the route's timeout if that is earlier."""
    cdef uint64_t deadline = w.now_ms + wait_ms
    if ex.deadline_ms and ex.deadline_ms < deadline:
        return ex.deadline_ms
    return deadline

cdef Conn *up_open(Worker *w, const Plan *plan, const Endpoint *e, int *kind) noexcept nogil:
    """A connection that is being made, or made (Unix sockets). NULL: `kind` says why."""
    cdef sockaddr_storage storage
    cdef sockaddr_in *v4 = <sockaddr_in *>&storage
    cdef sockaddr_in6 *v6 = <sockaddr_in6 *>&storage
    cdef sockaddr_un *un = <sockaddr_un *>&storage
    cdef socklen_t length
    cdef int one = 1
    cdef int fd
    cdef Conn *u
    memset(&storage, 0, sizeof(storage))
    storage.ss_family = e.family
    if e.family == AF_INET:
        v4.sin_port = htons(e.port)
        memcpy(&v4.sin_addr, e.address, 4)
        length = sizeof(sockaddr_in)
    elif e.family == AF_INET6:
        v6.sin6_port = htons(e.port)
        memcpy(&v6.sin6_addr, e.address, 16)
        length = sizeof(sockaddr_in6)
    else:
        if e.path.len >= sizeof(un.sun_path):
            return NULL
        memcpy(un.sun_path, text(plan, e.path), e.path.len)
        length = sizeof(unsigned short) + e.path.len + 1
    fd = c_socket(e.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0 and (errno == EMFILE or errno == ENFILE):
        w.live.gauges.descriptors_exhausted += 1
        if pool_trim(w):
            fd = c_socket(e.family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        kind[0] = KIND_OVERLOAD
        return NULL
    if e.family != AF_UNIX:
        c_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    w.live.gauges.upstream_connects += 1
    u = <Conn *>spare_acquire(&w.conns, sizeof(Conn))
    if u == NULL:
        c_close(fd)
        kind[0] = KIND_OVERLOAD
        return NULL
    u.side = SIDE_UP
    u.fd = fd
    u.slot = e.slot
    u.identity = e.identity
    u.idle_limit_ms = <uint32_t>min(w.options.upstream_idle_timeout, <uint64_t>0xFFFFFFFF)
    u.state = STATE_CONNECTING
    if e.family == AF_UNIX:
        u.flags = CONN_UNIX
    w.live.gauges.upstream_connections += 1
    w.live.endpoint[u.slot].connections += 1
    if c_connect(fd, <sockaddr *>&storage, length) == 0:
        u.state = STATE_EXCHANGE
    elif errno != EINPROGRESS:
        conn_close(w, u, False)
        return NULL
    if not conn_watch(w, u, EPOLL_CTL_ADD, u.state == STATE_CONNECTING or not (u.flags & CONN_UNIX)):
        conn_close(w, u, False)
        kind[0] = KIND_OVERLOAD
        return NULL
    return u

cdef void up_on_connected(Worker *w, Conn *u) noexcept nogil:
    """EPOLLOUT or an error while connecting."""
    cdef int error = 0
    cdef socklen_t length = sizeof(error)
    c_getsockopt(u.fd, SOL_SOCKET, SO_ERROR, &error, &length)
    if error:
        exchange_connect_failed(w, u.exchange, KIND_CONNECT_FAILED)
        return
    exchange_send(w, u.exchange)

cdef void up_detach(Worker *w, Exchange *ex) noexcept nogil:
    """The answer is whole: back to the pool if the connection is fit for another request."""
    cdef Conn *u = ex.up
    if u == NULL:
        return
    ex.up = NULL
    u.exchange = NULL
    if (not (ex.flags & EX_KEEP_UP) or not (ex.flags & EX_REQUEST_DONE) or u.output != NULL or u.input != NULL
            or u.flags & (CONN_FIN | CONN_DEAD | CONN_EOF | CONN_READABLE | CONN_SEND_DEAD)):
        conn_close(w, u, False)
        return
    pool_put(w, u)

cdef void up_drop(Worker *w, Exchange *ex) noexcept nogil:
    """Close what the exchange has of an upstream; it may have nothing."""
    cdef Conn *u = ex.up
    if u == NULL:
        return
    u.exchange = NULL
    ex.up = NULL
    conn_close(w, u, False)

cdef void up_forget(Worker *w, Conn *u) noexcept nogil:
    """Part of conn_close: out of pool and counts."""
    if u.state == STATE_IDLE:
        pool_unlink(w, u)
    w.live.gauges.upstream_connections -= 1
    w.live.endpoint[u.slot].connections -= 1

cdef void pool_unlink(Worker *w, Conn *u) noexcept nogil:
    cdef Pool *pool = &w.pools[u.slot]
    if u.prev != NULL:
        u.prev.next = u.next
    else:
        pool.idle = u.next
    if u.next != NULL:
        u.next.prev = u.prev
    else:
        pool.oldest = u.prev
    u.next = NULL
    u.prev = NULL
    pool.count -= 1
    u.state = STATE_EXCHANGE
    w.live.gauges.upstream_idle -= 1

cdef void pool_put(Worker *w, Conn *u) noexcept nogil:
    cdef Pool *pool = &w.pools[u.slot]
    if pool.identity != u.identity or w.draining or pool.count >= w.options.max_pooled:
        conn_close(w, u, False)
        return
    u.state = STATE_IDLE
    u.flags |= CONN_REUSED
    u.prev = NULL
    u.next = pool.idle
    if pool.idle != NULL:
        pool.idle.prev = u
    else:
        pool.oldest = u
    pool.idle = u
    pool.count += 1
    w.live.gauges.upstream_idle += 1
    timer_set(w, &u.timer, w.now_ms + u.idle_limit_ms)

cdef Conn *pool_take(Worker *w, const Endpoint *e) noexcept nogil:
    """The connection used last, or NULL. A slot that now belongs to another address loses its old connections."""
    cdef Pool *pool = &w.pools[e.slot]
    cdef Conn *u
    if pool.identity != e.identity:
        while pool.idle != NULL:
            conn_close(w, pool.idle, False)
        pool.identity = e.identity
        pool.http10 = 0
    u = pool.idle
    if u != NULL:
        pool_unlink(w, u)
        w.live.gauges.upstream_reuses += 1
    return u

cdef bint pool_trim(Worker *w) noexcept nogil:
    """Out of descriptors: give up a spare pipe, or the oldest idle connection of the first pool that has one."""
    cdef uint32_t i
    if w.spare_pipe_count:
        w.spare_pipe_count -= 1
        c_close(w.spare_pipes[w.spare_pipe_count][0])
        c_close(w.spare_pipes[w.spare_pipe_count][1])
        return True
    if w.live.gauges.upstream_idle == 0:
        return False
    for i in range(w.live.header.endpoints):
        if w.pools[i].oldest != NULL:
            conn_close(w, w.pools[i].oldest, False)
            return True
    return False

cdef void up_on_event(Worker *w, Conn *u, bint writable) noexcept nogil:
    cdef Exchange *ex = u.exchange
    if u.state == STATE_CONNECTING:
        if writable or u.flags & CONN_DEAD:
            up_on_connected(w, u)
        if u.exchange == NULL or u.exchange != ex or u.state != STATE_EXCHANGE or not (u.flags & CONN_READABLE):
            return
        response_pump(w, ex)                    # it answered, or went away, in the very event that connected it
        return
    if u.state == STATE_IDLE:
        if u.flags & CONN_READABLE:
            conn_close(w, u, False)         # closed by the upstream, or bytes that nobody asked for
        return
    if u.state == STATE_TUNNEL:
        tunnel_on_event(w, ex, u, writable)
        return
    if writable and u.flags & CONN_BLOCKED:
        u.flags &= ~CONN_BLOCKED
        if not conn_flush(w, u):
            request_refused(w, ex)
            return
        if u.output == NULL:
            timer_set(w, &u.timer, up_deadline(w, ex, w.options.upstream_read_timeout))
            if not (ex.flags & EX_REQUEST_DONE):
                request_pump(w, ex)
                if u.exchange != ex:
                    return
    if u.flags & CONN_READABLE:
        response_pump(w, ex)

cdef inline bint body_awaited(Exchange *ex) noexcept nogil:
    """It is the downstream's turn: the upstream took all there is, and if it was asked for leave it gave it."""
    return (not (ex.flags & EX_REQUEST_DONE) and ex.up.output == NULL
            and not (ex.flags & EX_EXPECT and ex.interim == 0 and ex.received == 0))

cdef void up_on_timeout(Worker *w, Conn *u) noexcept nogil:
    cdef Exchange *ex = u.exchange
    cdef bint late
    if ex == NULL:
        conn_close(w, u, False)
        return
    late = ex.deadline_ms != 0 and w.now_ms >= ex.deadline_ms
    if u.state == STATE_CONNECTING:
        if late:
            exchange_fail(w, ex, KIND_UPSTREAM_TIMEOUT, 0)
        else:
            exchange_connect_failed(w, ex, KIND_CONNECT_TIMEOUT)
    elif not late and (body_awaited(ex) or ex.down.output != NULL or ex.piped):
        # it is the downstream that is slow, and its own timer sees to that
        timer_set(w, &u.timer, up_deadline(w, ex, w.options.upstream_read_timeout))
    elif ex.flags & EX_ANSWERED:
        exchange_abort(w, ex, KIND_UPSTREAM_TIMEOUT if late else KIND_UPSTREAM_IDLE)
    else:
        exchange_fail(w, ex, KIND_UPSTREAM_TIMEOUT, 0)
