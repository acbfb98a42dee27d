# The plan: one immutable, position-independent block that answers "where does this request go".
# Built by fastproxy.plan from tables, mapped read-only by every worker; all references are offsets from its start.
#
#   listener -> host -> rules (first match in order, found through an index) -> route -> destination -> cluster -> endpoints

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int64_t
from libc.stddef cimport size_t
from fastproxy._http1 cimport Head, Field

cdef struct Plan:                   # one mapped plan; the core counts its users
    const uint8_t *base
    size_t size
    uint64_t epoch
    uint64_t version
    uint32_t references             # exchanges that run on it, plus one while it is current

cdef struct Text:                   # bytes inside the plan
    uint32_t at
    uint32_t len

cdef enum RouteKind:
    ROUTE_FORWARD = 1
    ROUTE_REDIRECT = 2
    ROUTE_DIRECT = 3

cdef enum RewriteKind:
    REWRITE_NONE = 0
    REWRITE_PREFIX = 1              # the matched prefix (exact or regex match: the whole path) becomes `rewrite`
    REWRITE_REGEX = 2               # every match of a pattern, as RE2's GlobalReplace

cdef enum Lb:
    LB_ROUND_ROBIN = 1
    LB_LEAST_REQUEST = 2            # power of two choices on active requests
    LB_RANDOM = 3

cdef struct HeaderOps:              # what Istio's headers.{request,response}.{set,add,remove} compiles to
    uint64_t bloom                  # bit (hash & 63) of every name in `remove`
    uint32_t remove                 # offset of RemoveName[remove_count]; set and remove names
    uint32_t remove_count
    Text append                     # "Name: value\r\n" lines, ready to send; set and add

cdef struct RemoveName:
    uint32_t hash
    Text name                       # lower case

cdef struct Destination:
    uint32_t cluster                # index, or NO_CLUSTER when host or subset is unknown (503 NC)
    uint32_t weight_end             # running sum of weights up to and with this one
    HeaderOps request
    HeaderOps response

cdef enum:
    NO_CLUSTER = 0xFFFFFFFF

cdef struct Route:
    uint32_t kind                   # RouteKind
    uint32_t id                     # stable number of the route in this plan, for the journal
    uint32_t timeout_ms             # whole exchange; 0: none
    uint32_t destinations           # offset of Destination[destination_count]
    uint32_t destination_count
    uint32_t weight_total
    uint32_t rewrite_kind           # RewriteKind
    Text rewrite
    uint32_t rewrite_program        # offset of the regex program of REWRITE_REGEX
    Text authority                  # rewrite or redirect authority; len 0: keep
    uint32_t status                 # of a redirect or direct response
    uint32_t redirect               # offset of the redirect's parts, private to _plan
    Text body                       # direct response
    Text name                       # http[].name, or "<virtual service>#<n>"
    uint32_t raw_path               # 1: forward the path as it came, not the normalised one
    HeaderOps request
    HeaderOps response

cdef struct Cluster:
    Text name                       # outbound|port|subset|host, Envoy's form
    Text service                    # host, for metric labels
    uint32_t slot                   # in live
    uint32_t lb                     # Lb
    uint32_t endpoints              # offset of Endpoint[endpoint_count]
    uint32_t endpoint_count
    uint32_t schedule               # offset of uint32_t[schedule_count]: endpoint indices, interleaved by weight
    uint32_t schedule_count
    uint32_t connect_timeout_ms

cdef struct Endpoint:
    uint32_t slot                   # in live
    uint16_t family                 # AF_INET, AF_INET6, AF_UNIX
    uint16_t port                   # host byte order
    uint8_t address[16]             # network byte order; the first 4 for AF_INET
    Text path                       # AF_UNIX
    Text name                       # "127.0.0.1:9001", for the journal
    uint64_t identity               # hash of the address: a reused slot is told from the old one by it

cdef struct Routing:
    # in: what a request looks like to routing
    const Head *head
    const uint8_t *path             # normalised, without the query
    uint32_t path_len
    const uint8_t *query            # without '?'
    uint32_t query_len
    const uint8_t *host             # as it came, without the port
    uint32_t host_len
    uint32_t listener               # index in this plan
    uint8_t scheme_https
    # out
    uint32_t rule                   # number of the match in its host, in order
    uint32_t prefix_len             # bytes of the path that the matched prefix covered; all of it for exact and regex
    const Route *route

cdef inline const uint8_t *text(const Plan *plan, Text t) noexcept nogil:
    return plan.base + t.at

# 0, or -1 with a reason for a block that is not a plan of this build; checks every offset once, so that no later
# reader has to.
cdef int plan_open(Plan *plan, const uint8_t *base, size_t size) noexcept nogil
# Index of the listener of that name, or 0xFFFFFFFF.
cdef uint32_t plan_listener(const Plan *plan, const uint8_t *name, size_t n) noexcept nogil
# True, or False: no route.
cdef bint plan_match(const Plan *plan, Routing *r) noexcept nogil
cdef const Destination *plan_destination(const Plan *plan, const Route *route, uint32_t random) noexcept nogil
cdef const Cluster *plan_cluster(const Plan *plan, uint32_t index) noexcept nogil
cdef uint32_t plan_cluster_count(const Plan *plan) noexcept nogil
# True when `ops` removes this field.
cdef bint ops_remove(const Plan *plan, const HeaderOps *ops, const uint8_t *base, const Field *field) noexcept nogil
# The path to send upstream (no query), or the Location of a redirect (whole). Length, or -1: does not fit `room`.
cdef int64_t plan_rewrite(const Plan *plan, const Routing *r, uint8_t *out, size_t room) noexcept nogil
cdef int64_t plan_redirect(const Plan *plan, const Routing *r, uint8_t *out, size_t room) noexcept nogil
