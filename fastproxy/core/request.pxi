# The request head on its way upstream (codec seam: HTTP/1.1 out). Runs of field lines that stay as they are get copied
# in one piece; only what is dropped or changed breaks a run.

cdef inline uint8_t *put(uint8_t *o, const void *p, size_t n) noexcept nogil:
    memcpy(o, p, n)
    return o + n

cdef uint8_t *put_number(uint8_t *o, uint64_t value) noexcept nogil:
    cdef uint8_t digits[20]
    cdef int n = 0
    while True:
        digits[n] = <uint8_t>(48 + value % 10)
        n += 1
        value //= 10
        if value == 0:
            break
    while n:
        n -= 1
        o[0] = digits[n]
        o += 1
    return o

cdef uint8_t *put_address(uint8_t *o, const Conn *c) noexcept nogil:
    """The peer's IP address as text; `unknown` (RFC 7239 §6.2) for a Unix socket."""
    cdef int i
    if c.family == AF_INET:
        for i in range(4):
            if i:
                o[0] = 46
                o += 1
            o = put_number(o, c.address[i])
        return o
    if c.family == AF_INET6:
        if inet_ntop(AF_INET6, c.address, <char *>o, 46) != NULL:
            return o + strlen(<char *>o)
    return put(o, b"unknown", 7)

cdef uint8_t *put_uuid(uint8_t *o, const uint8_t *id) noexcept nogil:
    cdef const char *hex = b"0123456789abcdef"
    cdef int i
    for i in range(16):
        if i == 4 or i == 6 or i == 8 or i == 10:
            o[0] = 45
            o += 1
        o[0] = hex[id[i] >> 4]
        o[1] = hex[id[i] & 15]
        o += 2
    return o

cdef void request_id_make(Worker *w, Exchange *ex) noexcept nogil:
    """A random UUID (RFC 9562, version 4), for the case that the request brings none."""
    cdef uint64_t half = random_next(w)
    memcpy(ex.request_id, &half, 8)
    half = random_next(w)
    memcpy(ex.request_id + 8, &half, 8)
    ex.request_id[6] = (ex.request_id[6] & 0x0f) | 0x40
    ex.request_id[8] = (ex.request_id[8] & 0x3f) | 0x80
    ex.flags |= EX_OWN_ID

cdef uint8_t *put_request_id(uint8_t *o, const Exchange *ex) noexcept nogil:
    if ex.flags & EX_OWN_ID:
        o = put(o, b"X-Request-Id: ", 14)
        o = put_uuid(o, ex.request_id)
        o = put(o, b"\r\n", 2)
    return o

cdef inline const Field *known_field(const Head *h, int known) noexcept nogil:
    return <const Field *>h.fields + (h.first[known] - 1) if h.first[known] else NULL

cdef uint8_t *put_fields(Worker *w, uint8_t *o, const Head *h, const uint8_t *drop, const Plan *plan,
                         const HeaderOps *a, const HeaderOps *b) noexcept nogil:
    """All field lines but those that `drop` (by Known) or the header operations take out."""
    cdef uint32_t i
    cdef uint32_t start = 0
    cdef bint open = False
    cdef const Field *f
    cdef uint64_t bloom = (a.bloom if a != NULL else 0) | (b.bloom if b != NULL else 0)
    for i in range(h.field_count):
        f = &h.fields[i]
        if drop[f.known] or (bloom and (bloom >> (f.hash & 63)) & 1 and (
                (a != NULL and ops_remove(plan, a, h.base, f)) or (b != NULL and ops_remove(plan, b, h.base, f)))):
            if open:
                o = put(o, h.base + start, f.name - start)
                open = False
        elif not open:
            start = f.name
            open = True
    if open:
        o = put(o, h.base + start, h.length - 2 - start)
    if a != NULL and a.append.len:
        o = put(o, text(plan, a.append), a.append.len)
    if b != NULL and b.append.len:
        o = put(o, text(plan, b.append), b.append.len)
    return o

