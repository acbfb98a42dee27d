"""One line a person can act on, on standard error."""

from __future__ import annotations

import sys
from typing import Literal

Level = Literal["info", "warning", "error"]


def line(level: Level, what: str, where: str = "", do: str = "") -> str:
    """``fastproxy: error: what (where); do``; control characters are escaped, so that it stays one line."""
    text = what
    if where:
        text += f" ({where})"
    if do:
        text += f"; {do}"
    clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return f"fastproxy: {level}: {clean}"


def say(level: Level, what: str, where: str = "", do: str = "") -> None:
    """Write :func:`line` to standard error. A closed or full standard error never stops the agent."""
    try:
        sys.stderr.write(line(level, what, where, do) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):
        return


def info(what: str, where: str = "", do: str = "") -> None:
    say("info", what, where, do)


def warning(what: str, where: str = "", do: str = "") -> None:
    say("warning", what, where, do)


def error(what: str, where: str = "", do: str = "") -> None:
    say("error", what, where, do)
