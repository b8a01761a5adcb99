"""Which windows the refiner learns from, and which it is judged by: drawn from the replay, never the same for both.

A stretch is 16 consecutive windows of one stream. Of every ten consecutive stretches one is held out, which one follows from their names
alone: whoever asks gets the same answer, on every machine and after every restart, a stream of n windows has its n / 160 held-out stretches
or one more, and neighbours of a judged window are not learned from either (but at its stretch's ends).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from streamsplit.learning.buffer import BufferedWindow, TemporalBuffer
from streamsplit.learning.pool import NEIGHBOUR_SHARE
from streamsplit.learning.refine import Lesson, RefineSettings
from streamsplit.learning.replay import ReplayReader

STRETCH = 16
HELD_OUT_ONE_IN = 10
FROM_ONE_STRETCH = STRETCH // 2
"""Windows judged of one stretch: enough to find each other, few enough that many stretches are heard."""
OVERDRAW = 3
"""Windows drawn for one that is used: a tenth is held out, others may be of versions that cannot be used."""
APART_S = 5.0
"""Anchors of one stream begin further apart than this, while there are such: windows of one sound as each other's negatives would teach
that it is not itself."""

Usable = Callable[[BufferedWindow], bool]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """Held-out windows.

    Attributes:
        windows: of several stretches.
        stretches: the name of each one's stretch: the gate's recordings.
    """

    windows: list[BufferedWindow]
    stretches: list[str]


def stretch(window: BufferedWindow) -> str:
    """The name of a window's stretch."""
    return f"{window.device}/{window.stream}/{window.sequence // STRETCH}"


def held_out(window: BufferedWindow) -> bool:
    """Whether a window is judged by, and so never learned from."""
    ten, place = divmod(window.sequence // STRETCH, HELD_OUT_ONE_IN)
    return zlib.crc32(f"{window.device}/{window.stream}/{ten}".encode()) % HELD_OUT_ONE_IN == place


def draw_lesson(
    reader: ReplayReader,
    buffer: TemporalBuffer,
    settings: RefineSettings,
    step: int,
    usable: Usable = lambda window: True,
) -> Lesson:
    """What step number `step` learns from; the same replay, buffer, seed and step give the same.

    Args:
        reader: the replay.
        buffer: the devices' last windows.
        settings: of the refiner.
        step: which.
        usable: whether a window's payload can be learned from.

    Returns:
        Up to `batch` pairs; fewer where the replay has fewer windows.
    """
    chance = torch.Generator().manual_seed((settings.seed * 1_000_003 + step) * 4)
    found = reader.sample(OVERDRAW * settings.batch, chance)
    usable_ones = [window for window in found if usable(window) and not held_out(window)]
    pairs = []
    for anchor in _apart(usable_ones, settings.batch):
        near = [
            other
            for other in reader.near(anchor, settings.neighbour_s)
            if other.kind == anchor.kind and not held_out(other)
        ]
        if not near or float(torch.rand(1, generator=chance)) >= NEIGHBOUR_SHARE:
            near = [anchor]
        pairs.append((anchor, near[int(torch.randint(len(near), (1,), generator=chance))]))
    return Lesson(pairs, recent_run(buffer, settings.hybrid_windows, chance, usable))


def _apart(windows: Sequence[BufferedWindow], count: int) -> list[BufferedWindow]:
    """`count` of them, the first ones that lie more than APART_S from each other, then others if these are too few."""
    chosen: list[BufferedWindow] = []
    near: list[BufferedWindow] = []
    taken: dict[tuple[str, str], list[float]] = {}
    for window in windows:
        if len(chosen) == count:
            break
        times = taken.setdefault((window.device, window.stream), [])
        if any(abs(window.start_s - other) <= APART_S for other in times):
            near.append(window)
        else:
            times.append(window.start_s)
            chosen.append(window)
    return chosen + near[: count - len(chosen)]


def recent_run(
    buffer: TemporalBuffer,
    count: int,
    chance: torch.Generator,
    usable: Usable = lambda window: True,
) -> list[BufferedWindow]:
    """`count` windows in true time: one run of consecutive ones from each of up to four devices, by chance."""
    devices = buffer.devices
    if not devices or not count:
        return []
    chosen = torch.randperm(len(devices), generator=chance)[:4].tolist()
    share = -(-count // len(chosen))
    recent: list[BufferedWindow] = []
    for place in chosen:
        windows = [
            window
            for window in buffer.latest(devices[place], buffer.settings.windows_per_device)
            if usable(window) and not held_out(window)
        ]
        # Stream after stream: a device may have several at once, and only windows of one are tied.
        windows.sort(key=lambda window: (window.stream, window.start_s))
        begin = int(torch.randint(max(1, len(windows) - share + 1), (1,), generator=chance))
        recent += windows[begin : begin + share]
    return recent[:count]


def draw_judged(reader: ReplayReader, count: int, seed: int, usable: Usable = lambda window: True) -> Judged:
    """Up to `count` held-out windows, at most `FROM_ONE_STRETCH` of each stretch."""
    chance = torch.Generator().manual_seed(seed)
    windows: list[BufferedWindow] = []
    names: list[str] = []
    seen: set[str] = set()
    for anchor in reader.sample(OVERDRAW * HELD_OUT_ONE_IN * count, chance):
        name = stretch(anchor)
        if len(windows) >= count:
            break
        if name in seen or not held_out(anchor):
            continue
        seen.add(name)
        first = anchor.sequence // STRETCH * STRETCH
        whole = reader.run(anchor.device, anchor.stream, first, STRETCH)
        own = [window for window in whole if usable(window)][:FROM_ONE_STRETCH]
        windows += own
        names += [name] * len(own)
    return Judged(windows[:count], names[:count])
