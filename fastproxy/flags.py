"""Every field of Settings as a flag of ``fastproxy run``: its group, its help, its check."""

from __future__ import annotations

import inspect
import re
import socket
from dataclasses import MISSING, fields
from typing import Annotated, Any, NamedTuple

import typer

from fastproxy.oneline import parse_address
from fastproxy.settings import Settings

SOURCE, PROXY, LIMITS, TIMEOUTS = "Where resources come from", "This proxy", "Limits", "Timeouts, in seconds"
TOLD, MEMORY = "What is told and believed", "Memory and scheduling"


class Flag(NamedTuple):
    group: str
    help: str
    metavar: str = ""  # short: with the flag's name it must leave room for the help in 80 columns
    short: str = ""
    low: float = 0
    high: float = float("inf")


INT32 = 2**31 - 1
YEAR = 366 * 86400.0
NODE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"  # it names a file, too
NAMESPACE = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
MAX_LABELS, MAX_LABEL = 256, 4096  # as fastproxy.wire.Attributes wants them
MAX_NAME = 80  # Via and Server have fixed room in the core

FLAGS: dict[str, Flag] = {
    "config": Flag(
        SOURCE,
        "Resources: a YAML file, or a folder of them. Read again on SIGHUP and on change.",
        "FILE|DIR",
        "-c",
    ),
    "listen": Flag(SOURCE, "Address of the mesh listener: HOST:PORT or unix:///PATH.", "ADDRESS"),
    "to": Flag(
        SOURCE, "Where the one-line proxy sends everything; parted by commas, or repeated.", "HOST:PORT"
    ),
    "control": Flag(
        SOURCE, "Resources from the control plane: tcp://HOST:PORT; parted by commas, or repeated.", "ADDRESS"
    ),
    "control_key": Flag(SOURCE, "Key of this proxy, made by fastproxyctl keys.", "FILE"),
    "namespace": Flag(
        SOURCE, "Namespace of this proxy, that exportTo of resources is matched against.", "NAME"
    ),
    "state": Flag(SOURCE, "Folder for the last good version, for --control; or off.", "DIR|off"),
    "workers": Flag(PROXY, "Worker processes; 0: one per processor.", high=1024),
    "admin": Flag(PROXY, "HOST:PORT or unix:///PATH of the admin API, or off.", "ADDRESS"),
    "node": Flag(PROXY, "Name of this proxy; default: the host's.", "NAME"),
    "label": Flag(PROXY, "A label that Gateway.selector is matched against; repeated.", "K=V"),
    "access_log": Flag(
        PROXY, "One JSON line per exchange: a path, - for standard output, or off.", "PATH|-|off"
    ),
    "drain_timeout": Flag(PROXY, "Seconds that exchanges have to finish after SIGTERM.", high=YEAR),
    "max_head": Flag(LIMITS, "Bytes of a message's head (431).", low=1024, high=16 * 1024 * 1024),
    "max_fields": Flag(LIMITS, "Fields of a head (431).", low=1, high=256),
    "max_target": Flag(LIMITS, "Bytes of a request target (414).", low=16, high=16 * 1024 * 1024),
    "max_body": Flag(LIMITS, "Bytes of a request body (413); 0: no limit.", high=2**62),
    "max_connections": Flag(
        LIMITS, "Downstream connections of a worker; 0: what its descriptors allow.", high=INT32
    ),
    "max_pooled": Flag(LIMITS, "Idle upstream connections per endpoint and worker.", high=INT32),
    "buffer": Flag(LIMITS, "Bytes buffered in one direction of a connection.", low=4096, high=1 << 30),
    "header_timeout": Flag(TIMEOUTS, "First byte of a head to its last (408).", low=0.01, high=YEAR),
    "body_timeout": Flag(TIMEOUTS, "Between two reads of a request body (408).", low=0.01, high=YEAR),
    "idle_timeout": Flag(
        TIMEOUTS, "Kept-alive downstream connection without a request.", low=0.01, high=YEAR
    ),
    "write_timeout": Flag(TIMEOUTS, "Downstream takes nothing.", low=0.01, high=YEAR),
    "half_close_timeout": Flag(
        TIMEOUTS,
        "How long a client that sent FIN behind its request still gets its answer.",
        low=0.001,
        high=YEAR,
    ),
    "connect_timeout": Flag(
        TIMEOUTS, "Upstream connect; a DestinationRule may say less.", low=0.01, high=YEAR
    ),
    "upstream_idle_timeout": Flag(TIMEOUTS, "Pooled upstream connection.", low=0.01, high=YEAR),
    "upstream_read_timeout": Flag(
        TIMEOUTS, "Between two reads of an answer (504 before its head).", low=0.01, high=YEAR
    ),
    "tunnel_idle_timeout": Flag(TIMEOUTS, "Upgraded connection that moves nothing.", low=0.01, high=YEAR),
    "trusted_hops": Flag(TOLD, "Proxies in front whose X-Forwarded-* is believed.", high=255),
    "forwarded": Flag(TOLD, "Send RFC 7239 Forwarded besides X-Forwarded-*."),
    "via": Flag(TOLD, "Pseudonym in Via; empty: no Via.", "NAME"),
    "server": Flag(TOLD, "Server field of the proxy's own answers; empty: none.", "NAME"),
    "slashes": Flag(TOLD, "%2F and %5C in a path: keep, reject or decode.", "WORD"),
    "merge_slashes": Flag(TOLD, "Merge repeated slashes before matching."),
    "raw_path": Flag(TOLD, "Forward the path as it came, not the normalised one."),
    "journal": Flag(MEMORY, "Bytes of a worker's journal ring; a power of two.", low=65536, high=1 << 30),
    "max_clusters": Flag(MEMORY, "Slots for clusters in the live memory.", low=1, high=1 << 20),
    "max_endpoints": Flag(MEMORY, "Slots for endpoints in the live memory.", low=1, high=1 << 22),
    "tick_events": Flag(
        MEMORY, "Events that the core serves before it looks at other work.", low=1, high=INT32
    ),
    "tick_us": Flag(MEMORY, "Microseconds of the same.", low=1, high=10_000_000),
}


