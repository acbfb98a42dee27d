"""Who was refused, in a few lines: one client with a wrong key tries many times a second, for ever."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from rich.text import Text

from ctrl import show
from ctrl.client import Answer
from ctrl.durations import age
from ctrl.show import Column, number, word

MOST = 20


class Refused(NamedTuple):
    """One host, name and reason: how often, and when last (Unix time in ms)."""

    address: str
    name: str
    reason: str
    times: int
    at_ms: int


def together(rows: Iterable[Answer]) -> list[Refused]:
    """Refusals that differ only in the port and the time are one; the newest first."""
    found: dict[tuple[str, str, str], Refused] = {}
    for row in rows:
        key = (host(word(row, "address")), word(row, "name"), word(row, "reason"))
        before = found.get(key, Refused(*key, 0, 0))
        found[key] = Refused(*key, before.times + 1, max(before.at_ms, number(row, "atMs")))
    return sorted(found.values(), key=lambda refused: -refused.at_ms)


def host(address: str) -> str:
    """``10.0.0.7`` of ``tcp://10.0.0.7:41522``; each connection has another port."""
    address = address.removeprefix("tcp://")
    before, colon, port = address.rpartition(":")
    bare = not before.endswith("]") and ":" in before  # IPv6 without a port
    return before if colon and port.isdigit() and not bare else address


def table(rows: Iterable[Answer]) -> None:
    """The last of them."""
    found = together(rows)
    show.table(
        (
            Column("REFUSED"),
            Column("TIMES", rank=2, right=True),
            Column("ADDRESS"),
            Column("NAME", rank=1),
            Column("WHY", fold=True),
        ),
        [
            [f"{age(one.at_ms)} ago", one.times, one.address, one.name or "–", Text(one.reason, "red")]
            for one in found[:MOST]
        ],
    )
    if len(found) > MOST:
        show.hint(f"and {len(found) - MOST} more: {show.PROGRAM} status -o json")
