# What is sent instead of the path (rewrite), and where a redirect points (Location, RFC 9110 §10.2.2).

cdef struct Out:
    uint8_t *p
    size_t room
    size_t n
    bint full


cdef inline void _put(Out *o, const uint8_t *p, size_t n) noexcept nogil:
    if n > o.room - o.n:
        o.full = True
        return
    if n:
        memcpy(o.p + o.n, p, n)
    o.n += n


cdef inline void _put_text(Out *o, const Plan *plan, Text t) noexcept nogil:
    _put(o, text(plan, t), t.len)


cdef void _put_number(Out *o, uint32_t x) noexcept nogil:
    cdef uint8_t digits[10]
    cdef int i = 10
    while True:
        i -= 1
        digits[i] = <uint8_t>(48 + x % 10)
        x //= 10
        if x == 0:
            break
    _put(o, digits + i, 10 - i)


cdef int64_t plan_rewrite(const Plan *plan, const Routing *r, uint8_t *out, size_t room) noexcept nogil:
    cdef const Route *route = r.route
    cdef Out o
    cdef uint32_t keep
    o.p = out
    o.room = room
    o.n = 0
    o.full = False
    if route.rewrite_kind == REWRITE_NONE or r.path_len == 0 or r.path[0] != 47:
        _put(&o, r.path, r.path_len)         # "*" of OPTIONS is nothing to rewrite
        return -1 if o.full else <int64_t>o.n
    if route.rewrite_kind == REWRITE_REGEX:
        return _rewrite_regex(plan, r, &o)
    keep = r.path_len - r.prefix_len
    if route.rewrite.len == 0 or text(plan, route.rewrite)[0] != 47:
        if route.rewrite.len or keep == 0 or r.path[r.prefix_len] != 47:
            _put(&o, <const uint8_t *>b"/", 1)
    _put_text(&o, plan, route.rewrite)
    _put(&o, r.path + r.prefix_len, keep)
    return -1 if o.full else <int64_t>o.n


# scheme://authority[:port]path[?query]. Istio's rules, which are Envoy's: what is not given stays as it was; the old
# scheme's default port goes when the scheme changes; a query in `uri` replaces the request's. A port that is the
# scheme's own is not written.
cdef int64_t plan_redirect(const Plan *plan, const Routing *r, uint8_t *out, size_t room) noexcept nogil:
    cdef const Route *route = r.route
    cdef const Redirect *redirect
    cdef const Head *head = r.head
    cdef const uint8_t *host
    cdef const uint8_t *name
    cdef Out o
    cdef uint32_t host_len, port, i
    cdef bint https = r.scheme_https, query = r.query_len != 0
    o.p = out
    o.room = room
    o.n = 0
    o.full = False
    if route.kind != ROUTE_REDIRECT:
        return -1
    redirect = <const Redirect *>_array(plan, IN_REDIRECT) + route.redirect
    if redirect.scheme.len:
        name = text(plan, redirect.scheme)
        https = redirect.scheme.len == 5 and memcmp(name, b"https", 5) == 0
    if route.authority.len:
        host = text(plan, route.authority)
        host_len = route.authority.len
    else:
        host = head.base + head.authority.at
        host_len = head.authority.len
        if redirect.flags & REDIRECT_PORT or (https != r.scheme_https and _port_of(host, host_len) ==
                                              (443 if r.scheme_https else 80)):
            host_len = _without_port(host, host_len)
    if host_len:
        if redirect.scheme.len:
            _put_text(&o, plan, redirect.scheme)
        elif https:
            _put(&o, <const uint8_t *>b"https", 5)
        else:
            _put(&o, <const uint8_t *>b"http", 4)
        _put(&o, <const uint8_t *>b"://", 3)
        _put(&o, host, host_len)
        if redirect.flags & REDIRECT_PORT and _without_port(host, host_len) == host_len:
            port = redirect.port if redirect.port else _request_port(plan, r)
            if port and port != (443 if https else 80):
                _put(&o, <const uint8_t *>b":", 1)
                _put_number(&o, port)
    if redirect.flags & REDIRECT_URI:
        name = text(plan, redirect.uri)
        _put(&o, name, redirect.uri.len)
        for i in range(redirect.uri.len):
            if name[i] == 63:
                query = False
    elif redirect.flags & REDIRECT_PREFIX:
        _put_text(&o, plan, redirect.prefix)
        _put(&o, r.path + r.prefix_len, r.path_len - r.prefix_len)
    else:
        _put(&o, r.path, r.path_len)
    if query:
        _put(&o, <const uint8_t *>b"?", 1)
        _put(&o, r.query, r.query_len)
    return -1 if o.full else <int64_t>o.n


