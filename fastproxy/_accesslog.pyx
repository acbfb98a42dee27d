# One line of the access log: a journal record as JSON, after Envoy's default format and with its field names.
#
# Hostile bytes: a line is always one line of valid JSON in UTF-8. Controls, DEL and U+0080 to U+009F (which a
# terminal obeys) become \u00XX, quotes and backslashes are escaped, and what is not UTF-8 becomes U+FFFD, one
# for each maximal ill-formed part (Unicode 3.9), the same as Python's decode("utf-8", "replace").

from libc.stdint cimport uint8_t, uint32_t, uint64_t, int64_t
from libc.stddef cimport size_t
from libc.string cimport memcpy, strlen
from libc.time cimport gmtime_r, time_t, tm
from fastproxy._journal cimport Record, TEXT_AUTHORITY, TEXT_COUNT, TEXT_FORWARDED_FOR, TEXT_METHOD, TEXT_PATH
from fastproxy._journal cimport TEXT_REQUEST_ID, TEXT_USER_AGENT

cdef extern from "<arpa/inet.h>" nogil:
    int AF_INET, AF_INET6, AF_UNIX
    const char *inet_ntop(int family, const void *source, char *out, unsigned int size) noexcept

cdef const char *HEX = b"0123456789abcdef"


cdef inline uint8_t *_put(uint8_t *out, const char *text) noexcept nogil:
    cdef size_t n = strlen(text)
    memcpy(out, text, n)
    return out + n


cdef uint8_t *_number(uint8_t *out, uint64_t value) noexcept nogil:
    cdef uint8_t digits[20]
    cdef int at = 20
    while True:
        at -= 1
        digits[at] = <uint8_t>(48 + value % 10)
        value //= 10
        if value == 0:
            break
    memcpy(out, digits + at, 20 - at)
    return out + 20 - at


cdef inline uint8_t *_fixed(uint8_t *out, uint32_t value, int width) noexcept nogil:
    cdef int i
    for i in range(width - 1, -1, -1):
        out[i] = <uint8_t>(48 + value % 10)
        value //= 10
    return out + width


cdef inline uint8_t *_code(uint8_t *out, uint8_t c) noexcept nogil:
    out = _put(out, b"\\u00")
    out[0] = HEX[c >> 4]
    out[1] = HEX[c & 15]
    return out + 2


cdef int _utf8(const uint8_t *p, size_t n) noexcept nogil:
    # Length of the character at p, or minus the length of the ill-formed part (Unicode table 3-7).
    cdef uint8_t c = p[0], low = 0x80, high = 0xBF
    cdef int need, i
    if c < 0xC2 or c > 0xF4:
        return -1
    if c < 0xE0:
        need = 1
    elif c < 0xF0:
        need = 2
        low = 0xA0 if c == 0xE0 else 0x80
        high = 0x9F if c == 0xED else 0xBF
    else:
        need = 3
        low = 0x90 if c == 0xF0 else 0x80
        high = 0x8F if c == 0xF4 else 0xBF
    for i in range(1, need + 1):
        if <size_t>i >= n or p[i] < low or p[i] > high:
            return -i
        low = 0x80
        high = 0xBF
    return need + 1


cdef uint8_t *json_escape(uint8_t *out, const uint8_t *p, size_t n) noexcept nogil:
    cdef const uint8_t *end = p + n
    cdef uint64_t word, ones = 0x0101010101010101, top = 0x8080808080808080
    cdef uint8_t c
    cdef int length, _step
    while p < end:
        while end - p >= 8:
            # Eight bytes at once, while none is below space, above '~', a quote or a backslash.
            memcpy(&word, p, 8)
            if (word | (word + ones) | (word - 0x20 * ones) | ((word ^ (0x22 * ones)) - ones)
                    | ((word ^ (0x5C * ones)) - ones)) & top:
                break
            memcpy(out, &word, 8)
            out += 8
            p += 8
        for _step in range(8):
            if p == end:
                break
            c = p[0]
            if c >= 0x80:
                length = _utf8(p, end - p)
                if length < 0:
                    out = _put(out, b"\\ufffd")
                    length = -length
                elif c == 0xC2 and p[1] < 0xA0:
                    out = _code(out, p[1])
                else:
                    memcpy(out, p, length)
                    out += length
                p += length
                continue
            if c < 0x20 or c == 0x7F:
                out = _code(out, c)
            else:
                if c == 0x22 or c == 0x5C:
                    out[0] = 0x5C
                    out += 1
                out[0] = c
                out += 1
            p += 1
    return out


