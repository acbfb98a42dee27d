# host -> index -> rule. How the index is made: fastproxy/plan/index.py.

# ---- host ------------------------------------------------------------------------------------------------------------

cdef const Host *_find_host(const Plan *plan, uint32_t table, uint32_t mask, const uint8_t *p, size_t n) noexcept nogil:
    cdef const Host *hosts = <const Host *>_array(plan, IN_HOST)
    cdef const uint32_t *slots = _table(plan, table)
    cdef const Host *host
    cdef const uint8_t *name
    cdef uint32_t h = _name_hash(p, n, True), probe
    cdef size_t i
    for probe in range(mask + 1):
        if slots[(h + probe) & mask] == 0:
            return NULL
        host = hosts + slots[(h + probe) & mask] - 1
        if host.name.len != n:
            continue
        name = text(plan, host.name)
        i = 0
        while i < n and _lower(p[i]) == name[i]:
            i += 1
        if i == n:
            return host
    return NULL


# Exact, then the longest "*.suffix" (which stands for at least one byte), then "*". A name of more than 255 bytes is
# no DNS name, so only "*" can mean it; that bounds the work.
cdef const Host *_host(const Plan *plan, const Routing *r) noexcept nogil:
    cdef const Listener *listener
    cdef const Host *host
    cdef const uint32_t *lengths
    cdef uint32_t i
    if r.listener >= _count(plan, IN_LISTENER):
        return NULL
    listener = <const Listener *>_array(plan, IN_LISTENER) + r.listener
    if r.host_len <= 255:
        host = _find_host(plan, listener.exact, listener.exact_mask, r.host, r.host_len)
        if host != NULL:
            return host
        lengths = _table(plan, listener.lengths)
        for i in range(listener.length_count):
            if lengths[i] < r.host_len:
                host = _find_host(plan, listener.suffix, listener.suffix_mask,
                                  r.host + (r.host_len - lengths[i]), lengths[i])
                if host != NULL:
                    return host
    if listener.any == PLAN_NONE:
        return NULL
    return <const Host *>_array(plan, IN_HOST) + listener.any


# ---- the index -------------------------------------------------------------------------------------------------------

cdef enum:
    CAP = 1600                      # sets of one dimension: (1 present, 1 exact, PLAN_CHAIN prefixes) an attribute

cdef struct Search:
    const Plan *plan
    const Host *host
    uint32_t steps                  # nodes, words and predicates looked at, for tests of complexity
    uint32_t count[5]
    uint32_t sets[5][1600]


cdef inline void _add(Search *s, uint32_t first, uint32_t count) noexcept nogil:
    cdef const Ref *refs = <const Ref *>_array(s.plan, IN_REF) + first
    cdef uint32_t i, d
    for i in range(count):
        d = refs[i].dim
        if s.count[d] < CAP:
            s.sets[d][s.count[d]] = refs[i].set
            s.count[d] += 1


cdef uint32_t _child(const Plan *plan, const Node *node, uint8_t c) noexcept nogil:
    cdef const Child *children = <const Child *>_array(plan, IN_CHILD) + node.children
    cdef uint32_t low = 0, high = node.child_count, middle
    while low < high:
        middle = (low + high) >> 1
        if children[middle].byte < c:
            low = middle + 1
        else:
            high = middle
    if low < node.child_count and children[low].byte == c:
        return children[low].node
    return PLAN_NONE


