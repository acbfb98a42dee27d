"""The folder of keys of a control plane, and what is done to it.

::

    DIR/server.key     its own key file (0600)
    DIR/allow          who may connect: lines ``role name public-key``, # starts a comment
    DIR/NAME.key       made for a node by :func:`add_node`; move it to the node, it is not needed here

A node may be in the list with several keys at once: that is how a key is replaced. A running control plane
sees a change of the list by itself (``ctrl.zap``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fastproxy.keys import (
    NODE,
    OPERATOR,
    RELAY,
    SERVER,
    KeyError_,
    KeyFile,
    check_name,
    check_public,
    load_key,
    locked,
    new_curve,
    read_guarded,
    save_key,
    write_whole,
)

ALLOWED = (NODE, RELAY, OPERATOR)  # roles in the list
HEADER = "# Who may connect to this control plane: role name public-key. Made by fastproxyctl keys.\n"


@dataclass(frozen=True, slots=True)
class Allowed:
    """One line of the allow list."""

    role: str
    name: str
    public: str  # Z85

    def __str__(self) -> str:
        return f"{self.role} {self.name} {self.public}"


def init(folder: str | os.PathLike[str], name: str = "control-plane") -> KeyFile:
    """Make the folder with a server key and an empty allow list. Raises KeyError_ when it has a key
    already."""
    folder = Path(folder)
    check_name(name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(folder):
        if (folder / "server.key").exists():
            raise KeyError_(f"{folder} has a server.key already; nodes know that key, it was left alone")
        key = KeyFile(name, SERVER, new_curve())
        if not (folder / "allow").exists():
            write_whole(folder / "allow", HEADER, 0o644)
        save_key(folder / "server.key", key)
        return key


def server_key(folder: str | os.PathLike[str]) -> KeyFile:
    """The control plane's own key. Raises KeyError_ with what to do."""
    path = Path(folder) / "server.key"
    if not path.exists():
        raise KeyError_(f"{path} is not there; make it: fastproxyctl keys init {folder}")
    key = load_key(path)
    if key.role != SERVER:
        raise KeyError_(f"{path} is the key of {key.role} {key.name}, not of a server")
    return key


def add_node(folder: str | os.PathLike[str], name: str, role: str = NODE, below: str = "") -> Path:
    """A key file for a new node or relay, DIR/NAME.key, which is allowed from now on. ``below``: the relay
    that it connects to instead of the control plane. Raises KeyError_ when the name is taken."""
    folder = Path(folder)
    server = _relay_key(folder, below) if below else server_key(folder).curve.public
    path = folder / f"{check_name(name)}.key"
    if path.name == "server.key" or role not in (NODE, RELAY):
        raise KeyError_(f"{role} {name}: a node or a relay, and not called server")
    with locked(folder):
        entries, _ = read_allow(folder / "allow")
        taken = next((entry for entry in entries if entry.name == name), None)
        if taken or path.exists():
            raise KeyError_(
                f"{name} has a key already; to replace it: fastproxyctl keys revoke {name} --keys {folder}, "
                "then make the new one"
                if taken
                else f"{path} is there already; move it away first"
            )
        key = KeyFile(name, role, new_curve(server))
        save_key(path, key)
        _append(folder, Allowed(role, name, key.curve.public.decode()))
    return path


def allow(folder: str | os.PathLike[str], name: str, public: str, role: str = NODE) -> Allowed:
    """Allow a key that was made elsewhere: its secret never comes here. Raises KeyError_."""
    folder = Path(folder)
    entry = parse_line(f"{role} {name} {public}")
    with locked(folder):
        entries, _ = read_allow(folder / "allow")
        for other in entries:
            if other.public == entry.public:
                raise KeyError_(f"that key is allowed already, as {other.role} {other.name}")
            if other.name == name and other.role != role:
                raise KeyError_(f"{name} is a {other.role} already; another role needs another name")
        _append(folder, entry)
    return entry


def listed(folder: str | os.PathLike[str]) -> list[Allowed]:
    """Who is allowed. Raises KeyError_, also for a line that cannot be read."""
    entries, problems = read_allow(Path(folder) / "allow")
    if problems:
        raise KeyError_("; ".join(problems))
    return entries


def revoke(folder: str | os.PathLike[str], name: str) -> list[Allowed]:
    """Take all keys of this name out of the list, and its key file with them. Raises KeyError_ when there is
    none."""
    folder = Path(folder)
    check_name(name)
    with locked(folder):
        path = folder / "allow"
        lines = read_guarded(path, "allow list").splitlines()
        gone = [line for line in lines if _name_in(line) == name]
        if not gone:
            raise KeyError_(f"{name} is not in {path}")
        write_whole(path, "".join(f"{line}\n" for line in lines if line not in gone), 0o644)
        if name != SERVER:
            (folder / f"{name}.key").unlink(missing_ok=True)
    entries, _ = read_lines(gone, path)
    return entries


# --- the list ---


def read_allow(path: str | os.PathLike[str]) -> tuple[list[Allowed], list[str]]:
    """(entries, what is wrong with the lines that are none). Raises KeyError_ when the file cannot be read.

    A line that cannot be read allows nobody; the others count.
    """
    return read_lines(read_guarded(path, "allow list").splitlines(), path)


def read_lines(lines: list[str], path: str | os.PathLike[str]) -> tuple[list[Allowed], list[str]]:
    """:func:`read_allow` of lines that were read already."""
    entries: dict[str, Allowed] = {}
    roles: dict[str, str] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            entry = parse_line(line)
            if entry.public in entries:
                raise KeyError_(f"this key is that of {entries[entry.public].name} already")
            if roles.setdefault(entry.name, entry.role) != entry.role:
                raise KeyError_(f"{entry.name} is a {roles[entry.name]} already")
            entries[entry.public] = entry
        except KeyError_ as e:
            problems.append(f"{path}:{number}: {e}")
    return list(entries.values()), problems


def parse_line(line: str) -> Allowed:
    """One line of the list. A key may hold #, so a comment behind it needs a space before. Raises
    KeyError_."""
    words = line.split()
    if len(words) < 3 or (len(words) > 3 and not words[3].startswith("#")):
        raise KeyError_("a line is: role name public-key")
    role, name, public = words[:3]
    if role not in ALLOWED:
        raise KeyError_(f"role {role[:40]!r} is not one of {', '.join(ALLOWED)}")
    return Allowed(role, check_name(name), check_public(public).decode())


def _relay_key(folder: Path, name: str) -> bytes:
    entries, _ = read_allow(folder / "allow")
    found = [entry for entry in entries if (entry.name, entry.role) == (name, RELAY)]
    if len(found) != 1:
        raise KeyError_(f"{name} has {len(found)} relay keys in {folder / 'allow'}; one is wanted")
    return found[0].public.encode()


def _name_in(line: str) -> str:
    words = line.split()
    return words[1] if len(words) > 1 and not words[0].startswith("#") else ""


def _append(folder: Path, entry: Allowed) -> None:
    path = folder / "allow"
    text = read_guarded(path, "allow list")
    if text and not text.endswith("\n"):
        text += "\n"
    write_whole(path, f"{text}{entry}\n", 0o644)
