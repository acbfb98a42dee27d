"""Reload every 100 ms under load: not one request fails (issue, "Tests"; design section 2, plan)."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.support.load import Load
from tests.support.origin import Origin
from tests.support.proxy import Proxy

CONFIG = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: origin}}
spec:
  hosts: [origin]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: all}}
spec:
  hosts: ["*"]
  http:
{decoys}
  - route: [{{destination: {{host: origin}}}}]
"""


def config(port: int, number: int) -> str:
    """The same meaning each time, with other rules around it."""
    decoys = [
        f"  - match: [{{uri: {{prefix: /decoy-{number}-{n}/}}}}]\n    directResponse: {{status: 500}}"
        for n in range(20 + number % 7)
    ]
    return CONFIG.format(port=port, decoys="\n".join(decoys))


@pytest.mark.parametrize("how", ["signal", "file", "admin"])
def test_reload_under_load(origin: Origin, how: str) -> None:
    """SIGHUP, file change and POST /config: 30 plans in 3 seconds, nothing fails, nobody is cut."""
    with Proxy(config=config(origin.port, 0), workers=2) as proxy:
        with Load(proxy.address, connections=16, target="/ok") as load:
            before = proxy.gauges()["plan_swaps"]
            for number in range(1, 31):
                begun = time.monotonic()
                text = config(origin.port, number)
                if how == "admin":
                    status, said = proxy.ask("/config", "POST", text.encode())
                    assert status in (200, 202, 204), said
                else:
                    fresh = proxy.folder / "next"
                    fresh.write_text(text)
                    os.replace(fresh, proxy.config)
                    if how == "signal":
                        proxy.process.send_signal(signal.SIGHUP)
                time.sleep(max(0.0, 0.1 - (time.monotonic() - begun)))
            load.wait_progress(100)
        result = load.result
        assert (result.wrong, result.broken, result.refused, result.closed) == ([], [], 0, 0)
        assert proxy.gauges()["plan_swaps"] - before >= 10, "hardly anything was reloaded"
        proxy.pooled = True
        proxy.assert_counts_at_zero()
