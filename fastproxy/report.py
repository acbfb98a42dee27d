"""What ``check`` and ``explain`` print: for people at a terminal, and line by line for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fastproxy._plan import PlanView
from fastproxy.agent.describe import SLASHES, split_header
from fastproxy.explain import Choice, Explanation, explain, with_mesh
from fastproxy.plan import PlanError, compile_plan
from fastproxy.resources.__main__ import answer
from fastproxy.slots import Slots, SlotsFull
from fastproxy.tables import Headers, Tables

OK, FAULTY = 0, 2


def _load(config: str, listen: str, labels: dict[str, str], namespace: str | None = None) -> dict[str, Any]:
    """The answer of the reader of resources, with what only the plan finds wrong among its problems."""
    read = answer({"path": config, "listen": listen, "labels": labels, "namespace": namespace})
    if "error" in read:
        problems = [_problem("--listen", str(read["error"]))]
        return {"problems": problems, "warnings": [], "documents": [], "tables": None}
    try:
        compiled = compile_plan(with_mesh(read["tables"]), Slots(), epoch=0, version=1)
    except (PlanError, SlotsFull) as e:
        read["problems"].append(_problem(config, str(e)))
        compiled = None
    return {**read, "compiled": compiled}


def _problem(file: str, message: str) -> dict[str, Any]:
    return {"file": file, "line": 0, "field": "", "message": message}


def check_config(config: str, listen: str, labels: dict[str, str]) -> int:
    """Print every problem and warning, and how many documents are good; the exit code, 0 with warnings.

    For proxies of every namespace: what only one of them would see is looked at, too.
    """
    read = _load(config, listen, labels)
    problems, warnings = read["problems"], read["warnings"]
    show_problems(problems)
    show_problems(warnings, "warning")
    documents = _count(len(read["documents"]), "document")
    also = f", {_count(len(warnings), 'warning')}" if warnings else ""
    if not problems:
        print(f"ok: {documents}{also}")
        return OK
    good = documents.replace(" ", " good ")
    print(f"{_count(len(problems), 'problem')}{also}, {good}", file=sys.stderr)
    return FAULTY


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def show_problems(problems: list[dict[str, Any]], level: str = "") -> None:
    """A table at a terminal; else ``file:line: level: field: message``, one line each."""
    if not problems:
        return
    console = Console()
    if not console.is_terminal:
        for p in problems:
            print(": ".join(part for part in (_place(p), level, p["field"], p["message"]) if part))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("where", "field", level or "what is wrong"):
        table.add_column(name, overflow="fold")
    for p in problems:
        table.add_row(Text(_place(p), "cyan"), Text(p["field"], "yellow"), Text(p["message"]))
    console.print(table)


def _place(problem: dict[str, Any]) -> str:
    return f"{problem['file']}:{problem['line']}" if problem["line"] else str(problem["file"])


def explain_request(
    config: str,
    request: str,
    headers: list[str],
    data: str,
    listener: str,
    listen: str,
    labels: dict[str, str],
    namespace: str,
) -> int:
    """Print where the request goes; the exit code. What is wrong with documents goes to standard error."""
    read = _load(config, listen, labels, namespace)
    for p in read["problems"]:
        print(f"fastproxy: warning: {_place(p)}: {p['field']}: {p['message']}", file=sys.stderr)
    if not read.get("compiled"):
        return FAULTY
    method, _, url = request.strip().partition(" ")
    try:
        if not url.strip():
            raise ValueError(f"{request!r} is not 'METHOD URL', as in 'GET http://catalog/x'")
        fields = [split_header(text) for text in headers]
        if data:
            fields.append(("Content-Length", str(len(data.encode()))))
        view = PlanView(read["compiled"].plan)
        tables = with_mesh(read["tables"])
        told = explain(
            tables, view, method, url.strip(), fields, listener=listener, slashes=SLASHES.index("keep")
        )
    except ValueError as e:
        print(f"fastproxy: error: {e}", file=sys.stderr)
        return FAULTY
    _show(told, tables)
    return OK if told.listener else FAULTY


def _show(told: Explanation, tables: Tables) -> None:
    """Each rule tried, why it failed, and the pick."""
    console = Console(highlight=False, soft_wrap=True)

    def say(label: str, text: str, style: str = "") -> None:
        console.print(Text.assemble((f"{label:<10}", "bold"), (text, style)))

    say("request", f"{told.method} {told.url}")
    say("listener", f"{told.listener} ({told.listener_reason})" if told.listener else "none")
    if told.hosts:
        say("host", ", ".join(f"{name} {'found' if there else 'not found'}" for name, there in told.hosts))
    if told.source:
        say("from", ", ".join(told.source))
    for tried in told.tried:
        mark, style = ("no ", "dim") if tried.reason else ("yes", "green")
        say(
            f"rule {tried.rule}",
            f"{mark}  {tried.route}" + (f": {tried.reason}" if tried.reason else ""),
            style,
        )
    for text in told.elsewhere:
        say("elsewhere", text, "dim")
    if told.error:
        say("answer" if told.listener else "error", told.error, "red")
        return
    status = f" {told.status}" if told.status else ""
    say("action", f"{told.action}{status}" + (f", at most {told.timeout_ms} ms" if told.timeout_ms else ""))
    if told.sent:
        say("location" if told.action == "redirect" else "path", told.sent)
    if told.authority:
        say("authority", told.authority)
    for label, change in _changes(told.headers):
        say(label, change)
    for choice in told.destinations:
        say("to", f"{choice.cluster}, {choice.share:.0%} of requests", "cyan")
        say("", _endpoints(choice, tables))
        for label, change in _changes(choice.headers):
            say("", f"{label}: {change}")


def _changes(headers: Headers) -> Iterator[tuple[str, str]]:
    """What is done to the fields of the request and of the response, in words."""
    for side, ops in (("request", headers.get("request", {})), ("response", headers.get("response", {}))):
        for name, value in ops.get("set", {}).items():
            yield side, f"set {name}: {value}"
        for name, value in ops.get("add", {}).items():
            yield side, f"add {name}: {value}"
        for name in ops.get("remove", []):
            yield side, f"remove {name}"


def _endpoints(choice: Choice, tables: Tables) -> str:
    if choice.missing:
        return "no such host or subset: 503 NC"
    if choice.endpoints:
        return ", ".join(choice.endpoints)
    row = tables["clusters"][choice.cluster]
    names = [f"{e['address']}:{e['port']}" for e in tables["endpoints"].get(row["endpoints"], [])]
    if row["resolution"] == "DNS" and names:
        return f"{', '.join(names)} (names, resolved when it runs)"
    return "no endpoint: 503 UH"
