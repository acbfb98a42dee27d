"""The floor: ``floor.c``, a relay that only looks for the end of the head."""

from __future__ import annotations

from benchmarks.load import Failed
from benchmarks.peers.base import Peer
from benchmarks.process import BUILD


class Floor(Peer):
    """A C relay that only looks for the end of the head; reads of 64 KiB."""

    name = "floor"
    options: tuple[str, ...] = ("64",)

    @classmethod
    def version(cls) -> str:
        if not (BUILD / "floor").exists():
            raise Failed("floor.c is not compiled: no C compiler?")
        return "64 KiB reads"

    def command(self) -> list[str]:
        if self.setup.rules:
            raise Failed("the floor does not route")
        upstream = self.upstream.path if self.setup.unix else str(self.upstream.port)
        return [str(BUILD / "floor"), str(self.port), upstream, *self.options]


class Floor256(Floor):
    """The floor with reads of 256 KiB: for large answers."""

    name = "floor-256k"
    options = ("256",)

    @classmethod
    def version(cls) -> str:
        super().version()
        return "256 KiB reads"


class FloorSplice(Floor):
    """The floor with splice: what follows the first 16 KiB of an answer stays in the kernel."""

    name = "floor-splice"
    options = ("16", "splice")

    @classmethod
    def version(cls) -> str:
        super().version()
        return "splice after the first 16 KiB"
