"""The text of ``/metrics``: Prometheus format 0.0.4.

Written here because prometheus-client would cost each agent 1.3 MB of memory. Names and labels of the
``istio_*`` families are Istio's standard metrics; a label that needs Kubernetes says ``unknown``, as Istio
does. Sizes are of bodies. ``listener`` is ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fastproxy import errors
from fastproxy._telemetry import BOUNDS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Words of Gauges that only grow; the others are levels.
COUNTERS = frozenset(
    (
        "accepted",
        "requests",
        "retries",
        "upstream_connects",
        "upstream_reuses",
        "descriptors_exhausted",
        "plan_swaps",
        "invariant_failures",
        "ticks",
        "rounds",
    )
)
# Words of Gauges that have a family of their own.
APART = frozenset(("plan_version", "plan_swap_us", "plan_swap_us_max", "journal_dropped"))
HELP = {
    "downstream_connections": "Connections from clients, open now.",
    "downstream_idle": "Connections from clients without a running request.",
    "upstream_connections": "Connections to endpoints, open now.",
    "upstream_idle": "Connections to endpoints waiting in a pool.",
    "exchanges": "Requests running now.",
    "chunks": "Buffers in use now.",
    "chunk_bytes": "Bytes of the buffers in use now.",
    "plans": "Plans mapped now.",
    "pipes": "Splice pipes in use now.",
    "accepted": "Connections accepted.",
    "requests": "Requests begun.",
    "retries": "Requests sent again after a stale pooled connection.",
    "upstream_connects": "Connections made to endpoints.",
    "upstream_reuses": "Requests sent on a pooled connection.",
    "descriptors_exhausted": "Times that accept ran out of descriptors.",
    "plan_swaps": "Changes of plan.",
    "invariant_failures": "Times that what cannot happen happened.",
    "ticks": "Ticks of the event loop.",
    "rounds": "Rounds of epoll_wait.",
}


class Live(Protocol):
    """What is read from live memory: words of a worker, of a cluster slot in it, of an endpoint slot in
    all."""

    def gauges(self, worker: int) -> dict[str, int]: ...
    def cluster(self, slot: int) -> dict[str, int]: ...
    def endpoint(self, slot: int) -> dict[str, int]: ...


class Worker(NamedTuple):
    """One worker's journal, as counted by the drain."""

    number: int
    records: int
    dropped: int
    corrupt: int


def escape(value: str) -> str:
    """A label value: backslash, quote and line feed escaped, unpaired surrogates replaced."""
    value = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return value if value.isascii() else value.encode("utf-8", "replace").decode()


def labels(pairs: Mapping[str, object]) -> str:
    """``name="value",…`` without the braces."""
    return ",".join(f'{name}="{escape(str(value))}"' for name, value in pairs.items())


def number(value: float) -> str:
    """A sample value; whole numbers without a fraction."""
    return str(int(value)) if value == int(value) else repr(value)


