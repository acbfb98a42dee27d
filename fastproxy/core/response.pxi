# The response: head rewritten, body framed and passed, until it is all handed to the downstream.

cdef uint8_t *response_head(Worker *w, uint8_t *o, Exchange *ex, const Head *h, bint final) noexcept nogil:
    """Write the head as the downstream gets it. Room: the caller checked h.length + appended fields + HEAD_ROOM."""
    cdef uint8_t *drop = w.drop_response
    cdef uint32_t line
    cdef bint upgraded = h.status == 101
    cdef const HeaderOps *a = NULL
    cdef const HeaderOps *b = NULL
    drop[KNOWN_UPGRADE] = not upgraded
    drop[KNOWN_TRANSFER_ENCODING] = (ex.flags & EX_HTTP10) != 0     # RFC 9112 §6.1: never to HTTP/1.0
    drop[KNOWN_TRAILER] = (ex.flags & EX_HTTP10) != 0
    drop[KNOWN_SERVER] = 0
    # the status line behind "HTTP/1.x", whatever version the upstream speaks: we answer as HTTP/1.1 (RFC 9110 §2.5)
    line = h.fields[0].name if h.field_count else h.length - 2
    o = put(o, b"HTTP/1.1", 8)
    if h.reason.len:
        o = put(o, h.base + 8, line - 8)
    else:                                           # the space stays, also where the upstream leaves it out
        o = put(put(o, h.base + 8, 4), b" \r\n", 3)
    if final:                                       # what is forwarded has a route and a destination
        a = &ex.route.response
        b = &ex.destination.response
    o = put_fields(w, o, h, drop, ex.plan, a, b)
    if final and h.first[KNOWN_DATE] == 0 and ours(w, ex.plan, OWN_DATE, a, b):
        o = put_date(w, o)                          # RFC 9110 §6.6.1: who has a clock and passes it on adds it
    if w.options.via_len and ours(w, ex.plan, OWN_VIA, a, b):
        line = w.options.via_len
        o = put(o, w.options.via, line)
        (o - line + 7)[0] = 48 + h.minor
    if upgraded:
        o = put(o, b"Connection: upgrade\r\n", 21)
    elif final:
        o = put_persistence(o, ex)
    return put(o, b"\r\n", 2)

cdef inline uint8_t *put_persistence(uint8_t *o, Exchange *ex) noexcept nogil:
    """Say what happens to the connection where the version's default does not say it."""
    if not (ex.flags & EX_KEEP_DOWN):
        return put(o, b"Connection: close\r\n", 19)
    if ex.flags & EX_HTTP10:
        return put(o, b"Connection: keep-alive\r\n", 24)
    return o

cdef void response_pump(Worker *w, Exchange *ex) noexcept nogil:
    """Read what the upstream has and hand it on, until it has no more, the downstream is slow, or it is over."""
    cdef Conn *u = ex.up
    cdef uint32_t have
    cdef ssize_t n
    cdef int turn
    for turn in range(8):
        if not (u.flags & CONN_READABLE) or ex.down.output != NULL or ex.piped:
            return
        if ex.flags & EX_ANSWERED and response_splice(w, ex):
            if u.exchange != ex:
                return
            continue
        have = 0
        if u.input != NULL:
            have = u.input.end - u.input.at
            memcpy(w.input, chunk_data(u.input) + u.input.at, have)
        n = conn_recv(w, u, w.input + have, w.options.read_size)
        if n == IO_AGAIN:
            return
        if n <= 0:
            response_cut(w, ex, n == 0)
            return
        if u.input != NULL:
            chunk_release(w, u.input)
            u.input = NULL
        ex.flags |= EX_UPSTREAM_BYTES
        timer_set(w, &u.timer, up_deadline(w, ex, w.options.upstream_read_timeout))
        if ex.flags & EX_ANSWERED:
            response_body(w, ex, w.input, n, 0)
        else:
            response_read_head(w, ex, w.input, have + n)
        if u.exchange != ex or u.state != STATE_EXCHANGE:
            return                              # over, or a tunnel now
    if u.flags & CONN_READABLE:
        conn_queue(w, u)

