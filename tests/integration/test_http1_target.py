"""Request targets: the four forms, Host, and paths (RFC 9112 §3.2, RFC 3986 §6, design section 4)."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.client import Client, head
from tests.support.origin import Origin
from tests.support.proxy import Proxy
from tests.support.upstream import Upstream


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        ("http://example.com/a?b=c", "/a?b=c", "example.com"),
        ("http://example.com:8080/", "/", "example.com:8080"),
        ("HTTP://Example.COM/A", "/A", "example.com"),
        ("http://example.com", "/", "example.com"),
        ("http://example.com?q=1", "/?q=1", "example.com"),
        ("http://[::1]:90/x", "/x", "[::1]:90"),
        ("http://example.com//a/../b", "/b", "example.com"),
    ],
)
def test_absolute_form_wins(client: Client, upstream: Upstream, target: str, path: str, host: str) -> None:
    """RFC 9112 §3.2.2: absolute form wins over Host, which is rewritten from it; origin form goes on."""
    client.send(head("GET", target, host="other.example"))
    assert client.response().status == 200
    request = upstream.requests[0]
    assert request.target == path
    assert (request.get("host") or "").lower() == host
    assert (request.get("x-forwarded-host") or "").lower() == host


def test_options_asterisk(client: Client, upstream: Upstream) -> None:
    """RFC 9112 §3.2.4: `OPTIONS *` goes on as it is; the absolute form with an empty path becomes it."""
    assert client.request("OPTIONS", "*").status == 200
    client.send(head("OPTIONS", "http://example.com"))
    assert client.response().status == 200
    assert [r.target for r in upstream.requests] == ["*", "*"]


@pytest.mark.parametrize(
    ("sent", "normal"),
    [
        ("/", "/"),
        ("/a/b?c=/../d//e%2e", "/a/b?c=/../d//e%2e"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/a/b/.", "/a/b/"),
        ("/a/%2e%2E/b", "/b"),
        ("/a//b///c", "/a/b/c"),
        ("//a", "/a"),
        ("/%7euser/%41", "/~user/A"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%20b", "/a%20b"),
        ("/%c3%bc", "/%C3%BC"),
        ("/...", "/..."),
        ("/a/..b", "/a/..b"),
        ("/?", "/?"),
        ("/a;b=c,d!$&'()*+@:", "/a;b=c,d!$&'()*+@:"),
    ],
)
def test_path_is_normalised(client: Client, upstream: Upstream, sent: str, normal: str) -> None:
    """RFC 3986 §6.2.2: dot segments, empty segments and needless escapes go before matching."""
    assert client.request(target=sent).status == 200
    assert upstream.requests[0].target == normal


@pytest.mark.parametrize("sent", ["/..", "/../a", "/a/../../b", "/%2e%2e/a", "/a%00b", "/%", "/%4", "/%zz"])
def test_path_that_is_refused(client: Client, upstream: Upstream, sent: str) -> None:
    """Design section 4: a path that leaves its root, a NUL and a broken escape are refused with 400."""
    response = client.request(target=sent)
    assert response.status == 400
    assert response.get("x-fastproxy-flags") == "DPE"
    client.assert_closed()
    assert upstream.connections == []


ROUTES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: paths}}
spec:
  hosts: ["*"]
  http:
  - match: [{{uri: {{prefix: /admin}}}}]
    directResponse: {{status: 403, body: {{string: no}}}}
  - route: [{{destination: {{host: origin}}}}]
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: origin}}
spec:
  hosts: [origin]
  ports: [{{number: 80, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 127.0.0.1, ports: {{http: {port}}}}}]
"""


def told(proxy: Proxy, target: str) -> tuple[int, str]:
    """Status, and the target as the origin got it."""
    with proxy.client() as client:
        response = client.request(target=target)
    return response.status, json.loads(response.body)["target"] if response.status == 200 else ""


@pytest.fixture(scope="module")
def raw(origin: Origin) -> Iterator[Proxy]:
    """A proxy that forwards the path as it came."""
    with Proxy(config=ROUTES.format(port=origin.port), raw_path=True) as proxy:
        proxy.pooled = True
        yield proxy


@pytest.mark.parametrize("target", ["/a/./b//c", "/x/../y?z", "/%7e", "/a%2fb"])
def test_raw_path_goes_on_when_asked_for(raw: Proxy, target: str) -> None:
    """Issue, item 4: the unnormalised path is forwarded only when asked for."""
    assert told(raw, target) == (200, target)


@pytest.mark.parametrize(
    "target", ["/admin", "/x/../admin/y", "//admin", "/%61dmin", "/./admin", "/admin%2fx"]
)
def test_matching_is_on_the_normalised_path(raw: Proxy, target: str) -> None:
    """Issue, item 4: rules see the normalised path even then, so that none is walked around."""
    assert told(raw, target)[0] == 403


@pytest.fixture(scope="module", params=["reject", "decode", "keep"])
def slashes(origin: Origin, request: pytest.FixtureRequest) -> Iterator[tuple[str, Proxy]]:
    """A proxy for each %2F policy."""
    config = ROUTES.format(port=origin.port)
    with Proxy(config=config, slashes=request.param, merge_slashes=False) as proxy:
        proxy.pooled = True
        yield request.param, proxy


def test_escaped_slash_policies(slashes: tuple[str, Proxy]) -> None:
    """Issue, item 4: %2F is refused, decoded before matching, or kept, as --slashes says."""
    policy, proxy = slashes
    want = {"reject": (400, ""), "decode": (200, "/a/b"), "keep": (200, "/a%2Fb")}[policy]
    assert told(proxy, "/a%2fb") == want
    want = {"reject": (400, ""), "decode": (403, ""), "keep": (200, "/x%2F..%2Fadmin")}[policy]
    assert told(proxy, "/x%2f..%2fadmin") == want


def test_slashes_are_not_merged_when_told_so(slashes: tuple[str, Proxy]) -> None:
    """--no-merge-slashes keeps empty segments."""
    assert told(slashes[1], "/a//b") == (200, "/a//b")
