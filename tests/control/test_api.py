"""The HTTP API in this process: who may ask, what is refused, and what each address says of a real plane."""

from __future__ import annotations

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from ctrl.api import create_api
from ctrl.events import stream
from ctrl.model import Draft, Entry, StoreError
from ctrl.plane import Plane
from ctrl.store.memory import MemoryStore
from ctrl.tokens import Tokens, add_token
from tests.control.links import until
from tests.control.planes import Proxies, World, put
from tests.support.server import host

HOST = "127.0.0.1:9900"


class Asked:
    """A plane, its proxies, and a client of its API."""

    def __init__(self, plane: Plane, crew: Proxies, client: httpx.AsyncClient) -> None:
        self.plane, self.crew, self.client = plane, crew, client

    async def __call__(
        self, method: str, path: str, body: Any = None, want: int = 200, **options: Any
    ) -> Any:
        answer = await self.client.request(method, path, json=body, **options)
        assert answer.status_code == want, answer.text
        if want != 200:
            assert set(answer.json()) == {"error", "problems"} and answer.json()["error"]
        return answer.json()

    async def apply(self, *texts: str, want: int = 200, **options: Any) -> Any:
        files = [{"name": f"{i}.yaml", "text": text} for i, text in enumerate(texts)]
        return await self("POST", "/v1/apply", {"files": files, **options}, want)


@asynccontextmanager
async def asked(count: int = 0, tokens: Tokens | None = None, **options: Any) -> AsyncIterator[Asked]:
    async with World(count, **options) as (plane, crew):
        transport = httpx.ASGITransport(create_api(plane, tokens))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
            yield Asked(plane, crew, client)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(main())


# --- who may ask ---


@pytest.mark.parametrize(
    "name", ["localhost", "localhost:9900", "127.0.0.1", "127.0.0.2:80", "[::1]:9900", "[::1]"]
)
def test_this_machine_may_ask_without_tokens(name: str) -> None:
    async def main() -> None:
        async with asked() as api:
            await api("GET", "/v1/head", headers={"Host": name})

    run(main)


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:9900", "192.0.2.1:9900", "", "127.0.0.1.evil.example"]
)
def test_a_name_that_somebody_pointed_here_may_not(name: str) -> None:
    async def main() -> None:
        async with asked() as api:
            await api("GET", "/v1/head", want=403, headers={"Host": name})

    run(main)


def test_web_pages_may_not(tmp_path: Path) -> None:
    async def main() -> None:
        async with asked() as api:
            for origin in ("http://evil.example", "null", "http://localhost:9900"):
                answer = await api("POST", "/v1/apply", {"files": []}, 403, headers={"Origin": origin})
                assert "web pages" in answer["error"]

    run(main)


def test_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    operator = add_token(path, "eve", "operator")
    node = add_token(path, "node-1", "node")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    async def main() -> None:
        async with asked(tokens=Tokens.load(path)) as api:

            def bearer(token: str) -> dict[str, str]:
                # another name for the server is fine: with tokens it is reached from elsewhere
                return {"Authorization": f"Bearer {token}", "Host": "control.example"}

            for headers in ({}, bearer("x" * 43), {"Authorization": operator}, {"Authorization": "Bearer"}):
                await api("GET", "/v1/head", want=401, headers=headers)
            answer = await api.client.get("/v1/head")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert (await api.client.get("/live")).text == "live\n"
            assert (await api.client.get("/ready")).status_code == 200
            assert (await api.client.get("/metrics")).status_code == 401
            await api("GET", "/v1/head", headers=bearer(node))
            refused = await api("POST", "/v1/apply", {"files": []}, 403, headers=bearer(node))
            assert "role node" in refused["error"]
            body = {"files": [{"text": host("one")}]}
            headers = bearer(operator) | {"X-Fastproxy-User": "somebody else"}
            await api("POST", "/v1/apply", body, headers=headers)
            assert (await api.plane.entry(1)).who == "eve"

    run(main)


def test_who_it_was_without_tokens() -> None:
    async def main() -> None:
        async with asked() as api:
            for i, (given, who) in enumerate(
                [("eve", "eve"), ("J%C3%BCrgen", "Jürgen"), ("", "unknown"), ("a%0Ab", "unknown")], 1
            ):
                body = {"files": [{"text": host(f"h{i}")}]}
                await api("POST", "/v1/apply", body, headers={"X-Fastproxy-User": given})
                assert (await api.plane.entry(i)).who == who

    run(main)


