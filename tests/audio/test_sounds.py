from __future__ import annotations

import numpy as np
import pytest

from streamsplit.audio.sounds import BACKGROUNDS, EVENTS, make_background, make_event


@pytest.mark.parametrize("rate", [8_000, 16_000, 48_000])
@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_has_the_length_asked_for_and_peak_one(kind: str, rate: int) -> None:
    for seed, seconds in ((0, EVENTS[kind].shortest_s), (1, EVENTS[kind].longest_s)):
        sound = make_event(kind, np.random.default_rng(seed), round(seconds * rate), rate)
        assert sound.dtype == np.float32
        assert len(sound) == round(seconds * rate)
        assert np.abs(sound).max() == pytest.approx(1.0)
        assert np.abs(sound[[0, -1]]).max() < 0.05  # no clicks


@pytest.mark.parametrize("kind", EVENTS)
def test_events_of_one_kind_differ_and_repeat_with_the_seed(kind: str) -> None:
    one, again, other = (make_event(kind, np.random.default_rng(seed), 16_000, 16_000) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_a_background_has_level_one(kind: str) -> None:
    sound = make_background(kind, np.random.default_rng(0), 50_000, 16_000)
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(1.0, abs=1e-3)
