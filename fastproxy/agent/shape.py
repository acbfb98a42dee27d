"""Checks that data from outside has the shape of Tables, before anything reads it as such.

Each type of :mod:`fastproxy.tables` becomes a function once; what it looks at is only the data. The place of
what is wrong is put together on the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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

from fastproxy.tables import FORMAT, NAMES, Endpoint, Tables, VirtualHost

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


Check = Callable[[Any], None]  # raises _Wrong


class ShapeError(ValueError):
    """Names the place: ``clusters[outbound|80||a].port``."""


class _Wrong(Exception):
    """``way``: to the place, innermost first."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.way: list[str] = []

    def at(self, place: str) -> ShapeError:
        return ShapeError(f"{place}{''.join(reversed(self.way))}: {self}")


def check_shape(data: object) -> Tables:
    """``data`` as Tables. Raises ShapeError."""
    try:
        _check_of(Tables)(data)
    except _Wrong as wrong:
        raise wrong.at("tables") from None
    tables = cast(Tables, data)
    if tables["format"] != FORMAT:
        raise ShapeError(f"tables.format is {tables['format']}, this build reads {FORMAT}")
    for key in tables["listeners"]:
        _check_listener_name(key)
    for key, virtual_host in tables["routes"].items():
        _check_actions(key, virtual_host)
    return tables


def check_rows(tables: Tables, keys: Iterable[tuple[str, str]]) -> None:
    """The same for these (table, key) alone, where all others were checked before. Raises ShapeError."""
    kinds = _fields(Tables)[0]
    checks = {table: _check_of(get_args(kinds[table])[1]) for table in NAMES}
    for table, key in keys:
        rows: dict[str, Any] = tables[table]  # type: ignore[literal-required]
        if key in rows:
            _check_keyed(checks[table], table, key, rows[key])
            if table == "listeners":
                _check_listener_name(key)
            elif table == "routes":
                _check_actions(key, rows[key])


def check_endpoint(key: str, row: object) -> None:
    """One row of endpoints as it is sent, see :mod:`fastproxy.rows`: what is deleted later is found by its
    key. Raises ShapeError."""
    _check_keyed(_check_of(Endpoint), "endpoints", key, row)
    endpoint = cast(Endpoint, row)
    name = f"{endpoint['address']}:{endpoint['port']}"
    service, _, given = key.partition(" ")
    if not service or (given != name and not given.startswith(name + "#")):
        raise ShapeError(f"tables.endpoints[{_shown(key)}] is the endpoint {_shown(name)}")


def _check_keyed(check: Check, table: str, key: str, row: object) -> None:
    try:
        _text(key)
    except _Wrong as wrong:
        raise wrong.at(f"tables.{table}, key") from None
    try:
        check(row)
    except _Wrong as wrong:
        raise wrong.at(f"tables.{table}[{key}]") from None


def _check_listener_name(key: str) -> None:
    if not 0 < len(key.encode()) <= MAX_NAME:
        raise ShapeError(f"listeners[{_shown(key)}]: a name has 1 to {MAX_NAME} bytes")


def _check_actions(key: str, virtual_host: VirtualHost) -> None:
    for number, route in enumerate(virtual_host["routes"]):
        if ("destinations" in route) + ("redirect" in route) + ("direct" in route) != 1:
            actions = [a for a in ("destinations", "redirect", "direct") if a in route]
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


@cache
def _check_of(kind: Any, name: str = "") -> Check:
    """What checks a value of this type; ``name``: of the field it is in, for its bounds."""
    if is_typeddict(kind):
        return _row(kind)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _literal(parts)
    if origin is dict and parts[0] is str:
        return _mapping(_check_of(parts[1]))
    if origin is list:
        return _list(_check_of(parts[0]))
    if origin is tuple:
        return _tuple([_check_of(part) for part in parts])
    if kind is int:
        return _number(*BOUNDS.get(name, (0, MAX_NUMBER)))
    if kind is str:
        return _text
    if kind in (bool, bytes):
        return _plain(kind)
    raise TypeError(f"no check of {kind}")


def _row(kind: Any) -> Check:
    fields, required = _fields(kind)
    checks = {name: _check_of(part, name) for name, part in fields.items()}

    def check(value: Any) -> None:
        if type(value) is not dict:
            raise _Wrong(f"{_shown(value)} is not a dict")
        if not value.keys() <= checks.keys():
            name = next(name for name in value if name not in checks)
            raise _Wrong(f"unknown field {_shown(name)}")
        if not value.keys() >= required:
            raise _Wrong(f"{min(required - value.keys())} is missing")
        name = ""
        try:
            for name, item in value.items():
                checks[name](item)
        except _Wrong as wrong:
            wrong.way.append(f".{name}")
            raise

    return check


def _mapping(check_item: Check) -> Check:
    def check(value: Any) -> None:
        if type(value) is not dict:
            raise _Wrong(f"{_shown(value)} is not a dict")
        try:
            for key in value:
                _text(key)
        except _Wrong as wrong:
            wrong.way.append(", key")
            raise
        try:
            for key, item in value.items():  # noqa: B007
                check_item(item)
        except _Wrong as wrong:
            wrong.way.append(f"[{key}]")
            raise

    return check


def _list(check_item: Check) -> Check:
    def check(value: Any) -> None:
        if type(value) is not list:
            raise _Wrong(f"{_shown(value)} is not a list")
        number = 0
        try:
            for number, item in enumerate(value):  # noqa: B007
                check_item(item)
        except _Wrong as wrong:
            wrong.way.append(f"[{number}]")
            raise

    return check


def _tuple(checks: list[Check]) -> Check:
    def check(value: Any) -> None:
        if not isinstance(value, list | tuple) or len(value) != len(checks):
            raise _Wrong(f"{len(checks)} items are wanted")
        for check_item, item in zip(checks, value, strict=True):
            check_item(item)

    return check


def _literal(allowed: tuple[Any, ...]) -> Check:
    kinds = {type(a) for a in allowed}

    def check(value: Any) -> None:
        if type(value) not in kinds or value not in allowed:
            raise _Wrong(f"{_shown(value)} is not one of {', '.join(map(str, allowed))}")

    return check


def _number(low: int, high: int) -> Check:
    def check(value: Any) -> None:
        if type(value) is not int:
            raise _Wrong(f"{_shown(value)} is not a int")
        if not low <= value <= high:
            raise _Wrong(f"{value} is not between {low} and {high}")

    return check


def _text(value: Any) -> None:
    if type(value) is not str:
        raise _Wrong(f"{_shown(value)} is not a str")
    if not value.isprintable() and any(c in value for c in FORBIDDEN):  # what is printable holds none of them
        raise _Wrong(f"{_shown(value)} holds a line break or a zero byte")


def _plain(kind: type) -> Check:
    def check(value: Any) -> None:
        if type(value) is not kind:
            raise _Wrong(f"{_shown(value)} is not a {kind.__name__}")

    return check


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
