"""Made conditions: a pure function of seed and window that looks like a device's day."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.policy.conditions import MadeConditions


@given(seed=st.integers(-(2**63), 2**64), sequences=st.lists(st.integers(0, 10**9), max_size=20))
def test_any_order_of_asking_gives_the_same_answers(seed: int, sequences: list[int]) -> None:
    made = {sequence: MadeConditions(seed).at(sequence) for sequence in sequences}
    asked = MadeConditions(seed)
    shuffled = random.Random(0).sample(sequences, len(sequences))
    assert all(asked.at(sequence) == made[sequence] for sequence in shuffled)


@given(seed=st.integers(0, 2**64), sequence=st.integers(0, 10**9))
def test_all_figures_stay_in_their_stated_ranges(seed: int, sequence: int) -> None:
    made = MadeConditions(seed).at(sequence)
    assert 3.0 <= made.cpu_percent <= 97.0
    assert 150e3 <= made.uplink_bps <= 20e6
    assert 8.0 <= made.rtt_ms <= 180.0


def series(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    made = [MadeConditions(seed).at(sequence) for sequence in range(4000)]
    return np.array([[one.cpu_percent, np.log(one.uplink_bps), one.rtt_ms] for one in made])


def test_conditions_wander_slowly_and_cover_their_range() -> None:
    figures = series(3)
    for column in figures.T:
        assert np.corrcoef(column[:-1], column[1:])[0, 1] > 0.9
        assert abs(np.corrcoef(column[:-200], column[200:])[0, 1]) < 0.3
    shares = (figures[:, 0] - 3.0) / 94.0
    assert np.histogram(shares, 5, (0.0, 1.0))[0].min() > 0.1 * len(shares)


def test_seeds_differ_and_so_do_quantities() -> None:
    one, other = series(1), series(2)
    for left, right in ((one[:, 0], other[:, 0]), (one[:, 1], other[:, 1]), (one[:, 0], one[:, 1])):
        assert abs(np.corrcoef(left, right)[0, 1]) < 0.2


def test_a_slow_link_is_mostly_a_distant_one() -> None:
    figures = series(5)
    assert np.corrcoef(figures[:, 1], figures[:, 2])[0, 1] < -0.6


def test_windows_begin_at_zero() -> None:
    with pytest.raises(ValueError, match="got -1"):
        MadeConditions(0).at(-1)
