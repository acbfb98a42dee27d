"""Fixtures of the integration tests: a scripted upstream behind a plain proxy, and the counts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.client import Client
from tests.support.origin import Origin
from tests.support.proxy import Proxy
from tests.support.upstream import Upstream


@pytest.fixture(scope="session")
def _upstream() -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def _proxy(_upstream: Upstream) -> Iterator[Proxy]:
    with Proxy(to=_upstream.address) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    """The echoing origin."""
    with Origin() as origin:
        yield origin
    assert origin.malformed == [], "the origin was sent what it cannot read"


@pytest.fixture(scope="session")
def echo(origin: Origin) -> Iterator[Proxy]:
    """A proxy in front of the echoing origin. Its pool keeps connections between tests."""
    with Proxy(to=origin.address) as proxy:
        proxy.pooled = True
        yield proxy


@pytest.fixture(autouse=True)
def _counts() -> Iterator[None]:
    """After each test every proxy it talked to has released all it acquired (design, section 3)."""
    yield
    for proxy in list(Proxy.live):
        if proxy.touched:
            proxy.touched = False
            proxy.close_clients()
            proxy.assert_counts_at_zero()


@pytest.fixture
def upstream(_counts: None, _upstream: Upstream) -> Iterator[Upstream]:
    """The scripted upstream behind ``proxy``."""
    yield _upstream
    _upstream.reset()


@pytest.fixture
def proxy(upstream: Upstream, _proxy: Proxy) -> Proxy:
    """The plain proxy, all defaults, one worker."""
    return _proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Client]:
    """A connection to ``proxy``."""
    with proxy.client() as client:
        yield client
