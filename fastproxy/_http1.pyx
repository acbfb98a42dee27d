# HTTP/1.1 heads, chunked coding and paths. The map is _http1.pxd; searches over bytes are in scan.h.
#
# A head is read in two steps: lines (_fields; what each byte may be) and meaning (_finish_*; what the fields
# say together). A head that comes in pieces is read from its start again, so a scan must give the same answer
# for every prefix that already holds the fault: checks are made in the order of the bytes.

from libc.string cimport memcmp, memcpy, memset
from libc.stdint cimport INT64_MAX

cdef extern from "scan.h" nogil:
    """
    #define FP_UNLIKELY(x) __builtin_expect(!!(x), 0)
    """
    const uint8_t *fp_value_end(const uint8_t *p, const uint8_t *end, bint portable)
    const uint8_t *fp_token_end(const uint8_t *p, const uint8_t *end, bint portable)
    const uint8_t *fp_target_end(const uint8_t *p, const uint8_t *end, uint8_t also, bint portable)
    const uint8_t *fp_path_odd(const uint8_t *p, const uint8_t *end, bint slash, bint portable)
    const uint8_t *fp_class_end(const uint8_t *p, const uint8_t *end, uint8_t cls)
    uint64_t fp_head_word(const uint8_t *p, size_t n, const uint8_t *end)
    uint64_t fp_tail_word(const uint8_t *p, size_t n, uint64_t head)
    uint32_t fp_hash_words(uint64_t a, uint64_t b, size_t n)
    bint fp_is_ipv6(const uint8_t *p, size_t n)
    bint unlikely "FP_UNLIKELY"(bint)
    uint8_t fp_lower(uint8_t c)
    int fp_hex(uint8_t c)
    const uint8_t[256] fp_class
    enum:
        FP_IS_TOKEN, FP_IS_VALUE, FP_IS_HOST, FP_IS_UNRESERVED
        FP_WIDE
    const uint64_t FP_FOLD

cdef enum:
    CR = 13
    LF = 10
    SP = 32
    HTAB = 9
    MAX_METHOD = 32             # longest registered: 17
    MAX_NAME = 65535            # Field.name_len
    MAX_NOMINATED = 32          # names in Connection; each is compared with every field
    NEED = 0

# Names of enum Known from KNOWN_CONNECTION on, in its order.
KNOWN_NAMES = (
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"transfer-encoding", b"upgrade",
    b"http2-settings", b"content-length", b"host", b"expect", b"trailer", b"via", b"x-forwarded-for",
    b"x-forwarded-proto", b"x-forwarded-host", b"forwarded", b"x-request-id", b"date", b"server", b"cookie",
    b"user-agent", b"location",
)

cdef struct Name:               # first and last 8 bytes tell any two names of up to 16 bytes apart
    uint64_t head
    uint64_t tail
    uint32_t len
    char text[20]

cdef Name names[KNOWN_COUNT]    # [Known]
cdef uint8_t name_slot[256]     # [top byte of the hash] -> Known

cdef enum:                      # sets of Known, one bit each
    HOP_BY_HOP = ((1 << KNOWN_CONNECTION) | (1 << KNOWN_KEEP_ALIVE) | (1 << KNOWN_PROXY_CONNECTION)
                  | (1 << KNOWN_TE) | (1 << KNOWN_UPGRADE) | (1 << KNOWN_HTTP2_SETTINGS))
    # Connection may not take these away: they frame or route the message, carry who asks, or the proxy relies
    # on them (RFC 9110 §7.6.1: not for fields meant for all recipients).
    PROTECTED = ((1 << KNOWN_TRANSFER_ENCODING) | (1 << KNOWN_CONTENT_LENGTH) | (1 << KNOWN_HOST)
                 | (1 << KNOWN_EXPECT) | (1 << KNOWN_VIA) | (1 << KNOWN_X_FORWARDED_FOR)
                 | (1 << KNOWN_X_FORWARDED_PROTO) | (1 << KNOWN_X_FORWARDED_HOST) | (1 << KNOWN_FORWARDED)
                 | (1 << KNOWN_X_REQUEST_ID) | (1 << KNOWN_COOKIE))


