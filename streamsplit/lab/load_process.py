"""A competing load: processes that want a share of a core, as a schedule says.

    python -m streamsplit.lab.load_process SCHEDULE.csv --processes 2 --speed 4

The schedule is a CSV with the header ``seconds,percent``. Nothing is done until a line comes on standard input; when it ends,
so does the load. Each process is busy for its share of every 50 ms of the device's time, all at the same time: two of them that are
busy leave the client a third of the core.
"""

from __future__ import annotations

import csv
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Annotated, Final

import typer

from streamsplit.errors import ConfigError
from streamsplit.lab.schedule import Pieces, value_at

PERIOD_S: Final = 0.05
"""Of the device's time."""

HEADER: Final = ["seconds", "percent"]


def write_load(path: Path, pieces: Pieces, speed: float) -> None:
    """A schedule's file, hastened."""
    lines = [",".join(HEADER), *(f"{begin_s / speed:.6f},{percent:.3f}" for begin_s, percent in pieces)]
    path.write_text("\n".join(lines) + "\n")


def read_load(path: Path) -> Pieces:
    """Reads what `write_load` wrote.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            heading, *rows = csv.reader(lines)
        if heading != HEADER or not rows:
            raise ValueError(f"expected the heading {','.join(HEADER)} and a row")
        pieces = tuple((float(begin_s), float(percent)) for begin_s, percent in rows)
    except (OSError, ValueError) as error:
        raise ConfigError(f"load {path}: {error}") from error
    if any(not 0.0 <= percent <= 100.0 for _, percent in pieces):
        raise ConfigError(f"load {path}: expected percentages from 0 to 100")
    return pieces


def spin(pieces: Pieces, began_s: float, speed: float) -> None:
    """Is busy as the schedule says, for ever."""
    period_s = PERIOD_S / speed
    while True:
        now_s = time.monotonic()
        share = value_at(pieces, now_s - began_s) / 100.0
        period_end_s = began_s + (int((now_s - began_s) / period_s) + 1) * period_s
        busy_until_s = period_end_s - period_s * (1.0 - share)
        while time.monotonic() < busy_until_s:
            pass
        time.sleep(max(0.0, period_end_s - time.monotonic()))


def main(
    schedule: Annotated[Path, typer.Argument(help="CSV: seconds,percent")],
    processes: Annotated[int, typer.Option(min=1, max=8)] = 2,
    speed: Annotated[
        float, typer.Option(help="of the device's time; the schedule's is hastened already")
    ] = 1.0,
) -> None:
    """Waits for a line, then is busy until standard input ends."""
    try:
        pieces = read_load(schedule)
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    if not sys.stdin.readline():
        return
    began_s = time.monotonic()
    context = multiprocessing.get_context("fork")
    others = [
        context.Process(target=spin, args=(pieces, began_s, speed), daemon=True) for _ in range(processes)
    ]
    for other in others:
        other.start()
    while sys.stdin.readline():
        pass
    for other in others:
        other.kill()
        other.join()


if __name__ == "__main__":
    typer.run(main)
