# The journal's ring, both sides. See the .pxd for the picture.
#
# One writer, one reader, two words: the worker stores `head` with release after the bytes, the agent loads it
# with acquire before them; `tail` likewise the other way. So no record is seen before it is whole, even when
# its worker is killed half way: it then never gets behind head.

from libc.errno cimport errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stddef cimport size_t
from libc.string cimport memcpy, memset
from posix.fcntl cimport fcntl
from posix.mman cimport mmap, munmap, MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE

import os

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/mman.h>
    static inline uint64_t word_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
    static inline uint64_t word_relaxed(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline void word_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
    static inline void word_store(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
    """
    uint64_t word_acquire(const uint64_t *p) noexcept nogil
    uint64_t word_relaxed(const uint64_t *p) noexcept nogil
    void word_release(uint64_t *p, uint64_t v) noexcept nogil
    void word_store(uint64_t *p, uint64_t v) noexcept nogil
    int F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_SEAL
    int MFD_CLOEXEC, MFD_ALLOW_SEALING
    int memfd_create(const char *name, unsigned int flags) nogil

cdef enum:
    HEADER = 4096
    DATA_MIN = 4096
    DATA_MAX = 1 << 30

RECORD_BYTES = sizeof(Record)
HEADER_BYTES = HEADER
if sizeof(Record) != 160 or sizeof(RingHeader) > HEADER:
    raise ImportError("the journal's layout is not the one in its map")


# --- the worker's side ---

cdef int _check(const uint8_t *base, size_t size) noexcept nogil:
    cdef const RingHeader *header = <const RingHeader *>base
    cdef uint64_t data = size - HEADER
    if base == NULL or size < HEADER + DATA_MIN or data > DATA_MAX or data & (data - 1):
        return -1
    return 0 if header.magic == RING_MAGIC and header.size == data else -1


cdef int ring_open(Ring *ring, uint8_t *base, size_t size) noexcept nogil:
    if _check(base, size) < 0:
        return -1
    ring.header = <RingHeader *>base
    ring.data = base + HEADER
    ring.mask = size - HEADER - 1
    ring.tail_seen = word_acquire(&ring.header.tail)
    return 0


cdef Record *ring_reserve(Ring *ring, uint32_t size) noexcept nogil:
    cdef uint64_t head = ring.header.head       # nobody else writes it
    cdef uint64_t capacity = ring.mask + 1
    cdef uint64_t at = head & ring.mask & ~<uint64_t>7
    cdef uint64_t pad = 0 if size <= capacity - at else capacity - at
    cdef uint64_t need = pad + size
    cdef Record *record
    if size >= sizeof(Record) and size & 7 == 0 and need <= capacity:
        if head - ring.tail_seen > capacity - need:
            ring.tail_seen = word_acquire(&ring.header.tail)
        if head - ring.tail_seen <= capacity - need:
            if pad:
                record = <Record *>(ring.data + at)
                record.size = <uint32_t>pad
                record.kind = RECORD_PAD
                at = 0
            record = <Record *>(ring.data + at)
            record.size = size
            record.kind = RECORD_EXCHANGE
            return record
    word_store(&ring.header.dropped, ring.header.dropped + 1)
    return NULL


cdef void ring_commit(Ring *ring, Record *record) noexcept nogil:
    # Where the record does not lie at head, the pad before it is shown by the same store.
    cdef uint64_t head = ring.header.head & ~<uint64_t>7
    cdef uint64_t pad = (<uint64_t>(<uint8_t *>record - ring.data) - head) & ring.mask
    word_release(&ring.header.head, head + pad + record.size)


# --- the agent's side ---

cdef int tape_open(Tape *tape, uint8_t *base, size_t size) noexcept nogil:
    if _check(base, size) < 0:
        return -1
    memset(tape, 0, sizeof(Tape))
    tape.header = <RingHeader *>base
    tape.data = base + HEADER
    tape.size = size - HEADER
    tape.tail = word_acquire(&tape.header.tail) & ~<uint64_t>7
    tape.head = tape.tail
    return 0


cdef bint _sound(const Record *record) noexcept nogil:
    cdef uint64_t total = sizeof(Record)
    cdef int i
    for i in range(TEXT_COUNT):
        total += record.text_len[i]
    return record.kind == RECORD_EXCHANGE and total <= record.size and record.status <= 999


cdef bint tape_next(Tape *tape, Record *record, const uint8_t **texts) noexcept nogil:
    cdef uint64_t at, left
    cdef uint32_t size
    cdef const Record *there
    while True:
        if tape.tail == tape.head:
            tape.head = word_acquire(&tape.header.head) & ~<uint64_t>7
            if tape.tail == tape.head:
                return False
        at = tape.tail & (tape.size - 1)
        left = tape.head - tape.tail
        if left <= tape.size:
            if left > tape.size - at:
                left = tape.size - at
            there = <const Record *>(tape.data + at)
            # Checked on our copy: a writer gone mad may change the ring while we look.
            size = there.size
            if size & 7 == 0 and 8 <= size <= left:
                if there.kind == RECORD_PAD:
                    tape.tail += size
                    continue
                if size >= sizeof(Record):
                    memcpy(record, there, sizeof(Record))
                    record.size = size
                    if _sound(record):
                        texts[0] = tape.data + at + sizeof(Record)
                        tape.tail += size
                        tape.records += 1
                        return True
        tape.corrupt += 1
        tape.head = word_acquire(&tape.header.head) & ~<uint64_t>7
        tape.tail = tape.head
        return False


cdef void tape_publish(Tape *tape) noexcept nogil:
    if tape.header.tail != tape.tail:
        word_release(&tape.header.tail, tape.tail)


# --- for Python ---

def create(size_t size) -> int:
    """A new ring of ``size`` data bytes (a power of two, 4 KiB to 1 GiB) as a memfd; the caller closes it.

    Its length is sealed, so that no worker can shrink what the agent has mapped. A record takes 160 bytes
    plus its texts; one larger than half of the ring may never fit. Raises ValueError or OSError.
    """
    if size & (size - 1) or not DATA_MIN <= size <= DATA_MAX:
        raise ValueError(f"journal size must be a power of two from {DATA_MIN} to {DATA_MAX}, not {size}")
    cdef int fd = memfd_create(b"fastproxy-journal", MFD_CLOEXEC | MFD_ALLOW_SEALING)
    cdef RingHeader header
    memset(&header, 0, sizeof(header))
    header.magic = RING_MAGIC
    header.size = <uint32_t>size
    if fd < 0:
        raise OSError(errno, "memfd_create: " + os.strerror(errno))
    try:
        os.ftruncate(fd, HEADER + size)
        os.pwrite(fd, (<char *>&header)[:sizeof(header)], 0)
        if fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0:
            raise OSError(errno, "F_ADD_SEALS: " + os.strerror(errno))
    except BaseException:
        os.close(fd)
        raise
    return fd


cdef class Map:
    """A ring's shared memory, mapped while this object lives. ``fd`` may be closed afterwards."""

    def __cinit__(self, int fd):
        cdef size_t size = os.fstat(fd).st_size
        cdef void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) if size else MAP_FAILED
        if base == MAP_FAILED:
            raise OSError(errno, "journal: " + os.strerror(errno))
        self.base = <uint8_t *>base
        self.size = size

    def __dealloc__(self):
        if self.base != NULL:
            munmap(self.base, self.size)


cdef dict _NUMBERS = {
    "status": 200, "start_us": 0, "duration_us": 0, "upstream_us": 0xFFFFFFFF, "bytes_received": 0,
    "bytes_sent": 0, "plan_version": 0, "listener": 0, "route": 0xFFFFFFFF, "cluster": 0xFFFFFFFF,
    "endpoint": 0xFFFFFFFF, "upstream_status": 0, "error": 0, "detail": 0, "minor": 1, "attempts": 0,
    "upgraded": 0, "client_family": 0, "client_port": 0, "worker": 0,
}
cdef tuple _TEXTS = ("method", "authority", "path", "user_agent", "forwarded_for", "request_id")


cdef class Writer:
    """The worker's side of a ring, for tests and benchmarks; the core writes its records natively."""

    def __cinit__(self, int fd):
        self.map = Map(fd)
        if ring_open(&self.ring, self.map.base, self.map.size) < 0:
            raise ValueError("not a journal ring")

    def append(self, **fields) -> bool:
        """One exchange with the fields of ``Record``, texts, ``client`` and ``uuid`` (the made request id) as
        bytes.

        False: the ring is full; counted. TypeError for an unknown field.
        """
        cdef list texts = [bytes(fields.pop(name, b"")) for name in _TEXTS]
        cdef bytes client = fields.pop("client", bytes(16)).ljust(16, b"\0")
        cdef bytes uuid = fields.pop("uuid", bytes(16)).ljust(16, b"\0")
        cdef dict number = {**_NUMBERS, **fields}
        cdef bytes joined = b"".join(texts)
        cdef const uint8_t *source
        cdef int i
        if len(number) != len(_NUMBERS):
            raise TypeError(f"unknown field: {', '.join(sorted(set(number) - set(_NUMBERS)))}")
        if max(map(len, texts)) > 0xFFFF or len(client) != 16 or len(uuid) != 16:
            raise ValueError("too long")
        cdef Record *record = ring_reserve(&self.ring, record_bytes(<uint32_t>len(joined)))
        if record == NULL:
            return False
        cdef Record filled
        memset(&filled, 0, sizeof(Record))
        filled.size = record.size
        filled.kind = record.kind
        filled.status = number["status"]
        filled.start_us = number["start_us"]
        filled.duration_us = number["duration_us"]
        filled.upstream_us = number["upstream_us"]
        filled.bytes_received = number["bytes_received"]
        filled.bytes_sent = number["bytes_sent"]
        filled.plan_version = number["plan_version"]
        filled.listener = number["listener"]
        filled.route = number["route"]
        filled.cluster = number["cluster"]
        filled.endpoint = number["endpoint"]
        filled.upstream_status = number["upstream_status"]
        filled.error = number["error"]
        filled.detail = number["detail"]
        filled.minor = number["minor"]
        filled.attempts = number["attempts"]
        filled.upgraded = number["upgraded"]
        filled.client_family = number["client_family"]
        filled.client_port = number["client_port"]
        filled.worker = number["worker"]
        memcpy(filled.client, <const char *>client, 16)
        memcpy(filled.request_id, <const char *>uuid, 16)
        for i in range(TEXT_COUNT):
            filled.text_len[i] = <uint16_t>len(texts[i])
        memcpy(record, &filled, sizeof(Record))
        source = joined
        memcpy(<uint8_t *>record + sizeof(Record), source, len(joined))
        ring_commit(&self.ring, record)
        return True

    def repeat(self, uint64_t count, uint32_t text = 0) -> int:
        """Append ``count`` plain records as fast as the core would, waiting for no one; how many were not
        dropped.

        ``bytes_sent`` numbers them from 0, ``text`` bytes of 'a' are their path.
        """
        cdef uint64_t i, done = 0
        cdef Record *record
        with nogil:
            for i in range(count):
                record = ring_reserve(&self.ring, record_bytes(text))
                if record != NULL:
                    memset(<uint8_t *>record + 8, 0, sizeof(Record) - 8)
                    record.status = 200
                    record.bytes_sent = i
                    record.route = record.cluster = record.endpoint = record.upstream_us = 0xFFFFFFFF
                    record.text_len[TEXT_PATH] = <uint16_t>text
                    memset(<uint8_t *>record + sizeof(Record), 97, text)
                    ring_commit(&self.ring, record)
                    done += 1
        return done

    @property
    def dropped(self) -> int:
        """Records that found no room."""
        return self.ring.header.dropped


cdef class Reader:
    """The agent's side of one ring as Python objects: tests, and looking for single exchanges."""

    def __cinit__(self, int fd):
        self.map = Map(fd)
        if tape_open(&self.tape, self.map.base, self.map.size) < 0:
            raise ValueError("not a journal ring")

    def read(self, Py_ssize_t limit=1 << 30) -> list:
        """Up to ``limit`` records, oldest first, as dictionaries; their space goes back to the writer."""
        cdef list records = []
        cdef Record record
        cdef const uint8_t *texts = NULL
        while len(records) < limit and tape_next(&self.tape, &record, &texts):
            records.append(_as_dict(&record, texts))
        tape_publish(&self.tape)
        return records

    @property
    def dropped(self) -> int:
        """Records that found no room, as the writer counts them."""
        return word_relaxed(&self.tape.header.dropped)

    @property
    def corrupt(self) -> int:
        """Times that nonsense was met and everything up to the head skipped."""
        return self.tape.corrupt


cdef dict _as_dict(const Record *r, const uint8_t *texts):
    cdef dict out = {
        "status": r.status, "start_us": r.start_us, "duration_us": r.duration_us,
        "upstream_us": r.upstream_us, "bytes_received": r.bytes_received, "bytes_sent": r.bytes_sent,
        "plan_version": r.plan_version, "listener": r.listener, "route": r.route, "cluster": r.cluster,
        "endpoint": r.endpoint, "upstream_status": r.upstream_status, "error": r.error, "detail": r.detail,
        "minor": r.minor, "attempts": r.attempts, "upgraded": r.upgraded, "client_family": r.client_family,
        "client_port": r.client_port, "worker": r.worker, "client": (<const char *>r.client)[:16],
        "uuid": (<const char *>r.request_id)[:16],
    }
    cdef int i
    for i in range(TEXT_COUNT):
        out[_TEXTS[i]] = (<const char *>texts)[:r.text_len[i]]
        texts += r.text_len[i]
    return out
