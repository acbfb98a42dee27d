# The chunked coding, RFC 9112 §7.1, as a machine over bytes; chunk data is skipped by arithmetic.
#
#   SIZE -hex-> SIZE -CR-> SIZE_LF -LF-> DATA -> DATA_CR -> DATA_LF -> SIZE …      size 0: SIZE_LF -> TRAILER
#     '-;-> EXT_NAME -;-> EXT_NAME, -=-> EXT_VALUE -token-> EXT_TOKEN | -"-> QUOTED (-\-> ESCAPE) -"-> EXT_END
#   TRAILER -CR-> END_LF -> DONE;  TRAILER -tchar-> NAME -:-> VALUE -CR-> VALUE_LF -> TRAILER
#
# Stricter than the RFC in one place: white space around ';' and '=' is refused, since it is what lenient and
# strict parsers read differently (a sender may not generate it).

cdef enum:
    MAX_SIZE_LINE = 256
    MAX_EXTENSIONS = 16384      # of one body: else a client makes us read 256 bytes for each byte of data
    MAX_TRAILERS = 8192
    MAX_DIGITS = 16

cdef enum:
    SIZE = 0
    SIZE_LF
    EXT_FIRST                   # the first byte of a name must be there
    EXT_NAME
    EXT_VALUE
    EXT_TOKEN
    QUOTED
    ESCAPE
    EXT_END
    DATA
    DATA_CR
    DATA_LF
    TRAILER
    NAME
    VALUE
    VALUE_LF
    END_LF

# RFC 9110 §6.5.1: what frames, routes, authenticates, or says how to read the body may not come after it.
NO_TRAILERS = (
    b"transfer-encoding", b"content-length", b"trailer", b"te", b"connection", b"keep-alive",
    b"proxy-connection", b"upgrade", b"http2-settings", b"host", b"via", b"forwarded", b"x-forwarded-for",
    b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id", b"expect", b"max-forwards", b"authorization",
    b"proxy-authorization", b"cookie", b"set-cookie", b"content-encoding", b"content-type", b"content-range",
)

cdef uint8_t no_trailer[32][24]
cdef uint8_t no_trailer_len[32]


cdef int _fill_trailers() except -1:
    for i, text in enumerate(NO_TRAILERS):
        memcpy(no_trailer[i], <const char *>text, len(text))
        no_trailer_len[i] = len(text)
    return 0


_fill_trailers()


cdef bint _trailer_allowed(const Chunked *c) noexcept nogil:
    cdef int i = 0
    while no_trailer_len[i]:
        if no_trailer_len[i] == c.name_len and memcmp(no_trailer[i], c.name, c.name_len) == 0:
            return False
        i += 1
    return True


# One byte outside of chunk data: 0 or a Bad.
cdef int _chunk_byte(Chunked *c, uint8_t b) noexcept nogil:
    cdef int v
    cdef uint8_t kind = fp_class[b]
    if c.state <= EXT_END:
        c.line += 1
        if c.line > MAX_SIZE_LINE:
            return BAD_CHUNK
    elif c.state >= TRAILER:
        c.line += 1
        if c.line > MAX_TRAILERS:
            return BAD_TRAILER
    if c.state == SIZE:
        v = fp_hex(b)
        if v >= 0:
            # the sign bit stays free: lengths are added up as signed numbers
            if c.digits == MAX_DIGITS or c.left >> 59:
                return BAD_CHUNK
            c.digits += 1
            c.left = c.left << 4 | <uint64_t>v
            return 0
        if c.digits == 0:
            return BAD_CHUNK
        return _extension_or_end(c, b)
    if c.state == SIZE_LF:
        if b != LF:
            return BAD_CHUNK
        c.digits = 0
        c.line = 0
        c.state = DATA if c.left else TRAILER
        return 0
    if c.state <= EXT_END:
        c.extensions += 1
        if c.extensions > MAX_EXTENSIONS:
            return BAD_CHUNK
        if c.state == EXT_FIRST:
            c.state = EXT_NAME
            return 0 if kind & FP_IS_TOKEN else BAD_CHUNK
        if c.state == EXT_NAME:
            if kind & FP_IS_TOKEN:
                return 0
            if b == b'=':
                c.state = EXT_VALUE
                return 0
            return _extension_or_end(c, b)
        if c.state == EXT_VALUE:
            c.state = QUOTED if b == b'"' else EXT_TOKEN
            return 0 if b == b'"' or kind & FP_IS_TOKEN else BAD_CHUNK
        if c.state == EXT_TOKEN:
            return 0 if kind & FP_IS_TOKEN else _extension_or_end(c, b)
        if c.state == QUOTED:
            if b == b'"':
                c.state = EXT_END
            elif b == b'\\':
                c.state = ESCAPE
            return 0 if kind & FP_IS_VALUE else BAD_CHUNK
        if c.state == ESCAPE:
            c.state = QUOTED
            return 0 if kind & FP_IS_VALUE else BAD_CHUNK
        return _extension_or_end(c, b)
    if c.state == DATA_CR:
        c.state = DATA_LF
        return 0 if b == CR else BAD_CHUNK
    if c.state == DATA_LF:
        c.state = SIZE
        return 0 if b == LF else BAD_CHUNK
    if c.state == TRAILER:
        if b == CR:
            c.state = END_LF
            return 0
        c.state = NAME
        c.name_len = 1
        c.name[0] = fp_lower(b)
        return 0 if kind & FP_IS_TOKEN else BAD_TRAILER
    if c.state == NAME:
        if kind & FP_IS_TOKEN:
            if c.name_len < 24:
                c.name[c.name_len] = fp_lower(b)
            if c.name_len < 255:
                c.name_len += 1
            return 0
        c.state = VALUE
        return 0 if b == b':' and _trailer_allowed(c) else BAD_TRAILER
    if c.state == VALUE:
        if b == CR:
            c.state = VALUE_LF
            return 0
        return 0 if kind & FP_IS_VALUE else BAD_TRAILER
    if c.state == VALUE_LF:
        c.state = TRAILER
        return 0 if b == LF else BAD_TRAILER
    if c.state == END_LF:
        c.state = CHUNKED_DONE
        return 0 if b == LF else BAD_TRAILER
    return BAD_CHUNK


cdef inline int _extension_or_end(Chunked *c, uint8_t b) noexcept nogil:
    if b == CR:
        c.state = SIZE_LF
    elif b == b';':
        c.state = EXT_FIRST
    else:
        return BAD_CHUNK
    return 0


# `at` is NULL when only the framing is wanted.
cdef inline int64_t _chunked(Chunked *c, const uint8_t *p, size_t n, size_t *at,
                             size_t *length) noexcept nogil:
    cdef size_t i = 0, run
    cdef int bad
    if c.bad:
        return -1
    while i < n and c.state != CHUNKED_DONE:
        if c.state == DATA:
            run = n - i if n - i < c.left else <size_t>c.left
            c.left -= run
            c.data += run
            if c.left == 0:
                c.state = DATA_CR
            if at:
                at[0] = i
                length[0] = run
                return <int64_t>(i + run)
            i += run
            continue
        bad = _chunk_byte(c, p[i])
        if bad:
            c.bad = <uint8_t>bad
            return -1
        i += 1
    return <int64_t>i


cdef int64_t chunked_pass(Chunked *c, const uint8_t *p, size_t n) noexcept nogil:
    return _chunked(c, p, n, NULL, NULL)


cdef int64_t chunked_next(Chunked *c, const uint8_t *p, size_t n, size_t *at, size_t *length) noexcept nogil:
    at[0] = 0
    length[0] = 0
    return _chunked(c, p, n, at, length)
