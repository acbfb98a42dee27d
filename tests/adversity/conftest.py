"""Fixtures of the adversity tests: an upstream that says ok."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.origin import Origin


@pytest.fixture(scope="package")
def origin() -> Iterator[Origin]:
    """The origin of this process; ``/ok`` is the smallest answer."""
    with Origin() as origin:
        yield origin