cdef void response_read_head(Worker *w, Exchange *ex, uint8_t *p, size_t n) noexcept nogil:
    """Heads of interim answers are passed on as they come; the final one starts the answer."""
    cdef Conn *u = ex.up
    cdef Head *h = &w.head
    cdef int64_t used
    while True:
        used = scan_response(p, n, &w.response_limits, (ex.flags & EX_HEAD) != 0, False, h)
        if used == 0:
            u.input = chunk_acquire(w, <uint32_t>n)
            if u.input == NULL:
                exchange_fail(w, ex, KIND_UPSTREAM_PROTOCOL, BAD_HEAD_SIZE)
                return
            memcpy(chunk_data(u.input), p, n)
            u.input.end = <uint32_t>n
            return
        if used < 0:
            exchange_fail(w, ex, KIND_UPSTREAM_PROTOCOL, <uint8_t>(-used))
            return
        if h.status >= 200:
            response_start(w, ex, p, used, n)
            return
        if h.status == 101:
            tunnel_start(w, ex, p, used, n)
            return
        ex.interim += 1
        if ex.interim > 32 or not response_interim(w, ex, h):
            exchange_fail(w, ex, KIND_UPSTREAM_PROTOCOL, BAD_STATUS)
            return
        if u.exchange != ex:
            return
        p += used
        n -= used
        if n == 0:
            return

cdef bint response_interim(Worker *w, Exchange *ex, const Head *h) noexcept nogil:
    """1xx: to HTTP/1.1 only (RFC 9110 §15.2). False: its head is too large."""
    cdef uint8_t *end
    if ex.flags & EX_HTTP10:
        return True
    if h.length + HEAD_ROOM > w.output_size:
        return False
    end = response_head(w, w.output, ex, h, False)
    if not conn_write(w, ex.down, w.output, end - w.output, NULL, 0):
        exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED)
        return True
    if ex.down.output != NULL:
        down_watch_write(w, ex.down)
    return True

cdef void response_start(Worker *w, Exchange *ex, uint8_t *p, size_t used, size_t n) noexcept nogil:
    """The final head is at p[:used]; what follows belongs to the body, or should not be there."""
    cdef Head *h = &w.head
    cdef Conn *u = ex.up
    cdef uint64_t extra = 0
    cdef uint32_t idle
    chunk_release(w, ex.head)
    ex.head = NULL
    ex.upstream_status = h.status
    ex.status = h.status
    ex.upstream_us = <uint32_t>(w.now_us - ex.sent_us)
    ex.response_framing = h.framing
    ex.response_left = h.content_length if h.framing == FRAMING_LENGTH else 0
    memset(&ex.response_chunked, 0, sizeof(Chunked))
    w.pools[u.slot].http10 = h.minor == 0
    if h.framing != FRAMING_CLOSE and not (h.flags & HEAD_CONNECTION_CLOSE) and (
            h.minor or h.flags & HEAD_CONNECTION_KEEP_ALIVE):
        ex.flags |= EX_KEEP_UP
    if h.first[KNOWN_KEEP_ALIVE]:
        idle = keep_alive_hint(h)
        u.idle_limit_ms = idle if idle else u.idle_limit_ms
    if h.framing == FRAMING_CLOSE:
        ex.flags &= ~EX_KEEP_DOWN
    elif h.framing == FRAMING_CHUNKED and ex.flags & EX_HTTP10:
        ex.flags = (ex.flags | EX_DECHUNK) & ~EX_KEEP_DOWN
    if not (ex.flags & EX_REQUEST_DONE) or w.draining:
        ex.flags &= ~EX_KEEP_DOWN
    extra = ex.route.response.append.len + ex.destination.response.append.len
    if h.length + extra + HEAD_ROOM > w.output_size:
        exchange_fail(w, ex, KIND_UPSTREAM_PROTOCOL, BAD_HEAD_SIZE)
        return
    ex.flags |= EX_ANSWERED
    response_body(w, ex, p + used, n - used, response_head(w, w.output, ex, h, True) - w.output)

cdef uint32_t keep_alive_hint(const Head *h) noexcept nogil:
    """Milliseconds for which the upstream says it keeps the connection, less a second for the way; 0: says nothing."""
    cdef const Field *f = known_field(h, KNOWN_KEEP_ALIVE)
    cdef const uint8_t *v = h.base + f.value
    cdef uint32_t i = 0
    cdef uint32_t seconds = 0
    if f.value_len < 9:
        return 0
    while i + 8 < f.value_len and not name_equals(v + i, b"timeout=", 8):
        i += 1
    if i + 8 >= f.value_len:
        return 0
    i += 8
    while i < f.value_len and 48 <= v[i] <= 57 and seconds < 100000:
        seconds = seconds * 10 + (v[i] - 48)
        i += 1
    return (seconds - 1) * 1000 if seconds > 1 else 500

