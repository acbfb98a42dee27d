# After 101 both connections carry bytes that are none of our business; each direction ends by itself (half-close).

cdef void tunnel_start(Worker *w, Exchange *ex, uint8_t *p, size_t used, size_t n) noexcept nogil:
    """The upstream answered 101; its head is in w.head at p[:used], p[used:n] are its first bytes."""
    cdef Conn *d = ex.down
    cdef Conn *u = ex.up
    cdef Head *h = &w.head
    cdef uint8_t *end
    cdef Chunk *early
    if not (ex.flags & EX_UPGRADE) or not (h.flags & HEAD_CONNECTION_UPGRADE) or not (ex.flags & EX_REQUEST_DONE) \
            or h.length + HEAD_ROOM > w.output_size:
        exchange_fail(w, ex, KIND_UPSTREAM_PROTOCOL, BAD_UPGRADE)
        return
    ex.upstream_status = 101
    ex.status = 101
    ex.upgraded = 1
    ex.upstream_us = <uint32_t>(w.now_us - ex.sent_us)
    ex.flags = (ex.flags | EX_ANSWERED) & ~(EX_KEEP_DOWN | EX_KEEP_UP)
    ex.response_framing = FRAMING_CLOSE
    ex.deadline_ms = 0                          # a route's timeout is for the answer, not for what follows the upgrade
    chunk_release(w, ex.head)
    ex.head = NULL
    end = response_head(w, w.output, ex, h, False)
    ex.sent = n - used
    d.state = STATE_TUNNEL
    u.state = STATE_TUNNEL
    timer_clear(&u.timer)
    timer_set(w, &d.timer, w.now_ms + w.options.tunnel_idle_timeout)
    if not conn_write(w, d, w.output, end - w.output, p + used, n - used):
        exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED)
        return
    if d.input != NULL:                         # sent behind the request, ahead of our answer
        early = d.input
        d.input = NULL
        ex.received += early.end - early.at
        if not conn_write(w, u, chunk_data(early) + early.at, early.end - early.at, NULL, 0):
            chunk_release(w, early)
            exchange_abort(w, ex, KIND_UPSTREAM_TRUNCATED)
            return
        chunk_release(w, early)
    if d.flags & CONN_READABLE:
        conn_queue(w, d)
    if u.flags & CONN_READABLE:
        conn_queue(w, u)

cdef void tunnel_on_event(Worker *w, Exchange *ex, Conn *c, bint writable) noexcept nogil:
    """`c` can be read or, with `writable`, took what was parked for it."""
    cdef Conn *peer = ex.up if c.side == SIDE_DOWN else ex.down
    if c.side == SIDE_DOWN and c.flags & CONN_DEAD and c.flags & CONN_EOF and not (c.flags & (CONN_HALF | CONN_UNIX)):
        exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED)
        return                              # it ended its half before, and was reset now; nobody is left to answer to
    if writable and c.flags & CONN_BLOCKED:
        c.flags &= ~CONN_BLOCKED
        if not conn_flush(w, c):
            exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED if c.side == SIDE_DOWN else KIND_UPSTREAM_TRUNCATED)
            return
    if writable and c.output == NULL:
        if not tunnel_pump(w, ex, peer, c):
            return
    if c.flags & CONN_READABLE:
        tunnel_pump(w, ex, c, peer)

cdef bint tunnel_pump(Worker *w, Exchange *ex, Conn *c, Conn *peer) noexcept nogil:
    """From c to peer. False: the tunnel is over."""
    cdef ssize_t n
    cdef int turn
    for turn in range(8):
        if peer.output != NULL or not (c.flags & (CONN_READABLE | CONN_EOF)) or peer.flags & CONN_HALF:
            return True
        n = conn_recv(w, c, w.input, w.options.read_size)
        if n == IO_AGAIN:
            return True
        if n == IO_ERROR:
            exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED if c.side == SIDE_DOWN else KIND_UPSTREAM_TRUNCATED)
            return False
        timer_set(w, &ex.down.timer, w.now_ms + w.options.tunnel_idle_timeout)
        if n == 0:
            c_shutdown(peer.fd, SHUT_WR)
            peer.flags |= CONN_HALF
            if c.flags & CONN_HALF:             # both directions are done
                ex.flags |= EX_RESPONSE_DONE
                exchange_finish(w, ex)
                return False
            return True
        if c.side == SIDE_DOWN:
            ex.received += n
        else:
            ex.sent += n
        if not conn_write(w, peer, w.input, n, NULL, 0):
            exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED if peer.side == SIDE_DOWN else KIND_UPSTREAM_TRUNCATED)
            return False
    if c.flags & CONN_READABLE:
        conn_queue(w, c)
    return True