cdef inline bint ours(Worker *w, const Plan *plan, int which, const HeaderOps *a, const HeaderOps *b) noexcept nogil:
    """True: no header operation of the plan sets or removes this field, so we write it. Operations come last, as in
    Envoy: `set: {x-forwarded-proto: https}` must not become a second line, nor `remove: [via]` be without effect."""
    cdef const Field *f = &w.own[which]
    cdef uint64_t bloom = (a.bloom if a != NULL else 0) | (b.bloom if b != NULL else 0)
    if likely(not (bloom >> (f.hash & 63)) & 1):
        return True
    return not ((a != NULL and ops_remove(plan, a, <const uint8_t *>w.own_names, f))
                or (b != NULL and ops_remove(plan, b, <const uint8_t *>w.own_names, f)))

cdef uint8_t *put_list(uint8_t *o, const Head *h, int known) noexcept nogil:
    """All values of a field that was sent in several lines, as one list followed by ', '."""
    cdef uint32_t i
    cdef const Field *f
    for i in range(h.first[known] - 1, h.field_count):
        f = &h.fields[i]
        if f.known == known and f.value_len:
            o = put(o, h.base + f.value, f.value_len)
            o = put(o, b", ", 2)
    return o

cdef uint8_t *put_forwarding(Worker *w, uint8_t *o, Exchange *ex, const Head *h) noexcept nogil:
    """Who asked, as X-Forwarded-* and on request RFC 7239. What came from outside counts only behind trusted hops."""
    cdef Conn *d = ex.down
    cdef bint trusted = w.options.trusted_hops > 0
    cdef const HeaderOps *a = &ex.route.request
    cdef const HeaderOps *b = &ex.destination.request
    cdef const Field *f
    if ours(w, ex.plan, OWN_FORWARDED_FOR, a, b):
        o = put(o, b"X-Forwarded-For: ", 17)
        if trusted and h.first[KNOWN_X_FORWARDED_FOR]:
            o = put_list(o, h, KNOWN_X_FORWARDED_FOR)
        o = put(put_address(o, d), b"\r\n", 2)
    if ours(w, ex.plan, OWN_FORWARDED_PROTO, a, b):
        f = known_field(h, KNOWN_X_FORWARDED_PROTO) if trusted else NULL
        o = put(o, b"X-Forwarded-Proto: ", 19)
        o = put(o, h.base + f.value, f.value_len) if f != NULL else put(o, b"http", 4)
        o = put(o, b"\r\n", 2)
    if ours(w, ex.plan, OWN_FORWARDED_HOST, a, b):
        f = known_field(h, KNOWN_X_FORWARDED_HOST) if trusted else NULL
        if f != NULL or h.authority.len:
            o = put(o, b"X-Forwarded-Host: ", 18)
            if f != NULL:
                o = put(o, h.base + f.value, f.value_len)
            else:
                o = put(o, h.base + h.authority.at, h.authority.len)
            o = put(o, b"\r\n", 2)
    if w.options.forwarded and ours(w, ex.plan, OWN_FORWARDED, a, b):
        o = put_forwarded(o, d, h, trusted)
    return o

cdef uint8_t *put_forwarded(uint8_t *o, const Conn *d, const Head *h, bint trusted) noexcept nogil:
    """RFC 7239 §4: an IPv6 address stands in brackets and quotes, and so does a host, whose port has a colon."""
    o = put(o, b"Forwarded: ", 11)
    if trusted and h.first[KNOWN_FORWARDED]:
        o = put_list(o, h, KNOWN_FORWARDED)
    if d.family == AF_INET6:
        o = put(put_address(put(o, b"for=\"[", 6), d), b"]\"", 2)
    else:
        o = put_address(put(o, b"for=", 4), d)
    if h.authority.len:
        o = put(o, b";host=\"", 7)
        o = put(put(o, h.base + h.authority.at, h.authority.len), b"\"", 1)
    return put(o, b";proto=http\r\n", 13)

cdef size_t request_head_bound(const Head *h, const Route *route, const Destination *destination,
                               size_t target_len) noexcept nogil:
    """Most bytes that request_head may write."""
    # what came as X-Forwarded-* or Forwarded is dropped as lines before it is written once as a list
    return (<size_t>h.length + HEAD_ROOM + target_len + route.request.append.len + destination.request.append.len
            + route.authority.len + 3 * <size_t>h.authority.len)

