"""Series and their text: sums equal a model in Python, the text parses, wrong rings change nothing."""

from __future__ import annotations

import bisect
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fastproxy import _journal, _telemetry
from fastproxy.agent import metrics
from fastproxy.agent.telemetry import Telemetry
from fastproxy.errors import TABLE, Kind

ROOT = Path(__file__).resolve().parents[2]
CLUSTERS = {0: "outbound|80||reviews.bookinfo.svc.cluster.local", 7: "outbound|80|v2|catalog"}


class Rig:
    """Telemetry with one ring, drained by hand."""

    def __init__(self, size: int = 1 << 20, **options: Any) -> None:
        self.telemetry = Telemetry("edge", **options)
        fd = _journal.create(size)
        self.writer = _journal.Writer(fd)
        self.telemetry.attach(0, fd)
        os.close(fd)

    def drain(self) -> int:
        return self.telemetry._drain.step()

    def samples(self) -> dict[str, list[tuple[dict[str, str], float]]]:
        out: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(self.telemetry.expose().decode()):
            for sample in family.samples:
                out.setdefault(sample.name, []).append((sample.labels, sample.value))
        return out


@pytest.fixture
def rig() -> Iterator[Rig]:
    yield Rig()


def test_istio_labels_of_a_subset_and_of_kubernetes_names(rig: Rig) -> None:
    rig.telemetry.names(3, {}, CLUSTERS, {}, {0: "mesh", 1: "0.0.0.0:9000"})
    rig.writer.append(plan_version=3, cluster=0, listener=0)
    rig.writer.append(plan_version=3, cluster=7, listener=1, status=503, error=int(Kind.NO_HEALTHY))
    rig.drain()
    rows = {labels["destination_service"]: labels for labels, _ in rig.samples()["istio_requests_total"]}
    reviews, catalog = rows["reviews.bookinfo.svc.cluster.local"], rows["catalog"]
    assert reviews["destination_service_name"] == "reviews"
    assert reviews["destination_service_namespace"] == "bookinfo"
    assert (reviews["response_code"], reviews["response_flags"], reviews["listener"]) == ("200", "-", "mesh")
    assert catalog["destination_service_name"] == "catalog"
    assert (catalog["destination_version"], reviews["destination_version"]) == ("v2", "unknown")
    assert (catalog["response_code"], catalog["response_flags"]) == ("503", "UH")
    assert catalog["listener"] == "0.0.0.0:9000"
    assert {r["reporter"] for r in rows.values()} == {"source"}
    assert {r["source_workload"] for r in rows.values()} == {"edge"}


@pytest.mark.parametrize("kind", list(Kind))
def test_the_flag_is_the_tables(kind: Kind, rig: Rig) -> None:
    rig.writer.append(error=int(kind), status=TABLE[kind].status)
    rig.drain()
    [(labels, value)] = rig.samples()["istio_requests_total"]
    assert (labels["response_flags"], labels["response_code"], value) == (
        TABLE[kind].flag,
        str(TABLE[kind].status),
        1,
    )


sizes = st.one_of(
    st.integers(0, 20), st.sampled_from([int(b) for b in _telemetry.BOUNDS]), st.integers(0, 1 << 40)
)
times = st.one_of(
    st.sampled_from([int(b * 1000) + d for b in _telemetry.BOUNDS for d in (-1, 0, 1)]),
    st.integers(0, 1 << 32),
).map(lambda us: min(us, (1 << 32) - 1))
exchanges = st.fixed_dictionaries(
    {
        "cluster": st.sampled_from([0, 7, 3, 0xFFFFFFFF]),
        "status": st.sampled_from([0, 200, 204, 503]),
        "error": st.sampled_from([0, 50, 64, 65, 200]),
        "duration_us": times,
        "bytes_received": sizes,
        "bytes_sent": sizes,
    }
)


