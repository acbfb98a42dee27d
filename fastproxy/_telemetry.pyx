# The drain: reads the journals of all workers without the GIL, counts, and writes the access log.

from libc.errno cimport errno, EAGAIN, EINTR, ENOSPC, EDQUOT
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stddef cimport size_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memchr, memcpy, memmove, memset
from posix.mman cimport munmap
from posix.unistd cimport close, read, write
from fastproxy._accesslog cimport Formatter, LINE_MAX, Names, line_format
from fastproxy._journal cimport Map, Record, tape_next, tape_open, tape_publish
from fastproxy._names cimport Entry, Slots, Version, version_free, version_new

from fastproxy._accesslog import quote

cdef extern from *:
    """
    #include <poll.h>
    #include <pthread.h>
    #include <sys/eventfd.h>
    #include <sys/socket.h>
    static inline int word_swap(int *p, int v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
    static inline int word_add(int *p, int v) { return __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL); }
    static inline uint64_t word_read(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
    static inline int wait_for(int fd, short events, int ms) {
        struct pollfd one = {fd, events, 0};
        return poll(&one, 1, ms);
    }
    """
    int word_swap(int *p, int v) noexcept nogil
    int word_add(int *p, int v) noexcept nogil
    uint64_t word_read(const uint64_t *p) noexcept nogil
    int wait_for(int fd, short events, int ms) noexcept nogil
    short POLLIN, POLLOUT
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *m, void *attributes) noexcept nogil
    int pthread_mutex_lock(pthread_mutex_t *m) noexcept nogil
    int pthread_mutex_unlock(pthread_mutex_t *m) noexcept nogil
    int pthread_mutex_destroy(pthread_mutex_t *m) noexcept nogil
    ssize_t send(int fd, const void *p, size_t n, int flags) noexcept nogil
    int MSG_DONTWAIT, MSG_NOSIGNAL
    int eventfd(unsigned int value, int flags) noexcept nogil
    int EFD_CLOEXEC, EFD_NONBLOCK

cdef enum LogMode:
    LOG_WRITE = 0               # a file, or opened without blocking
    LOG_SOCKET = 1
    LOG_CAREFUL = 2             # may block: small pieces, and only when there is room

cdef uint64_t BOUNDS_US[19]
cdef uint64_t BOUNDS_BYTES[19]
# Envoy's default buckets, which Istio uses for milliseconds and bytes alike.
BOUNDS = (0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000,
          1800000, 3600000)
for _i, _bound in enumerate(BOUNDS):
    BOUNDS_US[_i] = <uint64_t>(_bound * 1000)
    BOUNDS_BYTES[_i] = <uint64_t>_bound


# --- series ---

cdef inline int _bucket(const uint64_t *bounds, uint64_t value) noexcept nogil:
    cdef int i = 0
    while i < BUCKETS - 1 and value > bounds[i]:
        i += 1
    return i


cdef int _table_init(Table *table, uint32_t limit) noexcept nogil:
    memset(table, 0, sizeof(Table))
    table.room = 16
    table.limit = limit + 1
    table.mask = 63
    table.series = <Series *>calloc(table.room, sizeof(Series))
    table.index = <uint32_t *>calloc(table.mask + 1, sizeof(uint32_t))
    if table.series == NULL or table.index == NULL:
        return -1
    table.series[0].key = ~<uint64_t>0
    table.used = 1
    return 0


cdef inline uint32_t _place(const Table *table, uint64_t key) noexcept nogil:
    cdef uint32_t at = <uint32_t>((key * <uint64_t>0x9E3779B97F4A7C15ULL) >> 32) & table.mask
    while table.index[at] and table.series[table.index[at] - 1].key != key:
        at = (at + 1) & table.mask
    return at


cdef bint _grow(Table *table) noexcept nogil:
    cdef uint32_t room = table.room * 2, mask = (table.mask + 1) * 2 - 1, i
    cdef Series *series = <Series *>realloc(table.series, room * sizeof(Series))
    cdef uint32_t *index
    if series == NULL:
        return False
    table.series = series
    index = <uint32_t *>calloc(<size_t>mask + 1, sizeof(uint32_t))
    if index == NULL:
        return False
    free(table.index)
    table.index = index
    table.mask = mask
    table.room = room
    for i in range(1, table.used):
        table.index[_place(table, table.series[i].key)] = i + 1
    return True


