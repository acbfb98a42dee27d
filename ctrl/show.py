"""What people and programs get to see: tables, JSON, YAML, names; problems; differences between texts.

Results go to standard output, all else (progress, problems, hints) to standard error: a script may read the
one and a person still see the other. What came from a server or a file is printed without its control
characters.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastproxy.resources.problem import printable

PROGRAM = "fastproxyctl"
MAX_CELL = 2000
LEAST_FOLDED = 32  # columns that the one folded column of a table keeps


class Output(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class Column(NamedTuple):
    """rank: those with the highest go first where the terminal is too narrow; 0 stays. fold: long text."""

    title: str
    rank: int = 0
    right: bool = False
    fold: bool = False


Cell = str | int | Text


def out() -> Console:
    return Console(highlight=False, soft_wrap=False)


def err() -> Console:
    return Console(highlight=False, soft_wrap=True, stderr=True)


def say(text: str | Text) -> None:
    """One line of the result."""
    out().print(text if isinstance(text, Text) else Text(text), soft_wrap=True)


def hint(text: str | Text) -> None:
    """One line beside the result."""
    err().print(text if isinstance(text, Text) else Text(text))


def emit(value: Any, output: Output) -> None:
    """``value`` as JSON or YAML, whole and alone on standard output."""
    if output is Output.YAML:
        import yaml

        yaml.safe_dump(value, sys.stdout, sort_keys=False, allow_unicode=True)
    else:
        json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")


def table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]]) -> list[str]:
    """A table that fits: at a terminal the least needed columns go where it is narrow, in a pipe all stay and
    each row is one line. The titles that are shown."""
    console = out()
    cells = [[_cell(value) for value in row] for row in rows]
    kept = list(range(len(columns)))
    if console.is_terminal:
        kept = _fitting(columns, cells, console.width)
    else:
        console = Console(highlight=False, width=100_000, file=sys.stdout)
    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for i in kept:
        column = columns[i]
        made.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold",
            no_wrap=not (column.fold and console.is_terminal),
        )
    for row in cells:
        made.add_row(*(row[i] for i in kept))
    if console.is_terminal:
        console.print(made)
        return [columns[i].title for i in kept]
    with console.capture() as captured:
        console.print(made)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in captured.get().splitlines()))
    return [columns[i].title for i in kept]


def _cell(value: Cell) -> Text:
    if isinstance(value, Text):
        return value
    return Text(printable(str(value), MAX_CELL))


def _fitting(columns: Sequence[Column], cells: Sequence[Sequence[Text]], width: int) -> list[int]:
    """Indexes of the columns that have room."""

    def need(i: int) -> int:
        widest = max((cell_len(row[i].plain) for row in cells), default=0)
        if columns[i].fold:
            widest = min(widest, LEAST_FOLDED)
        return max(widest, cell_len(columns[i].title)) + 2

    # a column without a word in it says nothing
    kept = [
        i
        for i, column in enumerate(columns)
        if not column.rank or any(row[i].plain not in ("", "–") for row in cells)
    ]
    while sum(map(need, kept)) - 2 > width:
        last = max(kept, key=lambda i: columns[i].rank)
        if not columns[last].rank:
            break
        kept.remove(last)
    return kept


# --- problems ---


def problems(rows: Iterable[dict[str, Any]], level: str = "error") -> int:
    """One line each on standard error, ``file:line: error: field: message``; how many there were."""
    console, count = err(), 0
    style = "red" if level == "error" else "yellow"
    for row in rows:
        count += 1
        console.print(
            Text.assemble(
                (place(row), "bold"),
                ": ",
                (level, style),
                *((": ", (word(row, "field"), "yellow")) if row.get("field") else ()),
                ": ",
                word(row, "message"),
            )
        )
    return count


def place(row: dict[str, Any]) -> str:
    """``mesh.yaml:12``; without a file the document's own name."""
    file, line = word(row, "file"), row.get("line")
    if not file:
        return identity(row) if row.get("name") else "documents"
    return f"{file}:{line}" if isinstance(line, int) and line > 0 else file


def word(row: dict[str, Any], key: str) -> str:
    value = row.get(key)
    return printable(value if isinstance(value, str) else "" if value is None else str(value), MAX_CELL)


def number(row: dict[str, Any], key: str) -> int:
    """A whole number of an answer; 0 where there is none."""
    value = row.get(key)
    return value if type(value) is int else 0


def names(answer: dict[str, Any], key: str) -> list[str]:
    """The strings of a list."""
    value = answer.get(key)
    return [word({key: name}, key) for name in value] if isinstance(value, list) else []


def rows(answer: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects of a list in an answer."""
    value = answer.get(key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def identity(row: dict[str, Any]) -> str:
    """``VirtualService default/catalog``"""
    return f"{word(row, 'kind')} {word(row, 'namespace')}/{word(row, 'name')}"


def fail(message: str) -> None:
    """The one line that says why it failed."""
    err().print(Text.assemble(f"{PROGRAM}: ", ("error", "bold red"), f": {message}"))


VERBS = {"created": "green", "configured": "yellow", "deleted": "red"}


def changes(rows: Iterable[dict[str, Any]], dry: bool = False) -> None:
    """``VirtualService default/catalog configured``"""
    for row in rows:
        verb = word(row, "verb")
        told = Text.assemble(f"{identity(row)} ", (verb, VERBS.get(verb, "")), " (dry run)" if dry else "")
        say(told)


def count(amount: int, noun: str) -> str:
    """``1 proxy``, ``2 proxies``, ``3 documents``"""
    if amount != 1:
        noun = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{amount} {noun}"


# --- differences ---


def differences(rows: Iterable[dict[str, Any]]) -> None:
    """Unified, as ``diff -u`` writes them; coloured at a terminal."""
    for row in rows:
        name = identity(row)
        before, after = row.get("before"), row.get("after")
        for line in unified(
            before if isinstance(before, str) else "", after if isinstance(after, str) else "", name
        ):
            say(line)


def unified(before: str, after: str, name: str) -> Iterator[Text]:
    """The lines of one difference; nothing for equal texts."""
    if before.endswith("\n") and after.endswith("\n") or not (before and after):
        before, after = before.removesuffix("\n"), after.removesuffix("\n")
    old = f"now: {name}" if before else "/dev/null"
    new = f"then: {name}" if after else "/dev/null"
    for line in difflib.unified_diff(_lines(before), _lines(after), old, new, lineterm="", n=3):
        style = ""
        if line.startswith(("---", "+++")):
            style = "bold"
        elif line.startswith("@@"):
            style = "cyan"
        elif line.startswith("+"):
            style = "green"
        elif line.startswith("-"):
            style = "red"
        yield Text(printable(line, 10_000), style)


def _lines(text: str) -> list[str]:
    return [line.replace("\t", "    ") for line in text.split("\n")] if text else []