# Walk the trie with a value and add the sets of all prefixes of it and of the value itself.
cdef void _walk(Search *s, uint32_t root, Value *v, bint fold) noexcept nogil:
    cdef const Node *nodes = <const Node *>_array(s.plan, IN_NODE)
    cdef const Node *node = nodes + root
    cdef const uint8_t *label = text(s.plan, node.label)
    cdef const Node *chain[4]
    cdef uint32_t at = 0, chained = 0, child
    cdef const uint8_t *p = NULL
    cdef size_t n = 0, i, k, m
    cdef bint alive = True
    if node.prefix_count:
        chain[0] = node
        chained = 1
    while alive and _value_next(v, &p, &n):
        i = 0
        while i < n:
            if at == node.label.len:
                s.steps += 1
                child = _child(s.plan, node, _lower(p[i]) if fold else p[i])
                if child == PLAN_NONE:
                    alive = False
                    break
                node = nodes + child
                label = text(s.plan, node.label)
                at = 0
            k = node.label.len - at
            if k > n - i:
                k = n - i
            if fold:
                m = 0
                while m < k and _lower(p[i + m]) == label[at + m]:
                    m += 1
                if m != k:
                    alive = False
                    break
            elif memcmp(p + i, label + at, k) != 0:
                alive = False
                break
            i += k
            at += <uint32_t>k
            if at == node.label.len and node.prefix_count:
                if node.flags & NODE_UNITED:
                    chained = 0
                if chained < PLAN_CHAIN:
                    chain[chained] = node
                    chained += 1
    if alive and at == node.label.len:
        _add(s, node.exact, node.exact_count)
    for child in range(chained):
        _add(s, chain[child].prefix, chain[child].prefix_count)


cdef uint32_t _find_attr(const Search *s, uint32_t subject, uint32_t hash, const uint8_t *p, size_t n) noexcept nogil:
    cdef const Attr *attrs = <const Attr *>_array(s.plan, IN_ATTR) + s.host.attrs
    cdef const uint32_t *slots = _table(s.plan, s.host.names)
    cdef uint32_t probe, mask = s.host.names_mask, a
    for probe in range(mask + 1):
        a = slots[(hash + probe) & mask]
        if a == 0:
            return PLAN_NONE
        a -= 1
        if attrs[a].hash != hash or attrs[a].subject != subject or attrs[a].name.len != n:
            continue
        if subject == ON_HEADER:
            if name_equals(p, text(s.plan, attrs[a].name), n):
                return a
        elif memcmp(p, text(s.plan, attrs[a].name), n) == 0:
            return a
    return PLAN_NONE


cdef void _attr(Search *s, uint32_t a, Value *v) noexcept nogil:
    cdef const Attr *attr = <const Attr *>_array(s.plan, IN_ATTR) + s.host.attrs + a
    _add(s, attr.present, attr.present_count)
    if attr.root != PLAN_NONE:
        _walk(s, attr.root, v, False)


cdef void _headers(Search *s, const Head *head) noexcept nogil:
    cdef uint16_t found[256]
    cdef uint16_t first[256]
    cdef uint64_t seen[4]
    cdef uint64_t joined[4]
    cdef uint32_t i, a, count = 0
    cdef const Field *f
    cdef Value v
    seen[0] = seen[1] = seen[2] = seen[3] = 0
    joined[0] = joined[1] = joined[2] = joined[3] = 0
    for i in range(head.field_count):
        f = &head.fields[i]
        if not (s.host.bloom >> (f.hash & 63)) & 1:
            continue
        a = _find_attr(s, ON_HEADER, f.hash, head.base + f.name, f.name_len)
        if a == PLAN_NONE:
            continue
        if (seen[a >> 6] >> (a & 63)) & 1:
            joined[a >> 6] |= 1ull << (a & 63)
            continue
        seen[a >> 6] |= 1ull << (a & 63)
        found[count] = <uint16_t>a
        first[count] = <uint16_t>i
        count += 1
    for i in range(count):
        a = found[i]
        _value_of_field(&v, head, first[i], (joined[a >> 6] >> (a & 63)) & 1)
        _attr(s, a, &v)


