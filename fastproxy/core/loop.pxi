# The loop: rounds of epoll_wait until nothing is ready or the budget is spent. uvloop sees one descriptor, the core's
# epoll; the GIL is released for the whole tick.
#
# A tick that had work waits a little inside its last epoll_wait before it goes back to uvloop: under load the next
# event comes sooner than Python could be entered and left again. The command socket is watched here too, so that a
# command of the agent ends the wait at once.

cdef enum:
    LINGER_MS = 2

cdef void clock_read(Worker *w) noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    w.now_us = <uint64_t>ts.tv_sec * 1000000 + ts.tv_nsec // 1000
    w.now_ms = w.now_us // 1000
    clock_gettime(CLOCK_REALTIME, &ts)
    w.real_us = <uint64_t>ts.tv_sec * 1000000 + ts.tv_nsec // 1000

cdef inline bint conn_sane(const Conn *c) noexcept nogil:
    """A connection has an exchange exactly in the states that need one, and the exchange knows it."""
    if c.state == STATE_EXCHANGE or c.state == STATE_TUNNEL or c.state == STATE_CONNECTING:
        return c.exchange != NULL and (c.exchange.down == c if c.side == SIDE_DOWN else c.exchange.up == c)
    return c.exchange == NULL

cdef void conn_on_event(Worker *w, Conn *c, uint32_t events) noexcept nogil:
    if c.flags & CONN_CLOSED:
        return                          # an earlier event of this batch closed it
    if not holds(w, conn_sane(c), b"state and exchange of a connection agree"):
        conn_close(w, c, True)
        return
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
        c.flags |= CONN_READABLE
        if events & EPOLLRDHUP:
            c.flags |= CONN_FIN
        if events & (EPOLLHUP | EPOLLERR):
            c.flags |= CONN_DEAD
    if c.side == SIDE_DOWN:
        down_on_event(w, c, (events & EPOLLOUT) != 0)
    else:
        up_on_event(w, c, (events & EPOLLOUT) != 0)

cdef void ready_run(Worker *w) noexcept nogil:
    """Whoever asked to be looked at again. One pass: who asks during it waits for the next."""
    cdef Conn *c = w.ready_first
    cdef Conn *following
    w.ready_first = NULL
    w.ready_last = NULL
    while c != NULL:
        following = c.ready
        c.flags &= ~CONN_QUEUED
        if not (c.flags & CONN_CLOSED):
            if c.side == SIDE_DOWN:
                down_on_event(w, c, False)
            else:
                up_on_event(w, c, False)
        c = following

cdef void graveyard_empty(Worker *w) noexcept nogil:
    """Free what was closed, now that no event and no list points at it."""
    cdef Conn *c = w.graveyard
    cdef Conn *following
    cdef Conn *kept = NULL
    while c != NULL:
        following = c.next
        if c.flags & CONN_QUEUED:
            c.next = kept
            kept = c
        else:
            spare_release(&w.conns, c)
        c = following
    w.graveyard = kept
    if w.listeners_closing:
        listeners_sweep(w)

cdef void run_tick(Worker *w) noexcept nogil:
    """Rounds until nothing is ready, the budget is spent, or a command came."""
    cdef uint64_t started
    cdef uint32_t handled = 0
    cdef int n
    cdef int i
    cdef uint8_t side
    cdef bint worked = False
    w.live.gauges.ticks += 1
    w.command_seen = False
    clock_read(w)
    started = w.now_us
    while True:
        n = c_epoll_wait(w.epfd, w.events, EVENTS, 0)
        if n == 0 and worked and w.ready_first == NULL:
            timers_settle(w)
            n = c_epoll_wait(w.epfd, w.events, EVENTS, LINGER_MS)
        if n < 0:
            break
        if n == 0 and w.ready_first == NULL:
            break
        w.live.gauges.rounds += 1
        clock_read(w)
        for i in range(n):              # upstreams first: a pooled connection that ends in this batch is not used in it
            if (<uint8_t *>w.events[i].data.ptr)[0] == SIDE_UP:
                conn_on_event(w, <Conn *>w.events[i].data.ptr, w.events[i].events)
                worked = True
        for i in range(n):
            side = (<uint8_t *>w.events[i].data.ptr)[0]
            if side == SIDE_UP:
                continue
            if side == SIDE_DOWN:
                conn_on_event(w, <Conn *>w.events[i].data.ptr, w.events[i].events)
                worked = True
            elif side == SIDE_LISTENER:
                listener_on_event(w, <Listener *>w.events[i].data.ptr, False)
                worked = True
            elif side == SIDE_TIMER:
                timers_on_fire(w)
            elif side == SIDE_COMMAND:
                w.command_seen = True
            else:
                wake_clear(w)
        if w.ready_first != NULL:
            ready_run(w)
        if w.graveyard != NULL:
            graveyard_empty(w)
        handled += n
        if w.command_seen or handled >= w.options.tick_events or w.now_us - started >= w.options.tick_us:
            break
    timers_settle(w)
    if w.ready_first != NULL:
        wake_self(w)

