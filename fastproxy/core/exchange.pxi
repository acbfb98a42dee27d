# One request and its response, from a complete head to its record.
#
#   begin ─► route ─┬─► forward ─► connect ─► send ─► (request_pump ⇄ response_pump) ─► finish
#                   ├─► reply (redirect, direct response)
#                   └─► fail: answer with an error while none was sent, else abort: cut the connection visibly

cdef Exchange *exchange_begin(Worker *w, Conn *d) noexcept nogil:
    """Taken when a head is complete or refused. NULL: no memory; the connection is closed."""
    cdef Exchange *ex = <Exchange *>spare_acquire(&w.exchanges, sizeof(Exchange))
    if ex == NULL:
        conn_close(w, d, True)
        return NULL
    ex.down = d
    ex.plan = w.plan
    if w.plan != NULL:
        w.plan.references += 1
    ex.start_us = d.head_us if d.flags & CONN_HEAD_TIMED else w.now_us
    ex.start_real_us = w.real_us - (w.now_us - ex.start_us)
    request_id_make(w, ex)
    ex.upstream_us = NO_INDEX
    ex.pipe[0] = -1
    ex.listener = d.listener.plan_index
    memcpy(ex.client, d.address, 16)
    ex.client_family = <uint8_t>d.family
    ex.client_port = d.port
    ex.minor = 1
    d.exchange = ex
    d.state = STATE_EXCHANGE
    d.flags &= ~(CONN_FRESH | CONN_HEAD_TIMED | CONN_UNSCANNED)
    timer_clear(&d.timer)
    w.live.gauges.downstream_idle -= 1
    w.live.gauges.exchanges += 1
    w.live.gauges.requests += 1
    return ex

cdef void exchange_start(Worker *w, Conn *d, uint8_t *p, size_t used, size_t n) noexcept nogil:
    """w.head is the head at p[:used]; p[used:n] is body, then perhaps the next request."""
    cdef Head *h = &w.head
    cdef Exchange *ex = exchange_begin(w, d)
    cdef int64_t body = 0
    if ex == NULL:
        return
    exchange_classify(w, ex, h)
    if w.options.trusted_hops and h.first[KNOWN_X_FORWARDED_FOR]:
        exchange_identify(w, ex, h)
    exchange_note(w, ex, h)
    if h.framing == FRAMING_LENGTH:
        ex.request_left = h.content_length
        body = min(<uint64_t>(n - used), ex.request_left)
        ex.request_left -= body
        if ex.request_left == 0:
            ex.flags |= EX_REQUEST_DONE
    elif h.framing == FRAMING_CHUNKED:
        body = chunked_pass(&ex.request_chunked, p + used, n - used)
        if body < 0:
            exchange_fail(w, ex, ex.request_chunked.bad, 0)
            return
        if ex.request_chunked.state == CHUNKED_DONE:
            ex.flags |= EX_REQUEST_DONE
    else:
        ex.flags |= EX_REQUEST_DONE
    ex.received = ex.request_chunked.data if h.framing == FRAMING_CHUNKED else <uint64_t>body
    if used + body < n:
        if w.kept != NULL:
            w.kept.at += <uint32_t>(used + body)
            d.input = w.kept
            w.kept = NULL
        elif not down_keep_input(w, d, p + used + body, n - used - body):
            exchange_abort(w, ex, KIND_OVERLOAD)
            return
    if h.method_id == METHOD_CONNECT:
        ex.flags &= ~EX_KEEP_DOWN               # what follows may be the tunnel's bytes, sent ahead of our answer
        exchange_fail(w, ex, KIND_CONNECT_METHOD, 0)
        return
    if (h.method_id == METHOD_OPTIONS or h.method_id == METHOD_TRACE) and not max_forwards_lower(w, ex, h):
        exchange_fail(w, ex, KIND_MAX_FORWARDS, 0)
        return
    if h.first[KNOWN_EXPECT] and h.minor and not (h.flags & HEAD_EXPECT_CONTINUE):
        exchange_fail(w, ex, KIND_EXPECTATION, 0)
        return
    if w.options.max_body and (ex.received > w.options.max_body or (
            h.framing == FRAMING_LENGTH and h.content_length > w.options.max_body)):
        exchange_fail(w, ex, KIND_BODY_SIZE, 0)
        return
    if ex.flags & EX_REQUEST_DONE and d.flags & CONN_FIN:
        down_half_closed(w, d)
    exchange_route(w, ex, p + used, body)