cdef void _parameters(Search *s, const uint8_t *p, size_t n) noexcept nogil:
    cdef uint64_t seen[4]
    cdef size_t i = 0, at, end
    cdef uint32_t a
    cdef Value v
    seen[0] = seen[1] = seen[2] = seen[3] = 0
    while i < n:
        at = i
        while i < n and p[i] != 61 and p[i] != 38:
            i += 1
        end = i
        if i < n and p[i] == 61:
            i += 1
            while i < n and p[i] != 38:
                i += 1
        a = _find_attr(s, ON_QUERY, _name_hash(p + at, end - at, False), p + at, end - at)
        if a != PLAN_NONE and not (seen[a >> 6] >> (a & 63)) & 1:
            seen[a >> 6] |= 1ull << (a & 63)
            _value_of(&v, p + end + (1 if end < i else 0), i - end - (1 if end < i else 0))
            _attr(s, a, &v)
        i += 1


cdef void _cookies(Search *s, const Head *head) noexcept nogil:
    cdef uint64_t seen[4]
    cdef size_t pos, at = 0, length = 0
    cdef const uint8_t *p
    cdef uint32_t i, a
    cdef Value v
    seen[0] = seen[1] = seen[2] = seen[3] = 0
    if not head.first[KNOWN_COOKIE]:
        return
    for i in range(head.first[KNOWN_COOKIE] - 1, head.field_count):
        if head.fields[i].known != KNOWN_COOKIE:
            continue
        p = head.base + head.fields[i].value
        pos = 0
        while _next_cookie(p, head.fields[i].value_len, &pos, &at, &length, &v):
            a = _find_attr(s, ON_COOKIE, _name_hash(p + at, length, False), p + at, length)
            if a != PLAN_NONE and not (seen[a >> 6] >> (a & 63)) & 1:
                seen[a >> 6] |= 1ull << (a & 63)
                _attr(s, a, &v)


cdef bint _residual(Search *s, const Routing *r, const Rule *rule) noexcept nogil:
    cdef const Predicate *q = <const Predicate *>_array(s.plan, IN_PREDICATE) + rule.predicates
    cdef uint32_t i
    for i in range(rule.residual, rule.predicate_count):
        s.steps += 1
        if not _holds(s.plan, r, q + i):
            return False
    return True


# Words of the union of a dimension's sets: number `at` of the summary, or word `bit` under it.
cdef inline uint64_t _summary(const Search *s, uint32_t dim, uint32_t at) noexcept nogil:
    cdef const Set *sets = <const Set *>_array(s.plan, IN_SET)
    cdef const Set *t
    cdef uint64_t word = 0
    cdef uint32_t i
    for i in range(s.count[dim]):
        t = sets + s.sets[dim][i]
        if at - t.first < t.count:
            word |= (<const uint64_t *>(s.plan.base + t.at))[at - t.first]
    return word


cdef inline uint64_t _word(const Search *s, uint32_t dim, uint32_t at, uint32_t bit) noexcept nogil:
    cdef const Set *sets = <const Set *>_array(s.plan, IN_SET)
    cdef const Set *t
    cdef const uint64_t *summary
    cdef const uint32_t *ranks
    cdef uint64_t word = 0
    cdef uint32_t i, k
    for i in range(s.count[dim]):
        t = sets + s.sets[dim][i]
        k = at - t.first
        if k >= t.count:
            continue
        summary = <const uint64_t *>(s.plan.base + t.at)
        if not (summary[k] >> bit) & 1:
            continue
        ranks = <const uint32_t *>(summary + t.count + t.words)
        word |= summary[t.count + ranks[k] + popcount64(summary[k] & ((1ull << bit) - 1))]
    return word


