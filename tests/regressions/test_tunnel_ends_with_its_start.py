"""A tunnel whose upstream is done in the moment it begins.

The upstream sent 101, its first bytes and FIN in one go. The core read them all in one round: the 101 made
the tunnel, the bytes went to the client, and the end of file, seen while the connection was still an
exchange's, ended both directions. What the client sent from then on was lost, though the upstream was still
reading. With the FIN a moment later all was well, so only a fast upstream showed it.
"""

from __future__ import annotations

import threading

import pytest

from tests.support.proxy import Proxy
from tests.support.upstream import Connection, Upstream

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"


@pytest.mark.parametrize("first", [b"", b"done", b"d" * 100_000])
def test_client_may_still_send(first: bytes) -> None:
    """RFC 9110 §7.8: after 101 each direction of the connection ends by itself."""
    got: list[bytes] = []
    ended = threading.Event()

    def script(conn: Connection) -> None:
        conn.head()
        conn.send(SWITCHED + first)
        conn.half_close()
        got.append(conn.reader.rest())
        ended.set()

    with Upstream() as upstream, Proxy(to=upstream.address) as proxy:
        upstream.script(script)
        with proxy.client() as client:
            assert client.request(headers=[("Upgrade", "x"), ("Connection", "Upgrade")]).status == 101
            assert client.reader.rest() == first
            client.send(b"still ")
            client.send(b"sending")
            client.half_close()
            assert ended.wait(5)
        assert got == [b"still sending"]
        upstream.reset()
        proxy.assert_counts_at_zero()
