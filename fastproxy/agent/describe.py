"""What the admin API tells of the plan, the clusters and single requests."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from fastproxy.agent.listeners import join

if TYPE_CHECKING:
    from fastproxy.agent.agent import Agent

SLASHES = ("keep", "reject", "decode")  # as the parser numbers them
LAST_MS = 253_402_300_799_000  # the last second of the year 9999
HEALTH = {1: "failed health check", 2: "ejected", 4: "draining"}


def plan(agent: Agent) -> dict[str, Any]:
    """/plan: which version serves, from where, with what, and what is wrong with the rest."""
    now = agent.publisher.current
    out: dict[str, Any] = {
        "epoch": agent.publisher.epoch,
        "version": now.version if now else 0,
        "source": agent.config.source,
        "problems": [p.to_json() for p in agent.config.problems],
        "workers": [
            {
                "worker": w.index,
                "pid": w.pid,
                "state": w.state.value,
                "serving": w.serving,
                "swap_us": w.swap_us,
            }
            for w in agent.supervisor.workers
        ],
    }
    out |= agent.config.describe()
    if now is None:
        return out
    tables = now.tables
    out |= {
        "hash": now.hash,
        "bytes": now.size,
        "published_at": round(now.at, 3),
        "compile_seconds": round(now.compile_seconds, 6),
        "publish_seconds": round(now.outcome.seconds, 6) if now.outcome else None,
        "listeners": [_listener(agent, name, row) for name, row in sorted(tables["listeners"].items())],
        "hosts": [
            {
                "listener": key.rpartition(" ")[0],
                "host": key.rpartition(" ")[2],
                "rules": sum(max(1, len(route["matches"])) for route in row["routes"]),
                "source": row["source"],
            }
            for key, row in sorted(tables["routes"].items())
        ],
    }
    return out


def _listener(agent: Agent, name: str, row: Any) -> dict[str, Any]:
    error = agent.listeners.errors.get(name)
    address = row["address"] if row["address"].startswith("unix:") else join(row["address"], row["port"])
    return {"name": name, "address": address, "open": name in agent.listeners.open, "error": str(error or "")}


def clusters(agent: Agent) -> dict[str, Any]:
    """/clusters: endpoints with their health and what runs on them now, over all workers."""
    now = agent.publisher.current
    if now is None:
        return {"version": 0, "clusters": []}
    live = agent.memory.live
    out = []
    view = now.view()
    for number in range(view.counts()["cluster"]):
        cluster = view.cluster(number)
        endpoints = []
        for endpoint in cluster.endpoints:
            count = live.endpoint(endpoint.slot)
            bits = count.pop("health")
            health = ", ".join(text for bit, text in HEALTH.items() if bits & bit) or "healthy"
            endpoints.append({"endpoint": endpoint.name, "health": health, **count})
        row = now.tables["clusters"][cluster.name]
        out.append(
            {
                "cluster": cluster.name,
                "lb": row["lb"],
                "resolution": row["resolution"],
                **live.cluster(cluster.slot),
                "endpoints": endpoints,
            }
        )
    unresolved = {host: name.error for host, name in agent.resolver.names.items() if name.error}
    return {"version": now.version, "clusters": out, "unresolved": unresolved}


def breakers(agent: Agent) -> dict[str, Any]:
    """/breakers: state of each, orders that stand, requests that were not admitted."""
    now = agent.publisher.current
    out = []
    for name, state, order, until_ms, rejected in agent.orders.describe():
        until = datetime.fromtimestamp(min(until_ms, LAST_MS) / 1000, UTC) if order else None
        out.append(
            {
                "breaker": name,
                "state": state,
                "order": order,
                "until": until.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z" if until else "",
                "rejected": rejected,
            }
        )
    return {"version": now.version if now else 0, "breakers": out}


def metrics(agent: Agent) -> bytes:
    """What the agent knows besides traffic: versions, reloads, deaths."""
    from fastproxy.agent.metrics import Text

    now = agent.publisher.current
    published = now.outcome.seconds if now and now.outcome else 0.0
    text = Text()
    for name, kind, meaning, value in (
        ("fastproxy_plan_version", "gauge", "Version published last.", now.version if now else 0),
        ("fastproxy_plan_bytes", "gauge", "Size of its plan.", now.size if now else 0),
        ("fastproxy_plan_compile_seconds", "gauge", "Compiling it.", now.compile_seconds if now else 0),
        ("fastproxy_plan_publish_seconds", "gauge", "Until the last worker served it.", published),
        ("fastproxy_config_reloads_total", "counter", "Readings of the resources.", agent.config.reloads),
        ("fastproxy_config_failures_total", "counter", "Of these, with a problem.", agent.config.failures),
        ("fastproxy_config_problems", "gauge", "Problems of documents now.", len(agent.config.problems)),
        ("fastproxy_listeners_failed", "gauge", "Listeners not open.", len(agent.listeners.errors)),
        ("fastproxy_workers_died_total", "counter", "Workers replaced.", agent.supervisor.deaths),
    ):
        text.simple(name, kind, meaning, [("", value)])
    agent.config.metrics(text)
    return text.bytes()


def explain(agent: Agent, request: str, headers: list[str], listener: str) -> dict[str, Any]:
    """/explain: where this request would go now."""
    from fastproxy.explain import explain as explained

    now = agent.publisher.current
    if now is None:
        raise LookupError("there is no plan yet")
    method, _, url = request.strip().partition(" ")
    if not url:
        raise ValueError(f"{request!r} is not METHOD URL, as in GET http://catalog/x")
    fields = [split_header(text) for text in headers]
    slashes = SLASHES.index(agent.settings.slashes)
    merge = agent.settings.merge_slashes
    answer = explained(
        now.tables, now.view(), method, url.strip(), fields, listener=listener, slashes=slashes, merge=merge
    )
    return {"version": now.version, **answer.to_json()}


def split_header(text: str) -> tuple[str, str]:
    """``Name: value``. Raises ValueError."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise ValueError(f"{text!r} is not NAME: VALUE")
    return name.strip(), value.strip()
