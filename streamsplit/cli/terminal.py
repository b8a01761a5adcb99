"""The application that the commands join, and the person's terminal: consoles and a progress bar."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

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
from typer.core import TyperGroup

PANELS = {
    "Run": ("demo", "server", "client", "devices", "profile", "keys"),
    "Learn": ("train", "refine", "versions", "train-policy"),
    "Look": ("status", "search", "export", "encoders"),
    "Experiment": ("replay", "eval", "lab", "soundscape"),
}
"""The commands as ``streamsplit --help`` lists them: in the order in which somebody new meets them."""


class Grouped(TyperGroup):
    """Lists the commands as `PANELS` has them, whatever module they come from; one that is missing there comes last."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for panel, names in PANELS.items():
            for name in names:
                self.commands[name].rich_help_panel = panel  # type: ignore[attr-defined]

    def list_commands(self, ctx: Any) -> list[str]:
        """All of them, in order."""
        listed = [name for names in PANELS.values() for name in names]
        return listed + [name for name in self.commands if name not in listed]


app = typer.Typer(
    name="streamsplit",
    cls=Grouped,
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
