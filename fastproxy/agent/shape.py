"""Checks that data from outside has the shape of Tables, before anything reads it as such."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable
from functools import cache
from typing import (
    Any,
    Literal,
    NotRequired,
    Required,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from fastproxy.tables import FORMAT, Endpoint, Tables, VirtualHost

MAX_NUMBER = 2**31 - 1
MAX_NAME = 255  # of a listener, as a worker keeps it
BOUNDS = {
    "port": (0, 65535),
    "status": (200, 599),
    "code": (300, 399),
    "until": (0, 2**48 - 1),  # Unix ms: all years that have four digits
    "rolling_window": (1, MAX_NUMBER),
    "request_volume_threshold": (1, MAX_NUMBER),
    "error_threshold_percentage": (1, 100),
    "slow_call_duration": (1, MAX_NUMBER),
    "slow_call_threshold_percentage": (1, 100),
    "sleep_window": (1, MAX_NUMBER),
    "half_open_requests": (1, MAX_NUMBER),
}
FORBIDDEN = ("\r", "\n", "\0")  # what a string must not bring into a head


class ShapeError(ValueError):
    """Names the place: ``clusters[outbound|80||a].port``."""


def check_shape(data: object) -> Tables:
    """``data`` as Tables. Raises ShapeError."""
    _check(data, Tables, "tables")
    tables = typing.cast(Tables, data)
    if tables["format"] != FORMAT:
        raise ShapeError(f"tables.format is {tables['format']}, this build reads {FORMAT}")
    for key in tables["listeners"]:
        _check_listener_name(key)
    for key, virtual_host in tables["routes"].items():
        _check_actions(key, virtual_host)
    return tables


def check_rows(tables: Tables, keys: Iterable[tuple[str, str]]) -> None:
    """The same for these (table, key) alone, where all others were checked before. Raises ShapeError."""
    for table, key in keys:
        rows: dict[str, Any] = tables[table]  # type: ignore[literal-required]
        if key in rows:
            kind = get_args(_fields(Tables)[0][table])[1]
            _check(key, str, f"tables.{table}, key")
            _check(rows[key], kind, f"tables.{table}[{key}]")
            if table == "listeners":
                _check_listener_name(key)
            elif table == "routes":
                _check_actions(key, rows[key])


def check_endpoint(key: str, row: object) -> None:
    """One row of endpoints as it is sent, see :mod:`fastproxy.rows`: what is deleted later is found by its
    key. Raises ShapeError."""
    _check(key, str, "tables.endpoints, key")
    _check(row, Endpoint, f"tables.endpoints[{_shown(key)}]")
    endpoint = cast(Endpoint, row)
    name = f"{endpoint['address']}:{endpoint['port']}"
    service, _, given = key.partition(" ")
    if not service or (given != name and not given.startswith(name + "#")):
        raise ShapeError(f"tables.endpoints[{_shown(key)}] is the endpoint {_shown(name)}")


def _check_listener_name(key: str) -> None:
    if not 0 < len(key.encode()) <= MAX_NAME:
        raise ShapeError(f"listeners[{_shown(key)}]: a name has 1 to {MAX_NAME} bytes")


def _check_actions(key: str, virtual_host: VirtualHost) -> None:
    for number, route in enumerate(virtual_host["routes"]):
        actions = [a for a in ("destinations", "redirect", "direct") if a in route]
        if len(actions) != 1:
            raise ShapeError(
                f"routes[{key}].routes[{number}] needs one action, has {', '.join(actions) or 'none'}"
            )


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    hints = get_type_hints(kind, include_extras=True)
    required = set(kind.__required_keys__)
    out = {}
    for name, hint in hints.items():
        if get_origin(hint) is NotRequired:
            required.discard(name)
        out[name] = get_args(hint)[0] if get_origin(hint) in (NotRequired, Required) else hint
    return out, frozenset(required)


def _check(value: Any, kind: Any, place: str, name: str = "") -> None:
    origin = get_origin(kind)
    if is_typeddict(kind):
        _check_row(value, kind, place)
    elif kind is Any:
        return
    elif origin is Literal:
        if value not in get_args(kind) or type(value) not in {type(a) for a in get_args(kind)}:
            raise ShapeError(f"{place}: {_shown(value)} is not one of {', '.join(map(str, get_args(kind)))}")
    elif origin is dict:
        _want(value, dict, place)
        for key, item in value.items():
            _check(key, get_args(kind)[0], f"{place}, key")
            _check(item, get_args(kind)[1], f"{place}[{key}]")
    elif origin is list:
        _want(value, list, place)
        for number, item in enumerate(value):
            _check(item, get_args(kind)[0], f"{place}[{number}]")
    elif origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(get_args(kind)):
            raise ShapeError(f"{place}: {len(get_args(kind))} items are wanted")
        for item, part in zip(value, get_args(kind), strict=True):
            _check(item, part, place)
    elif origin in (types.UnionType, typing.Union):
        _check_union(value, kind, place, name)
    else:
        _check_plain(value, kind, place, name)


def _check_row(value: Any, kind: Any, place: str) -> None:
    fields, required = _fields(kind)
    _want(value, dict, place)
    for name in value:
        if name not in fields:
            raise ShapeError(f"{place}: unknown field {_shown(name)}")
    for name in required:
        if name not in value:
            raise ShapeError(f"{place}: {name} is missing")
    for name, item in value.items():
        _check(item, fields[name], f"{place}.{name}", name)


def _check_union(value: Any, kind: Any, place: str, name: str) -> None:
    for part in get_args(kind):
        try:
            _check(value, part, place, name)
        except ShapeError:
            continue
        return
    raise ShapeError(f"{place}: {_shown(value)} is not a {kind}")


def _check_plain(value: Any, kind: Any, place: str, name: str) -> None:
    _want(value, kind, place)
    if kind is int:
        low, high = BOUNDS.get(name, (0, MAX_NUMBER))
        if not low <= value <= high:
            raise ShapeError(f"{place}: {value} is not between {low} and {high}")
    elif kind is str and any(c in value for c in FORBIDDEN):
        raise ShapeError(f"{place}: {_shown(value)} holds a line break or a zero byte")


def _want(value: Any, kind: Any, place: str) -> None:
    if type(value) is not kind and not (kind is type(None) and value is None):
        raise ShapeError(f"{place}: {_shown(value)} is not a {kind.__name__}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