# Length of an authority without ":port"; an IPv6 literal's colons are inside its brackets.
cdef uint32_t _without_port(const uint8_t *p, uint32_t n) noexcept nogil:
    cdef uint32_t i = n
    while i > 0:
        i -= 1
        if p[i] == 58:
            return i
        if not 48 <= p[i] <= 57:
            break
    return n


cdef uint32_t _port_of(const uint8_t *p, uint32_t n) noexcept nogil:
    cdef uint32_t i, port = 0
    for i in range(_without_port(p, n) + 1, n):
        port = port * 10 + (p[i] - 48)
        if port > 65535:
            return 0
    return port


# The port the client used: the one it addressed, else the listener's.
cdef uint32_t _request_port(const Plan *plan, const Routing *r) noexcept nogil:
    cdef uint32_t port = _port_of(r.head.base + r.head.authority.at, r.head.authority.len)
    if port:
        return port
    return _port(plan, r)


# ---- regex programs --------------------------------------------------------------------------------------------------
# A Pike machine: all threads of the program advance together over the bytes, so the time is linear in text times
# program. Threads are kept in order of preference, which gives the leftmost-first match as in RE2 and Perl.

cdef enum:
    SLOTS = 20                      # two for each of PROGRAM_GROUPS
    STEPS = 4000000                 # of one rewrite: a few ms; more is refused rather than stalling a worker

cdef struct Threads:
    uint32_t count
    uint16_t pc[512]
    uint32_t slots[512][20]

cdef struct Machine:
    const Code *code
    uint32_t size
    const uint8_t *p
    uint32_t n
    uint32_t steps
    uint32_t mark                   # generation of `seen`
    uint32_t seen[512]
    uint32_t stack[1024]            # pc, or restore marker: see _follow
    uint32_t saved[1024]
    Threads a
    Threads b


cdef inline bint _is_word(uint8_t c) noexcept nogil:
    return 48 <= c <= 57 or 65 <= c <= 90 or 97 <= c <= 122 or c == 95


cdef bint _asserted(const Machine *m, uint32_t what, uint32_t at) noexcept nogil:
    cdef bint before = at > 0 and _is_word(m.p[at - 1])
    cdef bint after = at < m.n and _is_word(m.p[at])
    if what == AT_TEXT_START:
        return at == 0
    if what == AT_TEXT_END:
        return at == m.n
    if what == AT_LINE_START:
        return at == 0 or m.p[at - 1] == 10
    if what == AT_LINE_END:
        return at == m.n or m.p[at] == 10
    if what == AT_WORD:
        return before != after
    return before == after


# Add the threads that `pc` leads to without reading a byte, in order of preference. An explicit stack: an entry is a
# pc, or (bit 31) a slot whose old value is put back once what followed its SAVE is done.
cdef void _follow(Machine *m, Threads *t, uint32_t pc, uint32_t at, uint32_t *slots) noexcept nogil:
    cdef uint32_t top = 0, entry
    cdef const Code *c
    m.stack[0] = pc
    top = 1
    while top:
        top -= 1
        entry = m.stack[top]
        if entry & 0x80000000u:
            slots[entry & 31] = m.saved[top]
            continue
        if m.seen[entry] == m.mark:
            continue
        m.seen[entry] = m.mark
        m.steps += 1
        c = m.code + entry
        if c.op == OP_SPLIT:
            m.stack[top] = c.y
            m.stack[top + 1] = c.x
            top += 2
        elif c.op == OP_SAVE:
            m.stack[top] = 0x80000000u | c.y
            m.saved[top] = slots[c.y]
            slots[c.y] = at
            m.stack[top + 1] = c.x
            top += 2
        elif c.op == OP_ASSERT:
            if _asserted(m, c.y, at):
                m.stack[top] = c.x
                top += 1
        else:
            t.pc[t.count] = <uint16_t>entry
            memcpy(t.slots[t.count], slots, SLOTS * sizeof(uint32_t))
            t.count += 1


