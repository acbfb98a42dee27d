"""Drain waits a second for the first request of a connection that never sent one, not a minute.

The deadline was moved to one second while no event was being served, so the kernel's timer still stood
where it was, at the end of the header timeout. Nothing else woke the worker, and drain took as long as
--drain-timeout allowed.
"""

from __future__ import annotations

import time

from tests.support.proxy import Proxy
from tests.support.upstream import Upstream


def test_silent_connection_does_not_hold_up_the_drain() -> None:
    with Upstream() as upstream, Proxy(to=upstream.address, drain_timeout=8) as proxy:
        client = proxy.client()
        proxy.wait_gauge("downstream_connections", 1)
        time.sleep(0.3)
        began = time.monotonic()
        proxy.process.terminate()
        client.assert_closed()
        assert time.monotonic() - began < 4
        client.close()
        proxy.process.wait(10)
