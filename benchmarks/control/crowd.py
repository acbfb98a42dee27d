"""Child processes that are asked questions: a line of JSON in, a line of JSON out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.load import Failed
from benchmarks.process import ROOT


class Child:
    """One module of this package as a process of its own. It ends when its standard input does."""

    def __init__(self, module: str, log: Path, *args: str) -> None:
        with open(log, "ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *args],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
            )
        self._log = log

    def tell(self, **question: Any) -> None:
        """Ask without waiting; every question has one answer, in their order."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(question).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"a child ended: {self._log.read_text()[-400:]}")
        return json.loads(line)

    def ask(self, **question: Any) -> Any:
        self.tell(**question)
        return self.hear()

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Crowd:
    """Several children of one kind that share a number of subscribers."""

    def __init__(self, module: str, log: Path, processes: int) -> None:
        self.children = [Child(module, log) for _ in range(processes)]

    def join(self, address: str, count: int, **more: Any) -> None:
        for i, child in enumerate(self.children):
            first, last = count * i // len(self.children), count * (i + 1) // len(self.children)
            child.tell(do="join", address=address, count=last - first, first=first, **more)
        for child in self.children:
            child.hear()

    def ask(self, **question: Any) -> list[Any]:
        """The answers of all; they work at the same time."""
        for child in self.children:
            child.tell(**question)
        return [child.hear() for child in self.children]

    def samples(self, **question: Any) -> list[float]:
        """All children's samples in one list."""
        return [value for some in self.ask(do="samples", **question) for value in some]

    def live(self, version: int, seconds: float) -> float:
        """When the last one was LIVE with this version, Unix seconds. Raises Failed."""
        moments = self.ask(do="live", version=version, seconds=seconds)
        if None in moments:
            raise Failed(f"not all were LIVE after {seconds} s: {self.ask(do='state')}")
        return float(max(moments))

    def end(self) -> None:
        for child in self.children:
            child.end()
