"""Versions survive kill -9: a writer is killed at a random moment, again and again, and the store is checked.

A writer applies versions one after the other through the SQLite store and says each one that was
acknowledged. SIGKILL comes within its first tens of milliseconds: while it makes or opens the file, writes,
copies its log or compacts. Then the store is opened and compared with what the writer was to write: every
acknowledged version is there, none is half there, the history has no gap, the epoch is that of the beginning.

The writers are forked from one warm process, so that a round costs no start of Python.

    python -m benchmarks.durability [ROUNDS] [SEED]
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from ctrl.model import Change, Draft, Head, Resource, StoreError
from ctrl.store.rules import is_aborted
from ctrl.store.sqlite import SqliteStore

DELAY_SECONDS = 0.06  # at most, from the writer's start to its end
WRITER_SECONDS = 5.0  # it ends by itself, should nobody kill it
ROUNDS_PER_FILE = 25
KEEP = 200  # more than a writer makes in its life
SHARED, OWN = 5, 7  # documents that every version writes, and those that come and go


@dataclass(slots=True)
class Result:
    """problems: what was lost, half there, or wrong; empty is what must be."""

    rounds: int
    seed: int
    acknowledged: int = 0  # versions that a writer was told were there
    unacknowledged: int = 0  # versions that were there whole though the writer died before it was told
    candidates: int = 0  # found open
    untouched: int = 0  # rounds that ended before the first version
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


def draft_of(seed: int, version: int) -> Draft:
    """What that version writes: the same documents from the same seed, sometimes over many pages."""
    chance = random.Random(f"{seed} {version}")
    texts = {f"d{number}": f"{version} " + "x" * chance.choice((10, 400, 9000)) for number in range(SHARED)}
    changes = [_change(name, text) for name, text in texts.items()]
    own = f"x{version % OWN}"
    changes.append(_change(own, f"{version}" if chance.random() < 0.6 else None))
    digest = hashlib.sha256(f"{seed} {version}".encode()).hexdigest()[:16]
    return Draft("writer", "apply", tuple(changes), digest)


def _change(name: str, text: str | None) -> Change:
    identity = ("VirtualService", "default", name)
    return Change(identity, None if text is None else Resource(*identity, text))


# --- the writer ---


async def _write(path: str, seed: int) -> None:
    store, end = SqliteStore(f"sqlite:///{path}"), time.monotonic() + WRITER_SECONDS
    await store.open()
    head, left = await store.head(), await store.candidate()
    _say(f"epoch {head.epoch}")
    version = head.decided
    if left is not None:
        await store.void(left.version, "left by one that died")
        version = left.version
        _say(f"done {version}")
    while time.monotonic() < end:
        draft, version = draft_of(seed, version + 1), version + 1
        if version % 5:
            await store.commit(version - 1, draft)
        else:
            await store.propose(version - 1, draft, "writer")
            _say(f"open {version}")
            await store.step(version, 1)
            await (store.void(version, "no") if version % 10 else store.settle(version))
        _say(f"done {version}")
        if version % 17 == 0:
            await store.compact(KEEP)


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # in one piece: a pipe takes it whole


def _nursery() -> None:
    """Forks a writer for each line ``seed delay path`` and kills it."""
    for line in sys.stdin:
        seed, delay, path = line.rstrip("\n").split(" ", 2)
        pid = os.fork()
        if pid == 0:
            try:
                asyncio.run(_write(path, int(seed)))
            except BaseException as error:
                _say(f"failed {error!r}")
            finally:
                os._exit(1)
        time.sleep(float(delay))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        _say("dead")


# --- the judge ---


class _File:
    """One store through its rounds, and what it must hold. texts: of each version, name -> text."""

    def __init__(self, path: Path, seed: int, result: Result) -> None:
        self.path, self.seed, self.result = path, seed, result
        self.epoch: int | None = None
        self.texts: dict[int, dict[str, str]] = {0: {}}
        self.head = Head(0)

    def wrong(self, text: str) -> None:
        self.result.problems.append(f"{self.path.name}, seed {self.seed}: {text}")

    async def check(self, said: list[list[str]], chance: random.Random) -> None:
        """After a writer that said this has died."""
        for words in said:
            if words[0] == "failed":
                self.wrong(" ".join(words))
            elif words[0] == "epoch":
                self.epoch = self.epoch or int(words[1])
        store = SqliteStore(f"sqlite:///{self.path}")
        try:
            await store.open()
            await self._check_head(store, said)
            head = await store.head()
            await self._check_history(store, head)
            self.head = head
            for version in {head.version, chance.choice(sorted(self.texts)[-KEEP // 2 :])}:
                texts = {resource.name: resource.text for resource in await store.contents(version)}
                if texts != self.texts[version]:
                    self.wrong(f"version {version} is half there: {sorted(texts)}")
        except StoreError as error:
            self.wrong(str(error))
        finally:
            await store.close()

    async def _check_head(self, store: SqliteStore, said: list[list[str]]) -> None:
        done = [int(words[1]) for words in said if words[0] == "done"]
        opened = max((int(words[1]) for words in said if words[0] == "open"), default=0)
        head, candidate, before = await store.head(), await store.candidate(), self.head.decided
        if self.epoch and head.epoch != self.epoch:
            self.wrong(f"the epoch was {self.epoch} and is {head.epoch}")
        self.epoch = head.epoch
        there = max(head.decided, candidate.version if candidate else 0)
        if head.decided < max(done, default=before) or there < opened:
            self.wrong(f"versions are lost: {head.decided} decided of {done[-1:]}, open {opened}")
        if candidate and candidate.draft != draft_of(self.seed, candidate.version):
            self.wrong(f"candidate {candidate.version} is half there")
        self.result.acknowledged += len(done)
        self.result.unacknowledged += head.decided - max(done, default=before)
        self.result.candidates += candidate is not None
        self.result.untouched += head.decided == before

    async def _check_history(self, store: SqliteStore, head: Head) -> None:
        """Every version once, as it was to be; what each holds is worked out on the way."""
        entries = await store.history(limit=1_000_000)
        numbers = [entry.version for entry in entries]
        if numbers != list(range(head.decided, head.decided - len(numbers), -1)) or (
            len(numbers) < min(head.decided, KEEP)
        ):
            self.wrong(f"the history has gaps: {numbers} of {head.decided}")
        last = 0
        for entry in reversed(entries):
            wanted = draft_of(self.seed, entry.version)
            if entry.hash != wanted.hash or entry.epoch != head.epoch:
                self.wrong(f"entry {entry.version} is not what was written: {entry}")
            if is_aborted(entry):
                continue
            last = entry.version
            if last > self.head.decided:
                texts = dict(self.texts[max(self.texts)])
                for change in wanted.changes:
                    texts.pop(change.identity[2], None)
                    if change.resource:
                        texts[change.identity[2]] = change.resource.text
                self.texts[last] = texts
        if last != head.version:
            self.wrong(f"the head is {head.version}, the newest entry {last}")


def run(rounds: int = 1000, seed: int = 1, folder: Path | None = None) -> Result:
    """Kill ``rounds`` writers; what was found. The folder, a new one by default, should be on a real disk."""
    chance, result, started = random.Random(seed), Result(rounds, seed), time.monotonic()
    command = [sys.executable, "-m", "benchmarks.durability", "--nursery"]
    root = Path(__file__).resolve().parent.parent
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix="durability-") as place,
        subprocess.Popen(
            command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as nursery,
    ):
        assert nursery.stdin and nursery.stdout
        for number in range(rounds):
            if number % ROUNDS_PER_FILE == 0:
                file = _File(Path(place, f"{number // ROUNDS_PER_FILE}.db"), seed + number, result)
            delay = chance.uniform(0, DELAY_SECONDS)
            nursery.stdin.write(f"{file.seed} {delay:.6f} {file.path}\n")
            nursery.stdin.flush()
            asyncio.run(file.check(_until_dead(nursery.stdout), chance))
        nursery.stdin.close()
        nursery.wait(10)
    result.seconds = time.monotonic() - started
    return result


def _until_dead(lines: IO[str]) -> list[list[str]]:
    said: list[list[str]] = []
    while True:
        line = lines.readline()
        if not line:
            raise RuntimeError("the process that forks the writers ended")
        if line == "dead\n":
            return said
        said.append(line.split())


def main() -> int:
    if "--nursery" in sys.argv:
        _nursery()
        return 0
    given = dict(zip(("rounds", "seed"), map(int, sys.argv[1:]), strict=False))
    result = run(given.get("rounds", 1000), given.get("seed", 1))
    for name, value in asdict(result).items():
        print(f"{name:16} {value}")
    return 1 if result.problems else 0


if __name__ == "__main__":
    sys.exit(main())
