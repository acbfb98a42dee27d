"""The command line. ``run`` checks its flags and becomes the agent: nothing of this stays in memory."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from fastproxy import __version__
from fastproxy.agent.program import command, environment
from fastproxy.flags import FlagError, parameters, settings_from

USAGE, FAILED = 2, 1

app = typer.Typer(
    name="fastproxy",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[
    str, typer.Option("--config", "-c", metavar="FILE|DIR", help="Resources: a file or a folder.")
]


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastproxy {__version__}")
        raise typer.Exit


@app.callback()
def fastproxy(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The data plane of a service mesh: a native-speed HTTP proxy, configured like Istio."""


def run(**values: Any) -> None:
    """Run the proxy: `--listen HOST:PORT --to HOST:PORT`, `-c FILE|DIR`, or `--control tcp://HOST:PORT`.

    Every flag is also a variable: FASTPROXY_LISTEN for --listen. SIGHUP reloads, SIGTERM drains, SIGINT ends.
    """
    try:
        settings = settings_from(values)
    except FlagError as e:
        fail(str(e))
    become_agent(settings.to_json())


def become_agent(settings: dict[str, Any]) -> NoReturn:
    """Replace this process by the agent; same pid. Settings travel in a memfd, flags stay visible in ps."""
    fd = os.memfd_create("fastproxy-settings", 0)
    with open(fd, "w", closefd=False) as f:
        json.dump(settings, f)
    os.lseek(fd, 0, os.SEEK_SET)
    words = command("fastproxy.agent", str(fd), *sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(words[0], words, environment())
    except OSError as e:
        fail(f"cannot start {words[0]}: {e.strerror}", FAILED)


def _as_command(body: Callable[..., None]) -> Callable[..., None]:
    """Give ``run`` the signature that typer reads its flags from."""
    made = parameters()
    body.__signature__ = inspect.Signature(made)  # type: ignore[attr-defined]
    body.__annotations__ = {p.name: p.annotation for p in made}
    return body


app.command()(_as_command(run))


@app.command()
def check(
    config: Config,
    listen: Annotated[str, typer.Option(metavar="ADDRESS", help="As --listen of run.")] = "",
    label: Annotated[list[str], typer.Option(metavar="K=V", help="As --label of run.")] = [],  # noqa: B006
) -> None:
    """Check resources. Exit code 0, or 2 and every problem with its place."""
    from fastproxy.report import check_config

    raise typer.Exit(check_config(config, listen, _labels(label)))


@app.command()
def explain(
    request: Annotated[
        str, typer.Argument(metavar="'METHOD URL'", help="Such as 'GET http://catalog/x?y=1'.")
    ],
    config: Config,
    header: Annotated[
        list[str], typer.Option("--header", "-H", metavar="'NAME: VALUE'", help="A header field; repeated.")
    ] = [],  # noqa: B006
    data: Annotated[str, typer.Option(metavar="TEXT", help="The body.")] = "",
    listener: Annotated[
        str, typer.Option(metavar="NAME", help="Listener that accepts it; default: by the URL's port.")
    ] = "",
    listen: Annotated[str, typer.Option(metavar="ADDRESS", help="As --listen of run.")] = "",
    label: Annotated[list[str], typer.Option(metavar="K=V", help="As --label of run.")] = [],  # noqa: B006
    namespace: Annotated[str, typer.Option(metavar="NAME", help="As --namespace of run.")] = "default",
) -> None:
    """Say where a request goes: each rule tried, the first reason it failed, and the pick."""
    from fastproxy.report import explain_request

    raise typer.Exit(
        explain_request(config, request, header, data, listener, listen, _labels(label), namespace)
    )


@app.command()
def version() -> None:
    """Print the version."""
    _print_version(True)


def _labels(texts: list[str]) -> dict[str, str]:
    out = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            fail(f"--label: {text!r} is not K=V")
        out[key] = value
    return out


def fail(message: str, code: int = USAGE) -> NoReturn:
    """One line on standard error, and the end."""
    typer.echo(f"fastproxy: error: {message}", err=True)
    raise typer.Exit(code)


def main() -> None:
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has left: nothing to say at exit either
        code = FAILED
    except Exception as e:
        # Typer's own usage errors, whichever copy of click it brings: one line instead of a box.
        text = getattr(e, "format_message", None)
        if text is None:
            raise
        line = " ".join(text().split())
        typer.echo(f"fastproxy: error: {line}; see fastproxy --help" if line else "", err=True)
        code = getattr(e, "exit_code", USAGE)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
