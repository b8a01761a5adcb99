"""One command, thin subcommands: each reads its options, calls one function of the package, and prints what a person wants to see."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.text import Text

from streamsplit import __version__
from streamsplit.cli import evaluate, experiment, keys, lab, look, policy, refining, run, train
from streamsplit.cli.terminal import app, err, out
from streamsplit.errors import StreamSplitError

__all__ = [
    "app",
    "evaluate",
    "experiment",
    "keys",
    "lab",
    "look",
    "main",
    "policy",
    "refining",
    "run",
    "train",
]


def _say(problem: str) -> None:
    """One line, as it is: file names may look like markup."""
    err.print(Text.assemble(("streamsplit: ", "bold red"), problem), soft_wrap=True)


def main() -> None:
    """The entry point: every error we raise on purpose is one line and status 1."""
    try:
        status = app(standalone_mode=False)
    except StreamSplitError as error:
        _say(str(error))
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except typer.Abort:
        raise SystemExit(130) from None
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own: a wrong option or argument
            raise
        _say(error.format_message())
        raise SystemExit(2) from None
    raise SystemExit(status if isinstance(status, int) else 0)


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
    for noisy in ("asyncio", "matplotlib", "PIL", "grpc", "tensorboard"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if version:
        out.print(f"streamsplit {__version__}")
        raise typer.Exit
