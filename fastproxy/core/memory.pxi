# Freelists: acquire and release are counted, and every test ends by asserting that nothing is out.
# Released memory stays for the next exchange up to a ceiling; above it, it goes back to the system.

cdef inline bint holds(Worker *w, bint truth, const char *what) noexcept nogil:
    """What cannot be otherwise. Ends the process in a debug build; else it is counted, and the caller drops the one
    connection that it is about."""
    if likely(truth):
        return True
    debug_fail(what)
    w.live.gauges.invariant_failures += 1
    return False

cdef inline uint8_t *chunk_data(Chunk *c) noexcept nogil:
    return <uint8_t *>(c + 1)

cdef inline uint32_t chunk_room(Chunk *c) noexcept nogil:
    return c.size - c.end

cdef Chunk *chunk_acquire(Worker *w, uint32_t need) noexcept nogil:
    """A chunk with room for `need` bytes, or NULL: more than a large one holds, or no memory."""
    cdef bint is_large = need > SMALL_CHUNK
    cdef Freelist *f = &w.large if is_large else &w.small
    cdef uint32_t size = w.large_size if is_large else SMALL_CHUNK
    cdef Chunk *c = f.first
    if need > size:
        return NULL
    if c != NULL:
        f.first = c.next
        f.kept -= 1
    else:
        c = <Chunk *>malloc(sizeof(Chunk) + size)
        if c == NULL:
            return NULL
        c.size = size
        c.is_large = is_large
    c.next = NULL
    c.at = 0
    c.end = 0
    f.out += 1
    w.live.gauges.chunks += 1
    w.live.gauges.chunk_bytes += size
    return c

cdef void chunk_release(Worker *w, Chunk *c) noexcept nogil:
    cdef Freelist *f
    if c == NULL:
        return
    f = &w.large if c.is_large else &w.small
    f.out -= 1
    w.live.gauges.chunks -= 1
    w.live.gauges.chunk_bytes -= c.size
    if f.kept < f.keep:
        c.next = f.first
        f.first = c
        f.kept += 1
    else:
        free(c)

cdef void chunks_release(Worker *w, Chunk *c) noexcept nogil:
    """A whole chain."""
    cdef Chunk *following
    while c != NULL:
        following = c.next
        chunk_release(w, c)
        c = following

cdef void *spare_acquire(Freelist *f, size_t size) noexcept nogil:
    """A zeroed struct of `size` bytes, or NULL. A spare one holds the next in its first word."""
    cdef void *p = f.spare
    if p != NULL:
        f.spare = (<void **>p)[0]
        f.kept -= 1
        memset(p, 0, size)
    else:
        p = calloc(1, size)
        if p == NULL:
            return NULL
    f.out += 1
    return p

cdef void spare_release(Freelist *f, void *p) noexcept nogil:
    f.out -= 1
    if f.kept < f.keep:
        (<void **>p)[0] = f.spare
        f.spare = p
        f.kept += 1
    else:
        free(p)

cdef inline uint64_t random_next(Worker *w) noexcept nogil:
    """xoroshiro128+: for picks and request ids, seeded from the kernel; not for secrets."""
    cdef uint64_t a = w.random[0]
    cdef uint64_t b = w.random[1]
    cdef uint64_t result = a + b
    b ^= a
    w.random[0] = ((a << 24) | (a >> 40)) ^ b ^ (b << 16)
    w.random[1] = (b << 37) | (b >> 27)
    return result
