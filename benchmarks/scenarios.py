"""The rows, as data. A row is one kind of load on one kind of setup; it is named in results by its name.

Rows of one group are measured in turn within each round, so that their figures may be compared pair by pair.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Load = Literal["wrk", "closed", "connect", "open", "swaps", "bystander", "memory"]

ALL = ("fastproxy", "nginx", "haproxy", "envoy", "asyncio-httptools", "floor")
ROUTERS = ("fastproxy", "nginx", "haproxy", "haproxy-map", "envoy")
LARGE = (*ALL, "nginx-unbuffered", "haproxy-splice", "floor-256k", "floor-splice")

BARE = (
    ("User-Agent", "wrk"),
    ("Accept", "*/*"),
    ("Accept-Encoding", "identity"),
)
"""With Host, four fields."""

BROWSER = (
    ("Connection", "keep-alive"),
    ("Pragma", "no-cache"),
    ("Cache-Control", "no-cache"),
    ("sec-ch-ua", '"Chromium";v="126", "Not/A)Brand";v="8"'),
    ("sec-ch-ua-mobile", "?0"),
    ("sec-ch-ua-platform", '"Linux"'),
    ("Upgrade-Insecure-Requests", "1"),
    ("User-Agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/126.0.0.0 Safari/537.36"),
    ("Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"),
    ("Sec-Fetch-Site", "same-origin"),
    ("Sec-Fetch-Mode", "navigate"),
    ("Sec-Fetch-User", "?1"),
    ("Sec-Fetch-Dest", "document"),
    ("Referer", "http://shop.example/catalog?page=2"),
    ("Accept-Encoding", "gzip, deflate, br"),
    ("Accept-Language", "en-US,en;q=0.9"),
    ("Cookie", "session=4f1c8a2b90d34e55; theme=dark"),
    ("DNT", "1"),
    ("X-Requested-With", "fetch"),
)
"""With Host, twenty fields and about 700 bytes of head, as a browser sends them."""


@dataclass(frozen=True)
class Setup:
    """What a peer is configured to do: rows with equal setups share a running peer."""

    unix: bool = False  # the upstream is a Unix socket
    rules: int = 0  # 0: everything goes to the one upstream
    log: bool = False  # access log on


@dataclass(frozen=True)
class Row:
    """``peers`` are asked in this order. ``expect`` is the length of the answer's body."""

    name: str
    title: str
    peers: tuple[str, ...] = ALL
    load: Load = "wrk"
    path: str = "/x"
    headers: tuple[tuple[str, str], ...] = BARE
    expect: int = 128
    upload: int = 0
    conns: int = 64
    longer: int = 1  # times the seconds of other rows
    setup: Setup = field(default_factory=Setup)


def prefix(rule: int) -> str:
    """Path prefix of a rule, counted from 1."""
    return f"/svc{rule:05d}/"


def tenant(rule: int) -> str:
    """Value of ``x-tenant`` that a rule asks for."""
    return f"tenant-{rule:05d}"


def rules_row(count: int) -> Row:
    """Many rules of path prefix and one exact header; the request matches the last."""
    return Row(
        f"rules-{count}",
        f"{count:,} rule{'s' if count > 1 else ''}",
        peers=ROUTERS,
        path=prefix(count) + "items?id=7",
        headers=(*BARE, ("x-tenant", tenant(count))),
        setup=Setup(rules=count),
    )


def _open(name: str, title: str, peers: tuple[str, ...], load: Load, rules: int) -> Row:
    if not rules:
        return Row(name, title, peers, load)
    row = rules_row(rules)
    return Row(name, title, peers, load, row.path, row.headers, longer=3, setup=row.setup)


GROUPS: tuple[tuple[Row, ...], ...] = (
    (Row("get", "small GET, 4 header fields, 64 connections"),),
    (Row("get-browser", "small GET, 20 header fields, 64 connections", headers=BROWSER),),
    (Row("get-1-conn", "small GET, 4 header fields, 1 connection", conns=1),),
    (Row("get-browser-1-conn", "small GET, 20 header fields, 1 connection", headers=BROWSER, conns=1),),
    (Row("unix-upstream", "small GET, Unix-socket upstream", setup=Setup(unix=True)),),
    (Row("connection-per-request", "small GET, a new connection per request", load="connect"),),
    (
        Row(
            "answer-16k", "16 KiB answers", (*ALL, "haproxy-splice"), load="closed", path="/16k", expect=16384
        ),
    ),
    (Row("answer-64k", "64 KiB answers", LARGE, "closed", "/64k", expect=65536),),
    (Row("answer-1m", "1 MiB answers", LARGE, "closed", "/1m", expect=1048576, conns=16),),
    (Row("upload-1m", "1 MiB uploads", (*ALL, "haproxy-splice"), load="closed", upload=1048576, conns=16),),
    tuple(rules_row(count) for count in (1, 100, 1000, 10000)),
    (
        Row("access-log-off", "small GET, access log off", ("fastproxy",)),
        Row("access-log-on", "small GET, access log on", ("fastproxy",), setup=Setup(log=True)),
    ),
    (_open("open-loop", "fixed rate, half of saturation", ALL, "open", 0),),
    (
        _open("swaps-off", "fixed rate, 10,000 rules, quiet", ("fastproxy",), "open", 10000),
        _open("swaps-on", "fixed rate, 10,000 rules swapped once a second", ("fastproxy",), "swaps", 10000),
        _open(
            "swaps-bystander",
            "fixed rate, 10,000 rules, busy bystander",
            ("fastproxy",),
            "bystander",
            10000,
        ),
    ),
    (
        Row("memory-fresh", "memory, fresh", load="memory", conns=0),
        Row("idle-1000", "memory, 1,000 idle connections", load="memory", conns=1000),
        Row("idle-5000", "memory, 5,000 idle connections", load="memory", conns=5000),
    ),
)

ROWS: dict[str, Row] = {row.name: row for group in GROUPS for row in group}
