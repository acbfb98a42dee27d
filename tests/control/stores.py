"""What the tests of all stores share: drafts, and tests that run on a loop."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from ctrl.model import Change, Draft, Resource
from ctrl.store import Store


def on_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """An async test as a plain one."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            await asyncio.wait_for(test(*args, **kwargs), 90)

        asyncio.run(bounded())

    return run


def put(name: str, text: str = "", kind: str = "VirtualService") -> Change:
    resource = Resource(kind, "default", name, text or f"text of {name}", f"{name}.yaml", 3)
    return Change(resource.identity, resource)


def gone(name: str, kind: str = "VirtualService") -> Change:
    return Change((kind, "default", name), None)


def draft(*changes: Change, hash_: str = "00", what: str = "apply", message: str = "") -> Draft:
    return Draft("ann", what, changes, hash_, message)


async def texts(store: Store, version: int | None = None) -> dict[str, str]:
    """name -> text, in the order of creation."""
    return {resource.name: resource.text for resource in await store.contents(version)}