@settings(max_examples=50, deadline=None)
@given(st.lists(exchanges, max_size=30))
def test_histograms_equal_a_model(rows: list[dict[str, int]]) -> None:
    rig = Rig()
    rig.telemetry.names(1, {}, CLUSTERS, {}, {0: "mesh"})
    model: dict[tuple[str, str, str], list[tuple[float, int, int]]] = {}
    for row in rows:
        rig.writer.append(plan_version=1, **row)
        host = CLUSTERS.get(row["cluster"], "unknown").rpartition("|")[2]
        flag = TABLE[Kind(row["error"])].flag if row["error"] in TABLE else "-"
        model.setdefault((host, str(row["status"]), flag), []).append(
            (row["duration_us"] / 1000, row["bytes_received"], row["bytes_sent"])
        )
    assert rig.drain() == len(rows)
    found = rig.samples()

    def key(labels: dict[str, str]) -> tuple[str, str, str]:
        return labels["destination_service"], labels["response_code"], labels["response_flags"]

    totals = {key(labels): value for labels, value in found.get("istio_requests_total", [])}
    assert totals == {k: len(v) for k, v in model.items()}
    names = ("istio_request_duration_milliseconds", "istio_request_bytes", "istio_response_bytes")
    for column, name in enumerate(names):
        for labels, value in found.get(f"{name}_sum", []):
            assert value == pytest.approx(sum(v[column] for v in model[key(labels)]), rel=1e-12)
        for labels, value in found.get(f"{name}_count", []):
            assert value == len(model[key(labels)])
        buckets = found.get(f"{name}_bucket", [])
        assert len(buckets) == len(model) * (len(_telemetry.BOUNDS) + 1)
        for labels, value in buckets:
            ordered = sorted(v[column] for v in model[key(labels)])
            assert value == bisect.bisect_right(ordered, float(labels["le"])), labels


def test_a_slot_means_what_it_meant_to_the_records_version(rig: Rig) -> None:
    names = rig.telemetry.names
    names(10, {}, {0: "a", 1: "keep"}, {}, {0: "mesh"})
    names(11, {}, {1: "keep"}, {}, {0: "mesh"})
    names(20, {}, {0: "b", 1: "keep"}, {}, {0: "mesh"})
    names(30, {}, {0: "c", 1: "keep"}, {}, {0: "mesh"})
    for version in (10, 11, 19, 20, 29, 30, 31):
        rig.writer.append(plan_version=version, cluster=0)
    rig.writer.append(plan_version=12, cluster=1)
    rig.drain()
    counts: dict[str, float] = {}
    for labels, value in rig.samples()["istio_requests_total"]:
        counts[labels["destination_service"]] = counts.get(labels["destination_service"], 0) + value
    # Two generations are kept: "a" came three names ago.
    assert counts == {"unknown": 3, "b": 2, "c": 2, "keep": 1}


def test_a_new_epoch_starts_with_lower_versions(rig: Rig) -> None:
    rig.telemetry.names(100, {}, {0: "old"}, {}, {0: "mesh"})
    rig.telemetry.names(1, {}, {0: "new"}, {}, {0: "edge"})
    rig.writer.append(plan_version=1, cluster=0)
    rig.drain()
    [(labels, _)] = rig.samples()["istio_requests_total"]
    assert (labels["destination_service"], labels["listener"]) == ("new", "edge")


def test_listeners_of_versions_long_gone_are_unknown(rig: Rig) -> None:
    for version in range(1, 10):
        rig.telemetry.names(version, {}, {}, {}, {0: f"listener-{version}"})
    for version in range(1, 10):
        rig.writer.append(plan_version=version)
    rig.drain()
    seen = sorted(labels["listener"] for labels, _ in rig.samples()["istio_requests_total"])
    assert seen == [f"listener-{v}" for v in range(2, 10)] + ["unknown"]


def test_names_may_change_for_ever_without_growing(rig: Rig) -> None:
    for version in range(2000):
        rig.telemetry.names(version, {}, {0: f"c{version}"}, {0: f"e{version}"}, {})
    assert len(rig.telemetry._drain.clusters.names) <= 4
    assert len(rig.telemetry._drain.endpoints.names) <= 4


def test_label_sets_beyond_the_limit_are_counted_together() -> None:
    rig = Rig(limit=10)
    for status in range(100, 150):
        rig.writer.append(status=status, duration_us=1000)
    rig.drain()
    found = rig.samples()
    codes = {labels["response_code"]: value for labels, value in found["istio_requests_total"]}
    assert len(codes) == 11
    assert codes["overflow"] == 40
    assert sum(codes.values()) == 50
    assert found["fastproxy_metrics_overflow_total"] == [({}, 40)]
    assert sum(v for _, v in found["istio_request_duration_milliseconds_sum"]) == 50


