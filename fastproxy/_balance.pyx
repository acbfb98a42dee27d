# cython: language_level=3
"""Live memory and the choice of an endpoint. The picture is in _balance.pxd."""

import mmap
import os

from libc.string cimport memset

from fastproxy._plan cimport LB_RANDOM, LB_ROUND_ROBIN


cdef size_t live_column(uint32_t clusters, uint32_t endpoints) noexcept nogil:
    return sizeof(Gauges) + clusters * sizeof(ClusterCount) + endpoints * sizeof(EndpointCount)


cdef size_t live_bytes(uint32_t workers, uint32_t clusters, uint32_t endpoints) noexcept nogil:
    return (sizeof(LiveHeader) + clusters * sizeof(ClusterState) + endpoints * sizeof(EndpointState)
            + workers * live_column(clusters, endpoints))


cdef int live_open(LiveView *live, uint8_t *base, size_t size, uint32_t worker) noexcept nogil:
    cdef LiveHeader *h = <LiveHeader *>base
    if size < sizeof(LiveHeader) or h.magic != LIVE_MAGIC or worker >= h.workers:
        return -1
    if size < live_bytes(h.workers, h.clusters, h.endpoints):
        return -1
    live.base = base
    live.header = h
    live.clusters = <ClusterState *>(base + sizeof(LiveHeader))
    live.endpoints = <EndpointState *>(live.clusters + h.clusters)
    live.columns = <uint8_t *>(live.endpoints + h.endpoints)
    live.column = live_column(h.clusters, h.endpoints)
    live.worker = worker
    live_column_at(live, worker)
    return 0


cdef void live_column_at(LiveView *live, uint32_t worker) noexcept nogil:
    live.gauges = <Gauges *>(live.columns + worker * live.column)
    live.cluster = <ClusterCount *>(live.gauges + 1)
    live.endpoint = <EndpointCount *>(live.cluster + live.header.clusters)


cdef uint32_t live_endpoint_active(const LiveView *live, uint32_t slot) noexcept nogil:
    """Requests running at an endpoint now, of all workers. Other columns are read as they stand: a pick may be a moment
    old, never wrong for long."""
    cdef size_t at = sizeof(Gauges) + live.header.clusters * sizeof(ClusterCount) + slot * sizeof(EndpointCount)
    cdef uint32_t total = 0
    cdef uint32_t i
    for i in range(live.header.workers):
        total += (<const EndpointCount *>(live.columns + i * live.column + at)).active
    return total


cdef inline const Endpoint *endpoint_at(const Plan *plan, const Cluster *c, uint32_t i) noexcept nogil:
    """Endpoint of place i in the schedule, which interleaves endpoints by weight."""
    cdef const uint32_t *schedule = <const uint32_t *>(plan.base + c.schedule)
    return <const Endpoint *>(plan.base + c.endpoints) + schedule[i]


cdef inline bint endpoint_admits(const EndpointState *state, uint64_t now_us) noexcept nogil:
    """Healthy and not ordered open. An order to stay closed overrules ejection, never a failed health check."""
    cdef uint32_t order
    if (state.health | state.order) == 0:
        return True
    order = order_now(state.order, now_us)
    if order == ORDER_OPEN:
        return False
    return (state.health & ~<uint32_t>HEALTH_EJECTED if order == ORDER_CLOSED else state.health) == 0


cdef bint balance_held_back(const Plan *plan, const Cluster *cluster, const LiveView *live,
                            uint64_t now_us) noexcept nogil:
    cdef const EndpointState *state
    cdef uint32_t i
    for i in range(cluster.schedule_count):
        state = &live.endpoints[endpoint_at(plan, cluster, i).slot]
        if state.health == 0 and order_now(state.order, now_us) == ORDER_OPEN:
            return True
    return False