cdef void exchange_classify(Worker *w, Exchange *ex, const Head *h) noexcept nogil:
    """What the head says about the connection and about what may be done with the request."""
    cdef uint32_t i
    cdef const Field *f
    ex.method_id = h.method_id
    ex.minor = h.minor
    ex.request_framing = h.framing
    if h.first[KNOWN_X_REQUEST_ID]:
        ex.flags &= ~EX_OWN_ID
    if h.minor == 0:
        ex.flags |= EX_HTTP10
        if h.flags & HEAD_CONNECTION_KEEP_ALIVE and not (h.flags & HEAD_CONNECTION_CLOSE):
            ex.flags |= EX_KEEP_DOWN
    elif not (h.flags & HEAD_CONNECTION_CLOSE):
        ex.flags |= EX_KEEP_DOWN
    if h.method_id == METHOD_HEAD:
        ex.flags |= EX_HEAD
    if (h.method_id == METHOD_GET or h.method_id == METHOD_HEAD or h.method_id == METHOD_PUT
            or h.method_id == METHOD_DELETE or h.method_id == METHOD_OPTIONS or h.method_id == METHOD_TRACE):
        ex.flags |= EX_IDEMPOTENT
    if upgrade_wanted(h):
        ex.flags |= EX_UPGRADE
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.hash == w.accept_hash and f.name_len == 6 and name_equals(h.base + f.name, b"accept", 6):
            if f.value_len >= 16 and name_equals(h.base + f.value, b"application/json", 16):
                ex.flags |= EX_JSON

cdef inline bint options_asterisk(const Head *h) noexcept nogil:
    """OPTIONS for the server as a whole, in absolute form: the last proxy sends `*` (RFC 9112 §3.2.4)."""
    return h.path.len == 0 and h.query.at == 0 and h.method_id == METHOD_OPTIONS

cdef void exchange_route(Worker *w, Exchange *ex, const uint8_t *body, size_t body_len) noexcept nogil:
    cdef Head *h = &w.head
    cdef Routing r
    cdef int64_t n
    if ex.plan == NULL:
        exchange_fail(w, ex, KIND_NOT_READY, 0)
        return
    r.head = h
    r.path = h.base + h.path.at
    r.path_len = h.path.len
    if h.path.len == 0:
        r.path = b"*" if options_asterisk(h) else b"/"
        r.path_len = 1
    elif unlikely(not path_is_plain(r.path, r.path_len)) and h.form != FORM_ASTERISK:
        n = path_normalise(r.path, r.path_len, w.options.slashes, w.options.merge_slashes, w.path)
        if n < 0:
            exchange_fail(w, ex, BAD_PATH, 0)
            return
        r.path = w.path
        r.path_len = <uint32_t>n
    r.query = h.base + h.query.at
    r.query_len = h.query.len
    r.host = h.base + h.host.at
    r.host_len = h.host.len
    r.listener = ex.listener
    r.scheme_https = h.scheme_https
    r.prefix_len = 0
    r.route = NULL
    if ex.listener == NO_INDEX or not plan_match(ex.plan, &r):
        exchange_fail(w, ex, KIND_NO_ROUTE, 0)
        return
    ex.route = r.route
    if r.route.timeout_ms:
        ex.deadline_ms = w.now_ms + r.route.timeout_ms
    if r.route.kind == ROUTE_REDIRECT:
        reply_redirect(w, ex, &r)
    elif r.route.kind == ROUTE_DIRECT:
        reply_direct(w, ex)
    else:
        exchange_forward(w, ex, &r, body, body_len)

