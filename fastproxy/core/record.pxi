# An exchange ends as one record in the journal. Its strings are only kept when the access log wants them.

cdef inline uint32_t bounded(uint32_t n, uint32_t most) noexcept nogil:
    return n if n < most else most

cdef void note_text(Exchange *ex, int which, const uint8_t *p, uint32_t n) noexcept nogil:
    memcpy(chunk_data(ex.texts) + ex.texts.end, p, n)
    ex.texts.end += n
    ex.text_len[which] = <uint16_t>n

cdef void exchange_identify(Worker *w, Exchange *ex, const Head *h) noexcept nogil:
    """The client is the address that the outermost trusted hop saw: with N hops the Nth from the right of all
    X-Forwarded-For lines together. Fewer, or no address: the peer stays."""
    cdef const Field *f
    cdef const uint8_t *v
    cdef uint32_t hops = w.options.trusted_hops
    cdef int32_t i = <int32_t>h.field_count
    cdef int32_t end
    cdef int32_t start
    while i > 0:
        i -= 1
        f = &h.fields[i]
        if f.known != KNOWN_X_FORWARDED_FOR:
            continue
        v = h.base + f.value
        end = <int32_t>f.value_len
        while end >= 0:
            start = end
            while start > 0 and v[start - 1] != 44:
                start -= 1
            hops -= 1
            if hops == 0:
                client_parse(ex, v + start, end - start)
                return
            end = start - 1

cdef void client_parse(Exchange *ex, const uint8_t *p, int32_t n) noexcept nogil:
    cdef char address[46]
    cdef uint8_t parsed[16]
    while n > 0 and (p[0] == 32 or p[0] == 9):
        p += 1
        n -= 1
    while n > 0 and (p[n - 1] == 32 or p[n - 1] == 9):
        n -= 1
    if n <= 0 or n >= 46:
        return
    memcpy(address, p, n)
    address[n] = 0
    memset(parsed, 0, 16)
    if inet_pton(AF_INET, address, parsed) == 1:
        ex.client_family = AF_INET
    elif inet_pton(AF_INET6, address, parsed) == 1:
        ex.client_family = AF_INET6
    else:
        return
    memcpy(ex.client, parsed, 16)
    ex.client_port = 0

cdef void exchange_note(Worker *w, Exchange *ex, const Head *h) noexcept nogil:
    """Keep the strings of the record; bounded, so that they fit a small chunk whatever the client sends."""
    cdef const Field *f
    cdef int i
    cdef int known
    if not w.live.header.log_strings:
        return
    ex.texts = chunk_acquire(w, SMALL_CHUNK)
    if ex.texts == NULL:
        return
    note_text(ex, TEXT_METHOD, h.base + h.method.at, bounded(h.method.len, 32))
    note_text(ex, TEXT_AUTHORITY, h.base + h.authority.at, bounded(h.authority.len, 255))
    if h.form == FORM_ABSOLUTE:
        note_text(ex, TEXT_PATH, h.base + h.path.at,
                  bounded(h.path.len + (h.query.len + 1 if h.query.at else 0), 2048))
    else:
        note_text(ex, TEXT_PATH, h.base + h.target.at, bounded(h.target.len, 2048))
    for i in range(3):
        known = KNOWN_USER_AGENT if i == 0 else KNOWN_X_FORWARDED_FOR if i == 1 else KNOWN_X_REQUEST_ID
        f = known_field(h, known)
        if f != NULL:
            note_text(ex, TEXT_USER_AGENT + i, h.base + f.value, bounded(f.value_len, 512 if i < 2 else 128))

cdef void exchange_note_refused(Worker *w, Exchange *ex, const uint8_t *p, size_t n) noexcept nogil:
    """A head that was refused: its first line as the path is all there is to say."""
    cdef const uint8_t *end
    if not w.live.header.log_strings or n == 0:
        return
    ex.texts = chunk_acquire(w, SMALL_CHUNK)
    if ex.texts == NULL:
        return
    end = <const uint8_t *>memchr(p, 10, n)
    note_text(ex, TEXT_PATH, p, bounded(<uint32_t>(end - p if end != NULL else n), 256))

cdef void exchange_record(Worker *w, Exchange *ex) noexcept nogil:
    cdef uint32_t size = (sizeof(Record) + (ex.texts.end if ex.texts != NULL else 0) + 7) & ~<uint32_t>7
    cdef Record *r = ring_reserve(&w.ring, size)
    cdef uint64_t took = w.now_us - ex.start_us
    if r == NULL:
        w.live.gauges.journal_dropped += 1
        return
    r.size = size
    r.kind = RECORD_EXCHANGE
    r.status = ex.status
    r.start_us = ex.start_real_us
    r.duration_us = <uint32_t>min(took, <uint64_t>0xFFFFFFFE)
    r.upstream_us = ex.upstream_us
    r.bytes_received = ex.received
    r.bytes_sent = ex.sent
    r.plan_version = ex.plan.version if ex.plan != NULL else 0
    r.listener = ex.listener
    r.route = ex.route.id if ex.route != NULL else NO_INDEX
    r.cluster = ex.cluster.slot if ex.cluster != NULL else NO_INDEX
    r.endpoint = ex.endpoint.slot if ex.endpoint != NULL else NO_INDEX
    r.upstream_status = ex.upstream_status
    r.error = ex.error
    r.detail = ex.detail
    r.minor = ex.minor
    r.attempts = ex.attempts
    r.upgraded = ex.upgraded
    r.client_family = ex.client_family
    r.client_port = ex.client_port
    memcpy(r.text_len, ex.text_len, sizeof(ex.text_len))
    memcpy(r.client, ex.client, 16)
    if ex.flags & EX_OWN_ID:
        memcpy(r.request_id, ex.request_id, 16)
    else:
        memset(r.request_id, 0, 16)
    r.worker = w.index
    if ex.texts != NULL:
        memcpy(<uint8_t *>r + sizeof(Record), chunk_data(ex.texts), ex.texts.end)
    ring_commit(&w.ring, r)
