"""What happens to a run, second by second of the device's time: the link's rate, others' load, outages."""

from __future__ import annotations

import csv
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from streamsplit.errors import ConfigError, StorageError
from streamsplit.lab.scenario import LoadPart, Scenario
from streamsplit.lab.traces import CSV_HEADER, Trace

Pieces = tuple[tuple[float, float], ...]
"""(begin in seconds, value), begins rising from 0; each value holds until the next."""

MOST_LOAD_PERCENT = 95.0
LEAST_FIRST_BPS = 64e3


@dataclass(frozen=True, slots=True)
class Schedule:
    """One run's.

    Attributes:
        seconds: of sound.
        uplink: bits per second.
        uplink_source: a file's name, or what made it.
        downlink_bps: None: no limit.
        load: percent of the device's core.
        load_source: likewise.
        outages: (from, to, "cut" or "freeze").
    """

    seconds: float
    uplink: Pieces
    uplink_source: str
    downlink_bps: float | None
    load: Pieces
    load_source: str
    outages: tuple[tuple[float, float, Literal["cut", "freeze"]], ...]

    def rate_at(self, time_s: float) -> float:
        """Bits per second of the uplink; 0 in an outage."""
        if any(begin_s <= time_s < end_s for begin_s, end_s, _ in self.outages):
            return 0.0
        return value_at(self.uplink, time_s)

    def load_at(self, time_s: float) -> float:
        """Percent of the device's core that others want."""
        return value_at(self.load, time_s)

    def write_uplink(self, path: Path, speed: float) -> None:
        """A trace file for the link's process, hastened: in the time of this machine.

        Raises:
            StorageError: it cannot be written.
        """
        # The first rate holds until the run begins, and the client must be able to say hello.
        (_, first), *rest = self.uplink
        pieces = ((0.0, max(first, LEAST_FIRST_BPS)), *rest)
        lines = [CSV_HEADER, *(f"{begin_s / speed:.6f},{rate * speed:.3f}" for begin_s, rate in pieces)]
        try:
            path.write_text("\n".join(lines) + "\n")
        except OSError as error:
            raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def value_at(pieces: Pieces, time_s: float) -> float:
    """The piece's value that holds at a time."""
    return pieces[max(0, bisect_right(pieces, (time_s, float("inf"))) - 1)][1]


def make_schedule(scenario: Scenario, seed: int, traces: Path | None) -> Schedule:
    """A scenario's schedule for one seed.

    Args:
        scenario: which.
        seed: moves the beginning in a trace on, and makes another walk.
        traces: where files of real traces are looked for.

    Raises:
        ConfigError: a trace that cannot be read, or a made one that is none.
    """
    link, seconds = scenario.link, scenario.sound.seconds
    # What is not through at the sound's end still wants a link: twice the length, and a minute.
    length_s = 2.0 * seconds + 60.0
    path = None if traces is None or link.trace is None else traces / link.trace
    if path is not None and path.is_file():
        trace, source = Trace.read(path), str(link.trace)
    else:
        made = _reseeded(link.made, seed)
        trace, source = Trace.parse(made), f"made: {made}"
        if link.trace is not None:
            source += f" ({link.trace} is not at hand)"
    start_s = link.start_s + seed * seconds
    downlink = None if link.downlink is None else Trace.parse(link.downlink).rate_at(0.0)
    load, load_source = _load(scenario.load, seed, length_s, traces)
    return Schedule(
        seconds, _cut(trace, start_s, length_s), source, downlink, load, load_source, scenario.link.outages
    )


def _cut(trace: Trace, start_s: float, length_s: float) -> Pieces:
    """`length_s` of a trace from `start_s` on; it begins again at its end."""
    if trace.period_s is None:
        inside = [(at - start_s, rate) for at, rate in zip(trace.starts_s, trace.rates_bps, strict=True)]
        return ((0.0, trace.rate_at(start_s)), *((at, rate) for at, rate in inside if 0 < at < length_s))
    pieces, cycle = [(0.0, trace.rate_at(start_s))], int(start_s // trace.period_s)
    while (base_s := cycle * trace.period_s - start_s) < length_s:
        for at, rate in zip(trace.starts_s, trace.rates_bps, strict=True):
            if 0 < base_s + at < length_s:
                pieces.append((base_s + at, rate))
        cycle += 1
    return tuple(pieces)


def _reseeded(made: str, seed: int) -> str:
    """A walk's seed plus the run's; a constant stays."""
    if not made.startswith("walk:"):
        return made
    _, number, *rest = made.split(":")
    return ":".join(["walk", str(int(number) + seed) if number.isdecimal() else number, *rest])


def _load(load: LoadPart, seed: int, length_s: float, traces: Path | None) -> tuple[Pieces, str]:
    if load.kind == "none":
        return ((0.0, 0.0),), "none"
    if load.kind == "constant":
        return ((0.0, load.percent),), f"constant {load.percent:g} %"
    path = None if traces is None or load.trace is None else traces / load.trace
    if path is not None and path.is_file():
        values, name = _column(path, seed)
        source = (
            f"{load.trace}, column {name}, {load.step_s:g} s a row, scaled to a mean of {load.percent:g} %"
        )
        mean = sum(values) / len(values)
        scale = load.percent / mean if mean > 0 else 1.0
    else:
        values, scale = _walk(load.percent, seed, int(length_s / load.step_s) + 1), 1.0
        source = f"made: a walk around {load.percent:g} %, seed {seed}, {load.step_s:g} s a step"
        if load.trace is not None:
            source += f" ({load.trace} is not at hand)"
    rows = int(length_s / load.step_s) + 1
    return (
        tuple(
            (row * load.step_s, min(MOST_LOAD_PERCENT, scale * values[row % len(values)]))
            for row in range(rows)
        ),
        source,
    )


def _walk(mean: float, seed: int, steps: int) -> list[float]:
    """A first-order autoregression around the mean, with bursts."""
    generator, value, burst, values = random.Random(f"load {seed}"), 0.0, 0, []
    for _ in range(steps):
        value = 0.8 * value + 0.6 * generator.gauss(0.0, 1.0)
        burst = burst - 1 if burst else (generator.randrange(3, 9) if generator.random() < 0.06 else 0)
        values.append(max(mean / 3.0, min(MOST_LOAD_PERCENT, 92.0 if burst else mean * (1.0 + 0.5 * value))))
    return values


def _column(path: Path, seed: int) -> tuple[list[float], str]:
    """A node's day out of a CSV with a node per column: percent, its time column left out."""
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            names, *rows = csv.reader(lines)
        # Nodes that do next to nothing tell nothing: the busier half is drawn from.
        means: Sequence[tuple[float, int]] = sorted(
            (sum(float(row[column]) for row in rows) / len(rows), column) for column in range(1, len(names))
        )
        busier = means[len(means) // 2 :]
        column = random.Random(f"column {seed}").choice(busier)[1]
        return [float(row[column]) for row in rows], names[column]
    except (OSError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ConfigError(
            f"trace {path}: expected a CSV of percentages with a column per node: {error}"
        ) from error
