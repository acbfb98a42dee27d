"""A client that goes away in the middle of a line of its head.

A head in pieces is only scanned again when a line has been completed. When bytes without a line end and
the FIN came in one event, the connection was put aside with the FIN unread, and kept until the header
timeout.
"""

from __future__ import annotations

import os
import signal
import time

from tests.support.proxy import Proxy
from tests.support.upstream import Upstream


def test_fin_behind_a_piece_of_a_line() -> None:
    with Upstream() as upstream, Proxy(to=upstream.address) as proxy:
        client = proxy.client()
        client.send(b"GET / HT")
        proxy.wait_gauge("chunks", 1)
        worker = proxy.workers()[0]
        os.kill(worker, signal.SIGSTOP)  # so that both are seen at once
        client.send(b"TP/1.")
        client.half_close()
        time.sleep(0.05)
        os.kill(worker, signal.SIGCONT)
        client.assert_closed()
        client.close()
        proxy.assert_counts_at_zero()