# --- what is too much, and what goes wrong ---


def test_a_body_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrl.api_access.MAX_BODY", 1000)

    async def main() -> None:
        async with asked() as api:
            await api.apply("#" * 2000, want=413)

            async def pieces() -> AsyncIterator[bytes]:
                for _ in range(20):
                    yield b" " * 100

            headers = {"Content-Type": "application/json"}
            answer = await api.client.post("/v1/apply", content=pieces(), headers=headers)
            assert answer.status_code == 413, "its length was not announced"
            await api.apply(host("one"))

    run(main)


def test_many_bodies_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctrl.api_access.MAX_BODIES", 1000)

    async def main() -> None:
        async with asked() as api:
            await api.apply("#" * 2000, want=503)
            await api.apply(host("one"))

    run(main)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"files": 1}',
        b'{"files": [], "dry_run": true}',
        b'{"files": [], "bake": "soon"}',
        b'{"files": [], "stages": ["many"]}',
        b'{"files": [], "abortIf": ["rejected > 0"]}',
        b"\xff\xfe",
        b'{"files": ' + b"[" * 100_000,
    ],
)
def test_bodies_that_are_no_request(body: bytes) -> None:
    async def main() -> None:
        async with asked() as api:
            headers = {"Content-Type": "application/json"}
            answer = await api.client.post("/v1/apply", content=body, headers=headers)
            assert answer.status_code in (400, 422), answer.text
            assert set(answer.json()) == {"error", "problems"}

    run(main)


def test_texts_that_are_no_utf8() -> None:
    async def main() -> None:
        async with asked() as api:
            body = b'{"files": [{"name": "a", "text": "x: \\ud800"}]}'
            headers = {"Content-Type": "application/json"}
            answer = await api.client.post("/v1/apply", content=body, headers=headers)
            assert answer.status_code == 422
            assert answer.json()["problems"]

    run(main)


def test_problems_say_where() -> None:
    async def main() -> None:
        async with asked() as api:
            bad = host("bad").replace("spec:", "specs:")
            answer = await api.apply(bad, host("one"))
            assert answer["version"] == 1
            assert {"0.yaml"} == {p["file"] for p in answer["problems"]}
            assert {"line", "field", "message", "kind", "namespace", "name"} < set(answer["problems"][0])
            refused = await api.apply(bad, host("two"), strict=True, want=422)
            assert refused["problems"] == answer["problems"]
            assert (await api("GET", "/v1/head"))["version"] == 1

    run(main)


class Full(MemoryStore):
    full = False

    async def commit(self, expect: int, draft: Draft) -> Entry:
        if self.full:
            raise StoreError("the disk is full: make room")
        return await super().commit(expect, draft)

    async def history(self, limit: int = 50, before: int | None = None) -> list[Entry]:
        if self.full:
            raise ZeroDivisionError("an error of ours")
        return await super().history(limit, before)


def test_a_store_that_cannot_be_written_is_503_and_an_error_of_ours_500(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def main() -> None:
        store = Full()
        async with asked(store=store) as api:
            await api.apply(host("one"))
            store.full = True
            answer = await api.apply(host("two"), want=503)
            assert answer["error"] == "the disk is full: make room"
            assert (await api("GET", "/v1/head"))["trouble"] == "the disk is full: make room"
            assert "the disk is full" in (await api.client.get("/ready")).text
            assert (await api("GET", "/v1/resources"))["version"] == 1
            answer = await api("GET", "/v1/history", want=500)
            assert answer["error"] == "ZeroDivisionError: an error of ours"

    run(main)
    said = capsys.readouterr().err
    assert "'/v1/history' failed: ZeroDivisionError" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/versions/9", 404),
        ("GET", "/v1/versions/9/resources", 404),
        ("GET", "/v1/versions/x", 422),
        ("POST", "/v1/rollback/9", 404),
        ("DELETE", "/v1/rollout", 404),
        ("DELETE", "/v1/breakers/x", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/docs", 404),
        ("PUT", "/v1/head", 405),
        ("GET", "/v1/history?limit=0", 422),
        ("GET", "/v1/progress?wait=61", 422),
    ],
)
def test_statuses_of_errors(method: str, path: str, status: int) -> None:
    async def main() -> None:
        async with asked() as api:
            await api(method, path, want=status)

    run(main)


# --- what is said ---


