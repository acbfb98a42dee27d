"""GET /metrics of the control plane."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ctrl.api_shapes import lag
from fastproxy.sync import State

if TYPE_CHECKING:
    from ctrl.plane import Plane

CONTENT_TYPE = CONTENT_TYPE_LATEST
NAME = "fastproxy_control"


class Metrics(Collector):
    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        plane, counts = self._plane, self._plane.counts
        head, candidate = plane.head(), plane.candidate()
        proxies = plane.fleet.proxies()
        states = Counter({state.value: 0 for state in State}) + Counter()
        states.update(proxy.state for proxy in proxies)
        by_state = GaugeMetricFamily(f"{NAME}_proxies", "Proxies by state.", labels=["state"])
        for state in sorted({*states, *(s.value for s in State)}):
            by_state.add_metric([state], states[state])
        yield by_state
        behind = max((lag(plane, p) for p in proxies if p.present), default=0)
        ended = CounterMetricFamily(
            f"{NAME}_rollouts", "Rollouts of this server by their end.", labels=["end"]
        )
        for end, count in counts.rollouts.items():
            ended.add_metric([end], count)
        yield ended
        for name, text, value in (
            ("epoch", "Epoch of the head.", head.epoch),
            ("version", "Version of the head.", head.version),
            (
                "candidate_version",
                "Version that is being rolled out, 0: none.",
                candidate.version if candidate else 0,
            ),
            ("lag_versions", "Versions that the furthest proxy is behind.", behind),
            ("resources", "Documents of the head.", len(plane.contents)),
            ("problems", "Problems of documents of the head that are left out.", len(plane.problems)),
            ("store_up", "Whether the store answered last time.", int(not plane.trouble)),
            ("publish_last_seconds", "Of the last change: made and sent.", counts.last_publish_seconds),
        ):
            yield GaugeMetricFamily(f"{NAME}_{name}", text, value=value)
        for name, text, value in (
            ("applied", "Versions made by this server.", counts.applied),
            ("conflicts", "Writes that another server was quicker than.", counts.conflicts),
            ("store_errors", "Times the store could not be reached or written.", counts.store_errors),
            ("publishes", "Changes published.", counts.publishes),
            ("publish_seconds", "Seconds spent on making and sending changes.", counts.publish_seconds),
        ):
            yield CounterMetricFamily(f"{NAME}_{name}", text, value=value)
