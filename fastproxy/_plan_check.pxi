# Everything in a block, verified once, in time linear in its size: arrays from first to last, and what lies in IN_DATA
# piece after piece, so that no two sets or tables may share bytes and be read twice.

cdef inline bint _in(uint64_t first, uint64_t count, uint64_t limit) noexcept nogil:
    return first <= limit and count <= limit - first


cdef inline bint _one(uint32_t index, uint32_t limit) noexcept nogil:
    return index < limit or index == PLAN_NONE


cdef inline bint _text_in(const Plan *plan, Text t) noexcept nogil:
    return _in(t.at, t.len, plan.size)


# An offset into an array of structs: `first` of them from there on.
cdef bint _offset_in(const Plan *plan, int section, uint32_t at, uint32_t count) noexcept nogil:
    cdef const Section *s = &_header(plan).sections[section]
    cdef size_t size = _size_of(section)
    if count == 0:
        return True
    if at < s.at or (at - s.at) % size:
        return False
    return _in((at - s.at) // size, count, s.count)


cdef bint _ops_in(const Plan *plan, const HeaderOps *ops) noexcept nogil:
    return _offset_in(plan, IN_REMOVE, ops.remove, ops.remove_count) and _text_in(plan, ops.append)


# A hash table of `mask` + 1 entries, each 0 or an index + 1.
cdef bint _slots_in(const Plan *plan, uint32_t first, uint32_t mask, uint32_t limit) noexcept nogil:
    cdef const uint32_t *slots
    cdef uint32_t i
    if mask & (mask + 1) or mask == PLAN_NONE or not _in(first, <uint64_t>mask + 1, _count(plan, IN_TABLE)):
        return False
    slots = _table(plan, first)
    for i in range(mask + 1):
        if slots[i] > limit:
            return False
    return True


cdef bint _check_listeners(const Plan *plan) noexcept nogil:
    cdef const Listener *listeners = <const Listener *>_array(plan, IN_LISTENER)
    cdef uint32_t i, hosts = _count(plan, IN_HOST)
    for i in range(_count(plan, IN_LISTENER)):
        if not _text_in(plan, listeners[i].name) or listeners[i].port > 65535 or not _one(listeners[i].any, hosts):
            return False
        if not _slots_in(plan, listeners[i].exact, listeners[i].exact_mask, hosts):
            return False
        if not _slots_in(plan, listeners[i].suffix, listeners[i].suffix_mask, hosts):
            return False
        if not _in(listeners[i].lengths, listeners[i].length_count, _count(plan, IN_TABLE)):
            return False
        if listeners[i].length_count > 255:
            return False
    return True


cdef bint _check_hosts(const Plan *plan) noexcept nogil:
    cdef const Host *h = <const Host *>_array(plan, IN_HOST)
    cdef const Rule *rules = <const Rule *>_array(plan, IN_RULE)
    cdef const Attr *attrs = <const Attr *>_array(plan, IN_ATTR)
    cdef uint32_t i, k, nodes = _count(plan, IN_NODE)
    for i in range(_count(plan, IN_HOST)):
        if not _text_in(plan, h[i].name) or not _in(h[i].routes, h[i].route_count, _count(plan, IN_ROUTE)):
            return False
        if not _in(h[i].rules, h[i].rule_count, _count(plan, IN_RULE)):
            return False
        if not _in(h[i].attrs, h[i].attr_count, _count(plan, IN_ATTR)) or h[i].attr_count > PLAN_ATTRS:
            return False
        if not _one(h[i].path, nodes) or not _one(h[i].fold, nodes):
            return False
        if not _one(h[i].method, h[i].attr_count) or not _one(h[i].authority, h[i].attr_count):
            return False
        if not _slots_in(plan, h[i].names, h[i].names_mask, h[i].attr_count) or h[i].dims > PLAN_DIMS:
            return False
        for k in range(<uint32_t>PLAN_DIMS):
            if not _one(h[i].wild[k], _count(plan, IN_SET)):
                return False
        # Hosts that say the same share rules; each has routes of its own, as many as the rules need.
        if i and h[i].rules == h[i - 1].rules and h[i].rule_count == h[i - 1].rule_count:
            if h[i].route_count == h[i - 1].route_count:
                continue
        for k in range(h[i].rule_count):
            if rules[h[i].rules + k].route >= h[i].route_count:
                return False
    for i in range(_count(plan, IN_ATTR)):
        if not _text_in(plan, attrs[i].name) or not _one(attrs[i].root, nodes):
            return False
        if not _in(attrs[i].present, attrs[i].present_count, _count(plan, IN_REF)):
            return False
    return True


cdef bint _check_rules(const Plan *plan) noexcept nogil:
    cdef const Rule *rules = <const Rule *>_array(plan, IN_RULE)
    cdef const Predicate *q = <const Predicate *>_array(plan, IN_PREDICATE)
    cdef uint32_t i
    for i in range(_count(plan, IN_RULE)):
        if not _in(rules[i].predicates, rules[i].predicate_count, _count(plan, IN_PREDICATE)):
            return False
    for i in range(_count(plan, IN_PREDICATE)):
        if q[i].subject > ON_COOKIE or q[i].kind > IS_PRESENT:
            return False
        if not _text_in(plan, q[i].name) or not _text_in(plan, q[i].value):
            return False
        if q[i].kind == IS_REGEX and q[i].number >= _count(plan, IN_DFA):
            return False
    return True


cdef bint _check_tries(const Plan *plan) noexcept nogil:
    cdef const Node *nodes = <const Node *>_array(plan, IN_NODE)
    cdef const Child *children = <const Child *>_array(plan, IN_CHILD)
    cdef const Ref *refs = <const Ref *>_array(plan, IN_REF)
    cdef uint32_t i, k
    for i in range(_count(plan, IN_NODE)):
        if not _text_in(plan, nodes[i].label) or nodes[i].child_count > 256:
            return False
        if not _in(nodes[i].children, nodes[i].child_count, _count(plan, IN_CHILD)):
            return False
        if not _in(nodes[i].exact, nodes[i].exact_count, _count(plan, IN_REF)) or nodes[i].exact_count > PLAN_DIMS:
            return False
        if not _in(nodes[i].prefix, nodes[i].prefix_count, _count(plan, IN_REF)) or nodes[i].prefix_count > PLAN_DIMS:
            return False
        for k in range(nodes[i].children, nodes[i].children + nodes[i].child_count):
            if children[k].node <= i or children[k].node >= _count(plan, IN_NODE):
                return False                 # downwards only: a walk ends
    for i in range(_count(plan, IN_REF)):
        if refs[i].dim >= PLAN_DIMS or refs[i].set >= _count(plan, IN_SET):
            return False
    return True


cdef bint _check_sets(const Plan *plan, uint64_t *end) noexcept nogil:
    cdef const Set *sets = <const Set *>_array(plan, IN_SET)
    cdef const uint64_t *words
    cdef const uint32_t *ranks
    cdef uint64_t size
    cdef uint32_t i, k, rank
    for i in range(_count(plan, IN_SET)):
        if sets[i].at & 7 or sets[i].at < end[0] or sets[i].first > 1 << 20 or sets[i].count > 1 << 20:
            return False
        size = 8 * (<uint64_t>sets[i].count + sets[i].words) + 4 * <uint64_t>sets[i].count
        if not _in(sets[i].at, size, plan.size):
            return False
        end[0] = sets[i].at + size
        words = <const uint64_t *>(plan.base + sets[i].at)
        ranks = <const uint32_t *>(words + sets[i].count + sets[i].words)
        rank = 0
        for k in range(sets[i].count):
            if ranks[k] != rank:
                return False
            rank += popcount64(words[k])
        if rank != sets[i].words:
            return False
    return True


cdef bint _check_dfas(const Plan *plan, uint64_t *end) noexcept nogil:
    cdef const Dfa *d = <const Dfa *>_array(plan, IN_DFA)
    cdef const uint8_t *classes
    cdef const uint16_t *next
    cdef uint64_t size
    cdef uint32_t i, k
    for i in range(_count(plan, IN_DFA)):
        if d[i].at & 7 or d[i].at < end[0] or not 0 < d[i].states <= DFA_STATES or not 0 < d[i].classes <= 256:
            return False
        size = 256 + ((d[i].states + 7) & ~7u) + 2 * <uint64_t>d[i].states * d[i].classes
        if d[i].start >= d[i].states or not _in(d[i].at, size, plan.size):
            return False
        end[0] = d[i].at + size
        classes = plan.base + d[i].at
        for k in range(256):
            if classes[k] >= d[i].classes:
                return False
        next = <const uint16_t *>(classes + 256 + ((d[i].states + 7) & ~7u))
        for k in range(d[i].states * d[i].classes):
            if next[k] >= d[i].states:
                return False
    return True


cdef bint _check_programs(const Plan *plan) noexcept nogil:
    cdef const Program *programs = <const Program *>_array(plan, IN_PROGRAM)
    cdef const Code *c
    cdef uint64_t end = 0
    cdef uint32_t i, k, last
    for i in range(_count(plan, IN_PROGRAM)):
        if programs[i].code < end or not 0 < programs[i].count <= PROGRAM_SIZE:
            return False
        if not _in(programs[i].code, programs[i].count, _count(plan, IN_CODE)):
            return False
        end = programs[i].code + programs[i].count
        c = <const Code *>_array(plan, IN_CODE) + programs[i].code
        # Slots 0 and 1, the whole match, are set in this order on every way to OP_MATCH: the program begins with
        # SAVE 0 and ends with SAVE 1 and the only OP_MATCH, which nothing but SAVE 1 leads to.
        last = programs[i].count - 1
        if last < 2 or c[0].op != OP_SAVE or c[0].y != 0:
            return False
        if c[last - 1].op != OP_SAVE or c[last - 1].y != 1 or c[last - 1].x != last or c[last].op != OP_MATCH:
            return False
        for k in range(last):
            if c[k].op >= OP_MATCH or c[k].x > last or (c[k].x == last and k != last - 1):
                return False
            if c[k].op == OP_SPLIT and c[k].y >= last:
                return False
            if c[k].op == OP_SAVE and (c[k].y >= SLOTS or (c[k].y < 2 and 0 < k < last - 1)):
                return False
    return True


cdef bint _check_routes(const Plan *plan) noexcept nogil:
    cdef const Route *t = <const Route *>_array(plan, IN_ROUTE)
    cdef const Destination *d = <const Destination *>_array(plan, IN_DESTINATION)
    cdef const RemoveName *names = <const RemoveName *>_array(plan, IN_REMOVE)
    cdef const Redirect *redirect = <const Redirect *>_array(plan, IN_REDIRECT)
    cdef uint32_t i
    for i in range(_count(plan, IN_ROUTE)):
        if not ROUTE_FORWARD <= t[i].kind <= ROUTE_DIRECT or t[i].rewrite_kind > REWRITE_REGEX:
            return False
        if not _offset_in(plan, IN_DESTINATION, t[i].destinations, t[i].destination_count):
            return False
        if t[i].kind == ROUTE_FORWARD and t[i].destination_count == 0:
            return False
        if t[i].kind == ROUTE_REDIRECT and t[i].redirect >= _count(plan, IN_REDIRECT):
            return False
        if t[i].rewrite_kind == REWRITE_REGEX and t[i].rewrite_program >= _count(plan, IN_PROGRAM):
            return False
        if not _text_in(plan, t[i].rewrite) or not _text_in(plan, t[i].authority):
            return False
        if not _text_in(plan, t[i].body) or not _text_in(plan, t[i].name):
            return False
        if not _ops_in(plan, &t[i].request) or not _ops_in(plan, &t[i].response):
            return False
    for i in range(_count(plan, IN_DESTINATION)):
        if not _one(d[i].cluster, _count(plan, IN_CLUSTER)):
            return False
        if not _ops_in(plan, &d[i].request) or not _ops_in(plan, &d[i].response):
            return False
    for i in range(_count(plan, IN_REMOVE)):
        if not _text_in(plan, names[i].name):
            return False
    for i in range(_count(plan, IN_REDIRECT)):
        if not (_text_in(plan, redirect[i].scheme) and _text_in(plan, redirect[i].uri)):
            return False
        if not _text_in(plan, redirect[i].prefix) or redirect[i].port > 65535:
            return False
    return True


cdef bint _check_clusters(const Plan *plan) noexcept nogil:
    cdef const Cluster *c = <const Cluster *>_array(plan, IN_CLUSTER)
    cdef const Endpoint *e = <const Endpoint *>_array(plan, IN_ENDPOINT)
    cdef const uint32_t *schedule
    cdef uint32_t i, k
    for i in range(_count(plan, IN_CLUSTER)):
        if not _text_in(plan, c[i].name) or not _text_in(plan, c[i].service):
            return False
        if not LB_ROUND_ROBIN <= c[i].lb <= LB_RANDOM:
            return False
        if not _offset_in(plan, IN_ENDPOINT, c[i].endpoints, c[i].endpoint_count):
            return False
        if not _offset_in(plan, IN_TABLE, c[i].schedule, c[i].schedule_count):
            return False
        if c[i].endpoint_count and not c[i].schedule_count:
            return False
        schedule = <const uint32_t *>(plan.base + c[i].schedule)
        for k in range(c[i].schedule_count):
            if schedule[k] >= c[i].endpoint_count:
                return False
    for i in range(_count(plan, IN_ENDPOINT)):
        if not _text_in(plan, e[i].path) or not _text_in(plan, e[i].name):
            return False
        if e[i].family != 1 and e[i].family != 2 and e[i].family != 10:
            return False                     # AF_UNIX, AF_INET, AF_INET6
        if e[i].family == 1 and not 0 < e[i].path.len < 108:
            return False                     # sun_path
    return True


cdef int plan_check(const Plan *plan) noexcept nogil:
    cdef const PlanHeader *h = _header(plan)
    cdef uint64_t end = sizeof(PlanHeader), sets, dfas
    cdef int i, k
    if h.checksum != _checksum(plan.base + sizeof(PlanHeader), plan.size - sizeof(PlanHeader)):
        return PLAN_SECTIONS + 1
    for k in range(PLAN_SECTIONS):           # apart; the data first, then the rows
        i = (k + IN_DATA) % PLAN_SECTIONS
        if h.sections[i].at < end:
            return i + 1
        end = h.sections[i].at + <uint64_t>h.sections[i].count * _size_of(i)
    sets = dfas = h.sections[<int>IN_DATA].at
    if not _check_listeners(plan):
        return IN_LISTENER + 1
    if not _check_hosts(plan):
        return IN_HOST + 1
    if not _check_rules(plan):
        return IN_RULE + 1
    if not _check_tries(plan):
        return IN_NODE + 1
    if not _check_sets(plan, &sets):
        return IN_SET + 1
    if not _check_routes(plan):
        return IN_ROUTE + 1
    if not _check_clusters(plan):
        return IN_CLUSTER + 1
    if not _check_dfas(plan, &dfas):
        return IN_DFA + 1
    if not _check_programs(plan):
        return IN_PROGRAM + 1
    return 0
