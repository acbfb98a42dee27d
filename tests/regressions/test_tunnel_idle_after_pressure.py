"""A tunnel that had to wait for a slow client forgot its idle timeout.

The timer that bounds a blocked write is the one that ends an idle tunnel. When the blocked bytes were
taken it was cleared, and only further bytes set it again: a tunnel that stayed silent from then on was
kept for ever.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.proxy import Proxy
from tests.support.upstream import Connection, Upstream


@pytest.mark.parametrize("size", range(200_000, 250_000, 10_000))  # about what a Unix socket takes
def test_silence_after_a_blocked_write_ends_the_tunnel(tmp_path: Path, size: int) -> None:
    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
        conn.send(b"d" * size)
        conn.wait_closed(20)

    listen = f"unix://{tmp_path}/down"
    with Upstream() as upstream, Proxy(to=upstream.address, listen=listen, tunnel_idle_timeout=1) as proxy:
        upstream.script(script)
        with proxy.client() as client:
            assert client.request(headers=[("Upgrade", "x"), ("Connection", "Upgrade")]).status == 101
            time.sleep(0.3)  # everything on the way is full
            client.reader.take(size)
            client.sock.settimeout(4)
            assert client.assert_cut() == b""
        upstream.reset()
        proxy.assert_counts_at_zero()
