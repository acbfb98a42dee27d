"""``fastproxyctl``: the command line of the control plane. What a command does is in ``ctrl.commands``."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ctrl import show
from ctrl.client import ApiError
from ctrl.commands import breakers, changes, editing, keys, reading, rolling, serving
from ctrl.commands.asking import FAILED, INTERRUPTED, USAGE, Api, Failure, Place, TokenFile
from fastproxy import __version__

app = typer.Typer(
    name=show.PROGRAM,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"{show.PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def fastproxyctl(
    context: typer.Context,
    api: Api = "",
    token_file: TokenFile = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """The control plane of a service mesh: one place that configures every proxy.

    Exit codes: 0; 1 it failed; 2 usage, or documents that are not right; 130 Ctrl-C. The shell completes
    commands, kinds and names after --install-completion.
    """
    context.obj = Place(api, token_file)


for part in (changes, editing, reading, rolling, breakers, serving, keys):
    part.add(app)


def main() -> None:
    """The program: one line for each error, on standard error."""
    try:
        code = app(prog_name=show.PROGRAM, standalone_mode=False)
    except Failure as e:
        show.fail(str(e))
        code = e.code
    except ApiError as e:
        show.problems(e.problems)
        show.fail(str(e))
        code = USAGE if e.status == 422 else FAILED
    except (typer.Abort, KeyboardInterrupt):
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader has left: nothing to say at exit either
        code = FAILED
    except Exception as e:
        # Typer's own usage errors, whichever copy of click it brings: one line instead of a box.
        text = getattr(e, "format_message", None)
        if text is None:
            raise
        line = " ".join(text().split())
        if line:
            show.fail(f"{line}; see {show.PROGRAM} --help")
        code = getattr(e, "exit_code", USAGE)
    if code == INTERRUPTED and sys.stderr.isatty():
        show.hint("")  # the terminal has written ^C
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