def test_resources_and_versions() -> None:
    async def main() -> None:
        async with asked() as api:
            await api.apply(host("one"), host("two"), message="both")
            await api.apply(host("two", 404))
            rows = (await api("GET", "/v1/resources?kind=VirtualService&name=two"))["resources"]
            assert [(r["text"], r["createdVersion"], r["version"]) for r in rows] == [
                (host("two", 404), 1, 2)
            ]
            assert (await api("GET", "/v1/resources?namespace=x"))["resources"] == []
            old = await api("GET", "/v1/versions/1/resources")
            assert [r["text"] for r in old["resources"]] == [host("one"), host("two")]
            entries = (await api("GET", "/v1/history"))["entries"]
            assert [(e["version"], e["message"]) for e in entries] == [(2, ""), (1, "both")]
            assert (await api("GET", "/v1/history?before=2&limit=1"))["entries"] == entries[1:]
            assert await api("GET", "/v1/versions/2") == entries[0]
            answer = await api("POST", "/v1/rollback/1", {"message": "no"})
            assert (answer["version"], answer["hash"]) == (3, entries[1]["hash"])

    run(main)


def test_delete_and_dry_run() -> None:
    async def main() -> None:
        async with asked() as api:
            await api.apply(host("one"))
            body = {"identities": [{"kind": "VirtualService", "namespace": "default", "name": "one"}]}
            dry = await api("POST", "/v1/delete", body | {"dryRun": True})
            assert [(d["before"], d["after"]) for d in dry["diff"]] == [(host("one"), "")]
            gone = await api("POST", "/v1/delete", body)
            assert gone["changes"] == [
                {"verb": "deleted", "kind": "VirtualService", "namespace": "default", "name": "one"}
            ]
            await api("POST", "/v1/delete", body, 422)

    run(main)


def test_status_progress_and_verify_of_real_proxies() -> None:
    async def main() -> None:
        async with asked(2) as api:
            waiting = asyncio.create_task(api("GET", "/v1/progress?version=1&wait=20&seen=0"))
            await api.apply(host("one"))
            assert (await waiting)["seen"] > 0
            await until(lambda: api.crew.serve(1), "all serve it")
            await until(lambda: len(api.plane.fleet) == 2, "both have reported")
            while (progress := await api("GET", "/v1/progress"))["serving"] < 2:
                await api("GET", f"/v1/progress?wait=5&seen={progress['seen']}")
            assert (progress["version"], progress["total"], progress["laggards"]) == (1, 2, [])
            while not (verified := await api("GET", "/v1/verify"))["equal"] or not verified["views"]:
                await asyncio.sleep(0.01)
            (view,) = verified["views"]
            assert [p["hash"] for p in view["proxies"]] == [view["hash"]] * 2
            status = await api("GET", "/v1/status")
            assert [(p["node"], p["state"], p["version"], p["lag"]) for p in status["proxies"]] == [
                ("node-0", "LIVE", 1, 0),
                ("node-1", "LIVE", 1, 0),
            ]
            assert status["head"]["proxies"] == 2
            api.plane.fleet.get("node-1").hash = bytes(32)  # type: ignore[union-attr]
            verified = await api("GET", "/v1/verify")
            assert not verified["equal"]
            assert [p["equal"] for p in verified["views"][0]["proxies"]] == [True, False]

    run(main)


def test_a_rollout_by_the_api() -> None:
    async def main() -> None:
        async with asked(2) as api:
            assert (await api("GET", "/v1/rollout"))["state"] == "none"
            await api.apply(host("one"))
            await until(lambda: api.crew.serve(1) and len(api.plane.fleet) == 2, "all serve it")
            answer = await api.apply(
                host("two"), stages=["1", "100%"], bake="1m", abortIf=["error_rate > 2x"]
            )
            assert (answer["version"], answer["rollout"]) == (2, True)
            await until(lambda: sorted(api.crew.serving()) == [1, 2], "one serves it")
            while (rollout := await api("GET", "/v1/rollout"))["state"] != "baking":
                assert rollout["state"] == "preparing"
                await asyncio.sleep(0.01)
            assert (rollout["version"], rollout["stage"], rollout["stages"]) == (2, 1, ["1", "100%"])
            assert rollout["observed"]["serving"] == 1
            head = await api("GET", "/v1/head")
            assert (head["version"], head["candidate"]["version"]) == (1, 2)
            busy = await api.apply(host("three"), want=409)
            assert "being rolled out" in busy["error"]
            await api("DELETE", "/v1/rollout", headers={"X-Fastproxy-User": "eve"})
            rollout = await api("GET", "/v1/rollout")
            assert (rollout["state"], rollout["reason"]) == ("aborted", "aborted by eve")
            await until(lambda: api.crew.serve(1), "all are back")

    run(main)


