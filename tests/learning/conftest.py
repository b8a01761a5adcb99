"""Small sounds to learn from."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from streamsplit.audio.features import COMPACT_FRONT_END
from streamsplit.audio.synth import EVENT_KINDS, make_clip
from streamsplit.learning.pool import WindowPool, gather
from streamsplit.learning.sources import Samples, Track


def clip(kind: str, seed: int) -> Iterator[Samples]:
    yield make_clip(kind, seed, seconds=4.8)


def clips(per_kind: int) -> list[Track]:
    return [
        Track(f"{kind} {seed}", partial(clip, kind, seed), kind, f"{kind} {seed}")
        for seed in range(per_kind)
        for kind in EVENT_KINDS
    ]


def of(samples: Samples) -> Track:
    """A track of these samples, delivered in blocks of odd sizes."""
    return Track("made", lambda: iter(np.array_split(samples, 7)), None, "made")


@pytest.fixture(scope="session")
def pool() -> WindowPool:
    """Four clips of each of the twelve kinds: 432 windows in 48 segments or more."""
    return gather(clips(4), COMPACT_FRONT_END, most_windows=10_000, seed=0)