def metavar_of(name: str, kind: Any) -> str:
    """What stands for the value in help: the flag's own word, N for a number, S for seconds."""
    return FLAGS[name].metavar or {int: "N", float: "S"}.get(kind, "")


def parameters() -> list[inspect.Parameter]:
    """The parameters of a typer command, one per field of Settings."""
    out = []
    for f in fields(Settings):
        flag = FLAGS[f.name]
        default = f.default if f.default is not MISSING else []
        kind: Any = list[str] if isinstance(default, list) else type(default)
        spellings = [f"--{f.name.replace('_', '-')}"] + ([flag.short] if flag.short else [])
        if kind is bool:
            spellings = [f"{spellings[0]}/--no-{f.name.replace('_', '-')}"]
        metavar = metavar_of(f.name, kind)
        option = typer.Option(
            *spellings,
            help=flag.help,
            rich_help_panel=flag.group,
            envvar=f"FASTPROXY_{f.name.upper()}",
            show_envvar=False,
            show_default=bool(default) or kind is bool,
            metavar=metavar or None,
        )
        out.append(
            inspect.Parameter(
                f.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option]
            )
        )
    return out


class FlagError(Exception):
    """``flag`` has a value that cannot be; ``why`` says what is expected."""

    def __init__(self, flag: str, why: str) -> None:
        super().__init__(f"--{flag.replace('_', '-')}: {why}")
        self.flag, self.why = flag, why


def settings_from(values: dict[str, Any]) -> Settings:
    """Checked settings from parsed flags. Raises FlagError."""
    values = dict(values)
    for name in ("to", "control"):
        values[name] = [a.strip() for text in values[name] for a in text.split(",") if a.strip()]
    values["label"] = dict(_label(text) for text in values["label"])
    settings = Settings(**values)
    check_ranges(settings)
    if settings.config and settings.to:
        raise FlagError("to", "does not go with --config; write a VirtualService, or leave --config out")
    if settings.to and not settings.listen:
        raise FlagError("to", "needs --listen HOST:PORT, where the one-line proxy accepts requests")
    if settings.listen and not (settings.to or settings.config or settings.control):
        raise FlagError(
            "listen", "needs --to HOST:PORT or --config FILE, else nothing says where requests go"
        )
    if not settings.config and not settings.to and not settings.control:
        raise FlagError(
            "config",
            "say what to proxy: --listen HOST:PORT --to HOST:PORT, or -c FILE, or --control tcp://HOST:PORT",
        )
    check_control(settings)
    if settings.listen:
        check_address("listen", settings.listen)
    for address in settings.to:
        check_address("to", address, names=True)
    if settings.admin != "off":
        check_address("admin", settings.admin)
    if settings.slashes not in ("keep", "reject", "decode"):
        raise FlagError("slashes", f"{settings.slashes!r} is not one of keep, reject, decode")
    if settings.journal & (settings.journal - 1):
        below = 1 << (settings.journal.bit_length() - 1)
        raise FlagError("journal", f"{settings.journal} is not a power of two; {below} and {below * 2} are")
    for name in ("via", "server"):
        if not re.fullmatch(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?|", getattr(settings, name)):
            raise FlagError(name, "only printable ASCII may stand in a field value")
        if len(getattr(settings, name)) > MAX_NAME:
            raise FlagError(name, f"at most {MAX_NAME} bytes")
    if settings.via and not re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z:]+", settings.via):
        raise FlagError("via", f"{settings.via!r} is not a pseudonym (a token, RFC 9110 §7.6.3)")
    return settings


