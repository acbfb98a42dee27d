"""Key files: who a party of the control protocol is, and how it proves it.

One file per party, JSON, for its owner's eyes only (mode 0600)::

    {"name": "node-a", "role": "node", "public": "Z85…", "secret": "Z85…", "server": "Z85…"}

``server`` is the public key of the control plane: this one file is all that a node needs. The control plane's
own file has role ``server`` and no ``server``. Keys are CURVE's (Curve25519, https://rfc.zeromq.org/spec/26),
written in Z85 as ZeroMQ does: 40 characters.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import zmq

SERVER, NODE, RELAY, OPERATOR = "server", "node", "relay", "operator"
ROLES = (SERVER, NODE, RELAY, OPERATOR)
MAX_FILE = 64 * 1024  # bytes of a key file
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,199})\Z")
_Z85 = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}\Z")


class KeyError_(ValueError):
    """This key, name or file cannot be used; says why and what to do."""


@dataclass(frozen=True)
class Curve:
    """What a socket needs: Z85, 40 bytes each. ``server``: the server's public key; empty: we are the
    server."""

    public: bytes
    secret: bytes = field(repr=False)
    server: bytes = b""


@dataclass(frozen=True)
class KeyFile:
    """One party: its name, its role, its keys."""

    name: str
    role: str
    curve: Curve


def new_curve(server: bytes = b"") -> Curve:
    """A fresh pair of keys. ``server``: public key of the server that it will talk to."""
    public, secret = zmq.curve_keypair()
    return Curve(public, secret, server)


def check_name(name: str) -> str:
    """``name``, when a party may be called so. Raises KeyError_."""
    if not _NAME.match(name):
        raise KeyError_(
            f"{name!r} is no name of a party: letters, digits, '.', '_' and '-', at most 200, "
            "the first a letter or digit"
        )
    return name


def check_public(key: str | bytes, what: str = "the public key") -> bytes:
    """``key`` as Z85 bytes. Raises KeyError_."""
    raw = key.encode("utf-8", "replace") if isinstance(key, str) else key
    if not _Z85.match(raw) or not _decodes(raw):
        raise KeyError_(f"{what} is not a CURVE key in Z85 (40 characters)")
    return raw


def _decodes(raw: bytes) -> bool:
    """Each five characters are a number below 2**32."""
    digits = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    for at in range(0, 40, 5):
        value = 0
        for c in raw[at : at + 5]:
            value = value * 85 + digits.index(c)
        if value >= 1 << 32:
            return False
    return True


def load_key(path: str | os.PathLike[str]) -> KeyFile:
    """The key file at ``path``. Raises KeyError_ when it cannot be read, is somebody else's to read, or is no
    key file."""
    text = read_private(path, "key file")
    try:
        value = json.loads(text)
    except ValueError as e:
        raise KeyError_(f"{path}: not a key file: {e}") from None
    if not isinstance(value, dict):
        raise KeyError_(f"{path}: not a key file: a JSON object is wanted")
    for name in ("name", "role", "public", "secret", "server"):
        if not isinstance(value.get(name, "" if name == "server" else None), str):
            raise KeyError_(f"{path}: {name!r} is missing, or not a string")
    try:
        check_name(value["name"])
        public = check_public(value["public"], "'public'")
        secret = check_public(value["secret"], "'secret'")
        server = check_public(value["server"], "'server'") if value.get("server") else b""
    except KeyError_ as e:
        raise KeyError_(f"{path}: {e}") from None
    role = value["role"]
    if role not in ROLES:
        raise KeyError_(f"{path}: role {role[:40]!r} is not one of {', '.join(ROLES)}")
    if zmq.curve_public(secret) != public:
        raise KeyError_(f"{path}: 'public' does not belong to 'secret': the file is damaged")
    if bool(server) == (role == SERVER):
        what = "is a server's and has no place here" if server else "(the server's public key) is missing"
        raise KeyError_(f"{path}: 'server' {what}")
    return KeyFile(value["name"], role, Curve(public, secret, server))


def load_client_key(path: str | os.PathLike[str]) -> KeyFile:
    """:func:`load_key` of a party that connects to a control plane: not the server's own. Raises
    KeyError_."""
    key = load_key(path)
    if key.role == SERVER:
        raise KeyError_(
            f"{path} is the key of the control plane itself; make one for this proxy: "
            "fastproxyctl keys node NAME --keys DIR"
        )
    return key


def save_key(path: str | os.PathLike[str], key: KeyFile) -> None:
    """Write ``path`` (0600), whole or not at all; what was there is replaced. Raises OSError."""
    value = {"name": key.name, "role": key.role, "public": key.curve.public.decode()}
    value["secret"] = key.curve.secret.decode()
    if key.curve.server:
        value["server"] = key.curve.server.decode()
    write_whole(path, json.dumps(value, indent=1) + "\n")


# --- files ---


def read_private(path: str | os.PathLike[str], what: str) -> str:
    """The text of a file that is the owner's only. Raises KeyError_ otherwise, as ssh does for its keys."""
    return _read(path, what, 0o077, f"others can read it; chmod 600 {path}")


def read_guarded(path: str | os.PathLike[str], what: str) -> str:
    """The text of a file that others may read but not write. Raises KeyError_."""
    return _read(path, what, 0o022, f"others can write it; chmod go-w {path}")


def _read(path: str | os.PathLike[str], what: str, forbidden: int, why: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not hold us up
    except OSError as e:
        raise KeyError_(f"{what} {path}: {e.strerror}") from None
    limit = MAX_FILE if forbidden == 0o077 else 256 * MAX_FILE
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise KeyError_(f"{what} {path}: not a file")
        if status.st_mode & forbidden:
            raise KeyError_(f"{what} {path}: {why}")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    except OSError as e:
        raise KeyError_(f"{what} {path}: {e.strerror}") from None
    finally:
        os.close(fd)
    if len(data) > limit:
        raise KeyError_(f"{what} {path}: more than {limit} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise KeyError_(f"{what} {path}: not UTF-8: byte {e.start}") from None


def write_whole(path: str | os.PathLike[str], text: str, mode: int = 0o600) -> None:
    """Replace a file in one step, durable when this returns. Raises OSError; then the old one is whole."""
    path = Path(path)
    fd, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            os.fchmod(fd, mode)
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.replace(scratch, path)
    except BaseException:
        os.unlink(scratch)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


Stamp = tuple[int, int, int]


def stamp(path: str | os.PathLike[str]) -> Stamp | None:
    """Differs after every change of the file that is worth reading it again; None: it cannot be looked
    at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


@contextmanager
def locked(folder: str | os.PathLike[str]) -> Iterator[None]:
    """One writer of a folder's files at a time, across processes. Raises KeyError_ where there is no
    folder."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as e:
        raise KeyError_(f"{folder}: {e.strerror}; make it first") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
