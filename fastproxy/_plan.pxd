# The plan: one immutable, position-independent block that answers "where does this request go".
# Built by fastproxy.plan from tables, mapped read-only by every worker; all references are offsets from its start.
#
#   listener -> host -> rules (first match in order, found by an index) -> route -> destination -> cluster -> endpoint

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
    uint32_t rewrite_program        # index of the regex program of REWRITE_REGEX
    Text authority                  # rewrite or redirect authority; len 0: keep
    uint32_t status                 # of a redirect or direct response
    uint32_t redirect               # index of the redirect's parts, private to _plan
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

# 0, or -1: the block is not a plan of this build. Reads the header only, so that a worker may do it between two events.
cdef int plan_open(Plan *plan, const uint8_t *base, size_t size) noexcept nogil
# 0, or 1 + the PlanSection that is wrong (PLAN_SECTIONS + 1: the checksum). Checks everything once: every
# offset, count, index and transition, so that no later reader has to. The agent does it before it seals the block.
cdef int plan_check(const Plan *plan) noexcept nogil
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

# ---- private to _plan: what the block is made of -------------------------------------------------------------------
#
#   PlanHeader | arrays of one struct each, in the order of the enum | sets, DFAs, texts
#
# All arrays are aligned to 8. Numbers are indices into an array, offsets where the map above says so.

cdef enum:
    PLAN_MAGIC = 0x66705031         # "1Ppf"
    PLAN_FORMAT = 1
    PLAN_SECTIONS = 20
    PLAN_NONE = 0xFFFFFFFF
    PLAN_DIMS = 5                   # dimensions of a host's index: the path and the first four attributes of a rule
    PLAN_ATTRS = 256                # attributes of a host's index; further ones are looked at on candidates only
    PLAN_CHAIN = 4                  # nested prefixes that are united at match time; deeper ones are united before
    DFA_STATES = 4096
    PROGRAM_SIZE = 512
    PROGRAM_GROUPS = 10

cdef enum PlanSection:
    IN_LISTENER = 0
    IN_HOST = 1
    IN_RULE = 2
    IN_PREDICATE = 3
    IN_ATTR = 4
    IN_NODE = 5
    IN_CHILD = 6
    IN_REF = 7
    IN_SET = 8
    IN_TABLE = 9                    # uint32_t: hash tables, suffix lengths, schedules
    IN_ROUTE = 10
    IN_DESTINATION = 11
    IN_REMOVE = 12
    IN_REDIRECT = 13
    IN_CLUSTER = 14
    IN_ENDPOINT = 15
    IN_DFA = 16
    IN_PROGRAM = 17
    IN_CODE = 18
    IN_DATA = 19                    # bytes: bitsets, DFA tables, texts

cdef struct Section:
    uint32_t at
    uint32_t count

cdef struct PlanHeader:
    uint32_t magic
    uint32_t format
    uint64_t epoch
    uint64_t version
    uint64_t size
    uint64_t checksum               # of all that follows this struct
    Section sections[20]

cdef struct Listener:
    Text name
    uint32_t port
    uint32_t mesh                   # 1: a match on the port looks at the authority, not at the listener
    uint32_t any                    # Host of "*", or PLAN_NONE
    uint32_t exact                  # in IN_TABLE: Host + 1 by hash of the name; 0 is empty
    uint32_t exact_mask
    uint32_t suffix                 # the same for "*.suffix", by hash of ".suffix"
    uint32_t suffix_mask
    uint32_t lengths                # in IN_TABLE: lengths of the suffixes, longest first
    uint32_t length_count

cdef enum HostFlag:
    HOST_HEADERS = 1
    HOST_QUERY = 2
    HOST_COOKIES = 4

