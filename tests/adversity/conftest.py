"""Fixtures of the adversity tests: an upstream that says ok, and nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.origin import Origin
from tests.support.proxy import Proxy


@pytest.fixture(scope="package")
def origin() -> Iterator[Origin]:
    """The origin of this process; ``/ok`` is the smallest answer."""
    with Origin() as origin:
        yield origin


@pytest.fixture(autouse=True)
def _no_proxy_left() -> Iterator[None]:
    """Every proxy that a test starts it also stops."""
    yield
    assert Proxy.live == []
