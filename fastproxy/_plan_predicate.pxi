# One predicate on one request, without the index: the value it looks at, piece by piece, and whether it holds.

# ---- the value of an attribute, piece by piece -----------------------------------------------------------------------
# A field that is repeated counts as one, its values joined by "," as in Envoy, so a value is a sequence of pieces.

cdef struct Value:
    const Head *head
    const uint8_t *p                # next piece
    size_t n
    const uint8_t *name             # of the field, for the pieces after the first
    uint32_t name_len
    uint32_t hash
    uint32_t next                   # field to look on from; 0: no further pieces
    uint8_t state                   # 0: `p` is the next piece; 1: look for another field; 2: done


cdef inline void _value_of(Value *v, const uint8_t *p, size_t n) noexcept nogil:
    v.p = p
    v.n = n
    v.next = 0
    v.state = 0


cdef inline void _value_of_field(Value *v, const Head *head, uint32_t i, bint joined) noexcept nogil:
    cdef const Field *f = &head.fields[i]
    _value_of(v, head.base + f.value, f.value_len)
    if joined:
        v.head = head
        v.name = head.base + f.name
        v.name_len = f.name_len
        v.hash = f.hash
        v.next = i + 1


cdef bint _same_name(const uint8_t *a, const uint8_t *b, uint32_t n) noexcept nogil:
    cdef uint32_t i
    for i in range(n):
        if _lower(a[i]) != _lower(b[i]):
            return False
    return True


cdef bint _value_next(Value *v, const uint8_t **p, size_t *n) noexcept nogil:
    cdef const Field *f
    if v.state == 0:
        p[0] = v.p
        n[0] = v.n
        v.state = 1 if v.next else 2
        return True
    while v.state == 1 and v.next < v.head.field_count:
        f = &v.head.fields[v.next]
        v.next += 1
        if f.hash == v.hash and f.name_len == v.name_len and _same_name(v.head.base + f.name, v.name, v.name_len):
            v.p = v.head.base + f.value
            v.n = f.value_len
            v.state = 0
            p[0] = <const uint8_t *>b","
            n[0] = 1
            return True
    v.state = 2
    return False


# The first parameter of that name; raw, not decoded, as Envoy compares it. A parameter without "=" is empty.
cdef bint _find_parameter(const uint8_t *p, size_t n, const uint8_t *name, size_t name_len, Value *v) noexcept nogil:
    cdef size_t i = 0, at, end
    while i < n:
        at = i
        while i < n and p[i] != 61 and p[i] != 38:       # = &
            i += 1
        end = i
        if i < n and p[i] == 61:
            i += 1
            while i < n and p[i] != 38:
                i += 1
        if end - at == name_len and memcmp(p + at, name, name_len) == 0:
            _value_of(v, p + end + (1 if end < i else 0), i - end - (1 if end < i else 0))
            return True
        i += 1
    return False


# The next cookie of a Cookie field (RFC 6265 §4.2.1), quotes taken off as Envoy does. False: no more.
cdef bint _next_cookie(const uint8_t *p, size_t n, size_t *i, size_t *name, size_t *name_len, Value *v) noexcept nogil:
    cdef size_t at, end, equals
    while i[0] < n:
        at = i[0]
        while i[0] < n and p[i[0]] != 59:                # ;
            i[0] += 1
        end = i[0]
        i[0] += 1
        while at < end and (p[at] == 32 or p[at] == 9):
            at += 1
        while end > at and (p[end - 1] == 32 or p[end - 1] == 9):
            end -= 1
        equals = at
        while equals < end and p[equals] != 61:
            equals += 1
        if equals == end:
            continue
        name[0] = at
        name_len[0] = equals - at
        at = equals + 1
        if end - at >= 2 and p[at] == 34 and p[end - 1] == 34:
            at += 1
            end -= 1
        _value_of(v, p + at, end - at)
        return True
    return False


cdef bint _find_cookie(const Head *head, const uint8_t *name, size_t name_len, Value *v) noexcept nogil:
    cdef uint32_t i
    cdef size_t pos, at, length
    cdef const uint8_t *p
    if not head.first[KNOWN_COOKIE]:
        return False
    for i in range(head.first[KNOWN_COOKIE] - 1, head.field_count):
        if head.fields[i].known != KNOWN_COOKIE:
            continue
        p = head.base + head.fields[i].value
        pos = 0
        at = length = 0
        while _next_cookie(p, head.fields[i].value_len, &pos, &at, &length, v):
            if length == name_len and memcmp(p + at, name, length) == 0:
                return True
    return False