cdef int _fill_names() except -1:
    cdef uint32_t h
    for i, text in enumerate(KNOWN_NAMES, KNOWN_CONNECTION):
        names[i].len = len(text)
        memcpy(names[i].text, <const char *>text, len(text))
        names[i].head = fp_head_word(<const uint8_t *>text, len(text), <const uint8_t *>text) | FP_FOLD
        names[i].tail = fp_tail_word(<const uint8_t *>text, len(text), names[i].head) | FP_FOLD
        h = fp_hash_words(names[i].head, names[i].tail, names[i].len)
        if name_slot[h >> 24]:
            raise SystemError(f"two known names share a slot: {text!r}")
        name_slot[h >> 24] = i
    return 0


_fill_names()


# ---- names ----

cdef uint32_t field_hash(const uint8_t *name, size_t n) noexcept nogil:
    cdef uint64_t a
    if n == 0:
        return 1
    a = fp_head_word(name, n, name + n) | FP_FOLD
    return fp_hash_words(a, fp_tail_word(name, n, a) | FP_FOLD, n)


cdef bint name_equals(const uint8_t *name, const uint8_t *lower, size_t n) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if fp_lower(name[i]) != lower[i]:
            return False
    return True


cdef inline uint32_t _known(const uint8_t *name, size_t n, uint64_t a, uint64_t b, uint32_t h) noexcept nogil:
    # Exact although folded: no tchar but a letter becomes a letter, and '-' and digits come from controls
    # only.
    cdef uint32_t k = name_slot[h >> 24]
    if k == 0 or names[k].len != n or names[k].head != a or names[k].tail != b:
        return KNOWN_NONE
    if n > 16 and not name_equals(name + 8, <const uint8_t *>names[k].text + 8, n - 16):
        return KNOWN_NONE
    return k


# ---- field lines: RFC 9112 §5 ----

# The line end that `q` must be: 2, NEED, or minus a Bad.
cdef inline int _crlf(const uint8_t *q, const uint8_t *end) noexcept nogil:
    if q == end or (q[0] == CR and q + 1 == end):
        return NEED
    return 2 if q[0] == CR and q[1] == LF else -BAD_LINE


# Reads field lines and the empty line from `q`. Bytes of the head, NEED, or minus a Bad. `seen` and
# `repeated` become sets of Known.
cdef inline int64_t _fields(const uint8_t *p, const uint8_t *q, const uint8_t *end, const Limits *limits,
                            Head *head, uint32_t *seen, uint32_t *repeated) noexcept nogil:
    cdef uint32_t count = 0, k, h, once = 0, again = 0
    cdef uint32_t most = limits.fields if limits.fields < MAX_FIELDS else MAX_FIELDS
    cdef bint portable = limits.portable
    cdef const uint8_t *name
    cdef const uint8_t *value
    cdef const uint8_t *stop
    cdef Field *field = head.fields
    cdef uint64_t a, b
    cdef size_t n
    cdef int r
    while True:
        if q == end:
            return NEED
        if q[0] == CR:
            r = _crlf(q, end)
            if r <= 0:
                return r
            break
        if unlikely(count == most):
            return -BAD_FIELD_COUNT
        name = q
        q = fp_token_end(q, end, portable)
        n = q - name
        if unlikely(n > MAX_NAME):
            return -BAD_HEAD_SIZE
        if q == end:
            return NEED
        if unlikely(q[0] != b':' or n == 0):
            if n == 0 and (q[0] == SP or q[0] == HTAB):
                return -BAD_FOLD
            return -BAD_LINE if n == 0 and q[0] == LF else -BAD_FIELD_NAME
        q += 1
        while q < end and (q[0] == SP or q[0] == HTAB):
            q += 1
        value = q
        q = fp_value_end(q, end, portable)
        if end - q < 2 or q[0] != CR or q[1] != LF:
            if q < end and q[0] != CR and q[0] != LF:
                return -BAD_FIELD_VALUE
            return _crlf(q, end)
        stop = q
        while stop > value and ((stop - 1)[0] == SP or (stop - 1)[0] == HTAB):
            stop -= 1
        q += 2
        a = fp_head_word(name, n, end) | FP_FOLD
        b = fp_tail_word(name, n, a) | FP_FOLD
        h = fp_hash_words(a, b, n)
        k = _known(name, n, a, b, h)
        field.name = <uint32_t>(name - p)
        field.value = <uint32_t>(value - p)
        field.value_len = <uint32_t>(stop - value)
        field.hash = h
        field.name_len = <uint16_t>n
        field.known = <uint16_t>k
        field += 1
        count += 1
        if k:
            if once & (<uint32_t>1 << k):
                again |= <uint32_t>1 << k
            else:
                once |= <uint32_t>1 << k
                head.first[k] = <uint16_t>count
    head.field_count = count
    seen[0] = once
    repeated[0] = again
    return q + 2 - p


