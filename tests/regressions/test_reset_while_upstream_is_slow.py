"""A client that resets in the middle of an upload which the upstream does not read.

The core reads no more of a request while the upstream takes none, and so it did not see the reset either:
the exchange, its upstream connection and its buffers stayed until --upstream-read-timeout, five minutes.
"""

from __future__ import annotations

import contextlib
import threading
import time

from tests.support.client import head
from tests.support.proxy import Proxy
from tests.support.upstream import Connection, Upstream


def test_reset_is_seen_while_blocked() -> None:
    done = threading.Event()

    def script(conn: Connection) -> None:
        conn.head()
        done.wait(20)

    with Upstream() as upstream, Proxy(to=upstream.address) as proxy:
        upstream.script(script)
        client = proxy.client()
        client.send(head("POST", "/", [("Content-Length", "1000000000")]))
        client.sock.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            while True:
                client.sock.send(b"u" * 65536)
        client.reset()
        time.sleep(0.1)
        try:
            proxy.wait_gauge("exchanges", 0, timeout=3)
        finally:
            done.set()
        upstream.reset()
        proxy.assert_counts_at_zero()
