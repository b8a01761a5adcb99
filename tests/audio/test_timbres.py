"""Made timbres: in range, repeatable, each of its own kind, and the same kind from beginning to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamsplit.audio.features import COMPACT_FRONT_END, LogMel
from streamsplit.audio.timbres import make_timbre


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
def test_timbres_are_finite_in_range_and_audible(rate_hz: int) -> None:
    for seed in range(12):
        sound = make_timbre(seed, rate_hz, rate_hz)
        assert sound.dtype == np.float32
        assert sound.shape == (rate_hz,)
        assert np.isfinite(sound).all()
        assert 1e-3 < float(np.sqrt(np.mean(sound * sound))) <= 1.0
        assert float(np.abs(sound).max()) <= 1.0


def test_the_seed_decides() -> None:
    assert make_timbre(7, 8_000).tobytes() == make_timbre(7, 8_000).tobytes()
    assert make_timbre(7, 8_000).tobytes() != make_timbre(8, 8_000).tobytes()


def test_a_very_short_timbre_can_be_made() -> None:
    assert np.isfinite(make_timbre(3, 160)).all()


def test_spectra_of_one_timbre_agree_more_than_those_of_two() -> None:
    log_mel = LogMel(COMPACT_FRONT_END)
    halves = [make_timbre(seed, 2 * 15_360).reshape(2, -1) for seed in range(30)]
    spectra = log_mel(torch.from_numpy(np.concatenate(halves))).mean((1, 3)).view(30, 2, 64)
    distance = torch.cdist(spectra[:, 0], spectra[:, 1])
    assert int((distance.argmin(1) == torch.arange(30)).sum()) >= 20
