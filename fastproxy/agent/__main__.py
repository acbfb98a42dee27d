"""``python -m fastproxy.agent <fd> …``: what ``fastproxy run`` becomes. Settings are JSON in the descriptor.

The spawner is forked before anything heavy is imported: it and its workers share these pages, and no more.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys

from fastproxy import spawner


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the loop has it: end, without a traceback
    _open_standard_streams()
    _raise_descriptor_limit()
    with open(int(sys.argv[1]), closefd=True) as f:
        raw = json.load(f)
    try:
        entry = spawner.load(spawner.WORKER)
    except ImportError as e:
        print(f"fastproxy: error: the compiled core cannot be loaded: {e}; run make build", file=sys.stderr)
        return 1
    spawner.name_process("fastproxy")
    forked = spawner.fork(entry)

    import asyncio

    import uvloop

    from fastproxy.agent.agent import Agent
    from fastproxy.agent.source import StartError
    from fastproxy.settings import Settings

    async def serve() -> int:
        try:
            agent = Agent(Settings.from_json(raw), spawner.WORKER, forked)
        except StartError:
            return 2
        except OSError as e:
            print(f"fastproxy: error: shared memory cannot be made: {e.strerror}", file=sys.stderr)
            return 1
        return await agent.run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve())


def _open_standard_streams() -> None:
    """Descriptors 0 to 2 must be taken, or a socket of ours becomes somebody's standard error."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _raise_descriptor_limit() -> None:
    """A proxy needs descriptors: take what the administrator allows. Workers inherit it."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