cdef void exchange_forward(Worker *w, Exchange *ex, const Routing *r, const uint8_t *body,
                           size_t body_len) noexcept nogil:
    """Choose cluster and endpoint, write the head for it, and send or connect."""
    cdef const Head *h = r.head
    cdef const Route *route = r.route
    cdef const uint8_t *target
    cdef uint8_t *o
    cdef int64_t n
    cdef size_t target_len
    cdef bint drop_expect = False
    ex.destination = plan_destination(ex.plan, route, <uint32_t>(random_next(w) >> 32))
    if ex.destination == NULL or ex.destination.cluster == NO_CLUSTER:
        exchange_fail(w, ex, KIND_NO_CLUSTER, 0)
        return
    ex.cluster = plan_cluster(ex.plan, ex.destination.cluster)
    if not holds(w, ex.cluster.slot < w.live.header.clusters, b"cluster slots of the plan are slots of live memory"):
        exchange_fail(w, ex, KIND_INTERNAL, 0)
        return
    if unlikely(not breaker_admits(&w.live, ex.cluster.slot, w.now_us)):
        exchange_rejected(w, ex)
        return
    ex.endpoint = balance_pick(ex.plan, ex.cluster, &w.live, w.now_us, <uint32_t>(random_next(w) >> 32), NULL)
    if ex.endpoint == NULL:
        if balance_held_back(ex.plan, ex.cluster, &w.live, w.now_us):
            exchange_rejected(w, ex)
        else:
            exchange_fail(w, ex, KIND_NO_HEALTHY, 0)
        return
    if not holds(w, ex.endpoint.slot < w.live.header.endpoints, b"endpoint slots of the plan are slots of live memory"):
        exchange_fail(w, ex, KIND_INTERNAL, 0)
        return
    # path and query stand together in the request; only a path that changed is put together anew
    target = h.base + h.path.at
    target_len = h.path.len + (h.query.len + 1 if h.query.at else 0)
    if options_asterisk(h):
        target = b"*"
        target_len = 1
    elif route.rewrite_kind or h.path.len == 0 or (r.path == w.path and not (w.options.raw_path or route.raw_path)):
        o = w.path + w.request_limits.target        # behind the normalised path
        n = plan_rewrite(ex.plan, r, o, 2 * w.request_limits.target)
        if n < 0:
            exchange_fail(w, ex, BAD_TARGET_SIZE, 0)
            return
        target = o
        target_len = n
        if h.query.at:
            o[n] = 63
            memcpy(o + n + 1, h.base + h.query.at, h.query.len)
            target_len += h.query.len + 1
    n = request_head_bound(h, route, ex.destination, target_len)
    ex.head = chunk_acquire(w, <uint32_t>(n + body_len))
    if ex.head == NULL:
        exchange_fail(w, ex, BAD_HEAD_SIZE, 0)
        return
    if h.flags & HEAD_EXPECT_CONTINUE:
        if ex.flags & EX_REQUEST_DONE or w.pools[ex.endpoint.slot].http10:
            drop_expect = True              # HTTP/1.0 does not know it, and a body that is here needs no leave
        else:
            ex.flags |= EX_EXPECT
    o = chunk_data(ex.head)
    ex.head.end = <uint32_t>(request_head(w, o, ex, r, target, target_len, drop_expect) - o)
    memcpy(o + ex.head.end, body, body_len)
    ex.head.end += <uint32_t>body_len
    if drop_expect and not (ex.flags & EX_REQUEST_DONE):
        if not conn_write(w, ex.down, b"HTTP/1.1 100 Continue\r\n\r\n", 25, NULL, 0):
            exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED)
            return
    if not (ex.flags & EX_REQUEST_DONE):
        timer_set(w, &ex.down.timer, w.now_ms + w.options.body_timeout)
    exchange_count(w, ex)
    exchange_connect(w, ex, False)

cdef void exchange_rejected(Worker *w, Exchange *ex) noexcept nogil:
    """The breaker does not admit it: answered here, nothing goes upstream."""
    w.live.cluster[ex.cluster.slot].rejected += 1
    exchange_fail(w, ex, KIND_BREAKER_OPEN, 0)

cdef inline void exchange_count(Worker *w, Exchange *ex) noexcept nogil:
    ex.flags |= EX_COUNTED
    w.live.cluster[ex.cluster.slot].active += 1
    w.live.cluster[ex.cluster.slot].requests += 1
    w.live.endpoint[ex.endpoint.slot].active += 1
    w.live.endpoint[ex.endpoint.slot].requests += 1

cdef void exchange_connect(Worker *w, Exchange *ex, bint fresh) noexcept nogil:
    """A pooled connection, or a new one."""
    cdef Conn *u = NULL
    cdef int kind = KIND_CONNECT_FAILED
    ex.attempts += 1
    if not fresh:
        u = pool_take(w, ex.endpoint)
    if u == NULL:
        u = up_open(w, ex.plan, ex.endpoint, &kind)
        if u == NULL:
            exchange_connect_failed(w, ex, <uint8_t>kind)
            return
    ex.up = u
    u.exchange = ex
    if u.state == STATE_CONNECTING:
        timer_set(w, &u.timer, up_deadline(w, ex, ex.cluster.connect_timeout_ms or w.options.connect_timeout))
    else:
        exchange_send(w, ex)

