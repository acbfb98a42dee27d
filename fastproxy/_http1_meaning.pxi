# What the fields of a head say together: Connection, TE, framing, Host. Called once all lines are read,
# except _target, which has what it needs after the request line.

# ---- lists in values: Connection, TE, Transfer-Encoding ----

# Next element of a list in [q, end), commas and white space skipped: NULL at the end. *n is its length
# without white space at its end.
cdef const uint8_t *_element(const uint8_t **at, const uint8_t *end, size_t *n) noexcept nogil:
    cdef const uint8_t *q = at[0]
    cdef const uint8_t *start
    while q < end and (q[0] == b',' or q[0] == SP or q[0] == HTAB):
        q += 1
    if q == end:
        return NULL
    start = q
    while q < end and q[0] != b',':
        q += 1
    at[0] = q
    while (q - 1)[0] == SP or (q - 1)[0] == HTAB:
        q -= 1
    n[0] = q - start
    return start


cdef inline bint _is(const uint8_t *p, size_t n, const char *lower, size_t m) noexcept nogil:
    return n == m and name_equals(p, <const uint8_t *>lower, n)


cdef int _nominate(Head *head, const uint8_t *name, size_t n) noexcept nogil:
    cdef uint64_t a = fp_head_word(name, n, name + n) | FP_FOLD
    cdef uint64_t b = fp_tail_word(name, n, a) | FP_FOLD
    cdef uint32_t h = fp_hash_words(a, b, n), k = _known(name, n, a, b, h), i
    cdef size_t j
    cdef Field *field
    if (<uint32_t>1 << k) & PROTECTED or _is(name, n, b"authorization", 13):
        return -BAD_NOMINATED
    if (<uint32_t>1 << k) & HOP_BY_HOP:
        return 0
    head.first[k] = 0
    for i in range(head.field_count):
        field = &head.fields[i]
        if field.hash != h or field.name_len != n:
            continue
        for j in range(n):
            if fp_lower(head.base[field.name + j]) != fp_lower(name[j]):
                break
        else:
            field.known = KNOWN_NOMINATED
            head.flags |= HEAD_NOMINATED | HEAD_HOP_BY_HOP
            if head.first[KNOWN_NOMINATED] == 0 or head.first[KNOWN_NOMINATED] > i + 1:
                head.first[KNOWN_NOMINATED] = <uint16_t>(i + 1)
    return 0


# RFC 9110 §7.6.1. All Connection fields are one list.
cdef int _connection(Head *head) noexcept nogil:
    cdef uint32_t i, nominated = 0
    cdef size_t n = 0
    cdef const uint8_t *at
    cdef const uint8_t *end
    cdef const uint8_t *name
    for i in range(head.first[KNOWN_CONNECTION] - 1, head.field_count):
        if head.fields[i].known != KNOWN_CONNECTION:
            continue
        at = head.base + head.fields[i].value
        end = at + head.fields[i].value_len
        while True:
            name = _element(&at, end, &n)
            if name == NULL:
                break
            if fp_class_end(name, name + n, FP_IS_TOKEN) != name + n:
                return -BAD_FIELD_VALUE
            if _is(name, n, b"keep-alive", 10):
                head.flags |= HEAD_CONNECTION_KEEP_ALIVE
            elif _is(name, n, b"close", 5):
                head.flags |= HEAD_CONNECTION_CLOSE
            elif _is(name, n, b"upgrade", 7):
                # an HTTP/1.0 upgrade is ignored, RFC 9110 §7.8
                if head.first[KNOWN_UPGRADE] and head.minor:
                    head.flags |= HEAD_CONNECTION_UPGRADE
            else:
                nominated += 1
                if nominated > MAX_NOMINATED or _nominate(head, name, n) < 0:
                    return -BAD_NOMINATED
    return 0


cdef void _te(Head *head) noexcept nogil:
    cdef uint32_t i
    cdef size_t n = 0
    cdef const uint8_t *at
    cdef const uint8_t *end
    cdef const uint8_t *name
    for i in range(head.first[KNOWN_TE] - 1, head.field_count):
        if head.fields[i].known != KNOWN_TE:
            continue
        at = head.base + head.fields[i].value
        end = at + head.fields[i].value_len
        while True:
            name = _element(&at, end, &n)
            if name == NULL:
                break
            if _is(name, n, b"trailers", 8):
                head.flags |= HEAD_TE_TRAILERS


# ---- framing: RFC 9112 §6 ----

cdef int _coding(const uint8_t *at, size_t length) noexcept nogil:
    cdef const uint8_t *end = at + length
    cdef const uint8_t *name
    cdef size_t n = 0
    cdef int before = 0
    if _is(at, length, b"chunked", 7):
        return 0
    if length and (at[0] == b',' or (end - 1)[0] == b','):
        return -BAD_CODING
    while True:
        name = _element(&at, end, &n)
        if name == NULL:
            return -BAD_CODING
        if _is(name, n, b"chunked", 7):
            return -BAD_CODING_UNKNOWN if before and at == end else -BAD_CODING
        if not (_is(name, n, b"gzip", 4) or _is(name, n, b"deflate", 7) or _is(name, n, b"compress", 8)
                or _is(name, n, b"x-gzip", 6) or _is(name, n, b"x-compress", 10)):
            return -BAD_CODING
        before += 1


