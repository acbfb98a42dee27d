# A timing wheel. Moving a deadline later is one store: the node stays in its slot, and when that slot comes it is put
# where its deadline is then. Only an earlier deadline moves the node at once. So a request on a kept-alive connection
# costs no list operation, and a connection is looked at a few times an hour rather than per request.

cdef void timer_link(Worker *w, Timer *t, uint64_t due) noexcept nogil:
    cdef Wheel *wheel = &w.wheel
    cdef uint64_t slot = (due + (1 << WHEEL_SHIFT) - 1) >> WHEEL_SHIFT     # up: never early
    cdef uint32_t i
    if slot <= wheel.now_slot:
        slot = wheel.now_slot + 1
    elif slot >= wheel.now_slot + WHEEL_SLOTS:
        slot = wheel.now_slot + WHEEL_SLOTS - 1
    t.due_ms = slot << WHEEL_SHIFT
    i = slot & (WHEEL_SLOTS - 1)
    t.next = wheel.slots[i]
    if t.next != NULL:
        t.next.prev = t
    t.prev = <Timer *>&wheel.slots[i]           # `next` is the first member, so the slot can stand for a node
    wheel.slots[i] = t
    wheel.occupied[i >> 6] |= (<uint64_t>1) << (i & 63)
    if wheel.wanted_ms == 0 or t.due_ms < wheel.wanted_ms:
        wheel.wanted_ms = t.due_ms

cdef void timer_unlink(Worker *w, Timer *t) noexcept nogil:
    cdef uint32_t i
    if t.prev == NULL:
        return
    t.prev.next = t.next
    if t.next != NULL:
        t.next.prev = t.prev
    i = (t.due_ms >> WHEEL_SHIFT) & (WHEEL_SLOTS - 1)
    if w.wheel.slots[i] == NULL:
        w.wheel.occupied[i >> 6] &= ~((<uint64_t>1) << (i & 63))
    t.prev = NULL
    t.next = NULL

cdef inline void timer_set(Worker *w, Timer *t, uint64_t deadline_ms) noexcept nogil:
    """Ends at `deadline_ms` (monotonic). Cheap when later than before."""
    t.deadline_ms = deadline_ms
    if t.prev == NULL:
        timer_link(w, t, deadline_ms)
    elif deadline_ms < t.due_ms:
        timer_unlink(w, t)
        timer_link(w, t, deadline_ms)

cdef inline void timer_clear(Timer *t) noexcept nogil:
    """No deadline; the node leaves the wheel when its slot comes."""
    t.deadline_ms = 0

cdef inline Conn *timer_conn(Timer *t) noexcept nogil:
    return <Conn *>(<uint8_t *>t - (<size_t>&(<Conn *>NULL).timer))

cdef void timers_advance(Worker *w) noexcept nogil:
    """Run all slots up to now. A slot's list is taken off whole first: what expires may link new timers."""
    cdef Wheel *wheel = &w.wheel
    cdef uint64_t until = w.now_ms >> WHEEL_SHIFT
    cdef Timer *t
    cdef uint32_t i
    if until > wheel.now_slot + WHEEL_SLOTS:            # asleep longer than a round: every slot once is enough
        wheel.now_slot = until - WHEEL_SLOTS
    while wheel.now_slot < until:
        wheel.now_slot += 1
        i = wheel.now_slot & (WHEEL_SLOTS - 1)
        while True:
            t = wheel.slots[i]
            if t == NULL:
                break
            timer_unlink(w, t)
            if t.deadline_ms == 0:
                continue
            if t.deadline_ms > w.now_ms:
                timer_link(w, t, t.deadline_ms)
                continue
            t.deadline_ms = 0
            conn_timeout(w, timer_conn(t))

cdef uint64_t timers_next(Worker *w) noexcept nogil:
    """Time of the earliest occupied slot, 0: none."""
    cdef Wheel *wheel = &w.wheel
    cdef uint64_t slot = wheel.now_slot + 1
    cdef uint64_t last = wheel.now_slot + WHEEL_SLOTS
    cdef uint64_t word
    cdef uint32_t i
    while slot < last:
        i = slot & (WHEEL_SLOTS - 1)
        word = wheel.occupied[i >> 6] >> (i & 63)
        if word == 0:
            slot += 64 - (i & 63)
            continue
        while not (word & 1):
            word >>= 1
            slot += 1
        return slot << WHEEL_SHIFT
    return 0

cdef void timers_arm(Worker *w, uint64_t at_ms) noexcept nogil:
    cdef itimerspec value
    memset(&value, 0, sizeof(value))
    value.it_value.tv_sec = at_ms // 1000
    value.it_value.tv_nsec = <long>(at_ms % 1000) * 1000000
    if at_ms == 0:
        value.it_value.tv_nsec = 0
    timerfd_settime(w.timerfd, TFD_TIMER_ABSTIME, &value, NULL)
    w.wheel.armed_ms = at_ms

cdef inline void timers_settle(Worker *w) noexcept nogil:
    """Before sleeping: arm the timerfd if something is due before it would fire. A later one is found when it does."""
    cdef Wheel *wheel = &w.wheel
    if wheel.wanted_ms and (wheel.armed_ms == 0 or wheel.wanted_ms < wheel.armed_ms):
        timers_arm(w, wheel.wanted_ms)
    wheel.wanted_ms = 0

cdef void timers_on_fire(Worker *w) noexcept nogil:
    cdef uint64_t count
    c_read(w.timerfd, &count, sizeof(count))
    w.wheel.armed_ms = 0
    timers_advance(w)
    w.wheel.wanted_ms = timers_next(w)