cdef struct Host:
    uint64_t bloom                  # bit (hash & 63) of every header attribute
    Text name                       # lower case; of "*.suffix": ".suffix"
    uint32_t routes
    uint32_t route_count
    uint32_t rules
    uint32_t rule_count
    uint32_t path                   # Node: root of the path's trie, or PLAN_NONE
    uint32_t fold                   # the same for rules that ignore case
    uint32_t attrs
    uint32_t attr_count
    uint32_t names                  # in IN_TABLE: attribute + 1 by hash of its name
    uint32_t names_mask
    uint32_t flags                  # HostFlag
    uint32_t method                 # attribute, or PLAN_NONE
    uint32_t authority              # attribute, or PLAN_NONE
    uint32_t dims
    uint32_t wild[5]                # Set of the rules that do not constrain the dimension, or PLAN_NONE

cdef struct Rule:                   # one match block
    uint32_t route                  # relative to Host.routes
    uint32_t predicates
    uint32_t predicate_count
    uint32_t residual               # of these, the first that the index does not answer for
    uint32_t covered                # Routing.prefix_len, or PLAN_NONE: the whole path

cdef enum Subject:
    ON_PATH = 0
    ON_METHOD = 1
    ON_SCHEME = 2
    ON_AUTHORITY = 3
    ON_PORT = 4
    ON_HEADER = 5
    ON_QUERY = 6
    ON_COOKIE = 7

cdef enum PredicateKind:
    IS_EXACT = 0
    IS_PREFIX = 1
    IS_REGEX = 2
    IS_PRESENT = 3

cdef enum PredicateFlag:
    PREDICATE_FOLD = 1              # without regard to (ASCII) case; the value is lower case
    PREDICATE_NOT = 2               # withoutHeaders: must not hold; an absent field counts as empty, as in Istio

cdef struct Predicate:
    uint8_t subject
    uint8_t kind
    uint8_t flags
    uint8_t reserved
    uint32_t hash                   # of the name
    Text name
    Text value
    uint32_t number                 # port, or Dfa

cdef struct Attr:                   # a named thing that rules look at
    uint32_t subject
    uint32_t hash
    Text name
    uint32_t root                   # Node, or PLAN_NONE
    uint32_t present                # Ref: rules that the mere presence satisfies, as far as the index goes
    uint32_t present_count

cdef enum:
    NODE_UNITED = 1                 # the prefix sets hold those of all shorter prefixes too

cdef struct Node:                   # of a radix trie; children come after their parent
    Text label
    uint32_t children
    uint32_t child_count
    uint32_t exact                  # Ref: rules whose value ends here
    uint32_t exact_count
    uint32_t prefix                 # Ref: rules whose prefix ends here
    uint32_t prefix_count
    uint32_t flags

cdef struct Child:
    uint32_t byte                   # first of the label; ascending
    uint32_t node

cdef struct Ref:
    uint32_t dim
    uint32_t set

cdef struct Set:                    # rules, as a sparse bitset of two levels
    uint32_t first                  # number of the first summary word
    uint32_t count                  # summary words
    uint32_t at                     # uint64_t summary[count], uint64_t word[words], uint32_t rank[count]
    uint32_t words                  # bits in the summary

cdef struct Redirect:
    Text scheme
    Text uri
    Text prefix
    uint32_t flags                  # RedirectFlag
    uint32_t port

cdef enum RedirectFlag:
    REDIRECT_URI = 1
    REDIRECT_PREFIX = 2
    REDIRECT_PORT = 4               # port; 0: that of the request

cdef struct Dfa:
    uint32_t at                     # uint8_t class[256], accept[states], padding; uint16_t next[states * classes]
    uint32_t states                 # 0 is the dead one
    uint32_t classes
    uint32_t start

cdef struct Program:
    uint32_t code
    uint32_t count

cdef enum Op:
    OP_BYTES = 0                    # low..high, then x
    OP_SPLIT = 1                    # x, else y
    OP_SAVE = 2                     # slot y, then x
    OP_ASSERT = 3                   # Assertion y, then x
    OP_MATCH = 4

cdef enum Assertion:
    AT_TEXT_START = 1
    AT_TEXT_END = 2
    AT_LINE_START = 3
    AT_LINE_END = 4
    AT_WORD = 5
    AT_NOT_WORD = 6

cdef struct Code:
    uint8_t op
    uint8_t low
    uint8_t high
    uint8_t reserved
    uint32_t x
    uint32_t y
