"""The HTTP API against its own OpenAPI: whatever is sent, the answer is one that the document tells of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from ctrl.api import create_api
from ctrl.plane import Plane
from ctrl.store.memory import MemoryStore
from tests.support.server import Server, host

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    with Server(store="memory:") as server:
        server.apply(host("one"), host("two"))
        yield server


# a stream has no end, and so no answer to compare
document = create_api(Plane(MemoryStore())).openapi()
schema = schemathesis.openapi.from_dict(document).exclude(path="/v1/watch")


@schema.parametrize()
@settings(
    max_examples=20,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
def test_every_answer_is_as_the_document_tells(case: schemathesis.Case[Any], served: Server) -> None:
    query = case.query or {}
    with contextlib.suppress(TypeError, ValueError):
        if 0 < float(query.get("wait", 0)) <= 60:
            query["wait"] = 0.01  # there is nobody that could make a change
    case.call_and_validate(base_url=served.url, checks=CHECKS, timeout=20)


def test_the_document_names_every_address(served: Server) -> None:
    paths = served.get("/openapi.json")["paths"]
    assert paths == document["paths"]
    assert {f"{method} {path}" for path, given in paths.items() for method in given} == {
        "get /v1/head",
        "get /v1/resources",
        "post /v1/apply",
        "post /v1/delete",
        "get /v1/history",
        "get /v1/versions/{version}",
        "get /v1/versions/{version}/resources",
        "post /v1/rollback/{version}",
        "get /v1/status",
        "get /v1/progress",
        "get /v1/verify",
        "get /v1/rollout",
        "delete /v1/rollout",
        "get /v1/breakers",
        "post /v1/breakers",
        "delete /v1/breakers/{name}",
        "get /v1/watch",
        "get /live",
        "get /ready",
        "get /metrics",
    }
