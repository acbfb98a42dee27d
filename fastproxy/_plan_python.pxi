# What Python sees: for the agent (check), `explain` and tests. Nothing here is on the request path.

from collections import namedtuple

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

FORMAT = PLAN_FORMAT
MAGIC = PLAN_MAGIC
HEADER = sizeof(PlanHeader)
SECTIONS = (
    "listener", "host", "rule", "predicate", "attr", "node", "child", "ref", "set", "table", "route", "destination",
    "remove", "redirect", "cluster", "endpoint", "dfa", "program", "code", "data",
)
SIZES = dict(zip(SECTIONS, [_size_of(i) for i in range(PLAN_SECTIONS)]))
SUBJECTS = ("path", "method", "scheme", "authority", "port", "header", "query", "cookie")
KINDS = ("exact", "prefix", "regex", "present")

Target = namedtuple("Target", "host_name rule route covered path query steps")
RouteView = namedtuple(
    "RouteView",
    "id kind name timeout_ms status body destinations authority request response",
)
OpsView = namedtuple("OpsView", "remove append")
DestinationView = namedtuple("DestinationView", "cluster weight request response")
ClusterView = namedtuple("ClusterView", "name service slot lb connect_timeout_ms endpoints schedule")
EndpointView = namedtuple("EndpointView", "name slot family port address path identity")
Step = namedtuple("Step", "rule route failed")
Failed = namedtuple("Failed", "subject kind negated fold name value number found")


class Refused(ValueError):
    """The parser refuses the request; ``kind`` says why (fastproxy.errors.Kind)."""

    def __init__(self, kind):
        super().__init__(f"request refused: kind {kind}", kind)

    @property
    def kind(self):
        return self.args[1]


def name_hash(bytes name, *, fold):
    """Hash of a host name (``fold``), parameter or cookie, as the plan's tables use it."""
    return _name_hash(<const uint8_t *>name, len(name), fold)


