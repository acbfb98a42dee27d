"""Tokens of the HTTP API: who may change what every proxy does.

The file has lines ``role name sha256-of-the-token``, # starts a comment, mode 0600. The token itself, 32
random bytes in base64url, is shown once, when it is made, and kept nowhere. A running control plane sees a
change of the file by itself; a line that cannot be read lets nobody in, the others count.

Roles: an operator reads and changes everything; a node reads.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from fastproxy.keys import NODE, OPERATOR, KeyError_, check_name, locked, read_private, stamp, write_whole

ROLES = (OPERATOR, NODE)
HEADER = "# Tokens of the HTTP API: role name sha256-of-the-token. Made by fastproxyctl keys token.\n"
MAX_HEADER = 512  # characters of an Authorization field that are looked at
LOOK = 1.0  # seconds between two looks at the file

_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([A-Za-z0-9_-]{43})\Z")
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_log = logging.getLogger("fastproxyctl")


@dataclass(frozen=True, slots=True)
class Holder:
    """Whose token it is."""

    role: str
    name: str
    digest: str  # SHA-256 of the token, hexadecimal

    def __str__(self) -> str:
        return f"{self.role} {self.name} {self.digest}"


class Tokens:
    """The holders of a file, which is read again when it changes."""

    def __init__(self, path: str | os.PathLike[str], holders: list[Holder]) -> None:
        self.path = Path(path)
        self.holders = holders
        self.problems: list[str] = []  # of the file as it is now
        self._seen = stamp(self.path)
        self._looked = time.monotonic()

    def __repr__(self) -> str:
        return f"<Tokens {self.path}: {len(self.holders)}>"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokens:
        """Raises KeyError_ when the file cannot be read or a line is wrong."""
        tokens = cls(path, [])  # stamped first: a change meanwhile is seen later
        tokens.holders, problems = read_tokens(path)
        if problems:
            raise KeyError_("; ".join(problems))
        return tokens

    def holder_of(self, header: str | None) -> Holder | None:
        """Who sends this ``Authorization`` field; None: nobody we know.

        RFC 6750 §2.1. The time it takes does not tell how much of a token is right, nor whose it is.
        """
        self._look()
        if not header or len(header) > MAX_HEADER:
            return None
        found = _BEARER.match(header)
        if not found:
            return None
        digest = hashlib.sha256(found[1].encode()).hexdigest()
        owner = None
        for holder in self.holders:
            if hmac.compare_digest(holder.digest, digest):
                owner = holder
        return owner

    def role_of(self, header: str | None) -> str | None:
        """ "operator", "node" or None; see :meth:`holder_of`."""
        holder = self.holder_of(header)
        return holder.role if holder else None

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < LOOK:
            return
        self._looked = now
        now_it_is = stamp(self.path)
        if now_it_is == self._seen:
            return
        try:
            self.holders, problems = read_tokens(self.path)
            self._seen = now_it_is
        except KeyError_ as e:
            problems = [f"{e}; the tokens as they were before go on"]
        if problems != self.problems:
            self.problems = problems
            for problem in problems[:20]:
                _log.warning("%s", problem)


def read_tokens(path: str | os.PathLike[str]) -> tuple[list[Holder], list[str]]:
    """(holders, what is wrong with the lines that are none). Raises KeyError_ when the file cannot be
    read."""
    holders: list[Holder] = []
    problems = []
    for number, line in enumerate(read_private(path, "token file").splitlines(), 1):
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        try:
            if len(words) != 3 or words[0] not in ROLES or not _DIGEST.match(words[2]):
                raise KeyError_(f"a line is: {'|'.join(ROLES)} name sha256-of-the-token")
            holders.append(Holder(words[0], check_name(words[1]), words[2]))
        except KeyError_ as e:
            problems.append(f"{path}:{number}: {e}")
    return holders, problems


def add_token(path: str | os.PathLike[str], name: str, role: str) -> str:
    """Make a token, put its hash in the file (made when it is not there) and return it: it is never seen
    again. Raises KeyError_ when the name has one."""
    path = Path(path)
    check_name(name)
    if role not in ROLES:
        raise KeyError_(f"role {role!r} is not one of {', '.join(ROLES)}")
    token = secrets.token_urlsafe(32)
    with locked(path.parent):
        text = read_private(path, "token file") if path.exists() else HEADER
        if path.exists() and any(holder.name == name for holder in read_tokens(path)[0]):
            raise KeyError_(f"{name} has a token already; delete its line in {path} first")
        text += "" if text.endswith("\n") or not text else "\n"
        write_whole(path, f"{text}{Holder(role, name, hashlib.sha256(token.encode()).hexdigest())}\n")
    return token


def revoke_token(path: str | os.PathLike[str], name: str) -> None:
    """Take the token of this name away. Raises KeyError_ when there is none."""
    path = Path(path)
    with locked(path.parent):
        lines = read_private(path, "token file").splitlines()
        left = [line for line in lines if line.split("#", 1)[0].split()[1:2] != [name]]
        if len(left) == len(lines):
            raise KeyError_(f"{name} has no token in {path}")
        write_whole(path, "".join(f"{line}\n" for line in left))