def test_breakers() -> None:
    service = (
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: catalog}\nspec:\n"
        "  hosts: [catalog]\n  ports: [{number: 80, name: http, protocol: HTTP}]\n"
        "  resolution: STATIC\n  endpoints: [{address: 127.0.0.1, ports: {http: 9001}}]\n"
    )

    async def main() -> None:
        async with asked(1) as api:
            api.crew.appliers[0].extra["breakers"] = [
                ["outbound|80||catalog", "CLOSED", "open", 5, 7],
                ["catalog|127.0.0.1:9001", "OPEN", "", 0, 3],
                ["outbound|80||other", "HALF_OPEN", "", 0, 0],
            ]
            await api.apply(service)
            order = {"host": "catalog", "state": "open", "for": "10m", "reason": "it burns"}
            answer = await api("POST", "/v1/breakers", order)
            assert answer["changes"][0]["kind"] == "BreakerOrder"
            await until(lambda: api.plane.fleet.breakers(), "it has reported")
            told = await api("GET", "/v1/breakers")
            assert [(o["name"], o["state"], o["reason"]) for o in told["orders"]] == [
                ("catalog", "open", "it burns")
            ]
            clusters = {row.pop("cluster"): row for row in told["clusters"]}
            counted = {
                name: (r["open"], r["closed"], r["halfOpen"], r["ordered"]) for name, r in clusters.items()
            }
            assert counted == {
                "catalog|127.0.0.1:9001": (1, 0, 0, 0),
                "outbound|80||catalog": (0, 1, 0, 1),
                "outbound|80||other": (0, 0, 1, 0),
            }
            assert clusters["outbound|80||catalog"]["nodes"][0]["node"] == "node-0"
            await api("DELETE", "/v1/breakers/catalog")
            assert (await api("GET", "/v1/breakers"))["orders"] == []
            for wrong in ({"state": "ajar"}, {"for": "soon"}, {"port": -1}, {"hosts": "x"}):
                await api("POST", "/v1/breakers", order | wrong, 422)

    run(main)


def test_watch_tells_what_happens_and_ends_with_the_plane() -> None:
    async def main() -> None:
        async with asked(1) as api:
            await put(api.plane, "one", who="eve")
            events: list[dict[str, Any]] = []

            async def follow() -> None:
                async for lines in stream(api.plane):
                    events.extend(json.loads(line) for line in lines.splitlines() if line.strip())

            following = asyncio.create_task(follow())

            def told(**wanted: Any) -> bool:
                return any(wanted.items() <= event.items() for event in events)

            await until(lambda: told(type="version", version=1, who="eve"), "the head is told at once")
            await until(
                lambda: told(type="proxy", node="node-0", version=1, state="LIVE"), "the proxy serves it"
            )
            await api.apply(host("two"), atomic=True)
            await until(lambda: told(type="rollout", version=2, state="committed"), "it is rolled out")
            await until(lambda: told(type="version", version=2, what="apply"), "it is the head")
            await until(lambda: told(type="proxy", node="node-0", version=2), "the proxy serves it")
            api.plane.fleet.refuse("192.0.2.1:1", "eve", "its key is not known")
            await until(
                lambda: told(type="refused", address="192.0.2.1:1", name="eve"), "the refusal is told"
            )
            api.plane.stop_waiting()
            await asyncio.wait_for(following, 5)

    run(main)


def test_metrics() -> None:
    async def main() -> None:
        async with asked(1) as api:
            await api.apply(host("one"))
            await until(lambda: api.plane.fleet.progress(api.plane.head().epoch, 1).serving, "it is served")
            text = (await api.client.get("/metrics")).text
            for line in (
                'fastproxy_control_proxies{state="LIVE"} 1.0',
                "fastproxy_control_version 1.0",
                "fastproxy_control_applied_total 1.0",
                "fastproxy_control_store_up 1.0",
                "fastproxy_control_store_errors_total 0.0",
                "fastproxy_control_publish_seconds_total",
            ):
                assert line in text, text

    run(main)
