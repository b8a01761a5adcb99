"""One command, thin subcommands: each reads its options, calls one function of the package, and prints what a person wants to see."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from streamsplit import __version__
from streamsplit.cli import experiment, keys, look, run, train
from streamsplit.cli.common import app, err, out
from streamsplit.errors import StreamSplitError

__all__ = ["app", "experiment", "keys", "look", "main", "run", "train"]


def main() -> None:
    """The entry point: every error we raise on purpose is one line and status 1."""
    try:
        app(standalone_mode=False)
    except StreamSplitError as error:
        err.print(f"[bold red]streamsplit:[/] {error}", soft_wrap=True, markup=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except typer.Abort:
        raise SystemExit(130) from None
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own: a wrong option or argument
            raise
        err.print(f"[bold red]streamsplit:[/] {error.format_message()}", soft_wrap=True, markup=True)
        raise SystemExit(2) from None


@app.callback(invoke_without_command=True)
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="say more")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="only errors")] = False,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    """Options before every command."""
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    for noisy in ("asyncio", "matplotlib", "PIL", "grpc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if version:
        out.print(f"streamsplit {__version__}")
        raise typer.Exit
