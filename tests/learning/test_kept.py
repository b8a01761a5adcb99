"""What is kept beside the last windows: a fair sample of all before, whole runs, the same after a kill."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamsplit.audio.features import COMPACT_FRONT_END
from streamsplit.errors import ConfigError
from streamsplit.learning.kept import RUN, KeptWindows


def store(count: int, seed: int = 0, windows: int = 12 * RUN, share: float = 0.5) -> KeptWindows:
    """Window n begins at n seconds."""
    kept = KeptWindows(COMPACT_FRONT_END, windows, share, seed)
    for number in range(count):
        kept.add(np.full((64, 96), number % 256, np.uint8), float(number))
    return kept


def times(kept: KeptWindows) -> list[int]:
    """By age."""
    return [int(at) for at in kept.start_s[kept._places(torch.arange(len(kept)))]]


@pytest.mark.parametrize("count", [1, 7, 8, 9, 47, 48, 49, 95, 96])
def test_until_it_is_full_nothing_is_forgotten(count: int) -> None:
    assert times(store(count)) == list(range(count))[::-1]


@pytest.mark.parametrize("count", [97, 100, 104, 105, 500, 1001])
def test_the_last_windows_are_always_there_and_no_window_twice(count: int) -> None:
    found = times(store(count))
    assert found[: 5 * RUN] == list(range(count - 5 * RUN, count))[::-1]
    assert len(set(found)) == len(found)
    assert 12 * RUN - RUN < len(found) <= 12 * RUN


def test_what_is_kept_comes_in_whole_runs_in_their_order() -> None:
    kept = store(1000)
    older = times(kept)[-kept.kept * RUN :]
    for begin in range(0, len(older), RUN):
        run = older[begin : begin + RUN]
        assert run == list(range(run[0], run[0] - RUN, -1))
        assert run[-1] % RUN == 0


def test_every_run_that_left_has_the_same_chance_to_be_kept() -> None:
    """40 runs left, 6 are kept; over 300 seeds each is expected 45 times, give or take 6.2."""
    met = np.zeros(40)
    for seed in range(300):
        kept = KeptWindows(COMPACT_FRONT_END, 12 * RUN, 0.5, seed)
        for number in range(46):
            kept._begin_run(number)
            kept.start_s[int(kept.order[0]) * RUN] = number
        met[kept.start_s[kept.order[kept.last :] * RUN].long().numpy()] += 1
    assert met.sum() == 300 * 6
    assert abs(met - 45).max() < 5 * 6.2
    assert abs(met[:20].sum() - met[20:].sum()) < 5 * (1800**0.5)


def test_what_is_kept_follows_from_the_seed() -> None:
    assert times(store(700, seed=1)) == times(store(700, seed=1))
    assert times(store(700, seed=1)) != times(store(700, seed=2))


def test_neighbours_are_found_within_a_run_and_between_the_last_ones() -> None:
    kept = store(1000)
    ages = torch.arange(len(kept))
    for seed in range(10):
        partners = kept.partners(ages, 1.5, torch.Generator().manual_seed(seed))
        at = kept.start_s[kept._places(ages)]
        assert float((kept.start_s[kept._places(partners)] - at).abs().max()) <= 1.0
        assert int((partners != ages).sum()) > len(kept) // 2


@pytest.mark.parametrize(("windows", "share"), [(100, 0.5), (24, 0.5), (96, 0.0), (96, 1.0)])
def test_sizes_that_make_no_sense_are_refused(windows: int, share: float) -> None:
    with pytest.raises(ConfigError, match="kept windows"):
        KeptWindows(COMPACT_FRONT_END, windows, share, 0)