cdef inline uint8_t *_text(uint8_t *out, const uint8_t *p, uint32_t n) noexcept nogil:
    if n == 0:
        return _put(out, b"null")
    out[0] = 0x22
    out = json_escape(out + 1, p, n if n < TEXT_MAX else TEXT_MAX)
    out[0] = 0x22
    return out + 1


cdef inline uint8_t *_quoted(uint8_t *out, Quoted q) noexcept nogil:
    if q.len == 0:
        return _put(out, b"null")
    memcpy(out, q.at, q.len)
    return out + q.len


cdef uint8_t *_time(uint8_t *out, Formatter *formatter, uint64_t us) noexcept nogil:
    # RFC 3339 in UTC. A time past year 9999 is nonsense from a broken worker; it becomes 1970.
    cdef int64_t second = us // 1000000 if us < 253402300800000000ULL else 0
    cdef time_t moment
    cdef tm parts
    cdef uint8_t *stamp = formatter.stamp
    if second != formatter.second or stamp[0] == 0:
        moment = <time_t>second
        gmtime_r(&moment, &parts)
        stamp = _fixed(stamp, parts.tm_year + 1900, 4)
        stamp[0] = c"-"
        stamp = _fixed(stamp + 1, parts.tm_mon + 1, 2)
        stamp[0] = c"-"
        stamp = _fixed(stamp + 1, parts.tm_mday, 2)
        stamp[0] = c"T"
        stamp = _fixed(stamp + 1, parts.tm_hour, 2)
        stamp[0] = c":"
        stamp = _fixed(stamp + 1, parts.tm_min, 2)
        stamp[0] = c":"
        stamp = _fixed(stamp + 1, parts.tm_sec, 2)
        stamp[0] = c"."
        formatter.second = second
    memcpy(out, formatter.stamp, 20)
    out = _fixed(out + 20, <uint32_t>(us % 1000000), 6)
    out[0] = c"Z"
    return out + 1


cdef uint8_t *_client(uint8_t *out, const Record *r) noexcept nogil:
    cdef char text[46]
    cdef int i
    if r.client_family == AF_INET:
        out[0] = 0x22
        out += 1
        for i in range(4):
            out = _number(out, r.client[i])
            out[0] = c"." if i < 3 else c":"
            out += 1
    elif r.client_family == AF_INET6 and inet_ntop(AF_INET6, r.client, text, 46) != NULL:
        out = _put(_put(_put(out, b"\"["), text), b"]:")
    else:
        return _put(out, b"\"unix\"" if r.client_family == AF_UNIX else b"null")
    out = _number(out, r.client_port)
    out[0] = 0x22
    return out + 1


cdef uint8_t *_uuid(uint8_t *out, const uint8_t *id) noexcept nogil:
    cdef int i
    cdef uint8_t any = 0
    for i in range(16):
        any |= id[i]
    if not any:
        return _put(out, b"null")
    out[0] = 0x22
    out += 1
    for i in range(16):
        if i == 4 or i == 6 or i == 8 or i == 10:
            out[0] = c"-"
            out += 1
        out[0] = HEX[id[i] >> 4]
        out[1] = HEX[id[i] & 15]
        out += 2
    out[0] = 0x22
    return out + 1


