# The journal: one single-producer single-consumer ring per worker, in shared memory. The worker appends one
# record per exchange and never waits: a full ring drops and counts. The agent reads: access log, metrics.
#
#   RingHeader (4096 bytes) | data (power of two)        head: written by the worker, tail: by the agent
#
# A record is never split: where it does not fit before the end of the data a PAD record fills the rest.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int64_t
from libc.stddef cimport size_t

cdef enum:
    RING_MAGIC = 0x66704a31             # "fpJ1"
    RECORD_PAD = 0
    RECORD_EXCHANGE = 1
    TEXT_METHOD = 0                     # the bounded strings of a record, in order
    TEXT_AUTHORITY = 1
    TEXT_PATH = 2                       # as it came, with the query
    TEXT_USER_AGENT = 3
    TEXT_FORWARDED_FOR = 4
    TEXT_REQUEST_ID = 5
    TEXT_COUNT = 6

cdef struct RingHeader:
    uint32_t magic
    uint32_t size                       # bytes of data
    uint64_t reserved0[7]
    uint64_t head                       # bytes ever written
    uint64_t reserved1[7]
    uint64_t tail                       # bytes ever read
    uint64_t reserved2[7]
    uint64_t dropped                    # records, written by the worker

cdef struct Record:                     # 160 bytes, then the texts one after another, padded to 8
    uint32_t size                       # of the whole record, a multiple of 8
    uint16_t kind                       # RECORD_*
    uint16_t status                     # sent downstream; 0: none was
    uint64_t start_us                   # Unix time, microseconds
    uint32_t duration_us                # head begun to last byte handed over
    uint32_t upstream_us                # request sent to response head, UINT32_MAX: never
    uint64_t bytes_received             # request body
    uint64_t bytes_sent                 # response body
    uint64_t plan_version
    uint32_t listener                   # index in that plan
    uint32_t route                      # Route.id in that plan, UINT32_MAX: none
    uint32_t cluster                    # live slot, UINT32_MAX: none
    uint32_t endpoint                   # live slot, UINT32_MAX: none
    uint16_t upstream_status            # 0: none
    uint8_t error                       # fastproxy.errors.Kind
    uint8_t detail                      # Kind of the parser behind UPSTREAM_PROTOCOL
    uint8_t minor                       # HTTP/1.minor of the request
    uint8_t attempts                    # upstream connections tried
    uint8_t upgraded                    # 1: became a tunnel
    uint8_t client_family               # AF_INET, AF_INET6, AF_UNIX
    uint16_t client_port
    uint16_t text_len[6]                # TEXT_*
    uint8_t client[16]
    uint8_t request_id[16]              # when made by us and TEXT_REQUEST_ID is empty: the UUID's bytes
    uint32_t worker
    uint16_t reserved[18]

cdef struct Ring:                       # the worker's side
    RingHeader *header
    uint8_t *data
    uint64_t mask
    uint64_t tail_seen                  # cached: read the shared tail only when this says full

cdef struct Tape:                       # the agent's side; believes nothing that stands in the ring
    RingHeader *header
    const uint8_t *data
    uint64_t size                       # of data, from the mapping and not from the header
    uint64_t head                       # as last seen
    uint64_t tail                       # ours; the shared word is written, never read again
    uint64_t records
    uint64_t corrupt                    # times a nonsense record was met and all up to head skipped

# Bytes of a record with `text` bytes of texts.
cdef inline uint32_t record_bytes(uint32_t text) noexcept nogil:
    return (<uint32_t>sizeof(Record) + text + 7) & ~<uint32_t>7

# Worker. `size`: of the whole mapping, as made by create(). 0, or -1: not a ring.
cdef int ring_open(Ring *ring, uint8_t *base, size_t size) noexcept nogil
# Room for `size` bytes (record_bytes()) in one piece, or NULL: full, counted as dropped. Sets record.size and
# record.kind; all else holds old bytes. A second reserve without a commit takes the first one's place.
cdef Record *ring_reserve(Ring *ring, uint32_t size) noexcept nogil
# Shows the record to the reader. record.size must be what was reserved.
cdef void ring_commit(Ring *ring, Record *record) noexcept nogil

# Agent. 0, or -1: not a ring.
cdef int tape_open(Tape *tape, uint8_t *base, size_t size) noexcept nogil
# True: the next exchange is copied to `record`, whose text_len lie within *texts. Both lengths and texts stay
# valid until tape_publish. False: nothing more.
cdef bint tape_next(Tape *tape, Record *record, const uint8_t **texts) noexcept nogil
# Gives the space of what was read back to the worker.
cdef void tape_publish(Tape *tape) noexcept nogil

# The mapping of a ring's descriptor.
cdef class Map:
    cdef uint8_t *base
    cdef size_t size

cdef class Writer:
    cdef Map map
    cdef Ring ring

cdef class Reader:
    cdef Map map
    cdef Tape tape