cdef void exchange_connect_failed(Worker *w, Exchange *ex, uint8_t kind) noexcept nogil:
    """Nothing reached an application, so another endpoint may be asked: as many as Istio's default of two retries."""
    cdef const Endpoint *other
    if w.errors[kind].status and kind != KIND_OVERLOAD and ex.attempts < 3:
        other = balance_pick(ex.plan, ex.cluster, &w.live, w.now_us, <uint32_t>(random_next(w) >> 32), ex.endpoint)
        if other != NULL and other.slot != ex.endpoint.slot:
            up_drop(w, ex)
            w.live.endpoint[ex.endpoint.slot].active -= 1
            w.live.endpoint[ex.endpoint.slot].errors += 1
            ex.endpoint = other
            w.live.endpoint[other.slot].active += 1
            w.live.endpoint[other.slot].requests += 1
            exchange_connect(w, ex, False)
            return
    exchange_fail(w, ex, kind, 0)

cdef void exchange_send(Worker *w, Exchange *ex) noexcept nogil:
    """The connection stands: head and what came with it go out."""
    cdef Conn *u = ex.up
    u.state = STATE_EXCHANGE
    ex.sent_us = w.now_us
    ex.sent_before = u.total
    timer_set(w, &u.timer, up_deadline(w, ex, w.options.upstream_read_timeout))
    if not conn_write(w, u, chunk_data(ex.head), ex.head.end, NULL, 0):
        request_refused(w, ex)
        return
    u.total += ex.head.end
    if not (ex.flags & EX_REQUEST_DONE) and ex.down.flags & CONN_READABLE:
        request_pump(w, ex)

cdef void request_refused(Worker *w, Exchange *ex) noexcept nogil:
    """The upstream takes no more. It may have answered already (413, say): look before giving up."""
    cdef Conn *u = ex.up
    cdef Conn *d = ex.down
    chunks_release(w, u.output)
    u.output = NULL
    u.output_tail = NULL
    u.flags |= CONN_SEND_DEAD | CONN_READABLE | CONN_DEAD
    ex.flags |= EX_REQUEST_CUT
    response_pump(w, ex)
    if d.exchange == ex and not (d.flags & CONN_CLOSED) and d.flags & CONN_READABLE:
        conn_queue(w, d)                    # no edge will come for the rest, which is read and thrown away

cdef void request_pump(Worker *w, Exchange *ex) noexcept nogil:
    """Read the request's body and hand it on, until there is no more, or the upstream is slow."""
    cdef Conn *d = ex.down
    cdef Conn *u = ex.up
    cdef ssize_t n
    cdef int64_t body
    cdef size_t want
    cdef int turn
    for turn in range(8):
        if u == NULL or u.state != STATE_EXCHANGE or u.output != NULL or not (d.flags & CONN_READABLE):
            return
        want = w.options.read_size
        if ex.request_framing == FRAMING_LENGTH and ex.request_left < want:
            want = ex.request_left          # the next request is not read before its turn
        n = conn_recv(w, d, w.input, want)
        if n == IO_AGAIN:
            return
        if n <= 0:
            exchange_abort(w, ex, KIND_DOWNSTREAM_CLOSED)
            return
        timer_set(w, &d.timer, w.now_ms + w.options.body_timeout)
        body = n
        if ex.request_framing == FRAMING_LENGTH:
            ex.request_left -= n
            if ex.request_left == 0:
                ex.flags |= EX_REQUEST_DONE
        else:
            body = chunked_pass(&ex.request_chunked, w.input, n)
            if body < 0:
                exchange_fail(w, ex, ex.request_chunked.bad, 0)
                return
            if ex.request_chunked.state == CHUNKED_DONE:
                ex.flags |= EX_REQUEST_DONE
            if body < n and not down_keep_input(w, d, w.input + body, n - body):
                exchange_abort(w, ex, KIND_OVERLOAD)
                return
        ex.received = ex.request_chunked.data if ex.request_framing == FRAMING_CHUNKED else ex.received + body
        if w.options.max_body and ex.received > w.options.max_body:
            exchange_fail(w, ex, KIND_BODY_SIZE, 0)
            return
        if ex.flags & EX_REQUEST_DONE:
            timer_clear(&d.timer)
        chunk_release(w, ex.head)           # from here on it cannot be sent again
        ex.head = NULL
        if ex.flags & EX_REQUEST_CUT:
            if ex.flags & EX_REQUEST_DONE:
                return
            continue
        if not conn_write(w, u, w.input, body, NULL, 0):
            request_refused(w, ex)
            return
        u.total += body
        timer_set(w, &u.timer, up_deadline(w, ex, w.options.upstream_read_timeout))
        if ex.flags & EX_REQUEST_DONE:
            return
    if d.flags & CONN_READABLE:
        conn_queue(w, d)

