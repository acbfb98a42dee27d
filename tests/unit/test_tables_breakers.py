"""Circuit breakers' policies and orders to the table ``breakers``, and what is advised about them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgpack
import pytest

from fastproxy.agent.shape import ShapeError, check_shape
from fastproxy.resources import Problem, load_texts, settle
from fastproxy.resources.__main__ import answer
from fastproxy.resources.advice import advise
from fastproxy.tables import Tables

SERVICE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: catalog}
spec:
  hosts: [catalog, other]
  ports: [{number: 80, name: http}, {number: 81, name: admin}]
  resolution: STATIC
  endpoints: [{address: 127.0.0.1}]
---
apiVersion: fastproxy/v1
kind: DestinationRule
metadata: {name: catalog}
spec:
  host: catalog
  trafficPolicy: %s
  subsets: [{name: v1}, {name: v2, trafficPolicy: %s}]
---
"""
UNTIL = 1_924_991_999_000  # 2030-12-31T23:59:59Z
DEFAULTS = {
    "rolling_window": 10_000,
    "request_volume_threshold": 20,
    "error_threshold_percentage": 50,
    "slow_call_duration": 1000,
    "slow_call_threshold_percentage": 100,
    "sleep_window": 5000,
    "half_open_requests": 1,
    "fleet": "observe",
}


def service(policy: str = "{}", subset: str = "{}") -> str:
    return SERVICE % (policy, subset)


def order(name: str, fields: str = "", state: str = "open") -> str:
    spec = f"{{host: catalog, state: {state}, until: 2030-12-31T23:59:59Z{fields}}}"
    return f"apiVersion: fastproxy/v1\nkind: BreakerOrder\nmetadata: {{name: {name}}}\nspec: {spec}\n---\n"


def compiled(text: str) -> tuple[Tables, list[Problem]]:
    loaded = load_texts([("a.yaml", text.encode())])
    assert loaded.problems == []
    tables, documents, problems = settle(loaded.documents)
    assert problems == []
    return tables, advise(documents, tables)


def breakers(text: str) -> dict[str, Any]:
    tables, _ = compiled(text)
    # what is made here is what proxies take
    assert check_shape(msgpack.unpackb(msgpack.packb(tables)))["breakers"] == tables["breakers"]
    return dict(tables["breakers"])


def key(port: int, subset: str = "") -> str:
    return f"outbound|{port}|{subset}|catalog"


EVERY = [key(port, subset) for port in (80, 81) for subset in ("", "v1", "v2")]


def test_no_policy_and_no_order_is_no_row() -> None:
    assert breakers(service()) == {}


def test_an_empty_policy_has_the_defaults_of_hystrix_and_subsets_have_it_too() -> None:
    assert breakers(service("{circuitBreaker: {}}")) == {k: {"policy": DEFAULTS} for k in sorted(EVERY)}


def test_a_policy_of_a_subset_replaces_that_of_the_rule() -> None:
    rows = breakers(service("{circuitBreaker: {sleepWindow: 7s}}", "{circuitBreaker: {rollingWindow: 1m}}"))
    assert rows[key(80, "v1")]["policy"] == DEFAULTS | {"sleep_window": 7000}
    assert rows[key(80, "v2")]["policy"] == DEFAULTS | {"rolling_window": 60_000}


def test_every_field_of_a_policy() -> None:
    given = (
        "{circuitBreaker: {rollingWindow: 1s, requestVolumeThreshold: 2, errorThresholdPercentage: 3,"
        " slowCallDuration: 4ms, slowCallThresholdPercentage: 5, sleepWindow: 6ms, halfOpenRequests: 7,"
        " fleet: 'on'}}"
    )
    row = breakers(service(given))[key(81)]["policy"]
    assert list(row.values()) == [1000, 2, 3, 4, 5, 6, 7, "on"]
    assert list(row) == list(DEFAULTS)


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        ("", EVERY),
        (", port: 81", [key(81), key(81, "v1"), key(81, "v2")]),
        (", subset: v1", [key(80, "v1"), key(81, "v1")]),
        (", subset: v2, port: 80", [key(80, "v2")]),
    ],
)
def test_which_clusters_an_order_means(fields: str, keys: list[str]) -> None:
    want = {"state": "open", "until": UNTIL, "for": 2**31 - 1}
    assert breakers(service() + order("o", fields)) == {k: {"order": want} for k in sorted(keys)}


def test_a_host_is_looked_up_as_in_a_route() -> None:
    text = service() + order("o").replace("host: catalog", "host: catalog.default.svc.cluster.local")
    assert sorted(breakers(text)) == sorted(EVERY)


def test_an_order_beside_a_policy() -> None:
    text = service("{circuitBreaker: {}}") + order("o", ", port: 80, for: 10m, reason: on fire", "closed")
    rows = breakers(text)
    want = {"state": "closed", "until": UNTIL, "for": 600_000, "reason": "on fire"}
    assert rows[key(80)] == {"policy": DEFAULTS, "order": want}
    assert rows[key(81)] == {"policy": DEFAULTS}


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("127.0.0.1:9001", "127.0.0.1:9001"),
        ("'[2001:DB8::1]:80'", "[2001:db8::1]:80"),
        ("unix:///run/c.sock", "unix:///run/c.sock"),
    ],
)
def test_an_order_for_an_endpoint(given: str, name: str) -> None:
    rows = breakers(service() + order("o", f", port: 80, subset: v1, endpoint: {given}"))
    assert list(rows) == [key(80, "v1")]
    assert list(rows[key(80, "v1")]) == ["endpoints"]
    assert rows[key(80, "v1")]["endpoints"][name]["state"] == "open"


