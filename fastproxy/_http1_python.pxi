# What Python sees: for tests, fuzzing and `explain`. Nothing here is on the request path.

from collections import namedtuple

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport free, malloc

BAD = {
    "NONE": BAD_NONE, "METHOD": BAD_METHOD, "TARGET": BAD_TARGET, "VERSION": BAD_VERSION, "LINE": BAD_LINE,
    "FIELD_NAME": BAD_FIELD_NAME, "FIELD_VALUE": BAD_FIELD_VALUE, "FOLD": BAD_FOLD, "FRAMING": BAD_FRAMING,
    "LENGTH": BAD_LENGTH, "CODING": BAD_CODING, "CODING_UNKNOWN": BAD_CODING_UNKNOWN, "HOST": BAD_HOST,
    "CHUNK": BAD_CHUNK, "TRAILER": BAD_TRAILER, "HEAD_SIZE": BAD_HEAD_SIZE, "FIELD_COUNT": BAD_FIELD_COUNT,
    "TARGET_SIZE": BAD_TARGET_SIZE, "VERSION_MAJOR": BAD_VERSION_MAJOR, "STATUS": BAD_STATUS,
    "NOMINATED": BAD_NOMINATED, "PATH": BAD_PATH, "LENGTH_REQUIRED": BAD_LENGTH_REQUIRED,
    "UPGRADE": BAD_UPGRADE,
}
KNOWN = {name.decode(): i for i, name in enumerate(KNOWN_NAMES, KNOWN_CONNECTION)}
NOMINATED = KNOWN_NOMINATED
FRAMING = ("none", "length", "chunked", "close")
FORM = ("origin", "absolute", "authority", "asterisk")
FLAGS = {
    "close": HEAD_CONNECTION_CLOSE, "keep-alive": HEAD_CONNECTION_KEEP_ALIVE,
    "upgrade": HEAD_CONNECTION_UPGRADE,
    "nominated": HEAD_NOMINATED, "expect-continue": HEAD_EXPECT_CONTINUE, "te-trailers": HEAD_TE_TRAILERS,
    "hop-by-hop": HEAD_HOP_BY_HOP,
}
SLASHES = {"keep": SLASH_KEEP, "reject": SLASH_REJECT, "decode": SLASH_DECODE}
WIDE = bool(FP_WIDE)

Line = namedtuple("Line", "name value known hash")
Request = namedtuple(
    "Request",
    "length method method_id target form minor https authority host path query framing content_length flags "
    "fields first",
)
Response = namedtuple("Response", "length status reason minor framing content_length flags fields first")

cdef Limits _limits(uint32_t head, uint32_t fields, uint32_t target, bint portable):
    cdef Limits limits
    limits.head = head
    limits.fields = fields
    limits.target = target
    limits.portable = portable
    return limits


cdef bytes _span(const Head *h, Span s):
    return (<const char *>h.base)[s.at:s.at + s.len]


cdef list _lines(const Head *h):
    cdef uint32_t i
    cdef const Field *f
    cdef list out = []
    for i in range(h.field_count):
        f = &h.fields[i]
        out.append(Line(
            (<const char *>h.base)[f.name:f.name + f.name_len],
            (<const char *>h.base)[f.value:f.value + f.value_len],
            f.known,
            f.hash,
        ))
    return out


cdef object _flags(const Head *h):
    return frozenset([name for name, bit in FLAGS.items() if h.flags & bit])


cdef tuple _first(const Head *h):
    cdef int i
    return tuple([h.first[i] for i in range(KNOWN_COUNT)])


def parse_request(data, *, head=61440, fields=100, target=16384, portable=False):
    """Read a request head. See the stub for what comes back."""
    cdef Py_buffer view
    cdef Head h
    cdef Limits limits = _limits(head, fields, target, portable)
    cdef int64_t r
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        r = scan_request(<const uint8_t *>view.buf, view.len, &limits, &h)
        if r <= 0:
            return r
        return Request(
            r, _span(&h, h.method), h.method_id, _span(&h, h.target), FORM[h.form], h.minor,
            bool(h.scheme_https), _span(&h, h.authority), _span(&h, h.host), _span(&h, h.path),
            _span(&h, h.query) if h.query.at else None, FRAMING[h.framing],
            h.content_length if h.has_content_length else None, _flags(&h), _lines(&h), _first(&h),
        )
    finally:
        PyBuffer_Release(&view)