def checksum(data):
    """Of all that follows the plan's header."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return _checksum(<const uint8_t *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


cdef bytes _bytes(const Plan *plan, Text t):
    return (<const char *>plan.base)[t.at:t.at + t.len]


cdef str _name(const Plan *plan, Text t):
    return _bytes(plan, t).decode("utf-8", "backslashreplace")


cdef object _ops_view(const Plan *plan, const HeaderOps *ops):
    cdef const RemoveName *names = <const RemoveName *>(plan.base + ops.remove)
    return OpsView([_bytes(plan, names[i].name) for i in range(ops.remove_count)], _bytes(plan, ops.append))


cdef class PlanView:
    """One plan, mapped. See the stub."""

    cdef Plan plan
    cdef Py_buffer view
    cdef Head head
    cdef Routing routing
    cdef bytes data
    cdef bytes normal

    def __cinit__(self, buffer):
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE)
        if plan_open(&self.plan, <const uint8_t *>self.view.buf, self.view.len) != 0:
            raise ValueError("not a plan of this build")

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    @property
    def epoch(self):
        return self.plan.epoch

    @property
    def version(self):
        return self.plan.version

    def counts(self):
        return {name: _count(&self.plan, i) for i, name in enumerate(SECTIONS)}

    def check(self):
        cdef int wrong
        with nogil:
            wrong = plan_check(&self.plan)
        if wrong:
            raise ValueError(f"plan is corrupt: {'checksum' if wrong > PLAN_SECTIONS else SECTIONS[wrong - 1]}")

    def listeners(self):
        cdef const Listener *row = <const Listener *>_array(&self.plan, IN_LISTENER)
        return [_name(&self.plan, row[i].name) for i in range(_count(&self.plan, IN_LISTENER))]

    cdef int _read(self, str listener, bytes request, int slashes, bint merge, bint https) except -1:
        cdef Limits limits
        cdef int64_t n
        cdef bytes name = listener.encode()
        cdef bytearray room
        cdef Head *head = &self.head
        cdef Routing *r = &self.routing
        limits.head = 1 << 20
        limits.fields = 256
        limits.target = 1 << 20
        limits.portable = False
        self.data = request
        n = scan_request(<const uint8_t *>request, len(request), &limits, head)
        if n < 0:
            raise Refused(-n)
        if n == 0:
            raise ValueError("the request head has no end")
        r.head = head
        r.host = head.base + head.host.at
        r.host_len = head.host.len
        r.query = head.base + head.query.at
        r.query_len = head.query.len
        r.scheme_https = head.scheme_https or https
        room = bytearray(max(head.path.len, 1))
        if head.path.len == 0:
            room[:] = b"/"
            n = 1
        elif head.form == FORM_ASTERISK:
            room[:] = b"*"
            n = 1
        else:
            n = path_normalise(head.base + head.path.at, head.path.len, slashes, merge, <uint8_t *>room)
            if n < 0:
                raise Refused(-n)
        self.normal = bytes(room[:n])
        r.path = self.normal
        r.path_len = n
        r.listener = plan_listener(&self.plan, name, len(name))
        r.route = NULL
        if r.listener == PLAN_NONE:
            raise LookupError(f"no listener {listener!r} in this plan")
        return 0

    def match(self, listener, bytes request, *, slashes=0, merge=True, https=False, linear=False):
        cdef Search s
        cdef uint32_t rule
        cdef const Host *host
        self._read(listener, request, slashes, merge, https)
        host = _host(&self.plan, &self.routing)
        if host == NULL:
            return None
        s.plan = &self.plan
        s.host = host
        s.steps = 0
        if linear:
            rule = _linear(&self.plan, host, &self.routing)
        else:
            rule = _indexed(&s, &self.routing)
            if plan_match(&self.plan, &self.routing) != (rule != PLAN_NONE):
                raise AssertionError("plan_match and the index differ")
        if rule == PLAN_NONE:
            return None
        _take(&self.plan, host, &self.routing, rule)
        return Target(
            _bytes(&self.plan, host.name), rule, self.routing.route - <const Route *>_array(&self.plan, IN_ROUTE),
            self.routing.prefix_len, self.normal, self.routing.query[:self.routing.query_len], s.steps,
        )

    def host(self, listener, bytes request, *, slashes=0, merge=True, https=False):
        cdef const Host *host
        self._read(listener, request, slashes, merge, https)
        host = _host(&self.plan, &self.routing)
        return None if host == NULL else _bytes(&self.plan, host.name)

    def explain(self, listener, bytes request, *, slashes=0, merge=True, https=False):
        cdef const Host *host
        cdef const Rule *rules
        cdef const Predicate *q
        cdef uint32_t i, k
        cdef list out = []
        self._read(listener, request, slashes, merge, https)
        host = _host(&self.plan, &self.routing)
        if host == NULL:
            return out
        rules = <const Rule *>_array(&self.plan, IN_RULE) + host.rules
        for i in range(host.rule_count):
            q = <const Predicate *>_array(&self.plan, IN_PREDICATE) + rules[i].predicates
            k = 0
            while k < rules[i].predicate_count and _holds(&self.plan, &self.routing, q + k):
                k += 1
            if k == rules[i].predicate_count:
                out.append(Step(i, host.routes + rules[i].route, None))
                break
            out.append(Step(i, host.routes + rules[i].route, self._failed(q + k)))
        return out

    cdef object _failed(self, const Predicate *q):
        cdef Value v
        cdef const uint8_t *p = NULL
        cdef size_t n = 0
        cdef list parts = []
        if q.subject == ON_PORT:
            found = str(_port(&self.plan, &self.routing)).encode()
        elif _subject(&self.plan, &self.routing, q, &v):
            while _value_next(&v, &p, &n):
                parts.append((<const char *>p)[:n])
            found = b"".join(parts)
        else:
            found = None
        return Failed(
            SUBJECTS[q.subject], KINDS[q.kind], bool(q.flags & PREDICATE_NOT), bool(q.flags & PREDICATE_FOLD),
            _bytes(&self.plan, q.name), _bytes(&self.plan, q.value), q.number, found,
        )

    def rewritten(self, listener, bytes request, *, slashes=0, merge=True, https=False, room=65536):
        """The path to send upstream, or the Location of a redirect; None: no route, or it does not fit."""
        cdef bytearray out = bytearray(room)
        cdef int64_t n
        self._read(listener, request, slashes, merge, https)
        if not plan_match(&self.plan, &self.routing):
            return None
        if self.routing.route.kind == ROUTE_REDIRECT:
            n = plan_redirect(&self.plan, &self.routing, <uint8_t *>out, room)
        else:
            n = plan_rewrite(&self.plan, &self.routing, <uint8_t *>out, room)
        return None if n < 0 else bytes(out[:n])

    def time(self, listener, bytes request, int rounds):
        """Nanoseconds of one plan_match, the best of a few rounds of many."""
        cdef int i
        import time
        best = None
        self._read(listener, request, 0, True, False)
        for _ in range(5):
            start = time.perf_counter_ns()
            with nogil:
                for i in range(rounds):
                    plan_match(&self.plan, &self.routing)
            took = (time.perf_counter_ns() - start) / rounds
            best = took if best is None or took < best else best
        return best

    def route(self, uint32_t index):
        cdef const Route *t
        cdef const Destination *d
        cdef uint32_t before = 0, i
        if index >= _count(&self.plan, IN_ROUTE):
            raise IndexError(index)
        t = <const Route *>_array(&self.plan, IN_ROUTE) + index
        destinations = []
        for i in range(t.destination_count):
            d = <const Destination *>(self.plan.base + t.destinations) + i
            cluster = plan_cluster(&self.plan, d.cluster)
            destinations.append(DestinationView(
                None if cluster == NULL else d.cluster, d.weight_end - before,
                _ops_view(&self.plan, &d.request), _ops_view(&self.plan, &d.response),
            ))
            before = d.weight_end
        return RouteView(
            t.id, t.kind, _bytes(&self.plan, t.name), t.timeout_ms, t.status, _bytes(&self.plan, t.body),
            destinations, _bytes(&self.plan, t.authority), _ops_view(&self.plan, &t.request),
            _ops_view(&self.plan, &t.response),
        )

    def pick(self, uint32_t route, uint32_t random):
        """Number of the destination that ``plan_destination`` takes."""
        cdef const Route *t
        if route >= _count(&self.plan, IN_ROUTE):
            raise IndexError(route)
        t = <const Route *>_array(&self.plan, IN_ROUTE) + route
        return plan_destination(&self.plan, t, random) - <const Destination *>(self.plan.base + t.destinations)

    def removes(self, uint32_t route, bytes name):
        """Whether the route's request operations remove a field of that name."""
        cdef Field f
        cdef const Route *t = <const Route *>_array(&self.plan, IN_ROUTE) + route
        if route >= _count(&self.plan, IN_ROUTE):
            raise IndexError(route)
        f.name = 0
        f.name_len = len(name)
        f.hash = field_hash(name, len(name))
        return bool(ops_remove(&self.plan, &t.request, name, &f))

    def cluster(self, uint32_t index):
        cdef const Cluster *c = plan_cluster(&self.plan, index)
        cdef const Endpoint *e
        cdef const uint32_t *schedule
        cdef uint32_t i
        if c == NULL:
            raise IndexError(index)
        endpoints = []
        for i in range(c.endpoint_count):
            e = <const Endpoint *>(self.plan.base + c.endpoints) + i
            size = 4 if e.family == 2 else 16
            endpoints.append(EndpointView(
                _name(&self.plan, e.name), e.slot, e.family, e.port,
                (<const char *>e.address)[:size], _bytes(&self.plan, e.path), e.identity,
            ))
        schedule = <const uint32_t *>(self.plan.base + c.schedule)
        return ClusterView(
            _name(&self.plan, c.name), _name(&self.plan, c.service), c.slot, c.lb,
            c.connect_timeout_ms, endpoints, [schedule[i] for i in range(c.schedule_count)],
        )
