"""Commands that run until they are ended: serve, relay, publish."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import Coroutine
from typing import Annotated, Any

import typer

from ctrl import show
from ctrl.commands.asking import RUN, USAGE, Failure, milliseconds
from ctrl.commands.changes import Files, Recursive
from ctrl.model import StoreError

PUBLISH = "tcp://127.0.0.1:9910"

Publish = Annotated[
    str,
    typer.Option(
        "--publish",
        metavar="tcp://IP:PORT",
        help="Where proxies subscribe; the two ports above it are used as well.",
        envvar="FASTPROXY_PUBLISH",
        show_envvar=False,
    ),
]
Keys = Annotated[
    str,
    typer.Option(
        "--keys",
        metavar="DIR",
        help="Keys and allow list (keys init); without them only this machine may connect.",
        envvar="FASTPROXY_KEYS",
        show_envvar=False,
    ),
]
Heartbeat = Annotated[str, typer.Option(metavar="TIME", help="Between two heartbeats.")]
Report = Annotated[str, typer.Option(metavar="TIME", help="Between two reports of a proxy.")]
Name = Annotated[str, typer.Option(metavar="NAME", help="Of this control plane; default: the host's.")]


def add(app: typer.Typer) -> None:
    """The commands of this file."""
    app.command(rich_help_panel=RUN)(serve)
    app.command(rich_help_panel=RUN)(relay)
    app.command(rich_help_panel=RUN)(publish)


def serve(
    store: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="sqlite:///PATH, or etcd://HOST:PORT[,…] for several control planes.",
            envvar="FASTPROXY_STORE",
            show_envvar=False,
        ),
    ] = "sqlite:///fastproxy.db",
    publish: Publish = PUBLISH,
    api: Annotated[
        str, typer.Option("--api", metavar="IP:PORT", help="Where the HTTP API listens.")
    ] = "127.0.0.1:9900",
    keys: Keys = "",
    tokens: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Tokens of the API (keys token); without them only this machine may ask.",
            envvar="FASTPROXY_TOKENS",
            show_envvar=False,
        ),
    ] = "",
    heartbeat: Heartbeat = "1s",
    report: Report = "5s",
    keep: Annotated[int, typer.Option(metavar="N", min=1, help="Versions of history.")] = 1000,
    name: Name = "",
    new_epoch: Annotated[
        bool, typer.Option("--new-epoch", help="Once, after a store was restored from a backup.")
    ] = False,
) -> None:
    """Run the control plane: store, publisher, HTTP API.

    SIGTERM and Ctrl-C end it; the proxies go on with what they have."""
    from ctrl.serve import Options
    from ctrl.serve import serve as run

    _end(
        run(
            Options(
                store=store,
                publish=publish,
                api=api,
                keys=keys,
                tokens=tokens,
                heartbeat=_seconds("--heartbeat", heartbeat),
                report=_seconds("--report", report),
                keep=keep,
                name=name,
                new_epoch=new_epoch,
            )
        )
    )


def relay(
    control: Annotated[
        str,
        typer.Option(
            metavar="tcp://HOST:PORT[,…]", help="Publish addresses of the servers, or relays, above."
        ),
    ],
    publish: Publish = "tcp://127.0.0.1:9920",
    key: Annotated[
        str, typer.Option("--key", metavar="FILE", help="This relay's key, of keys node --relay.")
    ] = "",
    allow: Annotated[
        str,
        typer.Option("--allow", metavar="FILE", help="Who may connect below: as keys/allow of the server."),
    ] = "",
    name: Name = "",
) -> None:
    """Run a relay between publishers and many proxies.

    It takes what they say once, keeps it, and gives it to all below; answers go up through it.
    """
    if bool(key) != bool(allow):
        raise Failure("--key and --allow belong together: with keys above there are keys below", USAGE)
    addresses = [address.strip() for address in control.split(",") if address.strip()]
    _end(_relay(addresses, publish, key, allow, name))


async def _relay(addresses: list[str], publish: str, key: str, allow: str, name: str) -> int:
    from ctrl.relay import Relay
    from ctrl.zap import Authority
    from fastproxy import __version__
    from fastproxy.keys import load_client_key

    file = load_client_key(key) if key else None
    running = Relay(
        file.name if file else name or socket.gethostname(),
        addresses,
        bind=publish,
        curve=file.curve if file else None,
        authority=Authority(allow) if allow else None,
        release=__version__,
    )
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        await running.open()
        show.say(f"relay {running.name} of {', '.join(addresses)} at {running.address}")
        await ended.wait()
    finally:
        await running.close()
    return 0


def publish(
    filename: Files = [],  # noqa: B006
    recursive: Recursive = False,
    publish: Publish = PUBLISH,
    keys: Keys = "",
    wait: Annotated[int, typer.Option(metavar="N", min=0, help="Proxies that have to serve it.")] = 0,
    once: Annotated[
        bool, typer.Option("--once", help="End when they do (one without --wait); 1 if not.")
    ] = False,
    timeout: Annotated[str, typer.Option(metavar="TIME", help="For --once.")] = "30s",
    heartbeat: Heartbeat = "1s",
    report: Report = "5s",
    name: Name = "",
) -> None:
    """Publish files straight to proxies, without a server.

    Changes of the files are followed.

    With --once it ends as soon as N proxies serve them, and they go on with what they have.
    """
    from ctrl import publish as publishing
    from ctrl.documents import DocumentsError

    if not filename:
        raise Failure("-f FILE|DIR|- says where the documents are", USAGE)
    options = publishing.Options(
        paths=filename,
        recursive=recursive,
        publish=publish,
        keys=keys,
        wait=wait,
        once=once,
        timeout=_seconds("--timeout", timeout),
        heartbeat=_seconds("--heartbeat", heartbeat),
        report=_seconds("--report", report),
        name=name,
    )
    try:
        _end(publishing.publish(options))
    except DocumentsError as e:
        raise Failure(str(e), USAGE) from None


def _seconds(flag: str, text: str) -> float:
    seconds = milliseconds(flag, text) / 1000
    if not seconds:
        raise Failure(f"{flag}: more than 0 is wanted", USAGE)
    return seconds


def _end(running: Coroutine[Any, Any, int]) -> None:
    """Run it on a loop of its own, and end the program with its exit code. Raises Failure."""
    import uvloop

    # three connections for each proxy; the usual soft limit is for programs that use select
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            code = runner.run(running)
    except ValueError as e:  # of flags, and of key files
        raise Failure(str(e), USAGE) from None
    except OSError as e:
        raise Failure(f"{e.strerror or e}; is another one running there?" if e.errno else str(e)) from None
    except StoreError as e:
        raise Failure(str(e)) from None
    raise typer.Exit(code)
