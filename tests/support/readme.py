"""Tables of README.md that come from the code. ``python -m tests.support.readme`` writes them anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path

from fastproxy import errors, flags, settings

README = Path(__file__).resolve().parents[2] / "README.md"
START = "<!-- {}: made by tests/support/readme.py -->\n\n"
END = "\n\n<!-- end -->"


def errors_table() -> str:
    """One row for each kind of error."""
    lines = [
        "| kind | status | flag | fault | retryable | counted by a breaker | the client reads |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, row in errors.TABLE.items():
        if kind is errors.Kind.NONE:
            continue
        status = str(row.status) if row.status else "connection closed"
        retryable, counted = ("yes" if yes else "no" for yes in (row.retryable, row.counted))
        cells = (kind.name, status, row.flag, row.fault, retryable, counted, row.message or "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def flags_table() -> str:
    """One row for each setting."""
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    for field in fields(settings.Settings):
        flag = flags.FLAGS[field.name]
        spelling = (
            f"--{field.name.replace('_', '-')} {flags.metavar_of(field.name, type(field.default))}".strip()
        )
        shown = "–" if field.default in ("", MISSING) else f"`{str(field.default).lower()}`"
        cells = (f"`{spelling}`".replace("|", "\\|"), shown, flag.help.rstrip("."))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {"errors": errors_table, "flags": flags_table}


def found(text: str, block: str) -> str:
    """What stands in the block; a missing block is an error."""
    _, start, rest = text.partition(START.format(block))
    inside, end, _ = rest.partition(END)
    assert start and end, f"README.md has no block {block}"
    return inside


def main() -> None:
    text = README.read_text()
    for block, made in BLOCKS.items():
        old = found(text, block)
        text = text.replace(START.format(block) + old + END, START.format(block) + made() + END)
    README.write_text(text)


if __name__ == "__main__":
    main()
