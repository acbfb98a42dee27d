# The names behind a record's numbers. A record has only slots and numbers of the plan that its exchange ran
# on; the agent says what they stand for, plan by plan. Everything here happens under the lock of the Drain
# that owns it.

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stddef cimport size_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset
from fastproxy._accesslog cimport Quoted

from fastproxy._accesslog import quote


cdef class Slots:
    """What the live slots of one kind stand for, for any plan version a record may carry.

    A slot is carried from plan to plan by name, so its last two names and the versions they came with are
    enough: a record of a version before both is of nobody we know.
    """

    def __cinit__(self):
        self.names = ["unknown"]
        self.texts = [b""]
        self.free = []
        self.last = {}
        self.entries = <Entry *>calloc(1, sizeof(Entry))
        self.entry_count = 1
        if self.entries == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.slots)
        free(self.entries)

    cdef uint32_t find(self, uint32_t slot, uint64_t version) noexcept nogil:
        if slot >= self.count:
            return 0
        if version >= self.slots[slot].since[0]:
            return self.slots[slot].entry[0]
        return self.slots[slot].entry[1] if version >= self.slots[slot].since[1] else 0

    cdef uint32_t _entry(self, str name) except 0:
        cdef bytes text = quote(name)
        cdef uint32_t number
        cdef Entry *entries
        if self.free:
            number = self.free.pop()
            self.names[number] = name
            self.texts[number] = text
        else:
            number = self.entry_count
            if number >> 24:
                raise MemoryError("too many names")
            entries = <Entry *>realloc(self.entries, (number + 1) * sizeof(Entry))
            if entries == NULL:
                raise MemoryError
            self.entries = entries
            self.entry_count += 1
            self.names.append(name)
            self.texts.append(text)
        self.entries[number].text.at = text
        self.entries[number].text.len = <uint32_t>len(text)
        self.entries[number].users = 0
        return number

    cdef void _release(self, uint32_t number):
        if number:
            self.entries[number].users -= 1
            if self.entries[number].users == 0:
                self.free.append(number)

    cdef int assign(self, uint64_t version, dict mapping) except -1:
        # Under the lock. Slots not named keep what they had: their exchanges may still be running.
        cdef uint32_t slot, number, size
        cdef Slot *slots
        cdef Slot *one
        if mapping == self.last:
            return 0
        size = <uint32_t>(max(mapping, default=-1) + 1)
        if size > 1 << 24:
            raise ValueError(f"slot {size - 1} is out of range")
        if size > self.count:
            slots = <Slot *>realloc(self.slots, size * sizeof(Slot))
            if slots == NULL:
                raise MemoryError
            memset(slots + self.count, 0, (size - self.count) * sizeof(Slot))
            self.slots = slots
            self.count = size
        for slot, name in mapping.items():
            one = &self.slots[slot]
            if one.entry[0] and self.names[one.entry[0]] == name:
                continue
            number = self._entry(name)
            self.entries[number].users = 1
            self._release(one.entry[1])
            one.entry[1] = one.entry[0]
            one.since[1] = one.since[0]
            one.entry[0] = number
            one.since[0] = version
        self.last = dict(mapping)
        return 0

    cdef void rewind(self):
        # Versions start anew (another epoch): whatever a slot means now, it means for every version to come.
        cdef uint32_t slot
        for slot in range(self.count):
            self._release(self.slots[slot].entry[1])
            self.slots[slot].entry[1] = 0
            self.slots[slot].since[0] = 0
            self.slots[slot].since[1] = 0


cdef void version_free(Version *version) noexcept nogil:
    free(version.routes)
    free(version.listeners)
    free(version)


cdef Version *version_new(uint64_t number, dict routes, dict listeners) except NULL:
    # One block for the routes: their array, then their texts.
    cdef Version *version = <Version *>calloc(1, sizeof(Version))
    cdef uint32_t route_count = <uint32_t>(max(routes, default=-1) + 1)
    cdef uint32_t listener_count = <uint32_t>(max(listeners, default=-1) + 1)
    cdef dict quoted = {key: quote(name) for key, name in routes.items()}
    cdef size_t array = route_count * sizeof(Quoted), total = sum(map(len, quoted.values()))
    cdef uint8_t *at
    cdef bytes text
    cdef uint32_t key, label
    if version == NULL:
        raise MemoryError
    version.version = number
    version.routes = <Quoted *>calloc(1, array + total + 1)
    version.listeners = <uint32_t *>calloc(listener_count + 1, sizeof(uint32_t))
    if version.routes == NULL or version.listeners == NULL:
        version_free(version)
        raise MemoryError
    version.route_count = route_count
    version.listener_count = listener_count
    at = <uint8_t *>version.routes + array
    for key, text in quoted.items():
        memcpy(at, <const char *>text, len(text))
        version.routes[key].at = at
        version.routes[key].len = <uint32_t>len(text)
        at += len(text)
    for key, label in listeners.items():
        version.listeners[key] = label
    return version