# ---- one predicate on one request, without the index -----------------------------------------------------------------

# The port that `port` of a match means: a Gateway's own; in the mesh the one that is addressed.
cdef uint32_t _port(const Plan *plan, const Routing *r) noexcept nogil:
    cdef const Listener *listener = <const Listener *>_array(plan, IN_LISTENER) + r.listener
    cdef const Head *head = r.head
    cdef const uint8_t *p = head.base + head.authority.at
    cdef uint32_t i, port = 0
    if not listener.mesh:
        return listener.port
    if head.authority.len <= r.host_len + 1:
        return 443 if r.scheme_https else 80
    for i in range(r.host_len + 1, head.authority.len):
        if not 48 <= p[i] <= 57 or port > 65535:
            return 0
        port = port * 10 + (p[i] - 48)
    return port


cdef bint _subject(const Plan *plan, const Routing *r, const Predicate *q, Value *v) noexcept nogil:
    cdef const Head *head = r.head
    cdef const Field *f
    cdef uint32_t i
    if q.subject == ON_PATH:
        _value_of(v, r.path, r.path_len)
        return True
    if q.subject == ON_METHOD:
        _value_of(v, head.base + head.method.at, head.method.len)
        return True
    if q.subject == ON_SCHEME:
        if r.scheme_https:
            _value_of(v, <const uint8_t *>b"https", 5)
        else:
            _value_of(v, <const uint8_t *>b"http", 4)
        return True
    if q.subject == ON_AUTHORITY:
        _value_of(v, head.base + head.authority.at, head.authority.len)
        return True
    if q.subject == ON_HEADER:
        for i in range(head.field_count):
            f = &head.fields[i]
            if f.hash == q.hash and f.name_len == q.name.len:
                if name_equals(head.base + f.name, text(plan, q.name), f.name_len):
                    _value_of_field(v, head, i, True)
                    return True
        return False
    if q.subject == ON_QUERY:
        return _find_parameter(r.query, r.query_len, text(plan, q.name), q.name.len, v)
    if q.subject == ON_COOKIE:
        return _find_cookie(head, text(plan, q.name), q.name.len, v)
    return False


cdef bint _value_starts(Value *v, const uint8_t *want, size_t n, bint fold, bint whole) noexcept nogil:
    cdef const uint8_t *p = NULL
    cdef size_t m = 0, i, k
    while _value_next(v, &p, &m):
        if whole and m > n:
            return False
        k = m if m < n else n
        if fold:
            for i in range(k):
                if _lower(p[i]) != want[i]:
                    return False
        elif k and memcmp(p, want, k) != 0:
            return False
        want += k
        n -= k
        if n == 0 and not whole:
            return True
    return n == 0


cdef bint _dfa_accepts(const Plan *plan, const Dfa *dfa, Value *v) noexcept nogil:
    cdef const uint8_t *classes = plan.base + dfa.at
    cdef const uint8_t *accept = classes + 256
    cdef const uint16_t *next = <const uint16_t *>(classes + 256 + ((dfa.states + 7) & ~7u))
    cdef const uint8_t *p = NULL
    cdef size_t n = 0, i
    cdef uint32_t state = dfa.start
    while state and _value_next(v, &p, &n):
        for i in range(n):
            state = next[state * dfa.classes + classes[p[i]]]
            if state == 0:
                return False
    return accept[state] != 0


cdef bint _holds(const Plan *plan, const Routing *r, const Predicate *q) noexcept nogil:
    cdef Value v
    cdef bint found, result
    if q.subject == ON_PORT:
        return _port(plan, r) == q.number
    found = _subject(plan, r, q, &v)
    if q.kind == IS_PRESENT:
        return found != (q.flags & PREDICATE_NOT != 0)
    if not found:
        if not q.flags & PREDICATE_NOT:
            return False
        _value_of(&v, plan.base, 0)
    if q.kind == IS_REGEX:
        result = _dfa_accepts(plan, <const Dfa *>_array(plan, IN_DFA) + q.number, &v)
    else:
        result = _value_starts(&v, text(plan, q.value), q.value.len, q.flags & PREDICATE_FOLD, q.kind == IS_EXACT)
    return result != (q.flags & PREDICATE_NOT != 0)