def test_many_series_grow_the_table() -> None:
    rig = Rig(limit=4000)
    for round_ in range(2):
        for status in range(100, 900):
            rig.writer.append(status=status, bytes_sent=round_)
        rig.drain()
    overflowed, series = rig.telemetry._drain.series()
    assert overflowed == 0
    assert {row[2]: (sum(row[7]), row[6]) for row in series[1:]} == dict.fromkeys(range(100, 900), (2, 1))


def test_hostile_names_parse_back(rig: Rig) -> None:
    name = 'we"ird\\na\nme é ☃ \ud800'
    rig.telemetry.names(1, {}, {0: name}, {}, {0: name})
    rig.writer.append(plan_version=1, cluster=0)
    rig.drain()
    [(labels, _)] = rig.samples()["istio_requests_total"]
    assert labels["listener"] == labels["destination_service"] == name.replace("\ud800", "?")


class Live:
    """A small live memory: two clusters' and two endpoints' words in one worker."""

    def gauges(self, worker: int) -> dict[str, int]:
        return {
            "downstream_connections": 3 + worker,
            "accepted": 9,
            "journal_dropped": 5,
            "plan_version": 42,
            "plan_swaps": 2,
            "plan_swap_us": 1500,
            "plan_swap_us_max": 2_000_000,
        }

    def cluster(self, slot: int) -> dict[str, int]:
        return {"active": 2, "pick": 8, "requests": 21, "errors": 4} if slot == 7 else {"active": 0}

    def endpoint(self, slot: int) -> dict[str, int]:
        return {"health": slot, "active": 4, "connections": 5, "requests": 6, "errors": 7}


def test_levels_of_workers_and_pools(rig: Rig) -> None:
    rig.telemetry.live = Live()
    fd = _journal.create(4096)
    rig.telemetry.attach(1, fd)
    os.close(fd)
    rig.telemetry.names(1, {}, CLUSTERS, {0: "127.0.0.1:9001", 1: "unix:///tmp/a"}, {})
    rig.telemetry.running(0, os.getpid())
    found = rig.samples()
    assert found["fastproxy_worker_downstream_connections"] == [({"worker": "0"}, 3), ({"worker": "1"}, 4)]
    assert found["fastproxy_worker_accepted_total"] == [({"worker": "0"}, 9), ({"worker": "1"}, 9)]
    assert found["fastproxy_worker_plan_version"][0] == ({"worker": "0"}, 42)
    assert found["fastproxy_plan_swap_seconds"][0] == ({"worker": "0"}, 0.0015)
    assert found["fastproxy_plan_swap_max_seconds"][0] == ({"worker": "0"}, 2)
    assert found["fastproxy_cluster_requests_total"] == [({"cluster": CLUSTERS[7]}, 21)]
    assert found["fastproxy_cluster_active_requests"] == [({"cluster": CLUSTERS[7]}, 2)]
    healthy = {labels["endpoint"]: value for labels, value in found["fastproxy_endpoint_healthy"]}
    assert healthy == {"127.0.0.1:9001": 1, "unix:///tmp/a": 0}
    assert not [name for name in found if "worker_plan_swap_us" in name]
    processes = {labels["process"] for labels, _ in found["fastproxy_process_resident_memory_bytes"]}
    assert processes == {"agent", "worker 0"}


def test_every_family_has_help_and_type_once_before_its_samples(rig: Rig) -> None:
    rig.telemetry.live = Live()
    rig.writer.append()
    rig.drain()
    lines = rig.telemetry.expose().decode().splitlines()
    typed = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    helped = [line.split()[2] for line in lines if line.startswith("# HELP")]
    assert typed == helped
    assert len(set(typed)) == len(typed)
    current = ""
    for line in lines:
        if line.startswith("#"):
            current = line.split()[2]
        else:
            assert line.startswith(current), line
    counters = [line.split()[2] for line in lines if line.startswith("# TYPE") and line.endswith(" counter")]
    assert all(name.endswith("_total") for name in counters)


