"""From what the plane knows to what the HTTP API gives: no I/O, no decisions."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ctrl import api_models as m
from ctrl import orders
from ctrl.model import Candidate, Contents, Entry, Resource
from fastproxy.resources.problem import Problem, printable
from fastproxy.wire import WHOLE

if TYPE_CHECKING:
    from ctrl.fleet import Fleet, Progress, Proxy
    from ctrl.plane import Outcome, Plane

MAX_PROBLEMS = 1000  # in one answer
MAX_NODES = 100  # of one cluster


def problems(found: Iterable[Problem]) -> list[m.ProblemRow]:
    """The first ones, and a last row that says how many more there are."""
    given = list(found)
    rows = [m.ProblemRow(**p._asdict()) for p in given[:MAX_PROBLEMS]]
    if len(given) > MAX_PROBLEMS:
        more = f"and {len(given) - MAX_PROBLEMS} more problems"
        rows.append(m.ProblemRow(file="", line=0, field="", message=more, kind="", namespace="", name=""))
    return rows


def candidate(open_: Candidate | None) -> m.CandidateRow | None:
    if open_ is None:
        return None
    draft = open_.draft
    return m.CandidateRow(
        version=open_.version,
        share=open_.share / WHOLE,
        owner=open_.owner,
        beat_ms=open_.beat_ms,
        who=draft.who,
        what=draft.what,
        hash=draft.hash,
        message=draft.message,
    )


def head(plane: Plane) -> m.HeadAnswer:
    now = plane.head()
    return m.HeadAnswer(
        server=plane.name,
        epoch=now.epoch,
        version=now.version,
        decided=now.decided,
        hash=now.hash,
        candidate=candidate(plane.candidate()),
        problems=problems(plane.problems),
        proxies=len(plane.fleet),
        store=plane.store.url,
        trouble=plane.trouble,
    )


def resources(contents: Contents, kind: str = "", namespace: str = "", name: str = "") -> m.ResourcesAnswer:
    rows = [
        _resource(r)
        for r in contents
        if kind in ("", r.kind) and namespace in ("", r.namespace) and name in ("", r.name)
    ]
    return m.ResourcesAnswer(version=contents.version, resources=rows)


def _resource(r: Resource) -> m.ResourceRow:
    return m.ResourceRow(
        kind=r.kind,
        namespace=r.namespace,
        name=r.name,
        text=r.text,
        file=r.file,
        line=r.line,
        created_version=r.created[0],
        version=r.version,
    )


def _verbs(rows: Iterable[tuple[str, str, str, str]]) -> list[m.ChangeRow]:
    return [m.ChangeRow(verb=verb, kind=k, namespace=ns, name=n) for verb, k, ns, n in rows]


def change(done: Outcome) -> m.ChangeAnswer:
    return m.ChangeAnswer(
        epoch=done.epoch,
        version=done.version,
        hash=done.hash,
        changes=_verbs(done.verbs),
        diff=[
            m.DiffRow(kind=kind, namespace=namespace, name=name, before=before, after=after)
            for (kind, namespace, name), before, after in done.diff
        ],
        problems=problems(done.problems),
        warnings=problems(done.warnings),
        dry_run=done.dry_run,
        rollout=done.rollout,
    )


def entry(e: Entry) -> m.EntryRow:
    return m.EntryRow(
        version=e.version,
        epoch=e.epoch,
        at_ms=e.at_ms,
        who=e.who,
        what=e.what,
        message=e.message,
        hash=e.hash,
        changes=_verbs(e.verbs),
    )


def lag(plane: Plane, proxy: Proxy) -> int:
    """Versions behind the head; all of them where the proxy is in another epoch."""
    now = plane.head()
    return now.version if proxy.epoch != now.epoch else max(now.version - proxy.version, 0)


def status(plane: Plane) -> m.StatusAnswer:
    now = head(plane)
    return m.StatusAnswer(
        head=now,
        candidate=now.candidate,
        proxies=[_proxy(plane, proxy) for proxy in plane.fleet.proxies()],
        relays=_relays(plane.fleet),
        refused=[
            m.RefusedRow(at_ms=r.at_ms, address=r.address, name=r.name, reason=r.reason)
            for r in reversed(plane.fleet.refused)
        ],
    )


def _relays(fleet: Fleet) -> list[m.RelayRow]:
    below = Counter(name for p in fleet.proxies() if p.present and p.via for name in p.via.split("/"))
    return [
        m.RelayRow(
            node=relay.node,
            state=relay.state,
            address=relay.address,
            via=relay.via,
            epoch=relay.epoch,
            version=relay.held,
            release=relay.release,
            started_ms=relay.started_ms,
            proxies=below[relay.node],
            error=relay.error,
        )
        for _, relay in sorted(fleet.relays.items())
    ]


def _proxy(plane: Plane, proxy: Proxy) -> m.ProxyRow:
    return m.ProxyRow(
        node=proxy.node,
        state=proxy.state,
        address=proxy.address,
        via=proxy.via,
        namespace=proxy.attributes.namespace,
        labels=dict(proxy.attributes.labels),
        mesh=proxy.attributes.mesh,
        epoch=proxy.epoch,
        version=proxy.version,
        held=proxy.held,
        hash=proxy.hash.hex(),
        lag=lag(plane, proxy),
        error=proxy.problem or proxy.error,
        since_ms=proxy.since_ms,
        us=proxy.us,
        admin=proxy.admin,
        release=proxy.release,
        started_ms=proxy.started_ms,
        requests=proxy.requests,
        errors=proxy.errors,
    )


def progress(p: Progress, seen: int, gathering: bool) -> m.ProgressAnswer:
    return m.ProgressAnswer(
        version=p.version,
        total=p.total,
        serving=p.serving,
        prepared=p.prepared,
        rejected=[m.RejectedRow(node=node, error=error) for node, error in p.rejected],
        problems=[m.RejectedRow(node=node, error=error) for node, error in p.problems],
        laggards=p.laggards,
        lost=p.lost,
        p50_us=p.p50_us,
        p99_us=p.p99_us,
        max_us=p.max_us,
        seen=seen,
        gathering=gathering,
    )


def verify(plane: Plane) -> m.VerifyAnswer:
    """Every view that a present proxy is in: the hash that we publish beside those of what they serve.
    Nothing is proven of a proxy that is silent."""
    now = plane.head()
    lost = sorted(proxy.node for proxy in plane.fleet.proxies() if not proxy.present)
    published = {
        view.feed.view: view.feed.hash
        for view in plane.publisher.down.views.values()
        if view.feed and (view.feed.epoch, view.feed.version) == (now.epoch, now.version)
    }
    views: dict[str, m.VerifiedView] = {}
    for proxy in plane.fleet.proxies():
        if not proxy.present:
            continue
        attributes = proxy.attributes
        view = proxy.view
        if view not in views:
            views[view] = m.VerifiedView(
                view=view,
                namespace=attributes.namespace,
                labels=dict(attributes.labels),
                mesh=attributes.mesh,
                hash=published.get(view, b"").hex(),
                proxies=[],
            )
        same = view in published and (proxy.epoch, proxy.version) == (now.epoch, now.version)
        views[view].proxies.append(
            m.VerifiedProxy(
                node=proxy.node,
                version=proxy.version,
                hash=proxy.hash.hex(),
                equal=same and proxy.hash == published[view],
            )
        )
    equal = not lost and all(row.equal for view in views.values() for row in view.proxies)
    return m.VerifyAnswer(
        equal=equal, epoch=now.epoch, version=now.version, views=list(views.values()), lost=lost
    )


def breakers(contents: Contents, fleet: Fleet) -> m.BreakersAnswer:
    """Orders of the head, those in force first; and what the proxies say of their breakers, by name."""
    now_ms = time.time_ns() // 1_000_000
    found = orders.in_force(contents)
    found.sort(key=lambda pair: (pair[1]["until_ms"] < now_ms, pair[0].namespace, pair[0].name))
    clusters: dict[str, m.ClusterRow] = {}
    for node, rows in sorted(fleet.breakers().items()):
        for name, state, order, until_ms, rejected in rows:
            cluster = clusters.setdefault(name, m.ClusterRow(cluster=name))
            _count(cluster, state)
            cluster.ordered += bool(order)
            cluster.rejected += rejected
            if (order or state.lower() != "closed") and len(cluster.nodes) < MAX_NODES:
                row = m.BreakerNode(
                    node=node, breaker=name, state=state, order=order, until_ms=until_ms, rejected=rejected
                )
                cluster.nodes.append(row)
    return m.BreakersAnswer(
        orders=[_order(resource, spec) for resource, spec in found],
        clusters=[clusters[name] for name in sorted(clusters)],
    )


def _count(cluster: m.ClusterRow, state: str) -> None:
    word = state.lower().replace("-", "_")
    if word == "open":
        cluster.open += 1
    elif word == "half_open":
        cluster.half_open += 1
    else:
        cluster.closed += 1


def _order(resource: Resource, spec: dict[str, Any]) -> m.OrderRow:
    port = spec.get("port")
    return m.OrderRow(
        name=resource.name,
        namespace=resource.namespace,
        host=_text(spec, "host"),
        subset=_text(spec, "subset"),
        port=port if isinstance(port, int) else 0,
        endpoint=_text(spec, "endpoint"),
        state=_text(spec, "state"),
        until_ms=spec["until_ms"],
        reason=_text(spec, "reason"),
        version=resource.version,
    )


def _text(spec: dict[str, Any], key: str) -> str:
    return printable(str(spec.get(key, "")), 500)
