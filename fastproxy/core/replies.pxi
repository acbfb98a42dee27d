# What the proxy answers by itself: errors (one row of fastproxy.errors.TABLE each), redirects, direct responses.

cdef enum:                          # numbers of fastproxy.errors.Kind; the parser's are Bad in _http1.pxd
    KIND_HEADER_TIMEOUT = 32
    KIND_BODY_TIMEOUT = 33
    KIND_BODY_SIZE = 34
    KIND_CONNECT_METHOD = 35
    KIND_DOWNSTREAM_CLOSED = 36
    KIND_DOWNSTREAM_TIMEOUT = 37
    KIND_EXPECTATION = 39
    KIND_MAX_FORWARDS = 40
    KIND_NO_ROUTE = 48
    KIND_NO_CLUSTER = 49
    KIND_NO_HEALTHY = 50
    KIND_NOT_READY = 51
    KIND_BREAKER_OPEN = 52
    KIND_CONNECT_FAILED = 64
    KIND_CONNECT_TIMEOUT = 65
    KIND_UPSTREAM_RESET = 66
    KIND_UPSTREAM_CLOSED = 67
    KIND_UPSTREAM_TIMEOUT = 68
    KIND_UPSTREAM_PROTOCOL = 69
    KIND_UPSTREAM_TRUNCATED = 70
    KIND_UPSTREAM_IDLE = 71
    KIND_OVERLOAD = 80
    KIND_INTERNAL = 81

cdef const char *reason_phrase(int status) noexcept nogil:
    """RFC 9110 §15, for the answers that start here."""
    if status == 200:
        return b"OK"
    if status == 301:
        return b"Moved Permanently"
    if status == 302:
        return b"Found"
    if status == 303:
        return b"See Other"
    if status == 307:
        return b"Temporary Redirect"
    if status == 308:
        return b"Permanent Redirect"
    if status == 400:
        return b"Bad Request"
    if status == 404:
        return b"Not Found"
    if status == 408:
        return b"Request Timeout"
    if status == 411:
        return b"Length Required"
    if status == 413:
        return b"Content Too Large"
    if status == 414:
        return b"URI Too Long"
    if status == 417:
        return b"Expectation Failed"
    if status == 431:
        return b"Request Header Fields Too Large"
    if status == 500:
        return b"Internal Server Error"
    if status == 501:
        return b"Not Implemented"
    if status == 502:
        return b"Bad Gateway"
    if status == 503:
        return b"Service Unavailable"
    if status == 504:
        return b"Gateway Timeout"
    if status == 505:
        return b"HTTP Version Not Supported"
    return b""                      # RFC 9112 §4: the phrase may be empty

cdef uint8_t *put_status(uint8_t *o, int status) noexcept nogil:
    cdef const char *phrase = reason_phrase(status)
    o = put_number(put(o, b"HTTP/1.1 ", 9), status)
    o[0] = 32
    o = put(o + 1, phrase, strlen(phrase))
    return put(o, b"\r\n", 2)