cdef void response_body(Worker *w, Exchange *ex, uint8_t *p, size_t n, size_t head_len) noexcept nogil:
    """Frame n bytes of body and hand them on, behind head_len bytes that stand in w.output."""
    cdef uint8_t *out = p
    cdef size_t out_len = 0
    cdef int64_t used
    cdef bint done = False
    cdef Conn *d = ex.down
    if ex.response_framing == FRAMING_LENGTH:
        out_len = min(<uint64_t>n, ex.response_left)
        ex.response_left -= out_len
        done = ex.response_left == 0
        used = out_len
    elif ex.response_framing == FRAMING_CHUNKED:
        if ex.flags & EX_DECHUNK:
            used = 0
            while used < <int64_t>n and ex.response_chunked.state != CHUNKED_DONE:
                used = response_dechunk(ex, p, n, used, &out_len)
                if used < 0:
                    break
        else:
            used = chunked_pass(&ex.response_chunked, p, n)
            out_len = used if used > 0 else 0
        if used < 0:
            exchange_fail_body(w, ex, head_len, ex.response_chunked.bad)
            return
        done = ex.response_chunked.state == CHUNKED_DONE
    elif ex.response_framing == FRAMING_CLOSE:
        out_len = n
        used = n
    else:
        used = 0
        done = True
    if done and <size_t>used < n:
        ex.flags &= ~EX_KEEP_UP             # it says more than it framed: none of that may reach the next answer
    if ex.response_framing == FRAMING_CHUNKED:
        ex.sent = ex.response_chunked.data
    else:
        ex.sent += out_len
    if head_len and out_len <= 8192 and head_len + out_len <= w.output_size:
        memcpy(w.output + head_len, out, out_len)
        head_len += out_len
        out_len = 0
    if not conn_write(w, d, w.output, head_len, out, out_len):
        exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED)
        return
    if done:
        response_done(w, ex)
    elif d.output != NULL:
        down_watch_write(w, d)

cdef int64_t response_dechunk(Exchange *ex, uint8_t *p, size_t n, int64_t used, size_t *out_len) noexcept nogil:
    """Move the next run of chunk data down to p[out_len]; the new `used`, or -1."""
    cdef size_t at = 0
    cdef size_t length = 0
    cdef int64_t step = chunked_next(&ex.response_chunked, p + used, n - used, &at, &length)
    if step < 0:
        return -1
    if length:
        memmove(p + out_len[0], p + used + at, length)
        out_len[0] += length
    return used + step

cdef void response_done(Worker *w, Exchange *ex) noexcept nogil:
    """All of the answer is framed. The upstream is free; the exchange ends when the downstream has taken it."""
    cdef Conn *u = ex.up
    cdef uint8_t byte
    ex.flags |= EX_RESPONSE_DONE
    if u.flags & CONN_READABLE and not (u.flags & (CONN_FIN | CONN_DEAD | CONN_EOF)):
        # the last read was as long as asked for, so it did not tell whether anything follows
        if c_recv(u.fd, &byte, 1, MSG_PEEK) < 0 and errno == EAGAIN:
            u.flags &= ~CONN_READABLE
    up_detach(w, ex)
    if ex.down.output == NULL:
        exchange_finish(w, ex)
    else:
        down_watch_write(w, ex.down)

cdef void response_cut(Worker *w, Exchange *ex, bint clean) noexcept nogil:
    """The upstream's side ended: the end of a close-delimited body, a stale pooled connection, or a fault."""
    cdef Conn *u = ex.up
    if ex.flags & EX_ANSWERED:
        if ex.response_framing == FRAMING_CLOSE and clean:
            response_done(w, ex)
        else:
            exchange_abort(w, ex, KIND_UPSTREAM_TRUNCATED)
        return
    if exchange_retry(w, ex, (u.flags & CONN_RESET) != 0):
        return
    if ex.flags & EX_UPSTREAM_BYTES and clean:
        exchange_fail(w, ex, KIND_UPSTREAM_PROTOCOL, BAD_LINE)
    else:
        exchange_fail(w, ex, KIND_UPSTREAM_CLOSED if clean else KIND_UPSTREAM_RESET, 0)
