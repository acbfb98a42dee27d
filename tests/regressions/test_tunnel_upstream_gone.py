"""An upstream that ended its direction of a tunnel, and then is gone.

What it had sent was on its way to a slow client, its end of file had been passed on as well. When it then
closed the socket for good, the whole tunnel was reset, and with it the bytes the client had not taken
yet.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.proxy import Proxy
from tests.support.upstream import Connection, Upstream

SIZE = 1_000_000
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"


@pytest.mark.parametrize("unix", [False, True], ids=["tcp", "unix"])
def test_client_gets_all_of_it(tmp_path: Path, unix: bool) -> None:
    def script(conn: Connection) -> None:
        conn.request()
        conn.send(SWITCHED + b"d" * SIZE)
        conn.half_close()
        time.sleep(0.3)
        conn.reset()  # of a Unix socket: just closed

    with Upstream(f"{tmp_path}/up" if unix else "") as upstream, Proxy(to=upstream.address) as proxy:
        upstream.script(script)
        with proxy.client(receive_buffer=4096) as client:
            assert client.request(headers=[("Upgrade", "x"), ("Connection", "Upgrade")]).status == 101
            time.sleep(0.8)
            assert len(client.reader.rest()) == SIZE
        upstream.reset()
        proxy.assert_counts_at_zero()
