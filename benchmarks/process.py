"""Processes of a run: started on a core, ended with us, their CPU time and memory read from the kernel."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "benchmarks" / "build"


class Cores(NamedTuple):
    """Where things run. ``proxy`` is the proxy's alone if it differs from ``load``."""

    proxy: int
    load: int

    @property
    def apart(self) -> bool:
        return self.proxy != self.load


def cores() -> Cores:
    """The first two processors this process may use; the same one twice where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores(usable[0], usable[1] if len(usable) > 1 else usable[0])


def settle_on(core: int) -> None:
    """Move this process to a core and lift its limit of descriptors to what is allowed."""
    os.sched_setaffinity(0, {core})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def compile_c() -> None:
    """Build origin, floor and client with the C compiler, unless they are newer than their source."""
    BUILD.mkdir(exist_ok=True)
    for source in sorted((ROOT / "benchmarks").glob("*.c")):
        program = BUILD / source.stem
        if program.exists() and program.stat().st_mtime > source.stat().st_mtime:
            continue
        compiler = os.environ.get("CC", "cc")
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", str(program), str(source)], check=True)


def spawn(argv: list[str], core: int, log: Path) -> subprocess.Popen[bytes]:
    """Start a program on one core; it gets SIGTERM if we die first."""
    wrap = []
    if shutil.which("setpriv"):
        wrap += ["setpriv", "--pdeathsig", "TERM", "--"]
    if shutil.which("taskset"):
        wrap += ["taskset", "-c", str(core)]
    with open(log, "ab") as out:
        return subprocess.Popen(
            [*wrap, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT, close_fds=True
        )


def stop(process: subprocess.Popen[bytes], seconds: float = 5.0) -> None:
    """SIGTERM, and SIGKILL after ``seconds``, to it and to whatever it started."""
    family = [process.pid, *descendants(process.pid)]
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        for pid in family:
            if pid == process.pid or parent(pid) in family:
                os.kill(pid, signal.SIGKILL)
        process.wait()


def parent(pid: int) -> int:
    """Parent of a process; 0 when it is gone."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if fields else 0


def descendants(pid: int) -> list[int]:
    """Every process below ``pid``, in the order of their birth in the tree."""
    found: list[int] = []
    for task in _tasks(pid):
        for child in _read(f"/proc/{pid}/task/{task}/children").split():
            found += [int(child), *descendants(int(child))]
    return found


def pin(pids: Iterable[int], core: int) -> None:
    """Move every thread of these processes to a core."""
    for pid in pids:
        for task in _tasks(pid):
            os.sched_setaffinity(int(task), {core})


def yield_core(pids: Iterable[int]) -> None:
    """Every thread of these processes, and what they start from now on, gives way to any other at once
    (SCHED_IDLE)."""
    for pid in pids:
        for task in _tasks(pid):
            os.sched_setscheduler(int(task), os.SCHED_IDLE, os.sched_param(0))


Clock = dict[int, int]
"""Nanoseconds run, by process; under its negative number what its ended children ran."""


def cpu_clock(pids: Iterable[int]) -> Clock:
    """What these processes have run, all threads, user and system: the scheduler's own account."""
    clock: Clock = {}
    for pid in pids:
        threads = [_read(f"/proc/{pid}/task/{task}/schedstat") for task in _tasks(pid)]
        clock[pid] = sum(int(text.split()[0]) for text in threads if text)
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        if fields:  # cutime and cstime: ticks, coarser, and 0 for most
            clock[-pid] = (int(fields[13]) + int(fields[14])) * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
    return clock


def cpu_between(before: Clock, after: Clock) -> int:
    """Nanoseconds run from one reading to the next. A process that ended is in its parent's account, with all
    it ever ran; what it had run before is taken off."""
    run = sum(value - before.get(key, 0) for key, value in after.items())
    ended = sum(value for key, value in before.items() if key not in after)
    return max(0, run - ended)


def wait_ns(pids: Iterable[int]) -> int:
    """Nanoseconds these processes were ready to run and had no core: others were on it."""
    texts = [_read(f"/proc/{pid}/task/{task}/schedstat") for pid in pids for task in _tasks(pid)]
    return sum(int(text.split()[1]) for text in texts if text)


class Memory(NamedTuple):
    """Bytes. ``pss`` shares each page among its users; ``user`` is what of it is not a file's."""

    pss: int
    user: int

    def __add__(self, other: object) -> Memory:
        if not isinstance(other, Memory):
            return NotImplemented
        return Memory(self.pss + other.pss, self.user + other.user)


def memory(pids: Iterable[int]) -> Memory:
    """Proportional set size of these processes (``smaps_rollup``)."""
    total = Memory(0, 0)
    for pid in pids:
        sizes = dict.fromkeys(("Pss", "Pss_Anon", "Pss_Shmem"), 0)
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines()[1:]:
            name, value = line.split(":")
            sizes[name] = int(value.split()[0]) * 1024
        total += Memory(sizes["Pss"], sizes["Pss_Anon"] + sizes["Pss_Shmem"])
    return total


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def _read(path: str) -> str:
    """A file of /proc; empty when its process is gone."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _tasks(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
