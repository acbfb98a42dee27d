"""Tables and requests for tests of the plan, and the meaning of a match spelled out without any index."""

from __future__ import annotations

import re
from typing import Any, cast

from fastproxy import _plan
from fastproxy.plan import Compiled, compile_plan
from fastproxy.slots import Slots
from fastproxy.tables import Match, Route, StringMatch, Tables, empty

EDGE = "127.0.0.1:9000"
CLUSTER = "outbound|80||a"


def tables(hosts: dict[str, list[Route]], listener: str = EDGE, port: int = 9000) -> Tables:
    """Tables with one listener, one cluster ``a`` of two endpoints, and these virtual hosts."""
    out = empty()
    out["listeners"][listener] = {"address": "127.0.0.1", "port": port, "protocol": "HTTP"}
    out["clusters"][CLUSTER] = {
        "service": "a",
        "port": 80,
        "endpoints": "a|80",
        "labels": {},
        "lb": "ROUND_ROBIN",
        "resolution": "STATIC",
    }
    out["endpoints"]["a|80"] = [
        {"address": "127.0.0.1", "port": 9001, "weight": 1, "labels": {}},
        {"address": "127.0.0.1", "port": 9002, "weight": 1, "labels": {}},
    ]
    for host, routes in hosts.items():
        out["routes"][f"{listener} {host}"] = {"routes": routes, "source": ["VirtualService default/test"]}
    return out


def route(*matches: Match, name: str = "", **more: Any) -> Route:
    """A route to the cluster of :func:`tables`, unless ``more`` says what it does."""
    out: dict[str, Any] = {"name": name, "matches": list(matches), **more}
    if not {"destinations", "redirect", "direct"} & more.keys():
        out["destinations"] = [{"cluster": CLUSTER, "weight": 1}]
    return cast(Route, out)


def compiled(source: Tables, slots: Slots | None = None, **more: Any) -> Compiled:
    return compile_plan(source, slots or Slots(), **{"epoch": 1, "version": 1, **more})


def view(source: Tables, **more: Any) -> _plan.PlanView:
    """The plan of these tables, checked."""
    plan = _plan.PlanView(compiled(source, **more).plan)
    plan.check()
    return plan


def request(target: str = "/", *fields: tuple[str, str], method: str = "GET", host: str = "shop") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", *(f"{name}: {value}" for name, value in fields)]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def _holds(match: StringMatch, value: str | None, *, fold: bool = False) -> bool:
    if value is None:
        return False
    if "present" in match:
        return True
    if fold and "regex" not in match:
        value = value.lower()
    if "exact" in match:
        return value == (match["exact"].lower() if fold else match["exact"])
    if "prefix" in match:
        return value.startswith(match["prefix"].lower() if fold else match["prefix"])
    return re.fullmatch(match["regex"], value) is not None


def first_match(
    routes: list[Route],
    *,
    method: str,
    path: str,
    query: list[tuple[str, str]],
    fields: list[tuple[str, str]],
    cookies: list[tuple[str, str]],
    authority: str,
    port: int,
) -> int | None:
    """Number of the first match block that holds, by the words of the tables' documentation."""

    def header(name: str) -> str | None:
        values = [value for key, value in fields if key.lower() == name]
        return ",".join(values) if values else None

    def first(pairs: list[tuple[str, str]], name: str) -> str | None:
        return next((value for key, value in pairs if key == name), None)

    def holds(match: Match) -> bool:
        checks = [
            "path" not in match or _holds(match["path"], path, fold=match.get("ignore_case", False)),
            "method" not in match or _holds(match["method"], method),
            "scheme" not in match or _holds(match["scheme"], "http"),
            "authority" not in match or _holds(match["authority"], authority),
            "port" not in match or match["port"] == port,
            all(_holds(m, header(name)) for name, m in match.get("headers", {}).items()),
            all(_holds(m, first(query, name)) for name, m in match.get("query", {}).items()),
            all(_holds(m, first(cookies, name)) for name, m in match.get("cookies", {}).items()),
            all(
                not _holds(m, header(name) if "present" in m else header(name) or "")
                for name, m in match.get("without_headers", {}).items()
            ),
        ]
        return all(checks)

    number = 0
    for row in routes:
        for match in row["matches"] or [Match()]:
            if holds(match):
                return number
            number += 1
    return None
