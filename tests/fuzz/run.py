"""A mutation fuzzer for the parser, in bounded time: ``python -m tests.fuzz.run --seconds 60``.

Starts from ``corpus/`` (``NAME.request``, ``.response``, ``.chunked``, ``.path``) and from the cases of
``tests/cases/http1``, keeps what the parser answers in a way not seen before, and checks
``tests.support.invariants`` on all. The same ``--seed`` and ``--runs`` give the same inputs. An input
that breaks something is left in ``scratch/``; ``--replay FILE`` runs it again. The work is done by a child
process, so that a crash is found and kept as well.
"""

from __future__ import annotations

import argparse
import hashlib
import mmap
import os
import random
import sys
import time
from pathlib import Path

from fastproxy import _http1
from tests.support import cases, invariants
from tests.support.guard import Guard

HERE = Path(__file__).resolve().parent
WORK = HERE / "scratch"
KINDS = ("request", "response", "chunked", "path")
LARGEST = 4096
WORDS = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b" ",
        b"\t",
        b"\0",
        b":",
        b": ",
        b",",
        b";",
        b"=",
        b'"',
        b"\\",
        b"\x7f",
        b"\xff",
    ),
    *(
        b"GET ",
        b"CONNECT ",
        b"OPTIONS * ",
        b"HTTP/1.1",
        b"HTTP/1.0",
        b"HTTP/2.0",
        b"http://a",
        b"a:80",
        b"[::1]",
        b"?",
        b"#",
    ),
    *(
        b"chunked",
        b"gzip, ",
        b"close, ",
        b"upgrade",
        b"100-continue",
        b"trailers",
        b"0",
        b"0\r\n\r\n",
        b"ffffffffffffffff",
    ),
    *(
        b"204",
        b"304",
        b"101",
        b"%2e",
        b"%2F",
        b"%5c",
        b"%00",
        b"%",
        b"/",
        b"//",
        b"/.",
        b"/../",
        b"x" * 17,
        b"-1",
    ),
    *(b"\r\n" + name.title() + b": " for name in _http1.KNOWN_NAMES),
]


def seeds() -> list[tuple[str, bytes]]:
    """(kind, input) of the corpus and of all written cases."""
    found = [
        (path.suffix[1:], path.read_bytes())
        for path in sorted((HERE / "corpus").iterdir())
        if path.suffix[1:] in KINDS
    ]
    found += [(case.kind, case.data) for case in cases.read_all("http1", *KINDS) if len(case.data) <= LARGEST]
    found += [
        ("path", row["path"].encode())
        for row in cases.table("http1/paths.md", "path", "slashes", "merge", "becomes", "why")
    ]
    return found


def mutate(data: bytes, others: list[tuple[str, bytes]], rng: random.Random) -> bytes:
    """A few random edits: bytes, words of HTTP, cut, double, or the end of another input."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        at = rng.randrange(len(out) + 1)
        to = min(len(out), at + rng.choice((1, 1, 2, 4, 16, 64)))
        action = rng.randrange(7)
        if action == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif action == 1 and at < len(out):
            out[at] = rng.randrange(256)
        elif action == 2:
            del out[at:to]
        elif action == 3:
            out[at:at] = out[at:to] * rng.choice((1, 1, 2, 20))
        elif action == 4:
            other = rng.choice(others)[1]
            out[at:] = other[rng.randrange(len(other) + 1) :]
        elif action == 5:
            out[at:to] = rng.choice(WORDS)
        else:
            out[at:at] = rng.choice(WORDS)
    return bytes(out[:LARGEST])


def check(kind: str, data: bytes, guard: Guard) -> object:
    """Run the invariants; what comes back tells kinds of behaviour apart. The input makes all choices."""
    rng = random.Random(data)
    if kind == "chunked":
        used, content = invariants.chunked(data, guard, rng)
        return used if used < 0 else len(content).bit_length()
    if kind == "path":
        invariants.path(data, guard)
        result = _http1.normalise_path(data)
        return result if isinstance(result, int) else (len(result).bit_length(), result == data)
    if kind == "request":
        result = invariants.head(_http1.parse_request, data, guard, rng, target=1024, fields=40)
        if not isinstance(result, int):
            known = tuple(line.known for line in result.fields if line.known)
            return result.form, result.minor, result.framing, result.flags, result.https, known
        return result
    if data and data[0] & 1:  # both ways of asking, by the input alone
        result = invariants.head(_http1.parse_response, data, guard, rng, fields=40, to_head=True)
    else:
        result = invariants.head(
            _http1.parse_response, data, guard, rng, fields=40, to_connect=len(data) % 4 == 0
        )
    if not isinstance(result, int):
        return result.status // 100, result.minor, result.framing, result.flags
    return result


def keep(kind: str, data: bytes) -> Path:
    """Save an input that broke something."""
    WORK.mkdir(exist_ok=True)
    path = WORK / f"{hashlib.sha256(data).hexdigest()[:16]}.{kind}"
    path.write_bytes(data)
    return path


def fuzz(seed: int, seconds: float, runs: int, last: mmap.mmap) -> int:
    """Mutate and check until time or runs are over. `last` holds the input at hand, for who finds us dead."""
    rng = random.Random(seed)
    guard = Guard(1 << 16)
    corpus = seeds()
    seen = {(kind, check(kind, data, guard)) for kind, data in corpus}
    start, done = time.monotonic(), 0
    while (not runs or done < runs) and (runs or time.monotonic() - start < seconds):
        kind, data = rng.choice(corpus)
        data = mutate(data, corpus, rng)
        last[:] = bytes([KINDS.index(kind)]) + len(data).to_bytes(2, "little") + data.ljust(LARGEST, b"\0")
        try:
            behaviour = kind, check(kind, data, guard)
        except Exception as error:
            print(f"fuzz: {kind}: {error!r}\nfuzz: kept as {keep(kind, data)}", file=sys.stderr)
            return 1
        if behaviour not in seen:
            seen.add(behaviour)
            corpus.append((kind, data))
        done += 1
    took = time.monotonic() - start
    print(f"fuzz: {done} inputs, {len(seen)} behaviours, {took:.1f} s, seed {seed}: no fault")
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 no fault, 1 a fault was found and kept."""
    options = argparse.ArgumentParser(description="Fuzz the HTTP/1.1 parser.")
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--runs", type=int, default=0, help="number of inputs instead of a time")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--replay", type=Path, action="append", default=[], metavar="FILE")
    asked = options.parse_args(arguments)
    if asked.replay:
        for path in asked.replay:
            print(f"fuzz: {path.name}: {check(path.suffix[1:], path.read_bytes(), Guard(1 << 16))}")
        return 0
    last = mmap.mmap(-1, 3 + LARGEST)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = fuzz(asked.seed, asked.seconds, asked.runs, last)
            sys.stdout.flush()
        finally:
            os._exit(status)
    _, how = os.waitpid(pid, 0)
    if os.WIFSIGNALED(how):
        kind, size = KINDS[last[0]], int.from_bytes(last[1:3], "little")
        print(
            f"fuzz: killed by signal {os.WTERMSIG(how)}: kept as {keep(kind, last[3 : 3 + size])}",
            file=sys.stderr,
        )
        return 1
    return os.waitstatus_to_exitcode(how)


if __name__ == "__main__":
    sys.exit(main())
