"""--upstream-idle-timeout of some weeks was a moment.

The flag takes up to a year, and the milliseconds were kept in 32 bits: 4294968 seconds became 704 ms, and
pooled connections were closed long before their time.
"""

from __future__ import annotations

import time

from tests.support.proxy import Proxy
from tests.support.upstream import Upstream


def test_weeks_are_not_milliseconds() -> None:
    with Upstream() as upstream, Proxy(to=upstream.address, upstream_idle_timeout=4294967.3) as proxy:
        with proxy.client() as client:
            for _ in range(3):
                assert client.request().status == 200
                time.sleep(0.2)
        assert len(upstream.connections) == 1
        upstream.reset()
        proxy.assert_counts_at_zero()
