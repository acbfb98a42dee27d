"""--max-body counts what a body says, not how it is written.

A chunked body of exactly the limit was refused with 413, because the bytes of the stream were counted:
chunk sizes, line ends and trailers too. The same body with Content-Length passed. With chunks of one byte
the effective limit was a sixth of what was asked for.
"""

from __future__ import annotations

import pytest

from tests.support.client import head
from tests.support.proxy import Proxy
from tests.support.upstream import Upstream

LIMIT = 6000


@pytest.mark.parametrize("size", [1, 7, LIMIT])
def test_limit_is_of_data(size: int) -> None:
    """RFC 9110 §15.5.14: the content is too large, not its coding."""
    parts = [b"x" * min(size, LIMIT - at) for at in range(0, LIMIT, size)]
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
    start = head("POST", "/", [("Transfer-Encoding", "chunked")])
    with Upstream() as upstream, Proxy(to=upstream.address, max_body=LIMIT) as proxy:
        with proxy.client() as client:
            client.send(start + body + b"0\r\nX-Trailer: 1\r\n\r\n")
            assert client.response().status == 200
            assert len(upstream.requests[0].body) == LIMIT
        with proxy.client() as client:
            client.send(start + body + b"1\r\nx\r\n0\r\n\r\n")
            assert client.response().status == 413
        upstream.reset()
        proxy.assert_counts_at_zero()