cdef const Endpoint *balance_pick(const Plan *plan, const Cluster *cluster, LiveView *live, uint64_t now_us,
                                  uint32_t random, const Endpoint *avoid) noexcept nogil:
    cdef uint32_t n = cluster.schedule_count
    cdef uint32_t first
    cdef uint32_t second
    cdef const Endpoint *a
    cdef const Endpoint *b
    if n == 0:
        return NULL
    if n == 1:
        a = endpoint_at(plan, cluster, 0)
        return a if endpoint_admits(&live.endpoints[a.slot], now_us) else NULL
    if cluster.lb == LB_ROUND_ROBIN:
        first = live.cluster[cluster.slot].pick % n
        live.cluster[cluster.slot].pick += 1
        return first_healthy(plan, cluster, live, now_us, first, avoid)
    first = <uint32_t>((<uint64_t>(random & 0xFFFF) * n) >> 16)
    a = first_healthy(plan, cluster, live, now_us, first, avoid)
    if a == NULL or cluster.lb == LB_RANDOM:
        return a
    # power of two choices: the second is another place of the schedule
    second = <uint32_t>((<uint64_t>(random >> 16) * (n - 1)) >> 16)
    if second >= first:
        second += 1
    b = first_healthy(plan, cluster, live, now_us, second, avoid)
    if b == NULL or a.slot == b.slot:
        return a
    return b if live_endpoint_active(live, b.slot) < live_endpoint_active(live, a.slot) else a


cdef const Endpoint *first_healthy(const Plan *plan, const Cluster *cluster, const LiveView *live, uint64_t now_us,
                                   uint32_t start, const Endpoint *avoid) noexcept nogil:
    """From place `start` on, once round. `avoid` is taken when nothing else is healthy."""
    cdef uint32_t i
    cdef const Endpoint *e
    cdef const Endpoint *last = NULL
    for i in range(cluster.schedule_count):
        e = endpoint_at(plan, cluster, (start + i) % cluster.schedule_count)
        if endpoint_admits(&live.endpoints[e.slot], now_us):
            if avoid == NULL or e.slot != avoid.slot:
                return e
            last = e
    return last


BREAKERS = ("CLOSED", "OPEN", "HALF_OPEN")
ORDERS = ("none", "open", "closed")


cdef uint64_t order_word(uint32_t order, uint64_t until_us) except? 0:
    if order > ORDER_CLOSED or until_us >= <uint64_t>1 << 62:
        raise ValueError(f"no order {order} until {until_us}")
    return (until_us << 2 | order) if order else 0


GAUGES = (
    "downstream_connections", "downstream_idle", "upstream_connections", "upstream_idle", "exchanges", "chunks",
    "chunk_bytes", "plans", "pipes", "accepted", "requests", "retries", "upstream_connects", "upstream_reuses",
    "descriptors_exhausted", "journal_dropped", "plan_version", "plan_swaps", "plan_swap_us", "plan_swap_us_max",
    "invariant_failures", "ticks", "rounds",
)


