"""The words that fields are made of: hosts, names, durations, header names and values, patterns.

Each type checks one value and says in plain words what is wrong; whoever knows the document adds the place.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from datetime import datetime
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from fastproxy.resources.problem import printable

MAX_PATTERN = 1024  # characters of a regular expression
MAX_TIME = 2**31 - 1  # milliseconds, 24 days
MAX_BODY = 1024 * 1024  # bytes of a direct response, Istio's limit
EXPORTS = ("*", ".", "~")

_HOST = re.compile(r"(?:\*\.)?(?!-)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?\Z")
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\Z")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,256}\Z")  # RFC 9110 section 5.6.2
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_DURATION = re.compile(r"(?:(?:[0-9]{1,12}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})(?:ns|us|µs|μs|ms|s|m|h))+\Z")
_DURATION_PART = re.compile(r"([0-9.]+)(ns|us|µs|μs|ms|s|m|h)")
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?"
    r"([Zz]|[-+][0-9]{2}:[0-9]{2})\Z"
)  # RFC 3339 section 5.6
_UNIT = {
    "ns": 1,
    "us": 1000,
    "µs": 1000,
    "μs": 1000,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_COMMAND = re.compile(r"%[A-Z][A-Z0-9_]*(?:\([^)]*\))?(?::[0-9]+)?%")

# RFC 9110 section 7.6.1 and the fields that frame a message: the proxy alone writes these
RESERVED = frozenset(
    (
        *("connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"),
        *("content-length", "transfer-encoding", "expect"),
    )
)


def fail(text: str, *path: str | int) -> NoReturn:
    """End a validation with this sentence, about the field ``path`` below the value that is checked."""
    raise PydanticCustomError("fastproxy", "{text}", {"text": text, "path": path})


def shorten(value: object, limit: int = 60) -> str:
    """A value as it may stand in a message: printable and short."""
    return printable(repr(value[:limit] if isinstance(value, str) else value), limit)


def is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text


def _host(value: str) -> str:
    text = value.lower()
    if text == "*" or (len(text) <= 253 and _HOST.match(text)):
        return text.removesuffix(".")
    if is_ip(text):
        address = ipaddress.ip_address(text)
        return f"[{address}]" if address.version == 6 else str(address)
    if "*" in text:
        fail(f"{shorten(value)}: a wildcard host is * or *.suffix")
    if ":" in text or "/" in text:
        fail(f"{shorten(value)} is not a host name: no scheme, port or path here")
    fail(f"{shorten(value)} is not a host name")


def _name(value: str) -> str:
    if not _NAME.match(value):
        fail(f"{shorten(value)} is not a name: letters, digits, '-', '_' and '.', at most 253")
    return value


def _gateway_name(value: str) -> str:
    space, _, name = value.rpartition("/")
    if space:
        _name(space)
    _name(name)
    return value


def _server_host(value: str) -> str:
    """``host`` or ``namespace/host``, the namespace also ``*`` (any) or ``.`` (the Gateway's own)."""
    space, slash, host = value.rpartition("/")
    if slash and space not in ("*", "."):
        _name(space)
    return f"{space}{slash}{_host(host)}"


def _export(value: str) -> str:
    if value not in EXPORTS and not _NAME.match(value):
        fail(f"{shorten(value)} is not '*' (all), '.' (its own), '~' (none) or the name of a namespace")
    return value


def _exports(value: list[str]) -> list[str]:
    for i, name in enumerate(value):
        if name in value[:i]:
            fail(f"{name} is given twice", i)
        if name in ("*", "~") and len(value) > 1:
            what = "all namespaces" if name == "*" else "none"
            fail(f"{name} means {what}: nothing stands beside it", i)
    return value


def _label(value: str) -> str:
    if len(value) > 317 or _CONTROL.search(value):
        fail(f"{shorten(value)} is not a label")
    return value


def _header_name(value: str) -> str:
    if value.startswith(":"):
        fail(f"{shorten(value)} is a pseudo header: routing has fields of its own for it")
    if not _TOKEN.match(value):
        fail(f"{shorten(value)} is not a header name")
    return value


def _text(value: str) -> str:
    if len(value) > 8192:
        fail("longer than 8192 characters")
    if _CONTROL.search(value):
        fail(f"{shorten(value)} has a control character")
    return value


def _header_value(value: str) -> str:
    """Envoy's format string without its commands: ``%%`` is a percent sign."""
    _text(value)
    if "%" not in value:
        return value.strip(" \t")
    found = _COMMAND.search(value.replace("%%", ""))
    if found:
        fail(f"command operator {shorten(found.group())} is known but not supported yet")
    if "%" in value.replace("%%", ""):
        fail("a percent sign is written %%")
    return value.replace("%%", "%").strip(" \t")


def _duration(value: Any) -> Any:
    if not isinstance(value, str):
        fail(f"{shorten(value)} is not a duration: write 1.5s, 300ms, 1h2m")
    if value == "0":
        return 0
    if not _DURATION.match(value):
        fail(f"{shorten(value)} is not a duration: write 1.5s, 300ms, 1h2m")
    total = 0
    for number, unit in _DURATION_PART.findall(value):
        whole, _, part = number.partition(".")
        total += int(whole or "0") * _UNIT[unit]
        if part:
            total += int(part) * _UNIT[unit] // 10 ** len(part)
    if 0 < total < 10**6:
        fail(f"{shorten(value)} is less than 1ms")
    if total // 10**6 > MAX_TIME:
        fail(f"{shorten(value)} is more than 24 days")
    return total // 10**6


def _utc(value: Any) -> Any:
    if not isinstance(value, str) or not (found := _TIME.match(value)):
        fail(f"{shorten(value)} is not a time: write it as 2030-12-31T23:59:59Z")
    day, clock, fraction, zone = found.groups()
    if zone not in ("Z", "z", "+00:00"):
        fail(f"{shorten(value)}: write the time in UTC, with a Z at its end")
    try:
        seconds = round(datetime.fromisoformat(f"{day}T{clock}+00:00").timestamp())
    except ValueError as error:
        fail(f"{shorten(value)} is not a time: {error}")
    if seconds < 0:
        fail(f"{shorten(value)} is before 1970")
    return seconds * 1000 + int((fraction or "")[:3].ljust(3, "0"))


def _base64(value: Any) -> Any:
    if not isinstance(value, str):
        fail("must be a string in base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        fail("is not base64")


def _location(value: str) -> str:
    _text(value)
    if not value.startswith("/"):
        fail(f"{shorten(value)} can not be a path: it must start with /")
    if " " in value or "\t" in value:
        fail(f"{shorten(value)} can not be a path: a space is written %20")
    return value


def _path(value: str) -> str:
    if "#" in _location(value):
        fail(f"{shorten(value)} can not be a path: no request has a '#' in its path")
    return value


def _authority(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or value.endswith("]"):
        host, port = value, ""
    elif not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536):
        fail(f"{shorten(value)} is not HOST or HOST:PORT")
    if "*" in host:
        fail(f"{shorten(value)} is not HOST or HOST:PORT")
    host = _host(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    return f"{host}:{port}" if port else host


def _unix_or(kind: str) -> AfterValidator:
    def check(value: str) -> str:
        if value.startswith("unix:"):
            path = value[7:]
            if (
                not value.startswith("unix:///")
                or len(path.encode()) > 107
                or re.search(r"[\s\x00-\x1f]", path)
            ):
                fail(f"{shorten(value)}: a Unix socket is unix:///path, at most 107 bytes, no spaces")
            return value
        if kind == "bind" and not is_ip(value):
            fail(f"{shorten(value)} is not an IP address or unix:///path")
        if is_ip(value):
            return str(ipaddress.ip_address(value))
        host = _host(value)
        if "*" in host:
            fail(f"{shorten(value)}: an endpoint has no wildcard")
        return host

    return AfterValidator(check)


Host = Annotated[str, AfterValidator(_host)]
Name = Annotated[str, AfterValidator(_name)]
GatewayName = Annotated[str, AfterValidator(_gateway_name)]
ServerHost = Annotated[str, AfterValidator(_server_host)]
ExportTo = Annotated[list[Annotated[str, AfterValidator(_export)]], AfterValidator(_exports)]
Label = Annotated[str, AfterValidator(_label)]
Labels = dict[Label, Label]
HeaderName = Annotated[str, AfterValidator(_header_name)]
HeaderValue = Annotated[str, AfterValidator(_header_value)]
Text = Annotated[str, AfterValidator(_text)]
Location = Annotated[str, AfterValidator(_location)]
Path = Annotated[str, AfterValidator(_path)]
Authority = Annotated[str, AfterValidator(_authority)]
Bind = Annotated[str, _unix_or("bind")]
Address = Annotated[str, _unix_or("endpoint")]
Milliseconds = Annotated[int, BeforeValidator(_duration)]
UnixMs = Annotated[int, BeforeValidator(_utc)]
Base64 = Annotated[bytes, BeforeValidator(_base64)]
PortNumber = Annotated[int, Field(ge=1, le=65535)]
Weight = Annotated[int, Field(ge=0, le=2**31 - 1)]