class Text:
    """The families in the making. A family begins with its HELP and TYPE lines and holds all its samples."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def family(self, name: str, kind: str, meaning: str) -> None:
        meaning = meaning.replace("\\", r"\\").replace("\n", r"\n")
        self._lines.append(f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n")

    def sample(self, name: str, pairs: str, value: float) -> None:
        self._lines.append(f"{name}{{{pairs}}} {number(value)}\n" if pairs else f"{name} {number(value)}\n")

    def simple(self, name: str, kind: str, meaning: str, samples: Iterable[tuple[str, float]]) -> None:
        """A counter or gauge; without samples there is no family."""
        samples = list(samples)
        if samples:
            self.family(name, kind, meaning)
            for pairs, value in samples:
                self.sample(name, pairs, value)

    def bytes(self) -> bytes:
        return "".join(self._lines).encode()


def istio_labels(cluster: str | None, listener: str, status: int, kind: int, node: str) -> dict[str, str]:
    """Istio's labels of one series.

    ``cluster`` is Envoy's name ``outbound|port|subset|host``; None is the overflow series: all say
    ``overflow``.
    """
    flags = errors.TABLE[errors.Kind(kind)].flag if kind in errors.TABLE else "-"
    direction, subset, host = "outbound", "", cluster or "unknown"
    if host.count("|") >= 3:
        direction, _, subset, host = host.split("|", 3)
    host = host or "unknown"
    name, namespace = host, "unknown"
    parts = host.split(".")
    if len(parts) > 2 and parts[2] == "svc":
        name, namespace = parts[0], parts[1]
    inbound = direction == "inbound"
    here, there = (node, "unknown") if inbound else ("unknown", node)
    out = {
        "reporter": "destination" if inbound else "source",
        "source_workload": there,
        "source_workload_namespace": "unknown",
        "source_principal": "unknown",
        "source_app": there,
        "source_version": "unknown",
        "source_cluster": "unknown",
        "source_canonical_service": there,
        "source_canonical_revision": "latest" if not inbound else "unknown",
        "destination_workload": here,
        "destination_workload_namespace": namespace,
        "destination_principal": "unknown",
        "destination_app": name,
        "destination_version": subset or "unknown",
        "destination_service": host,
        "destination_service_name": name,
        "destination_service_namespace": namespace,
        "destination_cluster": "unknown",
        "destination_canonical_service": name,
        "destination_canonical_revision": subset or "latest",
        "request_protocol": "http",
        "response_code": str(status),
        "response_flags": flags,
        "connection_security_policy": "none" if inbound else "unknown",
        "listener": listener,
    }
    return dict.fromkeys(out, "overflow") if cluster is None else out


def merge(series: Iterable[tuple[Any, ...]], node: str) -> dict[str, list[Any]]:
    """Series by the text of their labels: [µs, request bytes, response bytes, buckets of each].

    Two series of one label set are added: a cluster that came back in another slot, two kinds with one flag.
    """
    merged: dict[str, list[Any]] = {}
    for cluster, listener, status, kind, *sums in series:
        if cluster is None and not sum(sums[3]):
            continue
        key = labels(istio_labels(cluster, listener, status, kind, node))
        old = merged.get(key)
        if old is not None:
            sums = [old[i] + sums[i] for i in range(3)] + [
                tuple(map(sum, zip(old[i], sums[i], strict=True))) for i in range(3, 6)
            ]
        merged[key] = list(sums)
    return merged


def istio(text: Text, series: Iterable[tuple[Any, ...]], node: str) -> None:
    """``istio_requests_total`` and the three histograms."""
    merged = merge(series, node)
    text.simple(
        "istio_requests_total",
        "counter",
        "Requests, by Istio's labels.",
        ((k, sum(s[3])) for k, s in merged.items()),
    )
    families = (
        ("istio_request_duration_milliseconds", "Head of the request begun to last byte answered.", 0, 1000),
        ("istio_request_bytes", "Bytes of request bodies.", 1, 1),
        ("istio_response_bytes", "Bytes of response bodies.", 2, 1),
    )
    bounds = [*map(number, BOUNDS), "+Inf"]
    for name, meaning, column, unit in families:
        if merged:
            text.family(name, "histogram", meaning)
        for key, sums in merged.items():
            below = 0
            for bound, count in zip(bounds, sums[3 + column], strict=True):
                below += count
                text.sample(f"{name}_bucket", f'{key},le="{bound}"', below)
            text.sample(f"{name}_sum", key, sums[column] / unit)
            text.sample(f"{name}_count", key, below)


def of_workers(text: Text, workers: Sequence[int], live: Live) -> None:
    """``fastproxy_worker_*``, and what plans cost."""
    rows = [(f'worker="{worker}"', live.gauges(worker)) for worker in workers]
    for word in rows[0][1] if rows else ():
        if word in APART or word.startswith("reserved"):
            continue
        counter = word in COUNTERS
        text.simple(
            f"fastproxy_worker_{word}{'_total' if counter else ''}",
            "counter" if counter else "gauge",
            HELP.get(word, word.replace("_", " ").capitalize() + "."),
            [(key, row[word]) for key, row in rows],
        )
    families = (
        ("fastproxy_worker_plan_version", "Version of the plan that the worker serves.", "plan_version", 1),
        ("fastproxy_plan_swap_seconds", "Time of the last change of plan.", "plan_swap_us", 1_000_000),
        ("fastproxy_plan_swap_max_seconds", "Longest change of plan so far.", "plan_swap_us_max", 1_000_000),
    )
    for name, meaning, word, unit in families:
        text.simple(name, "gauge", meaning, [(key, row[word] / unit) for key, row in rows if word in row])


def of_journals(text: Text, workers: Sequence[Worker], overflowed: int, log: tuple[int, int, int]) -> None:
    """What was read, and what was lost on the way."""
    families = (
        ("fastproxy_journal_records_total", "Exchanges read from the journal.", 1),
        ("fastproxy_journal_dropped_records_total", "Exchanges lost because the journal was full.", 2),
        ("fastproxy_journal_corrupt_total", "Times that a journal held nonsense and was skipped.", 3),
    )
    for name, meaning, column in families:
        text.simple(name, "counter", meaning, [(f'worker="{w.number}"', w[column]) for w in workers])
    once = (
        ("fastproxy_metrics_overflow_total", "Exchanges counted in the overflow series.", overflowed),
        ("fastproxy_access_log_lines_total", "Lines made for the access log.", log[0]),
        (
            "fastproxy_access_log_dropped_lines_total",
            "Lines of the access log that could not be written.",
            log[1],
        ),
        ("fastproxy_access_log_write_errors_total", "Failed writes of the access log.", log[2]),
    )
    for name, meaning, value in once:
        text.simple(name, "counter", meaning, [("", value)])


def of_slots(text: Text, live: Live, clusters: dict[int, str], endpoints: dict[int, str]) -> None:
    """``fastproxy_cluster_*`` of clusters that were ever asked, ``fastproxy_endpoint_*`` of all endpoints."""
    totals: dict[str, dict[str, int]] = {}
    for slot, name in clusters.items():
        row = live.cluster(slot)
        if any(row.values()):
            totals[f'cluster="{escape(name)}"'] = row
    states = {
        f'endpoint="{escape(name)}",slot="{slot}"': live.endpoint(slot) for slot, name in endpoints.items()
    }
    words = (
        ("active", "gauge", "Requests running now."),
        ("requests", "counter", "Requests sent."),
        ("errors", "counter", "Requests that failed by the upstream's fault."),
    )
    for noun, rows in (("cluster", totals), ("endpoint", states)):
        for word, kind, meaning in words:
            name = f"fastproxy_{noun}_{'active_requests' if word == 'active' else word + '_total'}"
            text.simple(name, kind, meaning, [(key, row.get(word, 0)) for key, row in rows.items()])
    text.simple(
        "fastproxy_endpoint_connections",
        "gauge",
        "Connections open now.",
        [(key, row.get("connections", 0)) for key, row in states.items()],
    )
    text.simple(
        "fastproxy_endpoint_healthy",
        "gauge",
        "1: requests are sent to it.",
        [(key, not row.get("health", 0)) for key, row in states.items()],
    )


def processes(pids: Mapping[str, int]) -> Iterator[tuple[str, float, int]]:
    """(name, CPU seconds, resident bytes) of each process that is still there."""
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    for name, pid in pids.items():
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                words = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        yield name, (int(words[11]) + int(words[12])) / tick, int(words[21]) * page


def of_processes(text: Text, pids: Mapping[str, int]) -> None:
    """CPU time and memory, as the kernel counts them."""
    rows = list(processes(pids))
    cpu = "fastproxy_process_cpu_seconds_total"
    text.simple(cpu, "counter", "CPU time, user and system.", [(f'process="{n}"', c) for n, c, _ in rows])
    rss = "fastproxy_process_resident_memory_bytes"
    text.simple(rss, "gauge", "Memory resident now.", [(f'process="{n}"', r) for n, _, r in rows])
