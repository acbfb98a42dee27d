"""A control plane that was started anew knows of no proxy until they are back, a second or two later. ``apply
--wait`` within that time said "served to nobody" and ended well; a rollout in stages found nobody to wait for
in any stage and was committed at once. Both wait now until whoever was there has had the time to come back.
"""

from __future__ import annotations

import asyncio
import time

from ctrl import waiting
from ctrl.client import Client
from tests.control.links import runs, until
from tests.control.planes import Proxies
from tests.support.server import Server, host


@runs
async def test_a_version_applied_right_after_a_restart_waits_for_those_that_were_there() -> None:
    with Server() as server:
        server.apply(host("one"))
        async with Proxies(server.address) as proxies:
            proxies.join(3)
            await until(lambda: proxies.serving() == [1, 1, 1], "all serve version 1")
            server.kill()
            await asyncio.to_thread(server.start)
            with Client(server.url) as client:
                version = client.apply([("two.yaml", host("two"))])["version"]
                outcome = await asyncio.to_thread(waiting.wait, client, version, 20.0)
            assert outcome.served
            assert (outcome.progress["serving"], outcome.progress["total"]) == (3, 3)
            assert proxies.serving() == [version] * 3


@runs
async def test_a_rollout_right_after_a_restart_has_its_stages() -> None:
    with Server() as server:
        server.apply(host("one"))
        async with Proxies(server.address) as proxies:
            proxies.join(3)
            await until(lambda: proxies.serving() == [1, 1, 1], "all serve version 1")
            server.kill()
            await asyncio.to_thread(server.start)
            stages = {"stages": ["1", "100%"], "bake": "60s"}
            version = (await asyncio.to_thread(server.apply, host("two"), **stages))["version"]
            await until(lambda: sorted(proxies.serving()) == [1, 1, version], "one of them serves it")
            rollout = server.get("/v1/rollout")
            assert (rollout["stage"], rollout["observed"]["expected"]) == (1, 1)


@runs
async def test_a_store_that_was_empty_waits_for_nobody() -> None:
    with Server() as server, Client(server.url) as client:
        began = time.monotonic()
        version = client.apply([("one.yaml", host("one"))])["version"]
        outcome = await asyncio.to_thread(waiting.wait, client, version, 20.0)
        assert outcome.served
        assert time.monotonic() - began < 4
