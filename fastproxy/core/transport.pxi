# The transport seam: all bytes of a connection pass through these four functions. Plain sockets now; TLS becomes a
# second set behind the same signatures.
#
# Edge-triggered rule: CONN_READABLE says that recv may have something. A read shorter than asked for drains the socket,
# so it clears the flag without a second recv that would only say EAGAIN; unless FIN or an error is known to follow.
#
# The kernel tells an error once, to whichever call comes first; after that, recv says 0 as if the peer had ended
# properly. So it is kept in CONN_FAILED, and what a send was told is what the read of the rest ends with.

cdef enum:
    IO_AGAIN = -1
    IO_ERROR = -2

cdef ssize_t conn_recv(Worker *w, Conn *c, uint8_t *buf, size_t size) noexcept nogil:
    """Bytes read, 0: the peer is done sending, IO_AGAIN, IO_ERROR: reset."""
    cdef ssize_t n
    if c.flags & CONN_EOF:
        c.flags &= ~CONN_READABLE
        return 0
    while True:
        n = c_recv(c.fd, buf, size, 0)
        if n > 0:
            if <size_t>n < size and not (c.flags & (CONN_FIN | CONN_DEAD)):
                c.flags &= ~CONN_READABLE
            return n
        if n == 0:
            c.flags &= ~CONN_READABLE
            if c.flags & CONN_FAILED:
                return IO_ERROR
            c.flags |= CONN_EOF
            return 0
        if errno == EINTR:
            continue
        c.flags &= ~CONN_READABLE
        if errno == EAGAIN:
            return IO_AGAIN
        return conn_failed(c)

cdef ssize_t conn_failed(Conn *c) noexcept nogil:
    """The call said an error that ends the connection. EPIPE: FIN came before the reset, so what came was whole."""
    if errno != EPIPE:
        c.flags |= CONN_FAILED
    if errno == ECONNRESET:
        c.flags |= CONN_RESET
    return IO_ERROR

cdef ssize_t conn_send(Worker *w, Conn *c, const uint8_t *p, size_t n) noexcept nogil:
    """Bytes the socket took (it may be fewer, then CONN_BLOCKED is set), or IO_ERROR."""
    cdef ssize_t sent
    while True:
        sent = c_send(c.fd, p, n, MSG_NOSIGNAL)
        if sent == <ssize_t>n:
            return sent
        if sent >= 0:
            conn_block(w, c)
            return sent
        if errno == EINTR:
            continue
        if errno == EAGAIN:
            conn_block(w, c)
            return 0
        return conn_failed(c)

cdef ssize_t conn_send2(Worker *w, Conn *c, const uint8_t *p, size_t n, const uint8_t *q, size_t m) noexcept nogil:
    """As conn_send, for two pieces in one call."""
    cdef iovec parts[2]
    cdef msghdr message
    cdef ssize_t sent
    parts[0].iov_base = <void *>p
    parts[0].iov_len = n
    parts[1].iov_base = <void *>q
    parts[1].iov_len = m
    memset(&message, 0, sizeof(message))
    message.msg_iov = parts
    message.msg_iovlen = 2
    while True:
        sent = c_sendmsg(c.fd, &message, MSG_NOSIGNAL)
        if sent == <ssize_t>(n + m):
            return sent
        if sent >= 0:
            conn_block(w, c)
            return sent
        if errno == EINTR:
            continue
        if errno == EAGAIN:
            conn_block(w, c)
            return 0
        return conn_failed(c)

cdef void conn_block(Worker *w, Conn *c) noexcept nogil:
    """A write came back short: the next EPOLLOUT resumes."""
    if not (c.flags & CONN_BLOCKED):
        c.flags |= CONN_BLOCKED
        if c.flags & CONN_UNIX:
            conn_watch(w, c, EPOLL_CTL_MOD, True)

cdef bint conn_watch(Worker *w, Conn *c, int op, bint writable) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN | EPOLLRDHUP | EDGE
    if writable:
        event.events |= EPOLLOUT
    event.data.ptr = c
    return epoll_ctl(w.epfd, op, c.fd, &event) == 0

cdef bint conn_park(Worker *w, Conn *c, const uint8_t *p, size_t n) noexcept nogil:
    """Keep what the socket did not take. False: no memory."""
    cdef Chunk *chunk = c.output_tail
    cdef size_t part
    while n > 0:
        if chunk == NULL or chunk_room(chunk) == 0:
            chunk = chunk_acquire(w, <uint32_t>min(n, <size_t>w.large_size))
            if chunk == NULL:
                return False
            if c.output_tail == NULL:
                c.output = chunk
            else:
                c.output_tail.next = chunk
            c.output_tail = chunk
        part = min(n, <size_t>chunk_room(chunk))
        memcpy(chunk_data(chunk) + chunk.end, p, part)
        chunk.end += <uint32_t>part
        p += part
        n -= part
    return True

cdef bint conn_write(Worker *w, Conn *c, const uint8_t *p, size_t n, const uint8_t *q, size_t m) noexcept nogil:
    """Send both pieces, parking what the socket does not take. False: the connection is broken."""
    cdef ssize_t sent
    if n == 0:
        p = q
        n = m
        m = 0
    if c.output != NULL:
        return conn_park(w, c, p, n) and conn_park(w, c, q, m)
    if n == 0:
        return True
    if m == 0:
        sent = conn_send(w, c, p, n)
    else:
        sent = conn_send2(w, c, p, n, q, m)
    if sent < 0:
        return False
    if likely(<size_t>sent == n + m):
        return True
    if <size_t>sent < n:
        return conn_park(w, c, p + sent, n - sent) and conn_park(w, c, q, m)
    return conn_park(w, c, q + (sent - n), n + m - sent)

cdef bint conn_flush(Worker *w, Conn *c) noexcept nogil:
    """Send what is parked. False: the connection is broken."""
    cdef Chunk *chunk
    cdef ssize_t sent
    while c.output != NULL:
        chunk = c.output
        sent = conn_send(w, c, chunk_data(chunk) + chunk.at, chunk.end - chunk.at)
        if sent < 0:
            return False
        chunk.at += <uint32_t>sent
        if chunk.at < chunk.end:
            return True
        c.output = chunk.next
        if c.output == NULL:
            c.output_tail = NULL
        chunk_release(w, chunk)
    if c.flags & CONN_UNIX:
        conn_watch(w, c, EPOLL_CTL_MOD, False)
    return True

cdef void conn_close(Worker *w, Conn *c, bint reset) noexcept nogil:
    """End it, give back what it holds. Safe to call twice. `reset`: RST instead of FIN, so that a cut answer without a
    length is seen as cut. The struct itself lives until the batch of events is over."""
    cdef linger_t linger
    if c.flags & CONN_CLOSED:
        return
    c.flags |= CONN_CLOSED
    timer_unlink(w, &c.timer)
    chunks_release(w, c.input)
    chunks_release(w, c.output)
    c.input = NULL
    c.output = NULL
    c.output_tail = NULL
    if reset:
        linger.l_onoff = 1
        linger.l_linger = 0
        c_setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger))
    c_close(c.fd)
    c.fd = -1
    if c.side == SIDE_DOWN:
        down_forget(w, c)
    else:
        up_forget(w, c)
    c.next = w.graveyard
    w.graveyard = c

cdef void conn_queue(Worker *w, Conn *c) noexcept nogil:
    """Look at it again this round, after the others."""
    if c.flags & CONN_QUEUED:
        return
    c.flags |= CONN_QUEUED
    c.ready = NULL
    if w.ready_last == NULL:
        w.ready_first = c
    else:
        w.ready_last.ready = c
    w.ready_last = c