def parse_response(data, *, to_head=False, to_connect=False, head=61440, fields=100, portable=False):
    """Read a response head. See the stub for what comes back."""
    cdef Py_buffer view
    cdef Head h
    cdef Limits limits = _limits(head, fields, 0, portable)
    cdef int64_t r
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        r = scan_response(<const uint8_t *>view.buf, view.len, &limits, to_head, to_connect, &h)
        if r <= 0:
            return r
        return Response(
            r, h.status, _span(&h, h.reason), h.minor, FRAMING[h.framing],
            h.content_length if h.has_content_length else None, _flags(&h), _lines(&h), _first(&h),
        )
    finally:
        PyBuffer_Release(&view)


cdef class ChunkedReader:
    """The chunked coding of one body, fed in any pieces."""

    cdef Chunked c

    def __cinit__(self):
        memset(&self.c, 0, sizeof(self.c))

    def skip(self, data):
        """Bytes of `data` that belong to this body, or minus a Bad (``chunked_pass``)."""
        cdef Py_buffer view
        cdef int64_t r
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        r = chunked_pass(&self.c, <const uint8_t *>view.buf, view.len)
        PyBuffer_Release(&view)
        return -self.c.bad if r < 0 else r

    def feed(self, data):
        """``(bytes that belong to this body, or minus a Bad; the content in them)`` (``chunked_next``)."""
        cdef Py_buffer view
        cdef int64_t r = 0
        cdef size_t used = 0, at = 0, length = 0
        cdef list out = []
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            while used < <size_t>view.len and self.c.state != CHUNKED_DONE:
                r = chunked_next(&self.c, <const uint8_t *>view.buf + used, view.len - used, &at, &length)
                if r < 0:
                    return -self.c.bad, b"".join(out)
                out.append((<const char *>view.buf)[used + at:used + at + length])
                used += r
            return used, b"".join(out)
        finally:
            PyBuffer_Release(&view)

    @property
    def done(self):
        return self.c.state == CHUNKED_DONE

    @property
    def bad(self):
        return self.c.bad

    @property
    def state(self):
        return self.c.state, self.c.left, self.c.line, self.c.digits, self.c.extensions


def normalise_path(path, *, slashes="keep", merge=True):
    """The normal form of a path, or minus ``BAD["PATH"]`` (``path_normalise``)."""
    cdef Py_buffer view
    cdef int64_t r
    cdef uint8_t *out
    cdef int policy = SLASHES[slashes]
    PyObject_GetBuffer(path, &view, PyBUF_SIMPLE)
    out = <uint8_t *>malloc(view.len or 1)
    try:
        if out == NULL:
            raise MemoryError
        r = path_normalise(<const uint8_t *>view.buf, view.len, policy, merge, out)
        return r if r < 0 else (<char *>out)[:r]
    finally:
        free(out)
        PyBuffer_Release(&view)


def is_plain_path(path, *, portable=False):
    """Whether the path is its own normal form at a glance (``path_is_plain``)."""
    cdef Py_buffer view
    PyObject_GetBuffer(path, &view, PyBUF_SIMPLE)
    plain = bool(_path_is_plain(<const uint8_t *>view.buf, view.len, portable))
    PyBuffer_Release(&view)
    return plain


def _field_hash(bytes name not None):
    """32-bit hash of a field name without regard to case, never 0."""
    return field_hash(<const uint8_t *><const char *>name, len(name))


def same_name(bytes name not None, bytes lower not None):
    """Whether two field names are one; `lower` is lower case."""
    return len(name) == len(lower) and name_equals(
        <const uint8_t *><const char *>name, <const uint8_t *><const char *>lower, len(name)
    )


# the plan and the map call it by its C name, which a Python function cannot share
globals()["field_hash"] = _field_hash
