"""A pool of windows as the stream a device would have heard: for experiments on learning from streams.

    shuffled   clips in random order, another in every pass
    sorted     class after class
    composed   long scenes: one class's clips for a while, with stretches of background between the clips

Windows follow each other without overlap, as a device hears them; in every pass a clip is cut at another of its two phases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamsplit.errors import ConfigError
from streamsplit.learning.pool import HOP_SHARE, WindowPool

ORDERS: Final = ("shuffled", "sorted", "composed")
PAUSE_S = 2.0
"""Between stretches that were not recorded together: more than neighbours may be apart."""
SCENE_CLIPS = 12
"""Clips of one class in a row in a composed stream: a minute of them."""
QUIET_WINDOWS = 6
"""Mean length of the background between two clips of a composed stream."""

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Heard:
    """One window of a stream.

    Attributes:
        window: its number in the pool.
        start_s: when it began. Within a stretch recorded together, times are as recorded; elsewhere there is a pause.
    """

    window: int
    start_s: float


def stream(
    pool: WindowPool, order: str, windows: int, seed: int, background: Sequence[int] = ()
) -> Iterator[Heard]:
    """A stream of so many windows; where the pool ends, another pass over it begins.

    Args:
        pool: what is heard.
        order: one of `ORDERS`.
        windows: how many.
        seed: of the order and of each clip's phase.
        background: numbers of the pool's tracks that are background: heard between the others by "composed", left out otherwise.

    Raises:
        ConfigError: no such order, no background for "composed", or no class for "sorted" and "composed".
    """
    if order not in ORDERS:
        raise ConfigError(f"order: expected one of {', '.join(ORDERS)}, got {order!r}")
    if order == "composed" and not background:
        raise ConfigError("order composed: expected background tracks, got none")
    left_out = set(background)
    clips = [clip for clip in _clips(pool) if clip.track not in left_out]
    quiet = [clip for clip in _clips(pool) if clip.track in left_out]
    if not clips or (order == "composed" and not quiet):
        raise ConfigError(
            f"order {order}: expected windows of clips and, if composed, of background, got none"
        )
    if order != "shuffled" and any(pool.labels[clip.track] is None for clip in clips):
        raise ConfigError(f"order {order}: expected clips with a class, got some without")
    return _timed(pool, _passes(pool, order, seed, clips, quiet), windows)


def arranged(order: str, labels: Sequence[str | None], rng: np.random.Generator) -> list[int]:
    """One pass over clips: their places, 0 to len(labels) - 1, each once.

    Args:
        order: one of `ORDERS`: "shuffled"; "sorted", class after class, classes in random order; "composed", each class in runs of
            SCENE_CLIPS, all runs in random order.
        labels: each clip's class.
        rng: of the order.
    """
    shuffled: list[int] = rng.permutation(len(labels)).tolist()
    if order == "shuffled":
        return shuffled
    classes: dict[str, list[int]] = {}
    for place in shuffled:
        classes.setdefault(str(labels[place]), []).append(place)
    names = sorted(classes)
    scenes = [classes[names[number]] for number in rng.permutation(len(names))]
    if order == "composed":
        runs = [
            places[begin : begin + SCENE_CLIPS]
            for places in scenes
            for begin in range(0, len(places), SCENE_CLIPS)
        ]
        scenes = [runs[number] for number in rng.permutation(len(runs))]
    return [place for places in scenes for place in places]


@dataclass(frozen=True, slots=True, eq=False)
class _Clip:
    """All segments of one track, as (first window, windows) pairs."""

    track: int
    segments: tuple[tuple[int, int], ...]

    def stretches(self, at_hop: Tensor, rng: np.random.Generator) -> Iterator[Numbers]:
        """Each segment's windows at one phase, without overlap."""
        step = round(1 / HOP_SHARE)
        for first, count in self.segments:
            numbers = np.arange(first, first + count)
            hops = at_hop[first : first + count].numpy()
            here: Numbers = numbers[hops % step == rng.integers(step)]
            if len(here):
                yield here


def _clips(pool: WindowPool) -> list[_Clip]:
    segments: dict[int, list[tuple[int, int]]] = {}
    for first, count in zip(pool.first.tolist(), pool.count.tolist(), strict=True):
        segments.setdefault(int(pool.track[first]), []).append((first, count))
    return [_Clip(track, tuple(sorted(parts))) for track, parts in sorted(segments.items())]


def _passes(
    pool: WindowPool, order: str, seed: int, clips: list[_Clip], quiet: list[_Clip]
) -> Iterator[Numbers]:
    """Stretches of window numbers, endless."""
    number = 0
    while True:
        rng = np.random.default_rng((seed, number, 6))
        for place in arranged(order, [pool.labels[clip.track] for clip in clips], rng):
            yield from clips[place].stretches(pool.at_hop, rng)
            if order == "composed":
                yield from _background(pool, quiet, rng)
        number += 1


def _background(pool: WindowPool, quiet: list[_Clip], rng: np.random.Generator) -> Iterator[Numbers]:
    """So many windows of one background, from a random place of it on."""
    wanted = 1 + int(rng.geometric(1 / QUIET_WINDOWS))
    parts = list(quiet[int(rng.integers(len(quiet)))].stretches(pool.at_hop, rng))
    begin = int(rng.integers(max(1, len(parts))))
    for part in parts[begin:]:
        yield part[:wanted]
        wanted -= len(part)
        if wanted <= 0:
            return


def _timed(pool: WindowPool, stretches: Iterator[Numbers], windows: int) -> Iterator[Heard]:
    window_s = pool.front_end.window_s
    begins_s, left = 0.0, windows
    for stretch in stretches:
        hops = pool.at_hop[torch.from_numpy(stretch)].numpy()
        for number, hop in zip(stretch[:left].tolist(), (hops - hops[0])[:left].tolist(), strict=True):
            yield Heard(number, begins_s + hop * HOP_SHARE * window_s)
        left -= min(left, len(stretch))
        if not left:
            return
        begins_s += float(hops[-1] - hops[0]) * HOP_SHARE * window_s + window_s + PAUSE_S
