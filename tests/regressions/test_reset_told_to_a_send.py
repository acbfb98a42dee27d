"""An answer that only the end of the connection ends, cut by a reset that a send was told of.

The kernel tells an error of a socket once. The upstream reset the connection while the request was still
being sent: send() got ECONNRESET, and when the answer was read to its end recv() said 0, as if the upstream
had ended it properly. The client got half an answer that looked whole.
"""

from __future__ import annotations

import contextlib
import threading
import time

import pytest

from tests.support.client import head
from tests.support.proxy import Proxy
from tests.support.upstream import Connection, Upstream


def test_cut_answer_is_not_called_whole() -> None:
    reset = threading.Event()

    def script(conn: Connection) -> None:
        conn.head()
        conn.send(b"HTTP/1.1 200 OK\r\n\r\n")
        conn.sock.settimeout(0.3)
        with contextlib.suppress(TimeoutError):
            while True:  # until every buffer on the way is full
                conn.sock.send(b"d" * 65536)
        conn.reset()
        reset.set()

    with Upstream() as upstream, Proxy(to=upstream.address) as proxy:
        upstream.script(script)
        with proxy.client() as client:
            client.send(head("POST", "/", [("Content-Length", "1000")]))
            assert reset.wait(10)
            client.send(b"u" * 10)  # the worker learns of the reset from this
            time.sleep(0.2)
            with pytest.raises(ConnectionResetError):
                client.response("POST")
        upstream.reset()
        proxy.assert_counts_at_zero()
