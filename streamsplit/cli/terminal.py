"""The application that the commands join, and the person's terminal: consoles and a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

app = typer.Typer(
    name="streamsplit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Audio representations from an endless stream, split between a small device and a server.

Try it: `streamsplit demo`. Run it: `streamsplit server` on a workstation, `streamsplit client --server HOST:PORT` on a Raspberry Pi
or a Mac. Repeat it: `streamsplit replay FOLDER --out DIR`.""",
)

keys_app = typer.Typer(
    no_args_is_help=True, help="Make the keys that servers and devices know each other by."
)
app.add_typer(keys_app, name="keys")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the terminal's error stream; nothing where that is no terminal."""
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