# The leftmost-first match at or after `start`; its slots, or False.
cdef bint _search(Machine *m, uint32_t start, uint32_t *best) noexcept nogil:
    cdef Threads *now = &m.a
    cdef Threads *then = &m.b
    cdef Threads *swap
    cdef const Code *c
    cdef uint32_t fresh[20]
    cdef uint32_t at = start, i
    cdef bint matched = False
    now.count = 0
    m.mark += 1
    while True:
        if not matched:
            for i in range(<uint32_t>SLOTS):
                fresh[i] = PLAN_NONE
            _follow(m, now, 0, at, fresh)    # the least preferred thread: one that starts here
        if now.count == 0 and (matched or at >= m.n):
            break
        m.mark += 1
        then.count = 0
        for i in range(now.count):
            m.steps += 1
            c = m.code + now.pc[i]
            if c.op == OP_MATCH:
                memcpy(best, now.slots[i], SLOTS * sizeof(uint32_t))
                matched = True
                break                        # those after it are less preferred
            if at < m.n and c.low <= m.p[at] <= c.high:
                _follow(m, then, c.x, at + 1, now.slots[i])
        if at >= m.n or m.steps > STEPS:
            break
        at += 1
        swap = now
        now = then
        then = swap
    return matched


# As RE2::GlobalReplace: all matches from the left, none overlapping, an empty one not right after another match;
# "\0" to "\9" of the rewrite stand for groups, "\\" for a backslash.
cdef int64_t _rewrite_regex(const Plan *plan, const Routing *r, Out *o) noexcept nogil:
    cdef const Program *program = <const Program *>_array(plan, IN_PROGRAM) + r.route.rewrite_program
    cdef const uint8_t *with_ = text(plan, r.route.rewrite)
    cdef Machine m
    cdef uint32_t best[20]
    cdef uint32_t at = 0, done = 0, last = PLAN_NONE, i, g
    m.code = <const Code *>_array(plan, IN_CODE) + program.code
    m.size = program.count
    m.p = r.path
    m.n = r.path_len
    m.steps = 0
    m.mark = 0
    for i in range(program.count):
        m.seen[i] = 0
    while at <= m.n:
        if not _search(&m, at, best):
            break
        if m.steps > STEPS:
            return -1
        if best[0] == best[1] and best[0] == last:
            # an empty match where the last one ended: RE2 steps over one character
            if at >= m.n:
                break
            at += 1
            while at < m.n and m.p[at] & 0xC0 == 0x80:
                at += 1
            last = PLAN_NONE
            continue
        _put(o, m.p + done, best[0] - done)
        i = 0
        while i < r.route.rewrite.len:
            if with_[i] == 92 and i + 1 < r.route.rewrite.len:
                i += 1
                g = with_[i] - 48u
                if g < PROGRAM_GROUPS:
                    if best[2 * g] <= best[2 * g + 1] <= m.n:    # else the group took no part
                        _put(o, m.p + best[2 * g], best[2 * g + 1] - best[2 * g])
                else:
                    _put(o, with_ + i, 1)
            else:
                _put(o, with_ + i, 1)
            i += 1
        done = at = last = best[1]
    if m.steps > STEPS:
        return -1
    _put(o, m.p + done, m.n - done)
    if o.full:
        return -1
    if o.n == 0 or o.p[0] != 47:
        if o.n == o.room:
            return -1
        memmove(o.p + 1, o.p, o.n)
        o.p[0] = 47
        o.n += 1
    return <int64_t>o.n