cdef uint8_t *put_date(Worker *w, uint8_t *o) noexcept nogil:
    """RFC 9110 §6.6.1: who has a clock dates what it originates. Formatted once a second."""
    cdef time_t second = <time_t>(w.real_us // 1000000)
    cdef tm parts
    if w.date_second != <uint64_t>second:
        gmtime_r(&second, &parts)
        strftime(w.date, sizeof(w.date), b"Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &parts)
        w.date_second = second
    return put(o, w.date, strlen(w.date))

cdef void reply_send(Worker *w, Exchange *ex, uint8_t *end, const uint8_t *body, size_t body_len) noexcept nogil:
    """End a head that stands in w.output, send it with its body, and end the exchange."""
    if not (ex.flags & EX_REQUEST_DONE) or w.draining:
        ex.flags &= ~EX_KEEP_DOWN
    end = put_request_id(end, ex)           # whoever got this answer can name the line of the log
    if ex.status != 204:                    # RFC 9110 §8.6: no length where there can be no content
        end = put(end, b"Content-Length: ", 16)
        end = put(put_number(end, body_len), b"\r\n", 2)
    end = put(put_persistence(end, ex), b"\r\n", 2)
    if ex.flags & EX_HEAD or ex.status == 304 or ex.status == 204:
        body_len = 0
    ex.sent = body_len
    ex.flags |= EX_ANSWERED | EX_RESPONSE_DONE
    if not conn_write(w, ex.down, w.output, end - w.output, body, body_len):
        exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED)
    elif ex.down.output == NULL:
        exchange_finish(w, ex)
    else:
        down_watch_write(w, ex.down)

cdef void reply_error(Worker *w, Exchange *ex) noexcept nogil:
    """The row of ex.error as a short text or, where Accept asks for it, JSON."""
    cdef const ErrorRow *row = &w.errors[ex.error]
    cdef uint8_t body[256]
    cdef uint8_t *b = body
    cdef uint8_t *o
    ex.status = row.status
    if ex.error == KIND_UPSTREAM_PROTOCOL:
        ex.status = 502
    if ex.error < KIND_HEADER_TIMEOUT:
        ex.flags &= ~EX_KEEP_DOWN           # a message that was not understood leaves the connection in doubt
    if ex.flags & EX_JSON:
        b = put(b, b"{\"error\":\"", 10)
        b = put(b, row.message, row.message_len)
        b = put(b, b"\",\"flag\":\"", 10)
        b = put(b, row.flag, row.flag_len)
        b = put(b, b"\"}\n", 3)
    else:
        b = put(b, row.message, row.message_len)
        b = put(b, b" (", 2)
        b = put(b, row.flag, row.flag_len)
        b = put(b, b")\n", 2)
    o = put_date(w, put_status(w.output, ex.status))
    o = put(o, w.options.server, w.options.server_len)
    if ex.flags & EX_JSON:
        o = put(o, b"Content-Type: application/json\r\n", 32)
    else:
        o = put(o, b"Content-Type: text/plain; charset=utf-8\r\n", 41)
    o = put(o, b"X-Fastproxy-Flags: ", 19)
    o = put(put(o, row.flag, row.flag_len), b"\r\n", 2)
    reply_send(w, ex, o, body, b - body)

cdef void reply_redirect(Worker *w, Exchange *ex, const Routing *r) noexcept nogil:
    cdef uint8_t *o
    cdef int64_t n
    if ex.route.response.append.len + HEAD_ROOM + w.request_limits.head > w.output_size:
        exchange_fail(w, ex, KIND_INTERNAL, 0)
        return
    ex.status = <uint16_t>ex.route.status
    o = put_date(w, put_status(w.output, ex.status))
    o = put(o, w.options.server, w.options.server_len)
    o = put(o, b"Location: ", 10)
    n = plan_redirect(ex.plan, r, o, w.output_size - (o - w.output) - ex.route.response.append.len - 256)
    if n < 0:
        exchange_fail(w, ex, BAD_TARGET_SIZE, 0)
        return
    o = put(o + n, b"\r\n", 2)
    o = put(o, text(ex.plan, ex.route.response.append), ex.route.response.append.len)
    reply_send(w, ex, o, NULL, 0)

cdef void reply_direct(Worker *w, Exchange *ex) noexcept nogil:
    cdef uint8_t *o
    if ex.route.response.append.len + HEAD_ROOM > w.output_size:
        exchange_fail(w, ex, KIND_INTERNAL, 0)
        return
    ex.status = <uint16_t>ex.route.status
    o = put_date(w, put_status(w.output, ex.status))
    o = put(o, w.options.server, w.options.server_len)
    o = put(o, text(ex.plan, ex.route.response.append), ex.route.response.append.len)
    reply_send(w, ex, o, text(ex.plan, ex.route.body), ex.route.body.len)