cdef bint exchange_retry(Worker *w, Exchange *ex, bint reset) noexcept nogil:
    """A pooled connection that the upstream closed just then: once more on a fresh one (RFC 9112 §9.3.1). A method that
    is not idempotent only when the upstream cannot have acted on it (RFC 9110 §9.2.2): its kernel acknowledged nothing,
    or reset the connection, which is what close() does while the request lies unread."""
    cdef Conn *u = ex.up
    cdef tcp_info info
    cdef socklen_t length = sizeof(info)
    if not (u.flags & CONN_REUSED) or ex.flags & (EX_RETRIED | EX_UPSTREAM_BYTES) or ex.head == NULL:
        return False
    if not (ex.flags & EX_IDEMPOTENT) and not reset:
        if u.flags & CONN_UNIX:
            if u.total != ex.sent_before:
                return False
        else:
            memset(&info, 0, sizeof(info))
            if c_getsockopt(u.fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0:
                return False
            if info.tcpi_bytes_acked > ex.sent_before + 1:          # the SYN counts as one
                return False
    ex.flags &= ~EX_REQUEST_CUT
    ex.flags |= EX_RETRIED
    up_drop(w, ex)
    w.live.gauges.retries += 1
    exchange_connect(w, ex, True)
    return True

cdef void exchange_fail(Worker *w, Exchange *ex, uint8_t kind, uint8_t detail) noexcept nogil:
    """An error of our own: answered where nothing was sent yet, else the connection is cut."""
    if ex.flags & EX_ANSWERED:
        exchange_abort(w, ex, kind)
        return
    ex.error = kind
    ex.detail = detail
    up_drop(w, ex)
    if w.errors[kind].status == 0:
        exchange_abort(w, ex, kind)
        return
    reply_error(w, ex)

cdef void exchange_fail_body(Worker *w, Exchange *ex, size_t head_len, uint8_t bad) noexcept nogil:
    """The upstream's chunked coding is broken. With its head still here nothing was sent: 502."""
    if head_len:
        ex.flags &= ~EX_ANSWERED
        exchange_fail(w, ex, KIND_UPSTREAM_PROTOCOL, bad)
    else:
        ex.detail = bad
        exchange_abort(w, ex, KIND_UPSTREAM_TRUNCATED)

cdef void exchange_abort(Worker *w, Exchange *ex, uint8_t kind) noexcept nogil:
    """Cut both sides. An answer whose end only the connection marks is reset, so that it cannot pass for whole."""
    cdef Conn *d = ex.down
    cdef bint reset = (ex.flags & EX_ANSWERED and not (ex.flags & EX_RESPONSE_DONE)
                       and (ex.response_framing == FRAMING_CLOSE or ex.flags & EX_DECHUNK))
    if ex.error == 0:
        ex.error = kind
    up_drop(w, ex)
    exchange_record(w, ex)
    exchange_release(w, ex)
    d.exchange = NULL
    conn_close(w, d, reset)

cdef void exchange_finish(Worker *w, Exchange *ex) noexcept nogil:
    """The answer is handed over. The connection waits for the next request, or ends."""
    cdef Conn *d = ex.down
    cdef bint keep = (ex.flags & (EX_KEEP_DOWN | EX_REQUEST_DONE)) == (EX_KEEP_DOWN | EX_REQUEST_DONE)
    cdef bint done = (ex.flags & EX_REQUEST_DONE) != 0
    if ex.up != NULL:
        up_detach(w, ex)
    exchange_record(w, ex)
    exchange_release(w, ex)
    d.exchange = NULL
    if not keep or w.draining:
        down_linger(w, d, done)
        return
    d.state = STATE_HEAD
    w.live.gauges.downstream_idle += 1
    timer_set(w, &d.timer, w.now_ms + w.options.idle_timeout)
    if d.input != NULL:
        d.flags |= CONN_UNSCANNED
        conn_queue(w, d)
    elif d.flags & CONN_READABLE:
        conn_queue(w, d)

cdef void exchange_release(Worker *w, Exchange *ex) noexcept nogil:
    if ex.flags & EX_COUNTED:
        w.live.cluster[ex.cluster.slot].active -= 1
        w.live.endpoint[ex.endpoint.slot].active -= 1
        if ex.error:
            w.live.cluster[ex.cluster.slot].errors += 1
            w.live.endpoint[ex.endpoint.slot].errors += 1
    chunk_release(w, ex.head)
    chunk_release(w, ex.texts)
    pipe_release(w, ex)
    plan_release(w, ex.plan)
    w.live.gauges.exchanges -= 1
    spare_release(&w.exchanges, ex)
