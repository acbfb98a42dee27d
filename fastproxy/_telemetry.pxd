# What the agent makes of the journals: series for the metrics and lines for the access log, in one native
# loop.
#
#   rings -> Drain -> _names (what numbers stand for) -> Table of Series, and the log's buffer -> write(2)

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stddef cimport size_t
from fastproxy._journal cimport Tape

cdef enum:
    BUCKETS = 20                # 19 bounds and +Inf
    BATCH = 256                 # records between two looks at the lock
    VERSIONS = 8                # plans whose routes and listeners are known by name
    STRANDS = 256               # rings at a time
    BUFFER = 1 << 20            # of the access log
    BUFFER_LAZY = 1 << 16       # bytes worth a write of their own

cdef struct Series:             # what one set of labels has counted; sizes are of bodies, in bytes
    uint64_t key                # cluster entry << 40 | listener label << 24 | status << 8 | errors.Kind
    uint64_t duration_us
    uint64_t received
    uint64_t sent
    uint64_t by_duration[20]    # each exchange in one bucket; the text format adds them up
    uint64_t by_received[20]
    uint64_t by_sent[20]

cdef struct Table:              # open addressing: `index` holds the series' place plus one
    Series *series              # the first takes what finds no room
    uint32_t *index
    uint32_t used
    uint32_t room
    uint32_t limit
    uint32_t mask
    uint64_t overflowed         # exchanges counted in the first

cdef struct Strand:             # one ring
    Tape tape
    uint8_t *base
    size_t size
    uint32_t worker
    bint closing                # its worker is dead: read to the end, then let go
    bint done                   # read to its end; only the counts are left
    uint64_t dropped
