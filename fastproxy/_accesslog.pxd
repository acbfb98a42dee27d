# One line of the access log: a journal record as JSON. Pure: bytes in, bytes out, nothing owned.

from libc.stdint cimport uint8_t, uint32_t, int64_t
from libc.stddef cimport size_t
from fastproxy._journal cimport Record

cdef enum:
    TEXT_MAX = 16384            # bytes of one text that are logged; more is cut
    NAME_MAX = 4096             # bytes of a name, as JSON with its quotes
    LINE_MAX = 6 * 6 * 16384 + 3 * 4096 + 2048

cdef struct Quoted:             # a JSON string with its quotes; len 0: null
    const uint8_t *at
    uint32_t len

cdef struct Names:              # what the record's numbers stand for
    Quoted route
    Quoted cluster
    Quoted endpoint

cdef struct Formatter:
    int64_t second              # that `stamp` shows
    uint8_t stamp[20]           # 2001-02-03T04:05:06.
    Quoted flag[256]            # of each errors.Kind
    Quoted detail[256]

# `out` has room for LINE_MAX bytes. Returns the length, with the line end.
cdef size_t line_format(Formatter *formatter, const Record *record, const uint8_t *texts, uint32_t worker,
                        const Names *names, uint8_t *out) noexcept nogil
# JSON string without quotes, at most 6 bytes for each of p; returns the end.
cdef uint8_t *json_escape(uint8_t *out, const uint8_t *p, size_t n) noexcept nogil
