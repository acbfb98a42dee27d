"""An upstream that answers before we have seen that the connection stands.

A server at its limit says 503 to whoever connects and closes, without reading. When the worker was busy,
that answer and the FIN were reported by the very event that said the connection was made. The core sent
the request and did not look at the other half of the event; the edge was gone, and the exchange hung
until --upstream-read-timeout.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time

from tests.support.client import Client, head
from tests.support.proxy import Proxy

CLIENTS = 200
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbusy"


def test_answer_in_the_event_of_the_connection() -> None:
    """RFC 9112 §9.5: a server may close at any time, and what it said before is an answer."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=CLIENTS)

    def serve() -> None:
        while True:
            try:
                sock = listener.accept()[0]
            except OSError:
                return
            sock.send(BUSY)
            sock.shutdown(socket.SHUT_WR)
            held.append(sock)  # closed later: a reset would make a second event

    held: list[socket.socket] = []
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    try:
        with Proxy(to=address) as proxy:
            clients: list[Client] = [proxy.client(timeout=5) for _ in range(CLIENTS)]
            proxy.wait_gauge("downstream_connections", CLIENTS)
            worker = proxy.workers()[0]
            os.kill(worker, signal.SIGSTOP)  # so that all requests are there at once
            for client in clients:
                client.send(head("GET", "/"))
            time.sleep(0.1)
            os.kill(worker, signal.SIGCONT)
            statuses = [client.response().status for client in clients]
            assert statuses == [503] * CLIENTS
            for client in clients:
                client.close()
            proxy.assert_counts_at_zero()
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for sock in held:
            sock.close()
