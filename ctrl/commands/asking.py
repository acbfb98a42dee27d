"""What commands have in common: the server they ask, how they fail, the options that many have."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Concatenate, NamedTuple, ParamSpec

import typer

from ctrl import durations
from ctrl.client import ANSWER_SECONDS, DEFAULT_API, Client
from ctrl.show import Output

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
CHANGE, LOOK, RUN = "Change what proxies do", "Look", "Run and let in"  # groups of the help

P = ParamSpec("P")


class Failure(Exception):
    """The end of a command: one sentence for the user, and the exit code."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


class Place(NamedTuple):
    """Where the server is, as said before the command."""

    api: str = ""
    token_file: str = ""


Api = Annotated[
    str,
    typer.Option(
        "--api",
        metavar="URL",
        help=f"The server; default: FASTPROXY_API, else {DEFAULT_API}.",
        rich_help_panel="The server",
    ),
]
TokenFile = Annotated[
    str,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="File with the token; default: the variable FASTPROXY_TOKEN.",
        rich_help_panel="The server",
    ),
]
Show = Annotated[Output, typer.Option("--output", "-o", metavar="FORM", help="table, json, yaml or name.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", metavar="NAME", help="Namespace.")]
Message = Annotated[str, typer.Option("--message", "-m", metavar="TEXT", help="Why, for the history.")]


def connect(place: Place, seconds: float = ANSWER_SECONDS) -> Client:
    """The client for that server. Raises Failure."""
    api = place.api or os.environ.get("FASTPROXY_API", "") or DEFAULT_API
    token = os.environ.get("FASTPROXY_TOKEN", "").strip()
    if place.token_file:
        try:
            with Path(place.token_file).open("rb") as file:
                token = file.read(4096).decode().strip()
        except (OSError, ValueError) as e:
            why = e.strerror if isinstance(e, OSError) else "it holds no text"
            raise Failure(f"--token-file {place.token_file}: {why}", USAGE) from None
        if not token:
            raise Failure(f"--token-file {place.token_file}: the file is empty", USAGE)
    try:
        return Client(api, token, seconds)
    except ValueError as e:
        raise Failure(str(e), USAGE) from None


def asks(
    app: typer.Typer, name: str = "", **settings: Any
) -> Callable[[Callable[Concatenate[Client, P], None]], None]:
    """Make a command of a function whose first argument is the Client: its other parameters are the
    command's, and ``--api`` and ``--token-file`` come to them. Both may also stand before the command."""

    def register(body: Callable[Concatenate[Client, P], None]) -> None:
        run: Callable[..., None] = body
        own = list(inspect.signature(body, eval_str=True).parameters.values())[1:]
        keyword = inspect.Parameter.KEYWORD_ONLY
        added = [
            inspect.Parameter("context", keyword, annotation=typer.Context),
            inspect.Parameter("api", keyword, annotation=Api, default=""),
            inspect.Parameter("token_file", keyword, annotation=TokenFile, default=""),
        ]
        parameters = [p.replace(kind=keyword) for p in own] + added

        def command(**values: Any) -> None:
            context, api, file = values.pop("context"), values.pop("api"), values.pop("token_file")
            before = context.find_root().obj or Place()
            with connect(Place(api or before.api, file or before.token_file)) as client:
                run(client, **values)

        command.__name__ = body.__name__
        # typer keeps the line ends of the source inside a paragraph
        command.__doc__ = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(body.__doc__ or ""))
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        app.command(name or body.__name__, **settings)(command)

    return register


def milliseconds(flag: str, text: str) -> int:
    """The time that a flag gives. Raises Failure."""
    try:
        return durations.milliseconds(text)
    except ValueError as e:
        raise Failure(f"{flag}: {e}", USAGE) from None
