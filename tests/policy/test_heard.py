"""Sound from journals: what belongs together is paired, quality follows the truth whatever the device is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.policy.heard import BINS, FEWEST, Heard
from tests.policy.worlds import FIRST, LOCAL, QUALITY, simulator, slots, timeline


def records(windows: int) -> list[dict[str, Any]]:
    """Window k is k/1000 uncertain, was predicted at twice that, and has an entropy that falls as k rises."""
    made: list[dict[str, Any]] = [{"kind": "stream", "stream": "s"}]
    for begin in range(0, windows, 10):
        mine = range(begin, begin + 10)
        made += [
            {"kind": "window", "stream": "s", "sequence": k, "level_dbfs": -k / 10, "uncertainty": k / 1000}
            for k in mine
        ]
        made.append(
            {
                "kind": "signals",
                "stream": "s",
                "sequences": list(mine),
                "disagreement": [k / 500 for k in mine] if begin else None,
                "posterior_entropy": [1.0 - k / 1000 for k in mine] if begin else None,
            }
        )
    return made


def test_signals_are_paired_with_their_windows_and_unknown_ones_left_out() -> None:
    heard = Heard.of(records(200))
    assert len(heard) == 190
    assert heard.uncertainty[0] == pytest.approx(0.01)
    assert heard.predicted == pytest.approx(2 * heard.uncertainty)
    assert heard.entropy == pytest.approx(1.0 - heard.uncertainty)
    assert heard.level_dbfs == pytest.approx(-100 * heard.uncertainty)


def test_windows_of_other_streams_and_without_an_answer_are_not_mixed_in() -> None:
    made = records(200)
    made += [{**record, "stream": "other"} for record in made if record["kind"] == "window"]
    made += [{"kind": "window", "stream": "s", "sequence": 500, "level_dbfs": 0.0, "uncertainty": None}]
    said = next(record for record in made if record.get("disagreement"))
    said["disagreement"][3] = None  # as not a number is written
    heard = Heard.of(made)
    assert len(heard) == 189
    assert np.isfinite(heard.predicted).all()


def test_too_little_is_named() -> None:
    with pytest.raises(ConfigError, match=f"expected {FEWEST} windows or more .* got 50"):
        Heard.of(records(60))


def test_calibration_reads_entropy_by_the_curve_that_fits_best() -> None:
    heard = Heard.of(records(200))
    assert np.abs(heard.calibrated() - heard.uncertainty).max() <= 0.19 / BINS
    assert heard.calibrated().mean() == pytest.approx(heard.uncertainty.mean())


def test_the_device_is_told_the_signal_and_quality_follows_the_truth() -> None:
    heard = Heard.of(records(200))
    for signal, told in (("disagreement", 0.06), ("entropy", 0.94)):
        flown = simulator(heard.under(timeline(), 50, signal))  # type: ignore[arg-type]
        done = flown.apply(slots(FIRST))
        assert flown.seen().uncertainty[0] == pytest.approx(told)
        assert done.quality[0] == pytest.approx(0.9)
        done = flown.apply(slots(LOCAL))
        assert done.quality[0] == pytest.approx(QUALITY.at(3, 3, 0.061))


def test_a_short_sound_begins_again() -> None:
    heard = Heard.of(records(200))
    laid = heard.under(timeline(300), 100)
    assert laid.uncertainty[90] == pytest.approx(0.01)
    assert laid.uncertainty[280] == pytest.approx(0.01)
