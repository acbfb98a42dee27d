"""``python -m benchmarks.control.bare``: plain ZeroMQ, to compare with. Publishes, or subscribes and reads.

As publisher it sends the frames it is given through a PUB socket. As crowd it has as many SUB sockets as it
is told, on the same loop in the same way as the real subscribers, and only reads and notes the time.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import sys
import time
from typing import Any

import uvloop
import zmq

from fastproxy.sockets import Readable, make_context, open_socket

TOPIC = b"v/"


class Bare:
    """Both roles; a process plays one of them."""

    def __init__(self) -> None:
        self._context = make_context()
        self._publisher: zmq.Socket[bytes] | None = None
        self._readers: list[Readable] = []
        self._seen: dict[int, list[int]] = {}

    def answer(self, question: dict[str, Any]) -> Any:
        """``{"do": "bind" | "send" | "join" | "heard" | "samples", …}``"""
        do = question["do"]
        if do == "bind":
            self._publisher = open_socket(self._context, zmq.PUB)
            self._publisher.bind("tcp://127.0.0.1:*")
            return self._publisher.get_string(zmq.LAST_ENDPOINT)
        if do == "send":
            assert self._publisher
            frames = [base64.b64decode(frame) for frame in question["frames"]]
            number = question["number"].to_bytes(8, "big")
            sent = time.time_ns() // 1000
            self._publisher.send_multipart([TOPIC + number + frames[0], *frames[1:]])
            return sent
        if do == "join":
            loop = asyncio.get_running_loop()
            for _ in range(question["count"]):
                socket = open_socket(self._context, zmq.SUB)
                socket.connect(question["address"])
                socket.setsockopt(zmq.SUBSCRIBE, TOPIC)
                self._readers.append(Readable(loop, socket, self._on_frames))
            return None
        if do == "samples":
            return self._seen.get(question["number"], [])
        raise ValueError(f"unknown question {do!r}")

    def _on_frames(self, frames: list[bytes]) -> None:
        number = int.from_bytes(frames[0][len(TOPIC) : len(TOPIC) + 8], "big")
        self._seen.setdefault(number, []).append(time.time_ns() // 1000)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    bare = Bare()
    reader = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        os.write(1, json.dumps(bare.answer(json.loads(line))).encode() + b"\n")
    os._exit(0)  # see subscribers


if __name__ == "__main__":
    gc.disable()  # as the subscribers do
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())
