"""What ``check`` and ``explain`` print: for people at a terminal, and line by line for programs."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastproxy.plan import PlanError, compile_plan
from fastproxy.resources.__main__ import answer
from fastproxy.slots import Slots, SlotsFull

OK, FAULTY = 0, 2


def _load(config: str, listen: str, labels: dict[str, str]) -> dict[str, Any]:
    """The answer of the reader of resources, with what only the plan finds wrong among its problems."""
    read = answer({"path": config, "listen": listen, "labels": labels})
    if "error" in read:
        return {"problems": [_problem("--listen", str(read["error"]))], "documents": [], "tables": None}
    try:
        compiled = compile_plan(read["tables"], Slots(), epoch=0, version=1)
    except (PlanError, SlotsFull) as e:
        read["problems"].append(_problem(config, str(e)))
        compiled = None
    return {**read, "compiled": compiled}


def _problem(file: str, message: str) -> dict[str, Any]:
    return {"file": file, "line": 0, "field": "", "message": message}


def check_config(config: str, listen: str, labels: dict[str, str]) -> int:
    """Print every problem, or how many documents are good; the exit code."""
    read = _load(config, listen, labels)
    problems = read["problems"]
    if not problems:
        documents = len(read["documents"])
        print(f"ok: {documents} document{'s' * (documents != 1)}")
        return OK
    show_problems(problems)
    count = len(problems)
    print(f"{count} problem{'s' * (count != 1)}, {len(read['documents'])} good documents", file=sys.stderr)
    return FAULTY


def show_problems(problems: list[dict[str, Any]]) -> None:
    """A table at a terminal; else ``file:line: field: message``, one line each."""
    console = Console()
    if not console.is_terminal:
        for p in problems:
            print(": ".join(part for part in (_place(p), p["field"], p["message"]) if part))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("where", "field", "what is wrong"):
        table.add_column(name, overflow="fold")
    for p in problems:
        table.add_row(Text(_place(p), "cyan"), Text(p["field"], "yellow"), Text(p["message"]))
    console.print(table)


def _place(problem: dict[str, Any]) -> str:
    return f"{problem['file']}:{problem['line']}" if problem["line"] else str(problem["file"])
