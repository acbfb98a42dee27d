"""``check``: every error in a file or folder, with its place."""

from __future__ import annotations

from collections.abc import Mapping

from fastproxy.resources import Problem, load, settle


def check(path: str, labels: Mapping[str, str] | None = None) -> list[Problem]:
    """Everything that is wrong, in order of file and line; empty: all documents would serve.

    ``str(problem)`` is the line to print: ``file:line: field: message``. Never raises for what it reads.
    """
    loaded = load(path)
    _, _, problems = settle(loaded.documents, labels=labels)
    return sorted({*loaded.problems, *problems}, key=lambda p: (p.file, p.line, p.field))
