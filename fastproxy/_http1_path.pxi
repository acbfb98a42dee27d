# Paths: RFC 3986 §5.2.4 (dot segments), §6.2.2 (normal form).

cdef bint path_is_plain(const uint8_t *p, size_t n) noexcept nogil:
    return _path_is_plain(p, n, False)


cdef inline bint _path_is_plain(const uint8_t *p, size_t n, bint portable) noexcept nogil:
    cdef const uint8_t *end = p + n
    cdef const uint8_t *q = p
    cdef const uint8_t *s
    if n == 0:
        return True
    if p[0] != b'/':
        return False
    while True:
        q = fp_path_odd(q, end, q > p and (q - 1)[0] == b'/', portable)
        if q == end:
            return True
        if q[0] != b'.':
            return False
        s = q + 1
        if s < end and s[0] == b'.':
            s += 1
        if s == end or s[0] == b'/':
            return False
        q = s                   # ".name" and "..name" are names


cdef int64_t path_normalise(const uint8_t *p, size_t n, int slashes, bint merge, uint8_t *out) noexcept nogil:
    cdef size_t i = 0, o = 0, segment = 1       # out[segment:o] is the open segment, after a '/'
    cdef uint8_t b
    cdef int high, low
    cdef bint slash
    if n == 0:
        return 0
    if p[0] != b'/':
        return -BAD_PATH
    out[0] = b'/'
    o = 1
    i = 1
    while True:
        # one byte of the path, or the end of it, which closes a segment as '/' does
        slash = i == n
        b = 0
        if not slash:
            b = p[i]
            i += 1
            slash = b == b'/'
        if b == b'%':
            if n - i < 2:
                return -BAD_PATH
            high = fp_hex(p[i])
            low = fp_hex(p[i + 1])
            if high < 0 or low < 0 or (high | low) == 0:
                return -BAD_PATH
            i += 2
            b = <uint8_t>(high << 4 | low)
            if b == b'/' or b == b'\\':
                if slashes == SLASH_REJECT:
                    return -BAD_PATH
                slash = slashes == SLASH_DECODE
            if not slash and not fp_class[b] & FP_IS_UNRESERVED:
                out[o] = b'%'
                out[o + 1] = <uint8_t>(<const uint8_t *>b"0123456789ABCDEF")[high]
                out[o + 2] = <uint8_t>(<const uint8_t *>b"0123456789ABCDEF")[low]
                o += 3
                continue
        elif b == b'\\':
            if slashes == SLASH_REJECT:
                return -BAD_PATH
            slash = slashes == SLASH_DECODE
        if not slash:
            out[o] = b
            o += 1
            continue
        if o - segment == 1 and out[segment] == b'.':
            o = segment
        elif o - segment == 2 and out[segment] == b'.' and out[segment + 1] == b'.':
            if segment == 1:
                return -BAD_PATH
            o = segment - 1     # the '/' before "..", and back over the segment before that
            while out[o - 1] != b'/':
                o -= 1
            segment = o
        elif b == 0:
            return <int64_t>o
        elif o > segment or not merge:
            out[o] = b'/'
            o += 1
            segment = o
        if b == 0:
            return <int64_t>o
