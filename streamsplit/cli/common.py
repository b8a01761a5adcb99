"""What the commands share: the application, its consoles, options that several commands take, progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

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

from streamsplit.errors import ConfigError
from streamsplit.policy.observation import AUDIO_SPLIT

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

EncoderOption = Annotated[str, typer.Option("--encoder", help="compact, cola, mobile, resnet18 or clap")]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="weights file; `untrained[:SEED]` asks for random ones; left out: shipped weights, or untrained with a warning",
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file of settings; options given here win over it")
]
CodecOption = Annotated[
    str | None, typer.Option("--codec", help="of activations: fp32, fp16, int8, int5, int4 or int3")
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="always cut here: 0 features, K after block K, L on the device, `audio` (with --send-audio)",
    ),
]
DeciderOption = Annotated[str | None, typer.Option("--decider", help="heuristic, greedy-profile or fixed:K")]


def given(values: dict[str, Any]) -> dict[str, Any] | None:
    """The options of a group that were given; None if none were."""
    return {key: value for key, value in values.items() if value is not None} or None


def decider_name(split: str | None, decider: str | None) -> str | None:
    """The decider that ``--split`` or ``--decider`` names; None if neither is given."""
    if split is None:
        return decider
    if decider is not None:
        raise ConfigError(f"--split {split} and --decider {decider}: give one of them")
    return f"fixed:{AUDIO_SPLIT if split == 'audio' else split}"


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