def check_control(settings: Settings) -> None:
    """What belongs to the control plane: its addresses, our key, the names that we go by. FlagError."""
    if not re.fullmatch(NAMESPACE, settings.namespace):
        what = "lower-case letters, digits and - are wanted, at most 63"
        raise FlagError("namespace", f"{settings.namespace!r} is no namespace: {what}")
    if not settings.control:
        for name in ("control_key", "state"):
            if getattr(settings, name):
                raise FlagError(name, "is for --control tcp://HOST:PORT; leave it out, or give that too")
        return
    for name in ("config", "to"):
        if getattr(settings, name):
            raise FlagError(name, "does not go with --control: the control plane sends all resources")
    if settings.control_key:
        _take_name_of_key(settings)
    for address in settings.control:
        check_publisher(address, bool(settings.control_key))
    if len(set(settings.control)) < len(settings.control):
        raise FlagError("control", "names an address twice")
    node = settings.node or socket.gethostname()
    if not re.fullmatch(NODE, node):
        what = f"{node!r} is no name: letters, digits, '.', '_' and '-' are wanted, at most 200"
        raise FlagError(
            "node", what if settings.node else f"give this proxy a name; the host's is used, but {what}"
        )
    if len(settings.label) > MAX_LABELS:
        raise FlagError("label", f"at most {MAX_LABELS} labels")
    for key, value in settings.label.items():
        if not key.isprintable() or not value.isprintable() or max(len(key), len(value)) > MAX_LABEL:
            raise FlagError("label", f"{key[:40]!r}: at most {MAX_LABEL} printable characters")


def _take_name_of_key(settings: Settings) -> None:
    """A key belongs to one node: its name is this proxy's. FlagError."""
    from fastproxy.keys import NODE as A_NODE
    from fastproxy.keys import load_client_key

    file = settings.control_key
    try:
        key = load_client_key(file)
    except ValueError as e:
        raise FlagError("control_key", str(e)) from None
    if key.role != A_NODE:
        raise FlagError(
            "control_key", f"{file} is of the role {key.role}; a proxy needs one of the role {A_NODE}"
        )
    if settings.node and settings.node != key.name:
        raise FlagError(
            "node", f"{settings.node!r} is not whose key {file} is: {key.name!r}; leave --node out"
        )
    settings.node = key.name


def check_publisher(address: str, has_key: bool) -> None:
    """``tcp://HOST:PORT`` or ``ipc://PATH``; without a key, on this machine. FlagError."""
    from fastproxy.sockets import check_address, loopback

    if "://" not in address:
        raise FlagError("control", f"{address!r} has no scheme; write tcp://{address}")
    try:
        check_address(address)
    except ValueError as e:
        raise FlagError("control", str(e)) from None
    if re.match(r"tcp://(0\.0\.0\.0|\[::\]):", address):
        raise FlagError("control", f"{address!r} is no address to connect to; name the control plane's host")
    if not has_key and not loopback(address):
        what = "is not on this machine: that needs --control-key FILE, which fastproxyctl keys makes"
        raise FlagError("control", f"{address!r} {what}")


def check_ranges(settings: Settings) -> None:
    """Every number is between its flag's bounds. Typer could check, but its help would be all ranges."""
    for name, flag in FLAGS.items():
        value = getattr(settings, name)
        if type(value) in (int, float) and not flag.low <= value <= flag.high:
            raise FlagError(name, f"{value:.15g} is not between {flag.low:.15g} and {flag.high:.15g}")


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise FlagError("label", f"{text!r} is not K=V")
    return key, value


def check_address(flag: str, text: str, names: bool = False) -> None:
    """``HOST:PORT``, ``[IPv6]:PORT`` or ``unix:///PATH``; FlagError says how to write it."""
    scheme, separator, rest = text.partition("://")
    if separator and scheme != "unix":
        raise FlagError(flag, f"{text!r} has a scheme; write {rest.partition('/')[0] or 'HOST:PORT'}")
    host, _, port = text.rpartition(":")
    if not names and host == "localhost":
        raise FlagError(flag, f"{text!r} is a name; write 127.0.0.1:{port}")
    try:
        parse_address(text, names=names)
    except ValueError as e:
        raise FlagError(flag, str(e)) from None
