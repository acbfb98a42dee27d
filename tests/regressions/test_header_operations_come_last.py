"""Header operations that name a field which the proxy writes itself.

`set: {x-forwarded-proto: https}` is how people say that TLS ends in front of the proxy. It was written,
and then our own `X-Forwarded-Proto: http` behind it: two lines, of which applications believe one or the
other. Operations come last, as in Envoy: what they set or remove, we do not write.
"""

from __future__ import annotations

from tests.support.proxy import Proxy
from tests.support.upstream import Upstream

CONFIG = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: service}}
spec:
  hosts: [service]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: service}}
spec:
  hosts: ["*"]
  http:
  - headers:
      request: {{set: {{X-Forwarded-Proto: https, x-request-id: mine}}, remove: [x-forwarded-for]}}
      response: {{set: {{date: never}}, remove: [via]}}
    route:
    - destination: {{host: service}}
      headers: {{request: {{remove: [via]}}}}
"""


def test_operations_come_last() -> None:
    with (
        Upstream() as upstream,
        Proxy(config=CONFIG.format(port=upstream.address.rpartition(":")[2])) as proxy,
    ):
        with proxy.client() as client:
            response = client.request()
            assert response.status == 200
        request = upstream.requests[0]
        assert request.all("x-forwarded-proto") == [b"https"]
        assert request.all("x-request-id") == [b"mine"]
        assert request.all("x-forwarded-for") == []
        assert request.all("via") == []
        assert len(request.all("x-forwarded-host")) == 1
        assert response.all("date") == [b"never"]
        assert response.all("via") == []
        upstream.reset()
        proxy.assert_counts_at_zero()
