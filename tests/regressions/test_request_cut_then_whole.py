"""The rest of a request that nobody wants any more ends, and its answer goes on.

An upstream that answered early and reset the connection had its answer passed on while the rest of the
upload was thrown away. When the client had sent the last byte of it before it had read the answer, the
core asked the socket for zero bytes, took the zero it got for the client's end, and cut the answer off.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.client import head
from tests.support.proxy import Proxy
from tests.support.upstream import Connection, Upstream

UPLOAD = 400_000
ANSWER = 400_000  # more than a Unix socket takes, less than it and we take together


@pytest.mark.parametrize("chunked", [False, True])
def test_answer_outlives_the_upload(tmp_path: Path, chunked: bool) -> None:
    """RFC 9112 §9.5: what a server said before it closed is still its answer."""

    def script(conn: Connection) -> None:
        conn.head()
        conn.send(b"HTTP/1.1 413 No\r\nContent-Length: %d\r\n\r\n" % ANSWER + b"a" * ANSWER)
        time.sleep(0.2)
        conn.drop()  # unread bytes: RST

    parts = [b"u" * 1000, b"u" * UPLOAD]
    start = head("POST", "/", [("Content-Length", str(UPLOAD + 1000))])
    if chunked:
        parts = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts] + [b"0\r\n\r\n"]
        start = head("POST", "/", [("Transfer-Encoding", "chunked")])
    with Upstream() as upstream, Proxy(to=upstream.address, listen=f"unix://{tmp_path}/down") as proxy:
        upstream.script(script)
        with proxy.client() as client:
            client.send(start + parts[0])
            time.sleep(0.5)  # the answer is held up, for we do not read
            for part in parts[1:]:
                client.send(part)
            time.sleep(0.2)
            response = client.response("POST")
            assert response.status == 413 and response.body == b"a" * ANSWER
        upstream.reset()
        proxy.assert_counts_at_zero()
