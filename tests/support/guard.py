"""Memory that ends at an unreadable page: a parser that reads one byte too far dies with SIGSEGV."""

from __future__ import annotations

import ctypes
import mmap

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Guard:
    """``size`` readable bytes before a page without any right."""

    def __init__(self, size: int) -> None:
        self._readable = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, self._readable + mmap.PAGESIZE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        if _LIBC.mprotect(start + self._readable, mmap.PAGESIZE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")

    def place(self, data: bytes) -> memoryview:
        """The data, copied so that the first byte after it is unreadable."""
        start = self._readable - len(data)
        if start < 0:
            raise ValueError(f"{len(data)} bytes do not fit into {self._readable}")
        self._memory[start : self._readable] = data
        return memoryview(self._memory)[start : self._readable]