def test_the_later_of_two_orders_stands_and_the_earlier_is_told_of() -> None:
    text = service() + order("first") + order("second", ", port: 81", "closed") + order("x", ", port: 81")
    rows = breakers(text.replace("name: x", "name: third"))
    assert [rows[k]["order"]["state"] for k in (key(80), key(81))] == ["open", "open"]
    text = service() + order("first") + order("second", ", port: 81", "closed")
    tables, advice = compiled(text)
    assert tables["breakers"][key(81)]["order"]["state"] == "closed"
    assert [(p.name, p.field, p.message) for p in advice] == [
        ("first", "spec.state", "BreakerOrder default/second is later and counts for what both name")
    ]


def test_orders_for_a_cluster_and_for_its_endpoint_do_not_meet() -> None:
    text = service() + order("all", ", port: 80, subset: v1")
    text += order("one", ", port: 80, subset: v1, endpoint: 127.0.0.1:80", "closed")
    tables, advice = compiled(text)
    row = tables["breakers"][key(80, "v1")]
    assert (row["order"]["state"], row["endpoints"]["127.0.0.1:80"]["state"]) == ("open", "closed")
    assert advice == []
    # the same bytes, whichever was written first
    first, rest = text.split("---\napiVersion: fastproxy/v1\nkind: BreakerOrder", 1)
    one, other = rest.split("---\n")[:2]
    swapped = f"{first}---\n{other}---\napiVersion: fastproxy/v1\nkind: BreakerOrder{one}---\n"
    assert msgpack.packb(compiled(swapped)[0]) == msgpack.packb(tables)


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        (", subset: v3", "subset", "no DestinationRule gives catalog a subset v3"),
        (", port: 82", "port", "catalog has no port 82 (it has 80, 81)"),
    ],
)
def test_an_order_for_nothing_is_a_warning(fields: str, field: str, message: str) -> None:
    tables, advice = compiled(service() + order("o", fields))
    assert tables["breakers"] == {}
    assert [(p.name, p.field, p.message) for p in advice] == [
        ("o", f"spec.{field}", f"{message}; the order does nothing")
    ]
    _, advice = compiled(service() + order("o").replace("host: catalog", "host: cataloge"))
    assert "no ServiceEntry has the host cataloge (did you mean catalog?)" in advice[0].message


def test_a_policy_is_told_to_trip_on_nothing_yet() -> None:
    _, advice = compiled(service("{circuitBreaker: {}}", "{circuitBreaker: {}}"))
    assert [(p.line, p.field) for p in advice] == [
        (16, "spec.trafficPolicy.circuitBreaker"),
        (17, "spec.subsets[1].trafficPolicy.circuitBreaker"),
    ]
    assert all("does not trip on errors" in p.message and "obeyed" in p.message for p in advice)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2030-12-31t23:59:59.123987654z", UNTIL + 123),
        ("2030-12-31T23:59:59.5+00:00", UNTIL + 500),
        ("9999-12-31T23:59:59.999Z", 253_402_300_799_999),
    ],
)
def test_times(text: str, ms: int) -> None:
    rows = breakers(service() + order("o").replace("2030-12-31T23:59:59Z", f"'{text}'"))
    assert rows[key(80)]["order"]["until"] == ms
    assert datetime.fromtimestamp(ms // 1000, UTC).year == int(text[:4])


@pytest.mark.parametrize(
    "text",
    [
        "1969-12-31T23:59:59Z",
        "2030-12-31 23:59:59Z",
        "2030-12-31T23:59:59",
        "2030-12-31T24:00:00Z",
        "2030-12-31T23:59:60Z",
        "2030-12-31T23:59:59-00:00",
        "２０３０-12-31T23:59:59Z",
        "1924991999",
        "",
    ],
)
def test_what_is_no_time(text: str) -> None:
    loaded = load_texts([("a.yaml", order("o").replace("2030-12-31T23:59:59Z", f"'{text}'").encode())])
    assert [p.field for p in loaded.problems] == ["spec.until"]


def test_a_bad_order_keeps_its_last_good_version() -> None:
    first = answer({"texts": [("a.yaml", (service() + order("o")).encode())]})
    again = answer(
        {
            "texts": [("a.yaml", (service() + order("o", state="ajar")).encode())],
            "previous": first["documents"],
        }
    )
    assert [p["field"] for p in again["problems"]] == ["spec.state"]
    assert again["tables"]["breakers"] == first["tables"]["breakers"] != {}


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("order", "state"), "ajar", "is not one of open, closed"),
        (("order", "until"), -1, "is not between 0 and"),
        (("order", "until"), 2**48, "is not between 0 and"),
        (("order", "until"), 1.5, "is not a int"),
        (("order", "for"), 2**31, "is not between 0 and"),
        (("order", "reason"), "a\r\nb", "holds a line break"),
        (("order", "why"), "x", "unknown field"),
        (("endpoints", "127.0.0.1:80"), {"state": "open"}, "is missing"),
        (("policy", "fleet"), "maybe", "is not one of off, observe, on"),
        (("policy", "rolling_window"), 0, "is not between 1 and"),
        (("policy", "half_open_requests"), 0, "is not between 1 and"),
        (("policy", "error_threshold_percentage"), 101, "is not between 1 and 100"),
        (("policy", "sleep_window"), True, "is not a int"),
    ],
)
def test_a_wrong_row_is_refused_by_its_place(place: tuple[str, str], value: Any, message: str) -> None:
    text = (
        service("{circuitBreaker: {}}") + order("o", ", reason: why") + order("e", ", endpoint: 127.0.0.1:80")
    )
    tables: Any = msgpack.unpackb(msgpack.packb(compiled(text)[0]))
    check_shape(tables)
    tables["breakers"][key(80)][place[0]][place[1]] = value
    with pytest.raises(ShapeError, match=message) as told:
        check_shape(tables)
    assert key(80) in str(told.value)
