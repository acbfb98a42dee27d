"""``keys``: who may connect to a control plane, and with which key; and the tokens of its HTTP API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from ctrl import show
from ctrl.commands.asking import RUN, USAGE, Failure, Show
from ctrl.show import Column, Output

Folder = Annotated[
    str, typer.Option("--keys", metavar="DIR", envvar="FASTPROXY_KEYS", help="Folder of the keys.")
]
DEFAULT = "keys"


def add(app: typer.Typer) -> None:
    """The commands of this file."""
    group = typer.Typer(no_args_is_help=True, help="Keys of proxies, relays and people; tokens of the API.")
    for command in (init, node, operator, revoke, token):
        group.command(command.__name__)(command)
    group.command("list")(list_)
    app.add_typer(group, name="keys", rich_help_panel=RUN)


def init(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The folder to make.")] = DEFAULT,
    name: Annotated[str, typer.Option(metavar="NAME", help="Of this control plane.")] = "control-plane",
) -> None:
    """Make the folder: the server's key and an empty list of who may connect."""
    from ctrl import keys

    with _told():
        keys.init(folder, name)
    show.say(f"{folder}/server.key is the control plane's key, {folder}/allow the list of who may connect")
    show.hint(f"next: {show.PROGRAM} keys node NAME --keys {folder}, then serve --keys {folder}")


def node(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As in fastproxy run --node NAME.")],
    folder: Folder = DEFAULT,
    relay: Annotated[bool, typer.Option("--relay", help="Of a relay.")] = False,
    below: Annotated[str, typer.Option(metavar="RELAY", help="It connects to this relay.")] = "",
    public: Annotated[str, typer.Option(metavar="KEY", help="Allow this public key; make none.")] = "",
) -> None:
    """Make a proxy's key and allow it."""
    _made(name, folder, "relay" if relay else "node", public, below)


def operator(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who it is.")],
    folder: Folder = DEFAULT,
    public: Annotated[str, typer.Option(metavar="KEY", help="Their public key.")] = "",
) -> None:
    """Allow a person's key. What a person changes goes through the HTTP API: see keys token."""
    if not public:
        raise Failure("--public KEY is wanted: an operator makes the key, the secret stays there", USAGE)
    _made(name, folder, "operator", public)


def _made(name: str, folder: str, role: str, public: str, below: str = "") -> None:
    from ctrl import keys

    with _told():
        if public:
            show.say(f"allowed: {keys.allow(folder, name, public, role)}")
            return
        path = keys.add_node(folder, name, role, below)
    show.say(f"{path} is the key of {role} {name}: move it there, it is not needed here")
    run = (
        f"{show.PROGRAM} relay --allow {folder}/allow --key"
        if role == "relay"
        else "fastproxy run --control-key"
    )
    show.hint(f"there: {run} {path.name} …")


def revoke(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose keys.")], folder: Folder = DEFAULT
) -> None:
    """Take all keys of this name out of the list; a running control plane sees it at once."""
    from ctrl import keys

    with _told():
        gone = keys.revoke(folder, name)
    show.say(f"{name}: {show.count(len(gone), 'key')} out of the list")


def list_(folder: Folder = DEFAULT, output: Show = Output.TABLE) -> None:
    """Who may connect."""
    from ctrl import keys

    with _told():
        entries = keys.listed(folder)
    if output in (Output.JSON, Output.YAML):
        rows = [{"role": e.role, "name": e.name, "public": e.public} for e in entries]
        show.emit({"allowed": rows}, output)
    elif output is Output.NAME:
        for entry in entries:
            typer.echo(entry.name)
    elif entries:
        columns = (Column("ROLE"), Column("NAME"), Column("PUBLIC KEY", rank=1))
        show.table(columns, [[e.role, e.name, e.public] for e in entries])
    else:
        show.hint(f"nobody may connect yet: {show.PROGRAM} keys node NAME --keys {folder}")


def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who uses it; the history says this name.")],
    file: Annotated[str, typer.Option("--tokens", metavar="FILE", help="As serve --tokens.")] = "tokens",
    role: Annotated[
        str, typer.Option(metavar="ROLE", help="operator (changes) or node (reads).")
    ] = "operator",
) -> None:
    """Make a token of the HTTP API. It is printed once; the file keeps only its digest."""
    from ctrl import tokens

    with _told():
        secret = tokens.add_token(file, name, role)
    show.hint(f"the token of {role} {name}; keep it, {file} holds only its digest:")
    typer.echo(secret)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError) as e:
        raise Failure(str(e.args[0]) if e.args else str(e), USAGE) from None
    except OSError as e:
        raise Failure(f"{e.filename or ''}: {e.strerror or e}".lstrip(": ")) from None
