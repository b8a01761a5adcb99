"""What the panels compute before they draw."""

from __future__ import annotations

import numpy as np

from streamsplit.lab.panels import rolling_median, styles_of


def test_thirty_sounds_look_different_and_quiet_ones_are_grey() -> None:
    sounds = [f"sound {number}" for number in range(30)]
    styles = styles_of([*sounds, "quiet"])
    assert len({styles[sound] for sound in sounds}) == 30
    assert styles["quiet"] not in {styles[sound] for sound in sounds}


def test_a_sound_looks_the_same_whatever_order_it_comes_in() -> None:
    assert styles_of(["b", "a", "c"]) == styles_of(["c", "b", "a", "a"])


def test_a_rolling_median_ignores_what_is_unknown() -> None:
    values = np.array([1.0, np.nan, 3.0, 100.0, 5.0])
    assert rolling_median(values, 3).tolist() == [1.0, 2.0, 51.5, 5.0, 52.5]
    assert np.isnan(rolling_median(np.array([np.nan]), 3)).all()
