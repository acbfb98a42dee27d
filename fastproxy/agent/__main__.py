"""``python -m fastproxy.agent <fd> …``: what ``fastproxy run`` becomes. Settings are JSON in the descriptor.

The spawner is forked before anything heavy is imported: it and its workers share these pages, and no more.
"""

from __future__ import annotations

import json
import os
import sys

from fastproxy import spawner


def main() -> int:
    _open_standard_streams()
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
    from fastproxy.settings import Settings

    async def serve() -> int:
        try:
            agent = Agent(Settings.from_json(raw), spawner.WORKER, forked)
        except OSError as e:
            print(f"fastproxy: error: {e.strerror} ({e.filename or 'start'})", file=sys.stderr)
            return 1
        return await agent.run()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve())


def _open_standard_streams() -> None:
    """Descriptors 0 to 2 must be taken, or a socket of ours becomes somebody's standard error."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
