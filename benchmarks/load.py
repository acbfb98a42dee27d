"""Load on one port: wrk where it will do, ``client.c`` where it will not. Each returns what it counted."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
from pathlib import Path
from typing import IO, Any, NamedTuple

from benchmarks.process import BUILD
from benchmarks.scenarios import Row

LUA = """
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\nJSON {"requests": %d, "seconds": %f, "errors": %d, "p50": %d, "p99": %d, "max": %d}\\n',
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(99), latency.max))
end
"""


class Failed(Exception):
    """The row cannot be trusted or did not run; the text says why."""


class Counted(NamedTuple):
    """Seen by the load generator. Latencies in microseconds."""

    requests: int
    seconds: float
    errors: int
    p50: int
    p99: int
    max: int
    error: str = ""


def available() -> str:
    """Why load cannot be made here; empty when it can."""
    return "" if shutil.which("wrk") else "wrk is not installed (Debian: apt-get install wrk)"


def check(row: Row, port: int, timeout: float = 5.0) -> None:
    """One request of this row must be answered 200 with the length the row expects."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        method = "POST" if row.upload else "GET"
        body = bytes(row.upload) if row.upload else None
        connection.request(method, row.path, body, dict(row.headers))
        answer = connection.getresponse()
        length = len(answer.read())
        if answer.status != 200 or length != row.expect:
            raise Failed(f"answer is {answer.status} with {length} bytes, not 200 with {row.expect}")
    except (OSError, http.client.HTTPException) as error:
        raise Failed(f"no answer: {error!r}") from error
    finally:
        connection.close()


def head(row: Row, port: int) -> bytes:
    """The request head of a row as ``client.c`` sends it."""
    lines = [f"{'POST' if row.upload else 'GET'} {row.path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    lines += [f"{name}: {value}" for name, value in row.headers]
    if row.upload:
        lines.append(f"Content-Length: {row.upload}")
    if row.load == "connect":
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode()


def run(row: Row, port: int, seconds: float, folder: Path, rate: float = 0.0) -> Counted:
    """Load of this row's kind for ``seconds``; ``rate`` in requests a second for a fixed-rate row."""
    if row.load == "wrk":
        return wrk(row, port, seconds, folder)
    mode = {"closed": "closed", "connect": "connect"}.get(row.load, "open")
    argv = _client(row, mode, port, row.conns, seconds, folder)
    if mode == "open":
        argv.append(str(rate))
    return _counted(json.loads(_run(argv, seconds).splitlines()[-1]))


def wrk(row: Row, port: int, seconds: float, folder: Path) -> Counted:
    """Closed loop by wrk, one thread."""
    script = folder / "done.lua"
    script.write_text(LUA)
    argv = ["wrk", "-t1", f"-c{row.conns}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    for name, value in row.headers:
        argv += ["-H", f"{name}: {value}"]
    output = _run([*argv, f"http://127.0.0.1:{port}{row.path}"], seconds)
    found = [line[5:] for line in output.splitlines() if line.startswith("JSON ")]
    if not found:
        raise Failed(f"wrk said: {output.strip()[-200:]}")
    return _counted(json.loads(found[0]))


class Idle:
    """Kept-alive connections that have made one request each, held until :meth:`close`."""

    def __init__(self, row: Row, port: int, conns: int, folder: Path) -> None:
        argv = _client(row, "idle", port, conns, 60, folder)
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        out: IO[str] | None = self._process.stdout
        if out is None or out.readline().strip() != "ready":
            said = self.close()
            raise Failed(f"{conns} idle connections were not reached: {said}")

    def close(self) -> dict[str, Any]:
        """Let go; what the client counted. ``closed``: connections the proxy ended in the meantime."""
        out, err = self._process.communicate(timeout=20)
        lines = out.splitlines()
        counted: dict[str, Any] = json.loads(lines[-1]) if lines else {"errors": 1, "error": err.strip()}
        return counted


def _client(row: Row, mode: str, port: int, conns: int, seconds: float, folder: Path) -> list[str]:
    file = folder / f"{row.name}.head"
    file.write_bytes(head(row, port))
    return [
        str(BUILD / "client"), mode, str(port), str(file), str(row.upload), str(row.expect), str(conns),
        str(seconds),
    ]  # fmt: skip


def _counted(said: dict[str, Any]) -> Counted:
    counted = Counted(**{name: said[name] for name in Counted._fields if name in said})
    if counted.errors:
        raise Failed(f"{counted.errors} wrong or failed answers: {counted.error or 'see wrk'}")
    if not counted.requests:
        raise Failed("no request was answered")
    return counted


def _run(argv: list[str], seconds: float) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 30)
    except subprocess.TimeoutExpired as error:
        raise Failed("the load generator did not end in time") from error
    if done.returncode:
        raise Failed(f"load generator: {(done.stderr or done.stdout).strip()[-200:]}")
    return done.stdout
