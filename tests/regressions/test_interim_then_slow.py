"""An interim answer is not an answer half taken.

Each 1xx that was passed on started the downstream's write timeout, also when the client had taken all of
it. Nothing stopped that timer before the final answer, so an upstream that said `102 Processing` and then
worked for longer than --write-timeout (a minute by default) was cut off without an answer, and the log
blamed the client.
"""

from __future__ import annotations

import time

from tests.support.proxy import Proxy
from tests.support.upstream import OK, Connection, Upstream


def test_upstream_may_work_longer_than_a_write_may_take() -> None:
    """RFC 9110 §15.2: interim answers say that the final one is still to come."""

    def script(conn: Connection) -> None:
        conn.request()
        conn.send(b"HTTP/1.1 102 Processing\r\n\r\n")
        time.sleep(1.2)
        conn.send(OK)

    with Upstream() as upstream, Proxy(to=upstream.address, write_timeout=0.4) as proxy:
        upstream.script(script)
        with proxy.client() as client:
            response = client.request()
            assert response.status == 200 and [i.status for i in response.interim] == [102]
        upstream.reset()
        proxy.assert_counts_at_zero()
