"""What a Python team would write: ``asyncio_proxy.py``, as a peer."""

from __future__ import annotations

import importlib.metadata
import sys

from benchmarks.load import Failed
from benchmarks.peers.base import Peer


class AsyncioHttptools(Peer):
    """asyncio protocols and httptools on uvloop."""

    name = "asyncio-httptools"

    @classmethod
    def version(cls) -> str:
        try:
            parts = [f"{name} {importlib.metadata.version(name)}" for name in ("uvloop", "httptools")]
        except importlib.metadata.PackageNotFoundError as error:
            raise Failed(f"{error.name} is not installed (pip install {error.name})") from error
        return ", ".join([f"Python {sys.version.split()[0]}", *parts])

    def command(self) -> list[str]:
        upstream = self.upstream.path if self.setup.unix else str(self.upstream.port)
        return [sys.executable, "-m", "benchmarks.peers.asyncio_proxy", str(self.port), upstream]
