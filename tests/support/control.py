"""A control plane as a proxy sees it: a real publisher in a process of its own, which a test tells what to
publish, stops, kills and starts again.

``python -m tests.support.control PORT EPOCH HEARTBEAT`` reads one command per line, JSON, and answers each.
"""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, Self, cast

import msgpack

from ctrl.fleet import Fleet
from ctrl.model import Candidate, Head
from ctrl.publisher import Publisher
from fastproxy.tables import Tables, empty
from fastproxy.wire import Attributes

from .proxy import ROOT, free_port


def routes(*hosts: tuple[str, int]) -> Tables:
    """Tables that answer each of these hosts of the mesh with a status."""
    tables = empty()
    for host, status in hosts:
        tables["routes"][f"mesh {host}"] = {
            "routes": [{"name": host, "matches": [], "direct": {"status": status, "body": b""}}],
            "source": [host],
        }
    return tables


@dataclass
class Contents:
    """What is published: a head and perhaps a candidate. Implements :class:`ctrl.publisher.Source`."""

    epoch: int
    version: int = 0
    made: Tables | None = None
    proposed: Tables | None = None
    share: int = 0
    burnt: int = 0

    def head(self) -> Head:
        return Head(self.epoch, self.version, max(self.version, self.burnt))

    def candidate(self) -> Candidate | None:
        return Candidate(self.next, cast(Any, None), self.share) if self.proposed else None

    @property
    def next(self) -> int:
        return max(self.version, self.burnt) + 1

    async def tables(self, attributes: Attributes) -> Tables:
        return self.made or empty()

    async def candidate_tables(self, attributes: Attributes) -> Tables:
        return self.proposed or empty()


async def _obey(contents: Contents, publisher: Publisher, fleet: Fleet, word: str, value: Any) -> Any:
    if word == "publish":
        contents.version, contents.made = contents.next, msgpack.unpackb(base64.b64decode(value))
        await publisher.advance()
        return contents.version
    if word == "propose":
        contents.proposed = msgpack.unpackb(base64.b64decode(value))
        contents.share = 0
        await publisher.propose()
        return contents.next
    if word == "step":
        contents.share = value
        publisher.step()
    elif word == "settle":
        contents.version, contents.made, contents.proposed = contents.next, contents.proposed, None
        await publisher.settle()
    elif word == "drop":
        contents.burnt, contents.proposed = contents.next, None
        await publisher.drop()
    elif word == "proxies":
        names = value
        return [{name: getattr(proxy, name) for name in names} for proxy in fleet.proxies()]
    else:
        raise ValueError(word)
    return None


async def _main(port: int, epoch: int, heartbeat: float) -> None:
    contents, fleet = Contents(epoch), Fleet()
    publisher = Publisher(
        contents,
        fleet,
        bind=f"tcp://127.0.0.1:{port}",
        snapshot_port=0,  # others each time
        answer_port=0,
        heartbeat=heartbeat,
        report=0.3,
    )
    await publisher.open()
    print(json.dumps(publisher.address), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        answer = await _obey(contents, publisher, fleet, *json.loads(line))
        print(json.dumps(answer), flush=True)
    await publisher.close()


class ControlPlane:
    """The process. ``port`` 0: three free ones; named, it comes back where it was."""

    def __init__(self, epoch: int = 1, port: int = 0, heartbeat: float = 0.2) -> None:
        self.port = port or free_port()
        words = [sys.executable, "-m", "tests.support.control", str(self.port), str(epoch), str(heartbeat)]
        self.process = subprocess.Popen(
            words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.address: str = self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"the control plane ended with {self.process.wait(5)}"
        return json.loads(line)

    def tell(self, word: str, value: Any = None) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps([word, value]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def publish(self, tables: Tables) -> int:
        """The next version; its number."""
        version: int = self.tell("publish", base64.b64encode(msgpack.packb(tables)).decode())
        return version

    def propose(self, tables: Tables) -> int:
        version: int = self.tell("propose", base64.b64encode(msgpack.packb(tables)).decode())
        return version

    def proxies(self, *names: str) -> list[dict[str, Any]]:
        """These fields of each proxy that the publisher knows."""
        found: list[dict[str, Any]] = self.tell("proxies", list(names))
        return found

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Nothing is said, no connection is closed in order."""
        self.process.kill()
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.resume()
            assert self.process.stdin
            self.process.stdin.close()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait(5)
        for stream in (self.process.stdin, self.process.stdout):
            if stream and not stream.closed:
                stream.close()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