include "_http1_meaning.pxi"


# ---- start lines ----

cdef inline uint8_t _method(const uint8_t *p, size_t n) noexcept nogil:
    if n == 3:
        if memcmp(p, b"GET", 3) == 0:
            return METHOD_GET
        if memcmp(p, b"PUT", 3) == 0:
            return METHOD_PUT
    elif n == 4:
        if memcmp(p, b"POST", 4) == 0:
            return METHOD_POST
        if memcmp(p, b"HEAD", 4) == 0:
            return METHOD_HEAD
    elif n == 5:
        if memcmp(p, b"PATCH", 5) == 0:
            return METHOD_PATCH
        if memcmp(p, b"TRACE", 5) == 0:
            return METHOD_TRACE
    elif n == 6:
        if memcmp(p, b"DELETE", 6) == 0:
            return METHOD_DELETE
    elif n == 7:
        if memcmp(p, b"OPTIONS", 7) == 0:
            return METHOD_OPTIONS
        if memcmp(p, b"CONNECT", 7) == 0:
            return METHOD_CONNECT
    return METHOD_OTHER


# "HTTP/1.x": 8, NEED, or minus a Bad. A higher minor is 1: RFC 9110 §2.5.
cdef inline int _version(const uint8_t *q, const uint8_t *end, uint8_t *minor) noexcept nogil:
    cdef int i
    if end - q >= 8 and memcmp(q, b"HTTP/1.1", 8) == 0:
        minor[0] = 1
        return 8
    for i in range(8):
        if q + i == end:
            return NEED
        if i == 5 or i == 7:
            if <uint8_t>(q[i] - c'0') > 9:
                return -BAD_VERSION
        elif q[i] != (<const uint8_t *>b"HTTP/1.1")[i]:
            return -BAD_VERSION
    if q[5] != b'1':
        return -BAD_VERSION_MAJOR
    minor[0] = q[7] != b'0'
    return 8


cdef inline void _clear(Head *head, const uint8_t *p) noexcept nogil:
    memset(<void *>head, 0, <size_t>(<char *>&head.fields[0] - <char *>head))
    head.base = p


