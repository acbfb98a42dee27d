"""Addresses as people type them, and the proxy that needs no file."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from fastproxy.oneline import one_line, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9000", ("127.0.0.1", 9000)),
        (":9000", ("0.0.0.0", 9000)),
        ("[::1]:9000", ("::1", 9000)),
        ("unix:///run/a.sock", ("unix:///run/a.sock", 0)),
        ("Name.Example:1", ("name.example", 1)),
    ],
)
def test_address(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text, names=True) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "9000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:٣"),
        *("127.0.0.1:+1", "::1:9000", "http://a:1", "a b:1", "unix:a", "unix://a", "unix:///a b"),
        *("unix:///" + "x" * 107, "-a:1", "a..b:1"),
    ],
)
def test_not_an_address(text: str) -> None:
    with pytest.raises(ValueError, match="is not|is written|is unix"):
        parse_address(text, names=True)


def test_a_listener_has_no_name() -> None:
    with pytest.raises(ValueError, match="'localhost' is not an IP address"):
        parse_address("localhost:9000")


def test_one_line() -> None:
    assert one_line("127.0.0.1:9000", ["127.0.0.1:9001", "unix:///a"]) == {
        "format": 1,
        "listeners": {"mesh": {"address": "127.0.0.1", "port": 9000, "protocol": "HTTP"}},
        "routes": {
            "mesh *": {
                "routes": [
                    {
                        "name": "upstream",
                        "matches": [],
                        "destinations": [{"cluster": "outbound|9001||upstream", "weight": 1}],
                    }
                ],
                "source": ["--to"],
            }
        },
        "clusters": {
            "outbound|9001||upstream": {
                "service": "upstream",
                "port": 9001,
                "endpoints": "upstream|9001",
                "labels": {},
                "resolution": "STATIC",
                "lb": "LEAST_REQUEST",
            }
        },
        "endpoints": {
            "upstream|9001": [
                {"address": "127.0.0.1", "port": 9001, "weight": 1, "labels": {}},
                {"address": "unix:///a", "port": 0, "weight": 1, "labels": {}},
            ]
        },
        "breakers": {},
    }


def test_names_are_resolved() -> None:
    (cluster,) = one_line(":1", ["a.example:80", "127.0.0.1:81"])["clusters"].values()
    assert cluster["resolution"] == "DNS"


@pytest.mark.parametrize(
    ("listen", "to", "message"),
    [
        ("x", ["127.0.0.1:1"], "'x' is not HOST:PORT"),
        (":1", [], "needs --to"),
        (":1", ["127.0.0.1"], "'127.0.0.1' is not HOST:PORT"),
        (":1", ["a.example:1", "unix:///a"], "can not be mixed"),
    ],
)
def test_one_line_errors(listen: str, to: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        one_line(listen, to)


def test_it_costs_no_schema() -> None:
    code = "import sys, fastproxy.oneline; print(*(m for m in ('pydantic', 'yaml') if m in sys.modules))"
    done: Any = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""
