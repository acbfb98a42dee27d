# HTTP/1.1 framing: heads, chunked coding, paths. Pure: spans into the caller's buffer and one int come back;
# nothing is owned, allocated or raised. RFC 9110, RFC 9112.
#
#   bytes -> scan_request / scan_response -> Head (spans, framing, what Connection says)
#   body  -> chunked_pass (framing only) or chunked_next (data spans)
#   path  -> path_normalise

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int64_t
from libc.stddef cimport size_t

cdef enum:
    MAX_FIELDS = 256            # ceiling of Limits.fields

# Why a message is refused. The numbers are those of fastproxy.errors.Kind; tests hold the two together.
cdef enum Bad:
    BAD_NONE = 0
    BAD_METHOD = 1              # not a token
    BAD_TARGET = 2              # empty, a control, a space, a fragment, or a form the method does not allow
    BAD_VERSION = 3             # not HTTP/d.d
    BAD_LINE = 4                # bare CR, bare LF or junk where a line must end
    BAD_FIELD_NAME = 5          # empty, not a token, or space before the colon
    BAD_FIELD_VALUE = 6         # NUL, CR, LF or another control
    BAD_FOLD = 7                # obs-fold
    BAD_FRAMING = 8             # Content-Length and Transfer-Encoding together
    BAD_LENGTH = 9              # malformed, repeated or overflowing Content-Length
    BAD_CODING = 10             # Transfer-Encoding that is not one chunked, or in HTTP/1.0
    BAD_CODING_UNKNOWN = 11     # another coding before chunked: 501
    BAD_HOST = 12               # malformed, repeated or missing Host
    BAD_CHUNK = 13              # chunk size, extension or chunk end malformed, or a size that overflows
    BAD_TRAILER = 14            # malformed trailer field, or one that may not be a trailer (framing, routing)
    BAD_HEAD_SIZE = 15          # head longer than Limits.head: 431
    BAD_FIELD_COUNT = 16        # more fields than Limits.fields: 431
    BAD_TARGET_SIZE = 17        # target longer than Limits.target: 414
    BAD_VERSION_MAJOR = 18      # HTTP/d.d with another major version: 505
    BAD_STATUS = 19             # response: status not three digits, below 100, or above 599
    BAD_NOMINATED = 20          # Connection names a field that frames or routes the message
    BAD_PATH = 21               # escapes its root, bad percent escape, or refused %2F / %00
    BAD_LENGTH_REQUIRED = 22    # HTTP/1.0 POST or PUT without Content-Length: 411
    BAD_UPGRADE = 23            # 101 without Upgrade, or not asked for

cdef enum Method:
    METHOD_OTHER = 0
    METHOD_GET = 1
    METHOD_HEAD = 2
    METHOD_POST = 3
    METHOD_PUT = 4
    METHOD_DELETE = 5
    METHOD_CONNECT = 6
    METHOD_OPTIONS = 7
    METHOD_TRACE = 8
    METHOD_PATCH = 9

cdef enum TargetForm:
    FORM_ORIGIN = 0             # /path?query
    FORM_ABSOLUTE = 1           # http://authority/path?query
    FORM_AUTHORITY = 2          # host:port, CONNECT only
    FORM_ASTERISK = 3           # *, OPTIONS only

cdef enum Framing:
    FRAMING_NONE = 0            # no body
    FRAMING_LENGTH = 1          # content_length bytes (may be 0)
    FRAMING_CHUNKED = 2
    FRAMING_CLOSE = 3           # response body ends with the connection

# Known: names the proxy has to know. Field.known holds one of these, or KNOWN_NONE. (Without its name, since
# Cython takes no named enum as an index, and these are indices of Head.first.)
cdef enum:
    KNOWN_NONE = 0
    KNOWN_NOMINATED = 1         # not a name: a field that Connection names, so hop-by-hop
    KNOWN_CONNECTION = 2
    KNOWN_KEEP_ALIVE = 3
    KNOWN_PROXY_CONNECTION = 4
    KNOWN_TE = 5
    KNOWN_TRANSFER_ENCODING = 6
    KNOWN_UPGRADE = 7
    KNOWN_HTTP2_SETTINGS = 8
    KNOWN_CONTENT_LENGTH = 9
    KNOWN_HOST = 10
    KNOWN_EXPECT = 11
    KNOWN_TRAILER = 12
    KNOWN_VIA = 13
    KNOWN_X_FORWARDED_FOR = 14
    KNOWN_X_FORWARDED_PROTO = 15
    KNOWN_X_FORWARDED_HOST = 16
    KNOWN_FORWARDED = 17
    KNOWN_X_REQUEST_ID = 18
    KNOWN_DATE = 19
    KNOWN_SERVER = 20
    KNOWN_COOKIE = 21
    KNOWN_USER_AGENT = 22
    KNOWN_LOCATION = 23
    KNOWN_COUNT = 24

