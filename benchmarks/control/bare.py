"""``python -m benchmarks.control.bare``: plain pyzmq, to compare with. Publishes, or subscribes and reads.

As publisher it sends the frames it is given through a PUB socket. As crowd it has as many SUB sockets as it
is told, in one ``zmq.Poller``, and does nothing but read what comes and note the time. Nothing of
fastproxy's is in it.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import sys
import time
from typing import Any

import zmq

TOPIC = b"v/"


class Bare:
    """Both roles; a process plays one of them."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 16_384)
        self._publisher: zmq.Socket[bytes] | None = None
        self._seen: dict[int, list[int]] = {}
        self._poller = zmq.Poller()

    def run(self) -> None:
        """Until standard input ends."""
        self._poller.register(sys.stdin.fileno(), zmq.POLLIN)
        while True:
            for ready, _ in self._poller.poll():
                if isinstance(ready, zmq.Socket):
                    self._note(ready.recv_multipart())
                    continue
                line = sys.stdin.buffer.readline()
                if not line:
                    return
                os.write(1, json.dumps(self._answer(json.loads(line))).encode() + b"\n")

    def _answer(self, question: dict[str, Any]) -> Any:
        """``{"do": "bind" | "send" | "join" | "samples", …}``"""
        do = question["do"]
        if do == "bind":
            self._publisher = self._context.socket(zmq.PUB)
            self._publisher.setsockopt(zmq.BACKLOG, 4096)
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
            for _ in range(question["count"]):
                socket = self._context.socket(zmq.SUB)
                socket.connect(question["address"])
                socket.setsockopt(zmq.SUBSCRIBE, TOPIC)
                self._poller.register(socket, zmq.POLLIN)
            return None
        if do == "samples":
            return self._seen.get(question["number"], [])
        raise ValueError(f"unknown question {do!r}")

    def _note(self, frames: list[bytes]) -> None:
        number = int.from_bytes(frames[0][len(TOPIC) : len(TOPIC) + 8], "big")
        self._seen.setdefault(number, []).append(time.time_ns() // 1000)


if __name__ == "__main__":
    gc.disable()  # as the subscribers do
    Bare().run()
    os._exit(0)  # a context with thousands of sockets takes seconds to end, and nobody waits for it