cdef inline int64_t _request(const uint8_t *p, const uint8_t *end, const Limits *limits,
                             Head *head) noexcept nogil:
    cdef const uint8_t *q = p
    cdef const uint8_t *t
    cdef const uint8_t *query = NULL
    cdef uint32_t seen = 0, repeated = 0
    cdef int64_t length
    cdef int r
    if q == end:
        return NEED
    if q[0] == CR:              # one empty line before the request is ignored, RFC 9112 §2.2
        r = _crlf(q, end)
        if r <= 0:
            return r
        q += 2
    _clear(head, p)
    head.method.at = <uint32_t>(q - p)
    t = q
    while q < end and fp_class[q[0]] & FP_IS_TOKEN:
        q += 1
        if q - t > MAX_METHOD:
            return -BAD_METHOD
    if q == end:
        return NEED
    if q[0] != SP or q == t:
        return -BAD_METHOD
    head.method.len = <uint32_t>(q - t)
    head.method_id = _method(t, q - t)
    q += 1
    t = q
    q = fp_target_end(q, end, b'?', limits.portable)
    if q < end and q[0] == b'?':
        query = q + 1
        q = fp_target_end(query, end, b'#', limits.portable)
    if <size_t>(q - t) > limits.target:
        return -BAD_TARGET_SIZE
    if q == end:
        return NEED
    if q[0] != SP or q == t:
        if q[0] == LF:
            return -BAD_LINE
        return -BAD_VERSION if q[0] == CR and q > t else -BAD_TARGET
    head.target.at = <uint32_t>(t - p)
    head.target.len = <uint32_t>(q - t)
    q += 1
    r = _version(q, end, &head.minor)
    if r <= 0:
        return r
    q += 8
    r = _crlf(q, end)
    if r <= 0:
        return -BAD_VERSION if r < 0 and <uint8_t>(q[0] - c'0') <= 9 else r
    r = _target(head, t, t + head.target.len, query)
    if r < 0:
        return r
    length = _fields(p, q + 2, end, limits, head, &seen, &repeated)
    if length <= 0:
        return length
    head.length = <uint32_t>length
    r = _finish_request(head, seen, repeated)
    return length if r == 0 else r


cdef int64_t scan_request(const uint8_t *p, size_t n, const Limits *limits, Head *head) noexcept nogil:
    cdef int64_t r = _request(p, p + (n if n < limits.head else limits.head), limits, head)
    if r == NEED and n >= limits.head:
        return -BAD_HEAD_SIZE
    return r


cdef inline int64_t _response(const uint8_t *p, const uint8_t *end, const Limits *limits, bint to_head,
                              bint to_connect, Head *head) noexcept nogil:
    cdef const uint8_t *q = p
    cdef uint32_t seen = 0, repeated = 0
    cdef int64_t length
    cdef int r, _i
    _clear(head, p)
    r = _version(q, end, &head.minor)
    if r <= 0:
        return r
    q += 8
    if q == end:
        return NEED
    if q[0] != SP:
        return -BAD_LINE if q[0] == LF or q[0] == CR else -BAD_VERSION
    q += 1
    for _i in range(3):
        if q == end:
            return NEED
        if <uint8_t>(q[0] - c'0') > 9:
            return -BAD_STATUS
        head.status = head.status * 10 + (q[0] - c'0')
        q += 1
    if head.status < 100 or head.status > 599:
        return -BAD_STATUS
    if q == end:
        return NEED
    if q[0] == SP:
        q += 1
        head.reason.at = <uint32_t>(q - p)
        q = fp_value_end(q, end, limits.portable)
        head.reason.len = <uint32_t>(q - p) - head.reason.at
    elif q[0] != CR and q[0] != LF:
        return -BAD_STATUS      # many servers leave the space out before an empty reason, none a digit more
    r = _crlf(q, end)
    if r <= 0:
        return r
    length = _fields(p, q + 2, end, limits, head, &seen, &repeated)
    if length <= 0:
        return length
    head.length = <uint32_t>length
    r = _finish_response(head, seen, repeated, to_head, to_connect)
    return length if r == 0 else r


cdef int64_t scan_response(const uint8_t *p, size_t n, const Limits *limits, bint to_head, bint to_connect,
                           Head *head) noexcept nogil:
    cdef const uint8_t *end = p + (n if n < limits.head else limits.head)
    cdef int64_t r = _response(p, end, limits, to_head, to_connect, head)
    if r == NEED and n >= limits.head:
        return -BAD_HEAD_SIZE
    return r


include "_http1_chunked.pxi"
include "_http1_path.pxi"
include "_http1_python.pxi"
