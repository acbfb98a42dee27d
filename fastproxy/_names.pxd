# The names behind a record's numbers: of live slots (clusters, endpoints), which outlive a plan, and of
# routes and listeners, which do not.

from libc.stdint cimport uint32_t, uint64_t
from fastproxy._accesslog cimport Quoted

cdef struct Slot:               # a live slot: its name since a version, and the one before
    uint64_t since[2]
    uint32_t entry[2]

cdef struct Entry:              # a name; number 0 is unknown
    Quoted text
    uint32_t users              # slots and series that mean it

cdef struct Version:
    uint64_t version
    Quoted *routes
    uint32_t route_count
    uint32_t *listeners         # label numbers
    uint32_t listener_count

cdef class Slots:
    cdef Slot *slots
    cdef uint32_t count
    cdef Entry *entries
    cdef uint32_t entry_count
    cdef readonly list names
    cdef list texts
    cdef list free
    cdef dict last
    cdef uint32_t find(self, uint32_t slot, uint64_t version) noexcept nogil
    cdef uint32_t _entry(self, str name) except 0
    cdef void _release(self, uint32_t number)
    cdef int assign(self, uint64_t version, dict mapping) except -1
    cdef void rewind(self)

cdef Version *version_new(uint64_t number, dict routes, dict listeners) except NULL
cdef void version_free(Version *version) noexcept nogil
