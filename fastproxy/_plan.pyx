# The plan's readers. Table of contents:
#
#   this file            opening a plan, names in it, small answers
#   _plan_predicate.pxi  one predicate on one request
#   _plan_match.pxi      host -> index -> rule
#   _plan_rewrite.pxi    the path and the Location to send, and the regex program behind uriRegexRewrite
#   _plan_check.pxi      everything in a block, verified once
#   _plan_python.pxi     what Python sees: PlanView

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int64_t
from libc.stddef cimport size_t
from libc.string cimport memcmp, memcpy, memmove
from fastproxy._http1 cimport Head, Field, Limits, FORM_ASTERISK, KNOWN_COOKIE
from fastproxy._http1 cimport field_hash, name_equals, scan_request, path_normalise

cdef extern from *:
    int ctz64 "__builtin_ctzll" (unsigned long long) noexcept nogil
    int popcount64 "__builtin_popcountll" (unsigned long long) noexcept nogil


# ---- arrays of the block ---------------------------------------------------------------------------------------------

cdef inline const PlanHeader *_header(const Plan *plan) noexcept nogil:
    return <const PlanHeader *>plan.base


cdef inline const uint8_t *_array(const Plan *plan, int section) noexcept nogil:
    return plan.base + _header(plan).sections[section].at


cdef inline uint32_t _count(const Plan *plan, int section) noexcept nogil:
    return _header(plan).sections[section].count


cdef inline const uint32_t *_table(const Plan *plan, uint32_t first) noexcept nogil:
    return <const uint32_t *>_array(plan, IN_TABLE) + first


cdef size_t _size_of(int section) noexcept nogil:
    if section == IN_LISTENER:
        return sizeof(Listener)
    if section == IN_HOST:
        return sizeof(Host)
    if section == IN_RULE:
        return sizeof(Rule)
    if section == IN_PREDICATE:
        return sizeof(Predicate)
    if section == IN_ATTR:
        return sizeof(Attr)
    if section == IN_NODE:
        return sizeof(Node)
    if section == IN_CHILD:
        return sizeof(Child)
    if section == IN_REF:
        return sizeof(Ref)
    if section == IN_SET:
        return sizeof(Set)
    if section == IN_TABLE:
        return sizeof(uint32_t)
    if section == IN_ROUTE:
        return sizeof(Route)
    if section == IN_DESTINATION:
        return sizeof(Destination)
    if section == IN_REMOVE:
        return sizeof(RemoveName)
    if section == IN_REDIRECT:
        return sizeof(Redirect)
    if section == IN_CLUSTER:
        return sizeof(Cluster)
    if section == IN_ENDPOINT:
        return sizeof(Endpoint)
    if section == IN_DFA:
        return sizeof(Dfa)
    if section == IN_PROGRAM:
        return sizeof(Program)
    if section == IN_CODE:
        return sizeof(Code)
    return 1


cdef int plan_open(Plan *plan, const uint8_t *base, size_t size) noexcept nogil:
    cdef const PlanHeader *h = <const PlanHeader *>base
    cdef int i
    cdef uint64_t end
    if size < sizeof(PlanHeader) or (<size_t>base & 7):
        return -1
    if h.magic != PLAN_MAGIC or h.format != PLAN_FORMAT or h.size != size:
        return -1
    for i in range(PLAN_SECTIONS):
        end = h.sections[i].at + <uint64_t>h.sections[i].count * _size_of(i)
        if end > size or h.sections[i].at < sizeof(PlanHeader) or h.sections[i].at & 7:
            return -1
    plan.base = base
    plan.size = size
    plan.epoch = h.epoch
    plan.version = h.version
    plan.references = 0
    return 0


# ---- hashes ----------------------------------------------------------------------------------------------------------

cdef inline uint8_t _lower(uint8_t c) noexcept nogil:
    return c + 32 if 65 <= c <= 90 else c


# FNV-1a over lower-cased bytes, finished so that the low bits depend on all of them. Only for names of the
# configuration (hosts, parameters, cookies): a table is probed at most once round.
cdef uint32_t _name_hash(const uint8_t *p, size_t n, bint fold) noexcept nogil:
    cdef uint32_t h = 2166136261u
    cdef size_t i
    for i in range(n):
        h = (h ^ (_lower(p[i]) if fold else p[i])) * 16777619u
    h ^= h >> 15
    h *= 0x2c1b3c6du
    h ^= h >> 12
    return h


cdef uint64_t _checksum(const uint8_t *p, size_t n) noexcept nogil:
    cdef uint64_t h = 0x9e3779b97f4a7c15u ^ n
    cdef uint64_t w
    cdef size_t i = 0
    while i + 8 <= n:
        memcpy(&w, p + i, 8)
        h = (h ^ w) * 0xff51afd7ed558ccdu
        h ^= h >> 32
        i += 8
    while i < n:
        h = (h ^ p[i]) * 0xff51afd7ed558ccdu
        h ^= h >> 32
        i += 1
    return h


# ---- small answers ---------------------------------------------------------------------------------------------------

cdef uint32_t plan_listener(const Plan *plan, const uint8_t *name, size_t n) noexcept nogil:
    cdef const Listener *listeners = <const Listener *>_array(plan, IN_LISTENER)
    cdef uint32_t i
    for i in range(_count(plan, IN_LISTENER)):
        if listeners[i].name.len == n and memcmp(text(plan, listeners[i].name), name, n) == 0:
            return i
    return PLAN_NONE


cdef const Destination *plan_destination(const Plan *plan, const Route *route, uint32_t random) noexcept nogil:
    cdef const Destination *d = <const Destination *>(plan.base + route.destinations)
    cdef uint32_t x = <uint32_t>((<uint64_t>random * route.weight_total) >> 32)
    cdef uint32_t i = 0
    while i + 1 < route.destination_count and d[i].weight_end <= x:
        i += 1
    return d + i


cdef const Cluster *plan_cluster(const Plan *plan, uint32_t index) noexcept nogil:
    if index >= _count(plan, IN_CLUSTER):
        return NULL
    return <const Cluster *>_array(plan, IN_CLUSTER) + index


cdef uint32_t plan_cluster_count(const Plan *plan) noexcept nogil:
    return _count(plan, IN_CLUSTER)


cdef bint ops_remove(const Plan *plan, const HeaderOps *ops, const uint8_t *base, const Field *field) noexcept nogil:
    cdef const RemoveName *names
    cdef uint32_t i
    if not (ops.bloom >> (field.hash & 63)) & 1:
        return False
    names = <const RemoveName *>(plan.base + ops.remove)
    for i in range(ops.remove_count):
        if names[i].hash == field.hash and names[i].name.len == field.name_len:
            if name_equals(base + field.name, text(plan, names[i].name), field.name_len):
                return True
    return False


include "_plan_predicate.pxi"
include "_plan_match.pxi"
include "_plan_rewrite.pxi"
include "_plan_check.pxi"
include "_plan_python.pxi"
