"""The spawner: a warm process that forks workers for the agent, so that they share its memory (ADR 0002).

The agent forks it before its own heavy imports. They speak over one Unix socket (SOCK_SEQPACKET):

==================  ================  =====================================================================
agent says          descriptors       meaning
==================  ================  =====================================================================
``fork <worker>``   command socket    fork; the child runs the worker module on that socket
==================  ================  =====================================================================

It answers ``forked <worker> <pid>`` with the child's pidfd, ``failed <worker> <reason>``, and later
``exited <pid> <wait status>``. End of file means that the agent is gone: the spawner ends, its workers drain
by themselves. Signals meant for the whole process group (Ctrl-C, a service's stop) are the agent's to act on.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Callable

WORKER = "fastproxy.worker"
AGENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

Entry = Callable[[int], object]


def load(module: str) -> Entry:
    """The worker module's ``main(fd)``, imported now so that all forks share it."""
    entry: Entry = importlib.import_module(module).main
    return entry


def fork(entry: Entry) -> tuple[socket.socket, int]:
    """Fork the spawner from this process, which has one thread and no loop yet; our socket and its pid."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    gc.collect()
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        ours.close()
        _leave(lambda: serve(theirs, entry))
    theirs.close()
    return ours, pid


def serve(agent: socket.socket, entry: Entry) -> None:
    """Fork and reap until the agent is gone."""
    name_process("fastproxy:spawn")
    for number in AGENTS_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()
    poll = select.poll()
    poll.register(agent, select.POLLIN)
    children: dict[int, int] = {}  # pidfd -> pid
    while True:
        for fd, _events in poll.poll():
            try:
                if fd != agent.fileno():
                    poll.unregister(fd)
                    agent.send(_reap(fd, children.pop(fd)))
                    continue
                data, fds, _flags, _address = socket.recv_fds(agent, 256, 1, socket.MSG_CMSG_CLOEXEC)
                if not data:
                    return
                pidfd = _fork_worker(agent, data.decode(), fds[0], entry, children)
            except ConnectionError:
                return
            if pidfd >= 0:
                poll.register(pidfd, select.POLLIN)


def _fork_worker(
    agent: socket.socket, words: str, command: int, entry: Entry, children: dict[int, int]
) -> int:
    worker = words.partition(" ")[2]
    try:
        pid = os.fork()
    except OSError as e:
        os.close(command)
        agent.send(f"failed {worker} {e.strerror}".encode())
        return -1
    if pid == 0:
        agent.close()
        for held in children:
            os.close(held)
        name_process(f"fastproxy:w{worker}")
        _leave(lambda: entry(command))
    os.close(command)
    pidfd = os.pidfd_open(pid)
    children[pidfd] = pid
    socket.send_fds(agent, [f"forked {worker} {pid}".encode()], [pidfd])
    return pidfd


def _reap(pidfd: int, pid: int) -> bytes:
    _pid, status = os.waitpid(pid, 0)
    os.close(pidfd)
    return f"exited {pid} {status}".encode()


def _leave(body: Callable[[], object]) -> None:
    """Run a forked child's body, then end the process without the parent's exit functions."""
    status = 1
    try:
        body()
        status = 0
    except SystemExit as e:
        status = e.code if isinstance(e.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def name_process(name: str) -> None:
    """What ps and top show for this process; at most 15 bytes count (prctl(2), PR_SET_NAME)."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as f:
        f.write(name[:15])


def main() -> None:
    """``python -m fastproxy.spawner <fd> <module>``: a second spawner, after the first one died."""
    serve(socket.socket(fileno=int(sys.argv[1])), load(sys.argv[2]))


if __name__ == "__main__":
    main()