cdef Series *_series(Table *table, uint64_t key, bint *fresh) noexcept nogil:
    cdef uint32_t at = _place(table, key)
    cdef Series *series
    if table.index[at]:
        return &table.series[table.index[at] - 1]
    if table.used == table.limit or (table.used == table.room and not _grow(table)):
        table.overflowed += 1
        return &table.series[0]
    at = _place(table, key)
    series = &table.series[table.used]
    memset(series, 0, sizeof(Series))
    series.key = key
    table.used += 1
    table.index[at] = table.used
    fresh[0] = True
    return series


cdef tuple _counts(const uint64_t *buckets):
    return tuple([buckets[i] for i in range(BUCKETS)])


# --- the loop ---

cdef class Drain:
    """Drains the rings added to it: one thread calls :meth:`run`, any other the rest.

    ``flags`` and ``details`` are a response flag and a word for each ``errors.Kind``. ``limit``: series kept
    apart.
    """

    cdef pthread_mutex_t lock
    cdef int waiting            # threads that want the lock
    cdef int event              # wakes the loop
    cdef int stopping
    cdef int running
    cdef Strand *strands[256]   # under the lock, as all up to the log
    cdef Table table
    cdef readonly Slots clusters
    cdef readonly Slots endpoints
    cdef Version *versions[8]   # newest first
    cdef list labels            # of listeners
    cdef dict label_numbers
    cdef dict gone              # worker -> (records, dropped, corrupt) of rings no longer there
    cdef uint64_t last_version
    cdef uint64_t records
    cdef uint64_t failed        # of them, those that ended with a status of 500 or more
    cdef uint8_t *out           # the log: only the loop touches it
    cdef size_t fill
    cdef int fd
    cdef int mode
    cdef int next_fd            # handed over by log()
    cdef int next_mode
    cdef bint torn              # the last byte written is inside a line
    cdef uint32_t top           # strands in use end before it
    cdef bint stalled           # the last write took nothing
    cdef uint64_t lines
    cdef uint64_t lines_dropped
    cdef uint64_t write_errors
    cdef list keep
    cdef Formatter formatter

    def __cinit__(self, dict flags, dict details, uint32_t limit=512):
        cdef bytes text
        pthread_mutex_init(&self.lock, NULL)
        self.fd = self.next_fd = -1
        self.event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        self.clusters = Slots()
        self.endpoints = Slots()
        self.labels = ["unknown"]
        self.label_numbers = {}
        self.gone = {}
        self.keep = []
        if not 0 < limit < 1 << 20:
            raise ValueError("limit")
        if self.event < 0 or _table_init(&self.table, limit) < 0:
            raise MemoryError
        for kind in range(256):
            text = quote(flags.get(kind, "-"))
            self.keep.append(text)
            self.formatter.flag[kind].at = text
            self.formatter.flag[kind].len = <uint32_t>len(text)
            text = quote(details.get(kind, "unknown"))
            self.keep.append(text)
            self.formatter.detail[kind].at = text
            self.formatter.detail[kind].len = <uint32_t>len(text)

    def __dealloc__(self):
        cdef int i
        for i in range(STRANDS):
            if self.strands[i] != NULL:
                if self.strands[i].base != NULL:
                    munmap(self.strands[i].base, self.strands[i].size)
                free(self.strands[i])
        for i in range(VERSIONS):
            if self.versions[i] != NULL:
                version_free(self.versions[i])
        free(self.table.series)
        free(self.table.index)
        free(self.out)
        for i in (self.fd, self.next_fd, self.event):
            if i >= 0:
                close(i)
        pthread_mutex_destroy(&self.lock)

    cdef void _acquire(self) noexcept nogil:
        word_add(&self.waiting, 1)
        pthread_mutex_lock(&self.lock)
        word_add(&self.waiting, -1)

    def wake(self) -> None:
        """Make the loop look now instead of after its nap."""
        cdef uint64_t one = 1
        write(self.event, &one, 8)

    def add(self, uint32_t worker, int fd) -> None:
        """Drain the ring ``fd``, of this worker, from now on; the caller keeps the descriptor.

        Raises ValueError when it is not a ring, OSError when it cannot be mapped or there are too many.
        """
        cdef Map map = Map(fd)
        cdef Strand *strand = <Strand *>calloc(1, sizeof(Strand))
        cdef int i
        if strand == NULL:
            raise MemoryError
        if tape_open(&strand.tape, map.base, map.size) < 0:
            free(strand)
            raise ValueError("not a journal ring")
        strand.worker = worker
        self.counts()
        with nogil:
            self._acquire()
        for i in range(STRANDS):
            if self.strands[i] == NULL:
                strand.base = map.base
                strand.size = map.size
                map.base = NULL
                self.strands[i] = strand
                if <uint32_t>i >= self.top:
                    self.top = i + 1
                break
        pthread_mutex_unlock(&self.lock)
        if strand.base == NULL:
            free(strand)
            raise OSError(f"more than {STRANDS} journals")

    def remove(self, uint32_t worker) -> None:
        """The worker is dead: read what it left, then let its ring go. A ring added for it later is another
        one."""
        cdef uint32_t i
        with nogil:
            self._acquire()
            for i in range(self.top):
                if self.strands[i] != NULL and self.strands[i].worker == worker:
                    self.strands[i].closing = True
            pthread_mutex_unlock(&self.lock)
        self.wake()

    def counts(self) -> dict:
        """``{worker: (records read, records dropped by it, times its ring was corrupt)}`` since the start."""
        cdef dict counts
        cdef uint32_t i
        cdef Strand *strand
        with nogil:
            self._acquire()
        for i in range(self.top):
            strand = self.strands[i]
            if strand != NULL and strand.done:
                self._add_counts(self.gone, strand, strand.dropped)
                free(strand)
                self.strands[i] = NULL
        counts = dict(self.gone)
        for i in range(self.top):
            strand = self.strands[i]
            if strand != NULL:
                self._add_counts(counts, strand, word_read(&strand.tape.header.dropped))
        pthread_mutex_unlock(&self.lock)
        return counts

    cdef void _add_counts(self, dict counts, const Strand *strand, uint64_t dropped):
        old = counts.get(strand.worker, (0, 0, 0))
        counts[strand.worker] = (old[0] + strand.tape.records, old[1] + dropped, old[2] + strand.tape.corrupt)

    def set_names(self, uint64_t version, dict routes, dict clusters, dict endpoints, dict listeners) -> None:
        """What the numbers in records of this plan version stand for: ``{number: name}`` each.

        Call it before a worker gets the plan. A version below the last one starts another epoch: all older is
        forgotten. Route and listener names are kept for the newest 8 versions.
        """
        cdef Version *made
        cdef Version *old
        cdef int i
        for name in listeners.values():
            if name not in self.label_numbers and len(self.labels) < 4096:
                self.label_numbers[name] = len(self.labels)
                self.labels.append(name)
        made = version_new(version, routes, {k: self.label_numbers.get(n, 0) for k, n in listeners.items()})
        with nogil:
            self._acquire()
        try:
            if version < self.last_version:
                self.clusters.rewind()
                self.endpoints.rewind()
                for i in range(VERSIONS):
                    if self.versions[i] != NULL:
                        version_free(self.versions[i])
                        self.versions[i] = NULL
            self.clusters.assign(version, clusters)
            self.endpoints.assign(version, endpoints)
            self.last_version = version
            old = self.versions[0]
            self.versions[0] = made
            made = NULL
            i = 1
            while i < VERSIONS and old != NULL and old.version != version:
                self.versions[i], old = old, self.versions[i]
                i += 1
            if old != NULL:
                version_free(old)
        finally:
            pthread_mutex_unlock(&self.lock)
            if made != NULL:
                version_free(made)

    def set_log(self, int fd, int mode) -> None:
        """Write the access log to ``fd``, which is ours from now on, after what is waiting went to the last
        one.

        ``mode``: 0 a file, or a descriptor that does not block; 1 a socket; 2 one that may block.
        """
        with nogil:
            self._acquire()
        if self.out == NULL:
            self.out = <uint8_t *>malloc(BUFFER)
        fd, self.next_fd = self.next_fd, fd
        self.next_mode = mode
        pthread_mutex_unlock(&self.lock)
        if fd >= 0:
            close(fd)
        if self.out == NULL:
            raise MemoryError
        self.wake()

    def log_counts(self) -> tuple:
        """(lines formatted, lines dropped, failed writes) of the access log."""
        return self.lines, self.lines_dropped, self.write_errors

    def series(self) -> tuple:
        """(exchanges counted in the overflow series, list of series).

        A series: (cluster, listener, status, kind, sum of µs, of request bytes, of response bytes, and the 20
        bucket counts of each). The first is the overflow, with None for cluster.
        """
        cdef Series *copy
        cdef Series *s
        cdef uint32_t i, n
        cdef uint64_t overflowed
        cdef list out = []
        with nogil:
            self._acquire()
            n = self.table.used
            overflowed = self.table.overflowed
            copy = <Series *>malloc(n * sizeof(Series))
            if copy != NULL:
                memcpy(copy, self.table.series, n * sizeof(Series))
            pthread_mutex_unlock(&self.lock)
        if copy == NULL:
            raise MemoryError
        for i in range(n):
            s = &copy[i]
            head = (None, "", 0, 0)
            if i:
                head = (self.clusters.names[s.key >> 40], self.labels[(s.key >> 24) & 0xFFFF],
                        (s.key >> 8) & 0xFFFF, s.key & 0xFF)
            out.append((*head, s.duration_us, s.received, s.sent, _counts(s.by_duration),
                        _counts(s.by_received), _counts(s.by_sent)))
        free(copy)
        return overflowed, out

    def totals(self) -> tuple:
        """(exchanges that have ended, those of them with a status of 500 or more) since the start."""
        return word_read(&self.records), word_read(&self.failed)

    def run(self) -> None:
        """Drain until :meth:`stop`, then once more to the end. Sleeps 5 ms under pressure, 20 ms, or idle 50
        ms."""
        cdef int quiet = 0, _i
        cdef uint64_t before
        if word_swap(&self.running, 1):
            raise RuntimeError("already running")
        with nogil:
            while not word_add(&self.stopping, 0):
                before = self.records
                if self._round():
                    wait_for(self.event, POLLIN, 5)
                else:
                    quiet = quiet + 1 if self.records == before else 0
                    wait_for(self.event, POLLIN, 20 if quiet < 50 else 50)
                read(self.event, &before, 8)
            for _i in range(64):
                before = self.records
                self._round()
                if self.records == before:
                    break
            for _i in range(50):
                if self.fill == 0:
                    break
                wait_for(-1, 0, 20)
                self._write()
            self._drop_all()
        word_swap(&self.running, 0)

    def stop(self) -> None:
        """End :meth:`run`; it takes up to a second when the log is stuck."""
        word_swap(&self.stopping, 1)
        self.wake()

    def step(self) -> int:
        """One round in the caller's thread, when no other runs it; records read."""
        cdef uint64_t before = self.records
        if word_swap(&self.running, 1):
            raise RuntimeError("already running")
        with nogil:
            self._round()
        word_swap(&self.running, 0)
        return self.records - before

    cdef bint _round(self) noexcept nogil:
        # Every ring to its end, a batch at a time. True: one had filled to an eighth, look again soon.
        cdef Strand *strand
        cdef uint32_t i, n
        cdef bint more = True, pressed = False, full
        cdef int passes = 0
        self._take_log()
        while more and passes < 64:
            more = False
            passes += 1
            i = 0
            while i < self.top:
                pthread_mutex_lock(&self.lock)
                strand = self.strands[i]
                full = False
                if strand != NULL and not strand.done:
                    n = self._batch(strand)
                    full = self.fd >= 0 and not self.stalled and BUFFER - self.fill < LINE_MAX
                    more |= n == BATCH or full
                    pressed |= n * 8 * 160 > strand.tape.size or passes > 32
                    if n == 0 and not full and strand.closing:
                        strand.dropped = word_read(&strand.tape.header.dropped)
                        munmap(strand.base, strand.size)
                        strand.base = NULL
                        strand.done = True
                pthread_mutex_unlock(&self.lock)
                if full or self.fill > BUFFER_LAZY:
                    self._write()
                if word_add(&self.waiting, 0):
                    wait_for(-1, 0, 1)
                i += 1
        self._write()
        return pressed or more

    cdef uint32_t _batch(self, Strand *strand) noexcept nogil:
        cdef Record record
        cdef const uint8_t *texts = NULL
        cdef uint32_t n = 0
        while n < BATCH:
            if self.fd >= 0 and not self.stalled and BUFFER - self.fill < LINE_MAX:
                break
            if not tape_next(&strand.tape, &record, &texts):
                break
            self._record(strand, &record, texts)
            n += 1
        self.records += n
        tape_publish(&strand.tape)
        return n

    cdef void _record(self, Strand *strand, const Record *r, const uint8_t *texts) noexcept nogil:
        cdef Version *version = self.versions[0]
        cdef uint32_t cluster = self.clusters.find(r.cluster, r.plan_version), listener = 0, endpoint
        cdef Series *series
        cdef Entry *entry
        cdef Names names
        cdef uint64_t key
        cdef bint fresh = False
        cdef int i = 0
        while version != NULL and version.version != r.plan_version:
            i += 1
            version = self.versions[i] if i < VERSIONS else NULL
        if version != NULL and r.listener < version.listener_count:
            listener = version.listeners[r.listener]
        key = <uint64_t>cluster << 40 | <uint64_t>listener << 24 | <uint64_t>r.status << 8 | r.error
        series = _series(&self.table, key, &fresh)
        if fresh:
            entry = &self.clusters.entries[cluster]
            entry.users += 1
        self.failed += r.status >= 500
        series.duration_us += r.duration_us
        series.received += r.bytes_received
        series.sent += r.bytes_sent
        series.by_duration[_bucket(BOUNDS_US, r.duration_us)] += 1
        series.by_received[_bucket(BOUNDS_BYTES, r.bytes_received)] += 1
        series.by_sent[_bucket(BOUNDS_BYTES, r.bytes_sent)] += 1
        if self.fd < 0:
            return
        if BUFFER - self.fill < LINE_MAX:
            self.lines_dropped += 1
            return
        endpoint = self.endpoints.find(r.endpoint, r.plan_version)
        names.cluster = self.clusters.entries[cluster].text
        names.endpoint = self.endpoints.entries[endpoint].text
        names.route.len = 0
        if version != NULL and r.route < version.route_count:
            names.route = version.routes[r.route]
        self.fill += line_format(&self.formatter, r, texts, strand.worker, &names, self.out + self.fill)
        self.lines += 1

    cdef void _take_log(self) noexcept nogil:
        cdef uint8_t *end
        if self.next_fd < 0:
            return
        self._write()
        if self.torn and self.fill:
            # The rest of a line whose beginning is in the old file.
            end = <uint8_t *>memchr(self.out, 10, self.fill)
            self._forget(end + 1 - self.out)
            self.lines_dropped += 1
        if self.fd >= 0:
            close(self.fd)
        pthread_mutex_lock(&self.lock)
        self.fd = self.next_fd
        self.mode = self.next_mode
        self.next_fd = -1
        pthread_mutex_unlock(&self.lock)
        self.torn = False
        self.stalled = False

    cdef void _forget(self, size_t n) noexcept nogil:
        self.fill -= n
        memmove(self.out, self.out + n, self.fill)

    cdef void _drop_all(self) noexcept nogil:
        cdef size_t at
        for at in range(self.fill):
            self.lines_dropped += self.out[at] == 10
        self.fill = 0

    cdef void _write(self) noexcept nogil:
        # Never waits: what finds no room stays, up to the buffer's end; what fails for good is dropped and
        # counted.
        cdef size_t sent = 0, left
        cdef ssize_t n
        while sent < self.fill and self.fd >= 0:
            left = self.fill - sent
            if self.mode == LOG_SOCKET:
                n = send(self.fd, self.out + sent, left, MSG_DONTWAIT | MSG_NOSIGNAL)
            elif self.mode == LOG_CAREFUL and wait_for(self.fd, POLLOUT, 0) <= 0:
                break
            else:
                if self.mode == LOG_CAREFUL and left > 4096:
                    left = 4096
                n = write(self.fd, self.out + sent, left)
            if n > 0:
                sent += n
                self.torn = self.out[sent - 1] != 10
            elif n == 0 or errno == EAGAIN:
                break
            elif errno == ENOSPC or errno == EDQUOT:
                self.write_errors += 1
                break
            elif errno != EINTR:
                self.write_errors += 1
                self._forget(sent)
                self._drop_all()
                return
        self.stalled = self.fill > 0 and sent == 0
        if sent:
            self._forget(sent)