cdef uint8_t *_detail(uint8_t *out, Formatter *f, const Record *r) noexcept nogil:
    # Envoy's RESPONSE_CODE_DETAILS: who made the answer. Ours: via_upstream, direct_response, or the kind of
    # error, with the parser's reason after a colon.
    if r.error == 0:
        return _put(out, b"\"via_upstream\"" if r.upstream_status else b"\"direct_response\"")
    out = _quoted(out, f.detail[r.error])
    if r.detail and f.detail[r.detail].len and f.detail[r.error].len:
        (out - 1)[0] = c":"
        memcpy(out, f.detail[r.detail].at + 1, f.detail[r.detail].len - 1)
        out += f.detail[r.detail].len - 1
    return out


cdef size_t line_format(Formatter *f, const Record *r, const uint8_t *texts, uint32_t worker,
                        const Names *names, uint8_t *out) noexcept nogil:
    cdef uint8_t *start = out
    cdef const uint8_t *text[6]
    cdef int i
    for i in range(TEXT_COUNT):
        text[i] = texts
        texts += r.text_len[i]
    out = _time(_put(out, b"{\"start_time\":\""), f, r.start_us)
    out = _text(_put(out, b"\",\"method\":"), text[TEXT_METHOD], r.text_len[TEXT_METHOD])
    out = _text(_put(out, b",\"path\":"), text[TEXT_PATH], r.text_len[TEXT_PATH])
    out = _number(_put(out, b",\"protocol\":\"HTTP/1."), r.minor)
    out = _number(_put(out, b"\",\"response_code\":"), r.status)
    out = _quoted(_put(out, b",\"response_flags\":"), f.flag[r.error])
    out = _detail(_put(out, b",\"response_code_details\":"), f, r)
    out = _number(_put(out, b",\"bytes_received\":"), r.bytes_received)
    out = _number(_put(out, b",\"bytes_sent\":"), r.bytes_sent)
    out = _number(_put(out, b",\"duration_us\":"), r.duration_us)
    out = _put(out, b",\"upstream_us\":")
    out = _put(out, b"null") if r.upstream_us == <uint32_t>0xFFFFFFFF else _number(out, r.upstream_us)
    out = _put(out, b",\"request_id\":")
    if r.text_len[TEXT_REQUEST_ID]:
        out = _text(out, text[TEXT_REQUEST_ID], r.text_len[TEXT_REQUEST_ID])
    else:
        out = _uuid(out, r.request_id)
    out = _text(_put(out, b",\"authority\":"), text[TEXT_AUTHORITY], r.text_len[TEXT_AUTHORITY])
    out = _text(_put(out, b",\"user_agent\":"), text[TEXT_USER_AGENT], r.text_len[TEXT_USER_AGENT])
    out = _text(_put(out, b",\"x_forwarded_for\":"), text[TEXT_FORWARDED_FOR], r.text_len[TEXT_FORWARDED_FOR])
    out = _client(_put(out, b",\"downstream_remote_address\":"), r)
    out = _quoted(_put(out, b",\"upstream_host\":"), names.endpoint)
    out = _quoted(_put(out, b",\"upstream_cluster\":"), names.cluster)
    out = _quoted(_put(out, b",\"route_name\":"), names.route)
    out = _number(_put(out, b",\"plan_version\":"), r.plan_version)
    out = _number(_put(out, b",\"worker\":"), worker)
    out = _number(_put(out, b",\"attempts\":"), r.attempts)
    out = _put(out, b",\"upgraded\":true}\n" if r.upgraded else b",\"upgraded\":false}\n")
    return <size_t>(out - start)


def escape(const uint8_t[::1] text) -> bytes:
    """``text`` as the inside of a JSON string; see the module's head for what becomes of hostile bytes."""
    cdef bytes out = bytes(6 * len(text) + 1)
    cdef uint8_t *start = <uint8_t *><char *>out
    if len(text) == 0:
        return b""
    return out[:json_escape(start, &text[0], len(text)) - start]


def quote(str name) -> bytes:
    """A name as a JSON string with its quotes, cut to what a line has room for."""
    return b'"' + escape(name.encode("utf-8", "replace")[:(NAME_MAX - 2) // 6]) + b'"'