# Head.flags
cdef enum HeadFlag:
    HEAD_CONNECTION_CLOSE = 1       # Connection: close
    HEAD_CONNECTION_KEEP_ALIVE = 2  # Connection: keep-alive (meaningful in HTTP/1.0)
    HEAD_CONNECTION_UPGRADE = 4     # Connection: upgrade, and Upgrade is there
    HEAD_NOMINATED = 8              # Connection names further fields; they carry KNOWN_NOMINATED
    HEAD_EXPECT_CONTINUE = 16       # Expect: 100-continue in HTTP/1.1
    HEAD_TE_TRAILERS = 32           # TE lists trailers
    HEAD_HOP_BY_HOP = 64            # at least one field must not be forwarded

cdef struct Field:
    uint32_t name               # offset from Head.base
    uint32_t value              # offset from Head.base, optional white space taken off both ends
    uint32_t value_len
    uint32_t hash               # field_hash() of the name, without regard to case
    uint16_t name_len
    uint16_t known              # Known

cdef struct Span:               # offset from Head.base, and length
    uint32_t at
    uint32_t len

cdef struct Limits:
    uint32_t head               # bytes of the whole head
    uint32_t fields             # number of fields, at most MAX_FIELDS
    uint32_t target             # bytes of the request target
    bint portable               # use the portable twin of each intrinsic

cdef struct Head:
    const uint8_t *base
    uint32_t length             # bytes up to and with the empty line
    # start line
    Span method                 # request
    Span target                 # request, as it came
    Span reason                 # response
    uint16_t status             # response
    uint8_t method_id           # Method
    uint8_t form                # TargetForm
    uint8_t minor               # HTTP/1.minor
    # what the target and Host say together; absolute form wins over Host (RFC 9112 §3.2.2)
    uint8_t scheme_https        # absolute form with https
    Span authority              # host[:port], empty when HTTP/1.0 came without
    Span host                   # authority without the port; brackets of IPv6 kept
    Span path                   # starts with '/', or '*' of the asterisk form; absolute form may have none
    Span query                  # after '?', without it; at == 0 when there is no '?'
    # framing
    uint8_t framing             # Framing
    uint32_t flags              # HeadFlag
    uint64_t content_length     # with FRAMING_LENGTH; also what HEAD and 304 announce
    bint has_content_length
    # fields
    uint32_t field_count
    uint16_t first[24]          # [Known] -> index + 1 of the first field of that name, 0: absent
    Field fields[256]

# States of the chunked coding, RFC 9112 §7.1
cdef struct Chunked:
    uint64_t left               # bytes left of the current chunk's data
    uint64_t data               # bytes of chunk data so far
    uint32_t line               # bytes of the current size line, or of the trailer section, so far (bounded)
    uint32_t extensions         # bytes of all extensions so far (bounded)
    uint8_t state               # 0 is the start; CHUNKED_DONE the end
    uint8_t bad                 # Bad, after -1
    uint8_t digits              # digits of the size so far
    uint8_t name_len            # trailer: bytes of the current field name so far
    uint8_t name[24]            # trailer: the name's first bytes, lower case, to refuse framing fields

cdef enum:
    CHUNKED_DONE = 255

# Bytes of the head (> 0), 0: need more, < 0: minus a Bad. `head` is valid only after > 0.
cdef int64_t scan_request(const uint8_t *p, size_t n, const Limits *limits, Head *head) noexcept nogil
# `to_head`: the answer to HEAD (no body whatever the fields say). `to_connect` likewise for CONNECT 2xx.
cdef int64_t scan_response(const uint8_t *p, size_t n, const Limits *limits, bint to_head, bint to_connect,
                           Head *head) noexcept nogil
# Hash of a field name without regard to case; never 0. plan.py computes the same
# (fastproxy._http1.field_hash).
cdef uint32_t field_hash(const uint8_t *name, size_t n) noexcept nogil
# Same name, without regard to case. `lower` is lower case already.
cdef bint name_equals(const uint8_t *name, const uint8_t *lower, size_t n) noexcept nogil

# Framing only: bytes that belong to this body (<= n); c.state == CHUNKED_DONE when it ended there; -1: c.bad
# says why.
cdef int64_t chunked_pass(Chunked *c, const uint8_t *p, size_t n) noexcept nogil
# As chunked_pass, but stops after the first run of chunk data, which it returns in [*at, *at + *len).
cdef int64_t chunked_next(Chunked *c, const uint8_t *p, size_t n, size_t *at, size_t *length) noexcept nogil

cdef enum SlashPolicy:          # what %2F and %5C in a path mean
    SLASH_KEEP = 0              # forwarded as they are, matched as they are
    SLASH_REJECT = 1            # 400
    SLASH_DECODE = 2            # become '/' before matching

# True when the path needs no normalising: no '//', no '.' or '..' segment, no '%', no '\'.
cdef bint path_is_plain(const uint8_t *p, size_t n) noexcept nogil
# Dot segments resolved, slashes merged, unreserved escapes decoded and escapes upper-cased (RFC 3986 §6.2.2).
# `out` has room for n bytes. Returns the length, or minus BAD_PATH.
cdef int64_t path_normalise(const uint8_t *p, size_t n, int slashes, bint merge, uint8_t *out) noexcept nogil