cdef class Live:
    """The agent's view of live memory: create or map it, read columns, set health.

    Slots are numbers below ``clusters`` and ``endpoints``; an index out of range raises IndexError.
    """

    GAUGES = GAUGES
    cdef LiveView live
    cdef object map
    cdef readonly int fd

    def __cinit__(self, int fd, tuple create=None):
        """Map the memory behind ``fd``; with ``create=(workers, clusters, endpoints)`` lay it out first."""
        cdef unsigned char[::1] view
        cdef LiveHeader header
        if create is not None:
            memset(&header, 0, sizeof(header))
            header.magic = LIVE_MAGIC
            header.workers, header.clusters, header.endpoints = create
            if not header.workers:
                raise ValueError("at least one worker")
            os.pwrite(fd, (<char *>&header)[:sizeof(header)], 0)
        self.fd = fd
        self.map = mmap.mmap(fd, 0)
        view = self.map
        if live_open(&self.live, &view[0], view.shape[0], 0) != 0:
            raise ValueError("not live memory of this build")

    @staticmethod
    def bytes(uint32_t workers, uint32_t clusters, uint32_t endpoints):
        """Size of live memory with that many columns and slots."""
        return live_bytes(workers, clusters, endpoints)

    @property
    def workers(self):
        return self.live.header.workers

    cdef int _select(self, uint32_t worker) except -1:
        if worker >= self.live.header.workers:
            raise IndexError(f"no worker {worker}")
        live_column_at(&self.live, worker)
        return 0

    def gauges(self, uint32_t worker):
        """Gauges and counters of one worker by name."""
        cdef uint64_t *word
        cdef int i
        self._select(worker)
        word = <uint64_t *>self.live.gauges
        return {name: word[i] for i, name in enumerate(GAUGES)}

    def zero(self, uint32_t worker):
        """A worker died: what it held is gone. Only while it is not running."""
        self._select(worker)
        # counters of slots that were never touched stay unmapped: only what the column holds is written
        memset(self.live.gauges, 0, sizeof(Gauges))
        column = memoryview(self.map)[<size_t>(<uint8_t *>self.live.cluster - self.live.base):]
        size = self.live.column - sizeof(Gauges)
        page = 4096
        blank = bytearray(page)
        for at in range(0, size, page):
            part = column[at:min(at + page, size)]
            if part != blank[:len(part)]:
                part[:] = blank[:len(part)]

    def cluster(self, uint32_t slot):
        """Sums over all workers: active, requests, errors, rejected (by the breaker); and the breaker's state."""
        cdef uint32_t i
        cdef uint64_t active = 0, requests = 0, errors = 0, rejected = 0
        if slot >= self.live.header.clusters:
            raise IndexError(f"no cluster slot {slot}")
        for i in range(self.live.header.workers):
            live_column_at(&self.live, i)
            active += self.live.cluster[slot].active
            requests += self.live.cluster[slot].requests
            errors += self.live.cluster[slot].errors
            rejected += self.live.cluster[slot].rejected
        return {"active": active, "requests": requests, "errors": errors, "rejected": rejected,
                "breaker": BREAKERS[self.live.clusters[slot].breaker % 3]}

    def endpoint(self, uint32_t slot):
        """Sums over all workers: active, connections, requests, errors; and the health bits."""
        cdef uint32_t i
        cdef uint64_t active = 0, connections = 0, requests = 0, errors = 0
        if slot >= self.live.header.endpoints:
            raise IndexError(f"no endpoint slot {slot}")
        for i in range(self.live.header.workers):
            live_column_at(&self.live, i)
            active += self.live.endpoint[slot].active
            connections += self.live.endpoint[slot].connections
            requests += self.live.endpoint[slot].requests
            errors += self.live.endpoint[slot].errors
        return {"active": active, "connections": connections, "requests": requests, "errors": errors,
                "health": self.live.endpoints[slot].health}

    def set_health(self, uint32_t slot, uint32_t bits):
        """Health bits of an endpoint, seen by the next pick of every worker. 0: healthy."""
        if slot >= self.live.header.endpoints:
            raise IndexError(f"no endpoint slot {slot}")
        self.live.endpoints[slot].health = bits

    def order_cluster(self, uint32_t slot, uint32_t order, uint64_t until_us):
        """Force a cluster's breaker, see :data:`ORDERS`, until that moment of CLOCK_MONOTONIC, in microseconds. Obeyed
        by the next admission of every worker."""
        if slot >= self.live.header.clusters:
            raise IndexError(f"no cluster slot {slot}")
        self.live.clusters[slot].order = order_word(order, until_us)

    def order_endpoint(self, uint32_t slot, uint32_t order, uint64_t until_us):
        """The same for one endpoint."""
        if slot >= self.live.header.endpoints:
            raise IndexError(f"no endpoint slot {slot}")
        self.live.endpoints[slot].order = order_word(order, until_us)

    def set_log_strings(self, bint on):
        """Whether records carry strings for the access log."""
        self.live.header.log_strings = on
