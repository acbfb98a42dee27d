# Large bodies with a known length go from socket to socket through a pipe: no copy to user space, and what is on its
# way is bounded by the pipe. Worth it from about two reads on; below that a copy is cheaper than two more calls.

cdef enum:
    SPLICE_LEAST = 131072           # bytes still to come
    PIPE_SIZE = 262144              # asked for; the kernel may give less

cdef bint pipe_acquire(Worker *w, Exchange *ex) noexcept nogil:
    if w.spare_pipe_count:
        w.spare_pipe_count -= 1
        ex.pipe[0] = w.spare_pipes[w.spare_pipe_count][0]
        ex.pipe[1] = w.spare_pipes[w.spare_pipe_count][1]
    else:
        if c_pipe2(ex.pipe, O_NONBLOCK | O_CLOEXEC) != 0:
            ex.pipe[0] = -1
            return False
        c_fcntl(ex.pipe[1], F_SETPIPE_SZ, <int>PIPE_SIZE)      # unprivileged users have a quota: the default serves too
    w.live.gauges.pipes += 1
    return True

cdef void pipe_release(Worker *w, Exchange *ex) noexcept nogil:
    """Back to the spare ones when it is empty; one with bytes left of a cut answer must never be used again."""
    if ex.pipe[0] < 0:
        return
    w.live.gauges.pipes -= 1
    if ex.piped == 0 and w.spare_pipe_count < 64:
        w.spare_pipes[w.spare_pipe_count][0] = ex.pipe[0]
        w.spare_pipes[w.spare_pipe_count][1] = ex.pipe[1]
        w.spare_pipe_count += 1
    else:
        c_close(ex.pipe[0])
        c_close(ex.pipe[1])
    ex.pipe[0] = -1
    ex.piped = 0

cdef bint response_splice(Worker *w, Exchange *ex) noexcept nogil:
    """Move what can be moved now. False: nothing to splice here, copy. Nothing may be parked for the downstream."""
    cdef Conn *u = ex.up
    cdef Conn *d = ex.down
    cdef ssize_t n
    if ex.response_framing != FRAMING_LENGTH or ex.response_left < SPLICE_LEAST:
        return False
    if ex.pipe[0] < 0 and not pipe_acquire(w, ex):
        return False
    while True:
        n = c_splice(u.fd, NULL, ex.pipe[1], NULL, min(ex.response_left, <uint64_t>PIPE_SIZE),
                     SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if n >= 0 or errno != EINTR:
            break
    if n < 0:
        u.flags &= ~CONN_READABLE           # the pipe is empty here, so it is the socket that has nothing
        if errno != EAGAIN:
            response_cut(w, ex, False)
        return True
    if n == 0:
        u.flags = (u.flags | CONN_EOF) & ~CONN_READABLE
        response_cut(w, ex, True)
        return True
    ex.response_left -= n
    ex.piped += <uint32_t>n
    ex.sent += n
    timer_set(w, &u.timer, up_deadline(w, ex, w.options.upstream_read_timeout))
    response_unpipe(w, ex)
    return True

cdef void response_unpipe(Worker *w, Exchange *ex) noexcept nogil:
    """Empty the pipe into the downstream; what it does not take waits in the pipe for EPOLLOUT."""
    cdef Conn *d = ex.down
    cdef ssize_t n
    while ex.piped:
        n = c_splice(ex.pipe[0], NULL, d.fd, NULL, ex.piped, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
        if n > 0:
            ex.piped -= <uint32_t>n
        elif n < 0 and errno == EINTR:
            continue
        elif n < 0 and errno == EAGAIN:
            conn_block(w, d)
            down_watch_write(w, d)
            return
        else:
            exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED)
            return
    if ex.response_left == 0:
        response_done(w, ex)