# Content-Length and Transfer-Encoding alone, whatever the message: 0 or minus a Bad.
cdef inline int _lengths(Head *head, uint32_t seen, uint32_t repeated) noexcept nogil:
    cdef const Field *field
    cdef const uint8_t *p
    cdef uint64_t v = 0
    cdef uint32_t i
    if not seen & ((1 << KNOWN_CONTENT_LENGTH) | (1 << KNOWN_TRANSFER_ENCODING)):
        return 0
    if repeated & (1 << KNOWN_CONTENT_LENGTH):
        return -BAD_LENGTH
    if seen & (1 << KNOWN_CONTENT_LENGTH):
        field = &head.fields[head.first[KNOWN_CONTENT_LENGTH] - 1]
        p = head.base + field.value
        if field.value_len == 0:
            return -BAD_LENGTH
        for i in range(field.value_len):
            if <uint8_t>(p[i] - c'0') > 9 or v > <uint64_t>INT64_MAX // 10:
                return -BAD_LENGTH
            v = v * 10 + (p[i] - c'0')
            if v > <uint64_t>INT64_MAX:
                return -BAD_LENGTH
        head.has_content_length = True
        head.content_length = v
    if seen & (1 << KNOWN_TRANSFER_ENCODING):
        if head.has_content_length:
            return -BAD_FRAMING
        if head.minor == 0 or repeated & (1 << KNOWN_TRANSFER_ENCODING):
            return -BAD_CODING
        field = &head.fields[head.first[KNOWN_TRANSFER_ENCODING] - 1]
        return _coding(head.base + field.value, field.value_len)
    return 0


# ---- host and target: RFC 9112 §3.2, RFC 3986 §3.2.2 ----

# Splits host[:port]; 0, or -1: malformed. Stricter than RFC 3986 where no DNS name needs more: no percent
# escapes, no comma (two Host fields joined), no IPvFuture, no zone. `need_port` for CONNECT.
cdef int _authority(const uint8_t *p, size_t n, bint need_port, size_t *host) noexcept nogil:
    cdef const uint8_t *end = p + n
    cdef const uint8_t *q
    cdef uint32_t port = 0
    if n and p[0] == b'[':
        q = p + 1
        while q < end and q[0] != b']':
            q += 1
        if q == end or not fp_is_ipv6(p + 1, q - p - 1):
            return -1
        q += 1
    else:
        q = fp_class_end(p, end, FP_IS_HOST)
        if q == p:
            return -1
    host[0] = q - p
    if q == end:
        return -1 if need_port else 0
    if q[0] != b':' or end - q > 6:
        return -1
    q += 1
    if q == end:
        return -1 if need_port else 0   # "host:" is the default port, RFC 3986 §3.2.3
    while q < end:
        if <uint8_t>(q[0] - c'0') > 9:
            return -1
        port = port * 10 + (q[0] - c'0')
        q += 1
    return 0 if port and port <= 65535 else -1


# Host: one, well formed, and there in HTTP/1.1 (RFC 9112 §3.2). An http URI has a host (RFC 9110 §4.2.1), so
# an empty Host passes only where it does not make the URI: beside an absolute or authority target, for
# `OPTIONS *`, and in HTTP/1.0, where it is as good as none.
cdef inline int _host(Head *head, uint32_t seen, uint32_t repeated) noexcept nogil:
    cdef const Field *field
    cdef size_t host = 0
    if not seen & (1 << KNOWN_HOST):
        return -BAD_HOST if head.minor else 0
    if repeated & (1 << KNOWN_HOST):
        return -BAD_HOST
    field = &head.fields[head.first[KNOWN_HOST] - 1]
    if field.value_len == 0:
        return -BAD_HOST if head.form == FORM_ORIGIN and head.minor else 0
    if _authority(head.base + field.value, field.value_len, False, &host) < 0:
        return -BAD_HOST
    if head.authority.len == 0:
        head.authority.at = field.value
        head.authority.len = field.value_len
        head.host.at = field.value
        head.host.len = <uint32_t>host
    return 0


