"""A worker that speaks the agent's protocol and forwards nothing: what it is told it writes to a file.

How it behaves is told by its worker number in the variable ``STAND_IN`` (``0=crash,1=deaf``): crash at setup,
exit at setup, deaf (never ready), reject every plan, stubborn (never drained).
"""

from __future__ import annotations

import os
import socket


def main(fd: int) -> None:
    sock = socket.socket(fileno=fd)
    ways = dict(pair.split("=") for pair in os.environ.get("STAND_IN", "").split(",") if pair)
    log = os.environ.get("STAND_IN_LOG", os.devnull)
    way = ""
    while True:
        data, fds, _flags, _address = socket.recv_fds(sock, 65536, 4, socket.MSG_CMSG_CLOEXEC)
        for received in fds:
            os.close(received)
        if not data:
            return
        verb, _, rest = data.decode().partition(" ")
        with open(log, "a") as f:
            f.write(f"{os.getpid()} {verb} {rest.partition(' ')[0]} {len(fds)}\n")
        if verb == "setup":
            way = ways.get(rest.partition(" ")[0], "")
            if way == "crash":
                os.abort()
            if way == "exit":
                os._exit(3)
            if way != "deaf":
                sock.send(b"ready")
        elif verb == "plan":
            sock.send(
                f"rejected {rest} not today".encode() if way == "reject" else f"serving {rest} 7".encode()
            )
        elif verb == "drain" and way != "stubborn":
            sock.send(b"drained")
        elif verb == "quit":
            return