def test_lost_and_corrupt_records_show(rig: Rig) -> None:
    fd = _journal.create(4096)
    rig.telemetry.attach(5, fd)
    _journal.Writer(fd).repeat(100)
    rig.drain()
    os.pwrite(fd, b"\xff" * 8, 64)  # the head
    os.close(fd)
    rig.drain()
    found = rig.samples()
    fits = 4096 // 160
    assert found["fastproxy_journal_records_total"] == [({"worker": "0"}, 0), ({"worker": "5"}, fits)]
    assert found["fastproxy_journal_dropped_records_total"] == [
        ({"worker": "0"}, 0),
        ({"worker": "5"}, 100 - fits),
    ]
    assert found["fastproxy_journal_corrupt_total"] == [({"worker": "0"}, 0), ({"worker": "5"}, 1)]


def test_a_dead_workers_ring_is_read_to_the_end_and_its_counts_stay(rig: Rig) -> None:
    for _ in range(3):
        rig.writer.append()
    rig.telemetry.detach(0)
    before = mappings()
    rig.drain()
    rig.drain()
    assert mappings() == before - 1
    fd = _journal.create(4096)
    rig.telemetry.attach(0, fd)
    _journal.Writer(fd).append()
    os.close(fd)
    rig.drain()
    found = rig.samples()
    assert found["fastproxy_journal_records_total"] == [({"worker": "0"}, 4)]
    assert found["istio_requests_total"][0][1] == 4


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("fastproxy-journal")


def test_rings_come_and_go_many_times() -> None:
    telemetry = Telemetry()
    before = mappings()
    for number in range(600):
        fd = _journal.create(4096)
        _journal.Writer(fd).append()
        telemetry.attach(number % 3, fd)
        os.close(fd)
        telemetry.detach(number % 3)
        telemetry._drain.step()
        telemetry._drain.step()
    assert mappings() == before
    assert sum(row[0] for row in telemetry._drain.counts().values()) == 600


def test_what_is_no_ring_is_refused(rig: Rig) -> None:
    fd = os.memfd_create("none")
    os.ftruncate(fd, 8192)
    with pytest.raises(ValueError, match="not a journal ring"):
        rig.telemetry.attach(1, fd)
    os.close(fd)


WRITE = """
import sys, time
from fastproxy import _journal
writer = _journal.Writer(int(sys.argv[1]))
print(sum(writer.repeat(500, 20) + (time.sleep(0.001) or 0) for _ in range(400)))
"""


def test_the_thread_drains_a_busy_worker_while_others_read_and_rename() -> None:
    telemetry = Telemetry()
    fd = _journal.create(1 << 16)
    telemetry.attach(0, fd)
    telemetry.start()
    child = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(fd)], pass_fds=[fd], cwd=ROOT, stdout=subprocess.PIPE
    )
    os.close(fd)
    version = 0
    while child.poll() is None:
        version += 1
        telemetry.names(version, {}, {0: f"c{version % 5}"}, {}, {0: "mesh"})
        telemetry.expose()
        time.sleep(0.002)
    out, _ = child.communicate()
    telemetry.stop()
    kept = int(out)
    records, dropped, corrupt = telemetry._drain.counts()[0]
    assert (records, corrupt) == (kept, 0)
    assert records + dropped == 200_000
    assert not any("journal" in thread.name for thread in threading.enumerate())


def test_an_idle_drain_costs_next_to_nothing() -> None:
    telemetry = Telemetry()
    fd = _journal.create(1 << 16)
    telemetry.attach(0, fd)
    os.close(fd)
    telemetry.start()
    time.sleep(1.2)  # past the second after which it naps longer
    before = time.process_time()
    time.sleep(2)
    used = time.process_time() - before
    telemetry.stop()
    assert used < 2 * 0.005, used


def test_stop_takes_what_is_left() -> None:
    rig = Rig()
    rig.telemetry.start()
    for _ in range(1000):
        rig.writer.append()
    rig.telemetry.stop()
    assert rig.telemetry._drain.counts()[0][0] == 1000


def test_escape_of_label_values() -> None:
    assert metrics.escape('a\\b"c\nd') == 'a\\\\b\\"c\\nd'