# What the target is, RFC 9112 §3.2. `query` is after '?', or NULL.
cdef inline int _target(Head *head, const uint8_t *t, const uint8_t *end,
                        const uint8_t *query) noexcept nogil:
    cdef const uint8_t *p = head.base
    cdef const uint8_t *path = t
    cdef const uint8_t *stop = end
    cdef size_t host = 0
    head.form = FORM_ORIGIN
    if t[0] != b'/' or head.method_id == METHOD_CONNECT:
        if head.method_id == METHOD_CONNECT:
            if _authority(t, end - t, True, &host) < 0:
                return -BAD_TARGET
            head.form = FORM_AUTHORITY
            head.authority.at = head.host.at = <uint32_t>(t - p)
            head.authority.len = <uint32_t>(end - t)
            head.host.len = <uint32_t>host
            return 0
        if t[0] == b'*':
            if end - t != 1 or head.method_id != METHOD_OPTIONS:
                return -BAD_TARGET
            head.form = FORM_ASTERISK
        else:
            if end - t > 7 and name_equals(t, <const uint8_t *>b"http://", 7):
                t += 7
            elif end - t > 8 and name_equals(t, <const uint8_t *>b"https://", 8):
                t += 8
                head.scheme_https = 1
            else:
                return -BAD_TARGET
            path = t
            if query:
                stop = query - 1
            while path < stop and path[0] != b'/':
                path += 1
            if _authority(t, path - t, False, &host) < 0:
                return -BAD_TARGET
            head.form = FORM_ABSOLUTE
            head.authority.at = head.host.at = <uint32_t>(t - p)
            head.authority.len = <uint32_t>(path - t)
            head.host.len = <uint32_t>host
    head.path.at = <uint32_t>(path - p)
    head.path.len = <uint32_t>((query - 1 if query else end) - path)
    if query:
        head.query.at = <uint32_t>(query - p)
        head.query.len = <uint32_t>(end - query)
    return 0


# ---- all of it, in order ----

cdef inline int _finish_request(Head *head, uint32_t seen, uint32_t repeated) noexcept nogil:
    cdef int r = _lengths(head, seen, repeated)
    cdef const Field *field
    if r == 0:
        r = _host(head, seen, repeated)
    if r < 0:
        return r
    if seen & (1 << KNOWN_TRANSFER_ENCODING):
        head.framing = FRAMING_CHUNKED
    elif head.has_content_length:
        head.framing = FRAMING_LENGTH
    elif head.minor == 0 and (head.method_id == METHOD_POST or head.method_id == METHOD_PUT):
        return -BAD_LENGTH_REQUIRED     # RFC 1945 §7.2.2
    if seen & HOP_BY_HOP:
        head.flags |= HEAD_HOP_BY_HOP
        if seen & (1 << KNOWN_TE):
            _te(head)
        if seen & (1 << KNOWN_CONNECTION):
            r = _connection(head)
            if r < 0:
                return r
    if seen & (1 << KNOWN_EXPECT) and head.minor and not repeated & (1 << KNOWN_EXPECT):
        field = &head.fields[head.first[KNOWN_EXPECT] - 1]
        if _is(head.base + field.value, field.value_len, b"100-continue", 12):
            head.flags |= HEAD_EXPECT_CONTINUE
    return 0


# Whose body an answer has, RFC 9112 §6.3. Where no body can be, a length that says otherwise is one that two
# parsers read differently: refused. `Content-Length: 0` beside 204 is common and harmless, but may not be
# sent (RFC 9110 §8.6): it becomes a field that is not forwarded. A tunnel's answer has neither (RFC 9110
# §9.3.6: the client ignores both).
cdef inline int _finish_response(Head *head, uint32_t seen, uint32_t repeated, bint to_head,
                                 bint to_connect) noexcept nogil:
    cdef bint bodiless = head.status < 200 or head.status == 204
    cdef bint tunnel = to_connect and 200 <= head.status < 300
    cdef int r
    if not tunnel:
        r = _lengths(head, seen, repeated)
        if r < 0:
            return r
        if bodiless:
            if seen & (1 << KNOWN_TRANSFER_ENCODING):
                return -BAD_CODING      # RFC 9112 §6.1
            if head.content_length:
                return -BAD_FRAMING
    if tunnel or bodiless:
        _drop(head, KNOWN_CONTENT_LENGTH)
        _drop(head, KNOWN_TRANSFER_ENCODING)
        head.framing = FRAMING_NONE
    elif to_head or head.status == 304:
        head.framing = FRAMING_NONE
    elif seen & (1 << KNOWN_TRANSFER_ENCODING):
        head.framing = FRAMING_CHUNKED
    else:
        head.framing = FRAMING_LENGTH if head.has_content_length else FRAMING_CLOSE
    if seen & HOP_BY_HOP:
        head.flags |= HEAD_HOP_BY_HOP
        if seen & (1 << KNOWN_CONNECTION):
            return _connection(head)
    return 0


cdef void _drop(Head *head, uint32_t known) noexcept nogil:
    cdef uint32_t i
    if head.first[known] == 0:
        return
    for i in range(head.field_count):
        if head.fields[i].known == known:
            head.fields[i].known = KNOWN_NOMINATED
            if head.first[KNOWN_NOMINATED] == 0 or head.first[KNOWN_NOMINATED] > i + 1:
                head.first[KNOWN_NOMINATED] = <uint16_t>(i + 1)
    head.first[known] = 0
    head.flags |= HEAD_NOMINATED | HEAD_HOP_BY_HOP
    head.has_content_length = False
