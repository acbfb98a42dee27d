# Live: the read/write memory that agent and workers share, and the pick of an endpoint from it.
# Slots are found by number and carried from plan to plan by name (agent). Counters are columns: one per worker, one
# writer each, so a plain store is enough; a reader adds the columns up. A dead worker's column is zeroed by the agent.
#
#   Header | Cluster state[clusters] | Endpoint state[endpoints] | column 0 | column 1 | …
#   column: Gauges | ClusterCount[clusters] | EndpointCount[endpoints]

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stddef cimport size_t
from fastproxy._plan cimport Plan, Cluster, Endpoint

cdef enum:
    LIVE_MAGIC = 0x66704c32         # "fpL2"

cdef enum Health:                   # bits of EndpointState.health; 0 is healthy
    HEALTH_FAILED = 1               # failed its health check
    HEALTH_EJECTED = 2              # outlier
    HEALTH_DRAINING = 4             # no new requests

cdef struct LiveHeader:
    uint32_t magic
    uint32_t workers
    uint32_t clusters               # slots
    uint32_t endpoints              # slots
    uint32_t log_strings            # 1: the access log is on, records carry strings
    uint32_t reserved[59]

cdef enum Breaker:                  # ClusterState.breaker
    BREAKER_CLOSED = 0              # admits
    BREAKER_OPEN = 1                # rejects
    BREAKER_HALF_OPEN = 2           # admits a few probes

cdef enum Order:                    # the low two bits of an order
    ORDER_NONE = 0
    ORDER_OPEN = 1                  # reject, whatever the breaker says
    ORDER_CLOSED = 2                # admit, whatever the breaker says

# An order is one word, until_us << 2 | Order, so that nobody sees half of one. until_us is CLOCK_MONOTONIC, which agent
# and workers share: it lapses in the core, with nobody's help. Only the agent writes it.

cdef struct ClusterState:           # 64 bytes
    uint32_t breaker                # Breaker
    uint32_t reserved_word
    uint64_t order
    uint64_t reserved[6]

cdef struct EndpointState:          # 16 bytes
    uint32_t health
    uint32_t breaker                # Breaker
    uint64_t order

cdef struct Gauges:                 # 64 words; the names are Live.GAUGES, in this order
    uint64_t downstream_connections     # open now
    uint64_t downstream_idle            # of these, without an exchange
    uint64_t upstream_connections       # open now
    uint64_t upstream_idle              # of these, in a pool
    uint64_t exchanges                  # running now
    uint64_t chunks                     # buffers out of the freelist now
    uint64_t chunk_bytes                # bytes of these
    uint64_t plans                      # mapped now
    uint64_t pipes                      # splice pipes out now
    uint64_t accepted                   # connections since start, and so on below
    uint64_t requests
    uint64_t retries                    # on a fresh connection, after a stale pooled one
    uint64_t upstream_connects
    uint64_t upstream_reuses
    uint64_t descriptors_exhausted      # times accept ran out of descriptors
    uint64_t journal_dropped
    uint64_t plan_version
    uint64_t plan_swaps
    uint64_t plan_swap_us               # of the last swap
    uint64_t plan_swap_us_max
    uint64_t invariant_failures         # "cannot happen" happened; the connection was dropped
    uint64_t ticks
    uint64_t rounds
    uint64_t reserved[41]

cdef struct ClusterCount:
    uint32_t active
    uint32_t pick                       # round-robin position
    uint64_t requests
    uint64_t errors
    uint64_t rejected                   # not admitted: 503 UO

cdef struct EndpointCount:
    uint32_t active                     # requests
    uint32_t connections
    uint64_t requests
    uint64_t errors
    uint64_t reserved

cdef struct LiveView:
    uint8_t *base
    LiveHeader *header
    ClusterState *clusters
    EndpointState *endpoints
    uint32_t worker                     # whose column `gauges`, `cluster` and `endpoint` are
    Gauges *gauges
    ClusterCount *cluster
    EndpointCount *endpoint
    size_t column                       # bytes of a column
    uint8_t *columns                    # the first

cdef size_t live_bytes(uint32_t workers, uint32_t clusters, uint32_t endpoints) noexcept nogil
cdef int live_open(LiveView *live, uint8_t *base, size_t size, uint32_t worker) noexcept nogil
cdef uint32_t live_endpoint_active(const LiveView *live, uint32_t slot) noexcept nogil
# The endpoint to ask, or NULL: none is healthy and admitted. `avoid` is one that was just tried, taken only when
# nothing else is. `now_us` is CLOCK_MONOTONIC, here as below.
cdef const Endpoint *balance_pick(const Plan *plan, const Cluster *cluster, LiveView *live, uint64_t now_us,
                                  uint32_t random, const Endpoint *avoid) noexcept nogil
# Whether an endpoint would be picked, were it not for an order: then NULL above means 503 UO, not UH.
cdef bint balance_held_back(const Plan *plan, const Cluster *cluster, const LiveView *live,
                            uint64_t now_us) noexcept nogil

cdef inline uint32_t order_now(uint64_t word, uint64_t now_us) noexcept nogil:
    """Order that is in force."""
    return <uint32_t>(word & 3) if word >> 2 > now_us else ORDER_NONE

cdef inline bint breaker_admits(const LiveView *live, uint32_t slot, uint64_t now_us) noexcept nogil:
    """Whether a request may go to that cluster."""
    cdef uint64_t word = live.clusters[slot].order
    return word == 0 or order_now(word, now_us) != ORDER_OPEN