cdef void wake_self(Worker *w) noexcept nogil:
    """Work is left that epoll does not know of: be called again."""
    cdef uint64_t one = 1
    c_write(w.wakefd, &one, sizeof(one))

cdef void wake_clear(Worker *w) noexcept nogil:
    cdef uint64_t count
    c_read(w.wakefd, &count, sizeof(count))

cdef void plan_release(Worker *w, Plan *plan) noexcept nogil:
    """One user less; the last one unmaps it."""
    if plan == NULL:
        return
    plan.references -= 1
    if plan.references == 0:
        c_munmap(<void *>plan.base, plan.size)
        free(plan)
        w.live.gauges.plans -= 1

cdef void plan_adopt(Worker *w, Plan *plan) noexcept nogil:
    """Swap: from the next request on this plan answers. Between two events, so nobody sees half of it."""
    cdef Plan *old = w.plan
    cdef Listener *listener = w.listeners
    cdef timespec before
    cdef timespec after
    cdef uint64_t us
    clock_gettime(CLOCK_MONOTONIC, &before)
    plan.references = 1
    w.live.gauges.plans += 1
    while listener != NULL:
        listener.plan_index = plan_listener(plan, <const uint8_t *>listener.name, listener.name_len)
        listener = listener.next
    w.plan = plan
    plan_release(w, old)
    clock_gettime(CLOCK_MONOTONIC, &after)
    us = <uint64_t>((after.tv_sec - before.tv_sec) * 1000000 + (after.tv_nsec - before.tv_nsec) // 1000)
    w.live.gauges.plan_version = plan.version
    w.live.gauges.plan_swaps += 1
    w.live.gauges.plan_swap_us = us
    if us > w.live.gauges.plan_swap_us_max:
        w.live.gauges.plan_swap_us_max = us

cdef void worker_drain(Worker *w) noexcept nogil:
    """Accept what already waits, then no more; connections that are between two requests end now."""
    cdef Listener *listener = w.listeners
    cdef Conn *d
    cdef Conn *following
    cdef uint32_t i
    w.draining = True
    while listener != NULL:
        if not listener.closing:
            listener_end(w, listener)
        listener = listener.next
    d = w.connections
    while d != NULL:
        following = d.next
        if d.state == STATE_HEAD and d.input == NULL and not (d.flags & (CONN_READABLE | CONN_FRESH)):
            conn_close(w, d, False)
        elif d.state == STATE_HEAD and d.flags & CONN_FRESH:
            timer_set(w, &d.timer, w.now_ms + 1000)
        d = following
    if w.live.gauges.upstream_idle:
        for i in range(w.live.header.endpoints):
            while w.pools[i].idle != NULL:
                conn_close(w, w.pools[i].idle, False)
    graveyard_empty(w)

cdef void listener_end(Worker *w, Listener *listener) noexcept nogil:
    """Take what already waits, then stop accepting. The struct stays until its last connection is gone."""
    if listener.closing:
        return
    if not listener.paused or listener.deferred:
        listener_on_event(w, listener, True)
    listener.closing = True
    w.listeners_closing += 1
    if not listener.paused:
        epoll_ctl(w.epfd, EPOLL_CTL_DEL, listener.fd, NULL)
    c_close(listener.fd)
    listener.fd = -1

cdef void listeners_sweep(Worker *w) noexcept nogil:
    """Free those that ended and have no connection left. Not within a batch of events, which may point at them."""
    cdef Listener **link = &w.listeners
    cdef Listener *listener
    while w.listeners_closing and link[0] != NULL:
        listener = link[0]
        if listener.closing and listener.connections == 0:
            link[0] = listener.next
            w.listeners_closing -= 1
            free(listener)
        else:
            link = &listener.next
