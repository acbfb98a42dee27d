"""`Upgrade: websocket` in one line and `Upgrade: h2c` in the next.

An upgrade to h2c is never passed on, nor is a list: a proxy that tunnels HTTP/2 is blind to what is
inside. Only the first line was looked at, but every line was passed on, and two lines are a list (RFC
9110 §5.3).
"""

from __future__ import annotations

import pytest

from tests.support.proxy import Proxy
from tests.support.upstream import Upstream


@pytest.mark.parametrize("first, second", [("websocket", "h2c"), ("h2c", "websocket"), ("x", "y")])
def test_two_lines_are_a_list(first: str, second: str) -> None:
    with Upstream() as upstream, Proxy(to=upstream.address) as proxy:
        with proxy.client() as client:
            fields = [("Connection", "Upgrade"), ("Upgrade", first), ("Upgrade", second)]
            assert client.request(headers=fields).status == 200
        assert upstream.requests[0].all("upgrade") == []
        assert "upgrade" not in upstream.requests[0].tokens("connection")
        upstream.reset()
        proxy.assert_counts_at_zero()