# Intersect the dimensions from the low end; the first rule that is in all of them and whose residual predicates hold.
cdef uint32_t _intersect(Search *s, const Routing *r) noexcept nogil:
    cdef const Rule *rules = <const Rule *>_array(s.plan, IN_RULE) + s.host.rules
    cdef const Set *sets = <const Set *>_array(s.plan, IN_SET)
    cdef const Set *t
    cdef uint32_t low = 0, high = PLAN_NONE, least, most, d, i, at, bit, rule
    cdef uint32_t dims = s.host.dims
    cdef uint64_t summary, word
    if dims == 0:
        for rule in range(s.host.rule_count):
            if _residual(s, r, rules + rule):
                return rule
        return PLAN_NONE
    for d in range(dims):
        if s.count[d] == 0:
            return PLAN_NONE
        least = PLAN_NONE
        most = 0
        for i in range(s.count[d]):
            t = sets + s.sets[d][i]
            if t.first < least:
                least = t.first
            if t.first + t.count > most:
                most = t.first + t.count
        if least > low:
            low = least
        if most < high:
            high = most
    at = low
    while at < high:
        s.steps += 1
        summary = _summary(s, 0, at)
        for d in range(1, dims):
            if summary == 0:
                break
            summary &= _summary(s, d, at)
        while summary:
            bit = ctz64(summary)
            summary &= summary - 1
            s.steps += 1
            word = _word(s, 0, at, bit)
            for d in range(1, dims):
                if word == 0:
                    break
                word &= _word(s, d, at, bit)
            while word:
                rule = ((at << 6) + bit << 6) + ctz64(word)
                word &= word - 1
                if rule >= s.host.rule_count:
                    break
                s.steps += 1
                if _residual(s, r, rules + rule):
                    return rule
        at += 1
    return PLAN_NONE


cdef uint32_t _indexed(Search *s, const Routing *r) noexcept nogil:
    cdef const Host *host = s.host
    cdef const Head *head = r.head
    cdef uint32_t d
    cdef Value v
    s.steps = 0
    for d in range(host.dims):
        s.count[d] = 0
        if host.wild[d] != PLAN_NONE:
            s.sets[d][0] = host.wild[d]
            s.count[d] = 1
    if host.path != PLAN_NONE:
        _value_of(&v, r.path, r.path_len)
        _walk(s, host.path, &v, False)
    if host.fold != PLAN_NONE:
        _value_of(&v, r.path, r.path_len)
        _walk(s, host.fold, &v, True)
    if host.method != PLAN_NONE:
        _value_of(&v, head.base + head.method.at, head.method.len)
        _attr(s, host.method, &v)
    if host.authority != PLAN_NONE:
        _value_of(&v, head.base + head.authority.at, head.authority.len)
        _attr(s, host.authority, &v)
    if host.flags & HOST_HEADERS:
        _headers(s, head)
    if host.flags & HOST_QUERY:
        _parameters(s, r.query, r.query_len)
    if host.flags & HOST_COOKIES:
        _cookies(s, head)
    return _intersect(s, r)


cdef void _take(const Plan *plan, const Host *host, Routing *r, uint32_t number) noexcept nogil:
    cdef const Rule *rule = <const Rule *>_array(plan, IN_RULE) + host.rules + number
    r.rule = number
    r.prefix_len = rule.covered if rule.covered < r.path_len else r.path_len
    r.route = <const Route *>_array(plan, IN_ROUTE) + host.routes + rule.route


cdef bint plan_match(const Plan *plan, Routing *r) noexcept nogil:
    cdef Search s
    cdef uint32_t rule
    s.plan = plan
    s.host = _host(plan, r)
    if s.host == NULL:
        return False
    rule = _indexed(&s, r)
    if rule == PLAN_NONE:
        return False
    _take(plan, s.host, r, rule)
    return True


# The same answer without the index: every rule in order.
cdef uint32_t _linear(const Plan *plan, const Host *host, const Routing *r) noexcept nogil:
    cdef const Rule *rules = <const Rule *>_array(plan, IN_RULE) + host.rules
    cdef const Predicate *q
    cdef uint32_t i, k
    for i in range(host.rule_count):
        q = <const Predicate *>_array(plan, IN_PREDICATE) + rules[i].predicates
        k = 0
        while k < rules[i].predicate_count and _holds(plan, r, q + k):
            k += 1
        if k == rules[i].predicate_count:
            return i
    return PLAN_NONE