cdef bint max_forwards_lower(Worker *w, Exchange *ex, Head *h) noexcept nogil:
    """RFC 9110 §7.6.2: OPTIONS and TRACE go on with one less. False: it was 0, so the request ends here. What is no
    number, or a large one, passes as it is."""
    cdef uint32_t i
    cdef uint32_t k
    cdef uint32_t value
    cdef Field *f
    for i in range(h.field_count):
        f = &h.fields[i]
        if f.hash != w.max_forwards_hash or not (
                f.name_len == 12 and name_equals(h.base + f.name, b"max-forwards", 12)):
            continue
        if f.value_len == 0 or f.value_len > 4:
            return True
        value = 0
        for k in range(f.value_len):
            if not 48 <= h.base[f.value + k] <= 57:
                return True
            value = value * 10 + (h.base[f.value + k] - 48)
        if value == 0:
            return False
        f.known = KNOWN_NOMINATED                                   # dropped with the hop-by-hop fields
        ex.max_forwards = <uint16_t>value
        return True
    return True

cdef bint upgrade_wanted(const Head *h) noexcept nogil:
    """An upgrade is passed on, but never to h2c: a proxy that tunnels it is blind to what is inside."""
    cdef const Field *f = known_field(h, KNOWN_UPGRADE)
    cdef const uint8_t *v
    cdef uint32_t i
    if not (h.flags & HEAD_CONNECTION_UPGRADE) or f == NULL or h.minor == 0 or h.first[KNOWN_HTTP2_SETTINGS]:
        return False
    v = h.base + f.value
    if f.value_len == 0 or memchr(v, 44, f.value_len) != NULL:     # one protocol, not a list
        return False
    for i in range(h.first[KNOWN_UPGRADE], h.field_count):
        if h.fields[i].known == KNOWN_UPGRADE:                      # a second line makes a list too
            return False
    return not (f.value_len >= 2 and (v[0] | 32) == 104 and v[1] == 50)

cdef uint8_t *request_head(Worker *w, uint8_t *o, Exchange *ex, const Routing *r, const uint8_t *target,
                           size_t target_len, bint drop_expect) noexcept nogil:
    """Write the head as the upstream gets it. `target`: path and query, ready. The caller made room by
    request_head_bound."""
    cdef const Head *h = r.head
    cdef const Route *route = r.route
    cdef uint8_t *drop = w.drop_request
    cdef uint32_t slash
    o = put(o, h.base + h.method.at, h.method.len)
    o[0] = 32
    o = put(o + 1, target, target_len)
    o = put(o, b" HTTP/1.1\r\nHost: ", 17)
    if route.authority.len:
        o = put(o, text(ex.plan, route.authority), route.authority.len)
    else:
        o = put(o, h.base + h.authority.at, h.authority.len)
    o = put(o, b"\r\n", 2)
    drop[KNOWN_EXPECT] = drop_expect
    drop[KNOWN_UPGRADE] = not (ex.flags & EX_UPGRADE)
    o = put_fields(w, o, h, drop, ex.plan, &route.request, &ex.destination.request)
    o = put_forwarding(w, o, ex, h)
    if ours(w, ex.plan, OWN_REQUEST_ID, &route.request, &ex.destination.request):
        o = put_request_id(o, ex)
    if w.options.via_len and ours(w, ex.plan, OWN_VIA, &route.request, &ex.destination.request):
        slash = w.options.via_len
        o = put(o, w.options.via, slash)
        (o - slash + 7)[0] = 48 + h.minor                           # Via names the version that was received
    if ex.max_forwards:
        o = put_number(put(o, b"Max-Forwards: ", 14), ex.max_forwards - 1)
        o = put(o, b"\r\n", 2)
    if ex.flags & EX_UPGRADE:
        o = put(o, b"Connection: upgrade\r\n", 21)
    elif h.flags & HEAD_TE_TRAILERS and h.minor:
        o = put(o, b"TE: trailers\r\nConnection: TE\r\n", 30)
    return put(o, b"\r\n", 2)
