from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.audio.resample import StreamResampler
from streamsplit.audio.torchaudio_guard import import_torchaudio
from streamsplit.errors import ConfigError


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal(samples).astype(np.float32) * 0.3


def resampled(pieces: list[np.ndarray], from_hz: int, to_hz: int) -> np.ndarray:
    resampler = StreamResampler(from_hz, to_hz)
    return np.concatenate([*(resampler.push(piece) for piece in pieces), resampler.finish()])


@pytest.mark.parametrize(
    "rates", [(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (11_025, 16_000), (16_000, 44_100)]
)
def test_a_stream_equals_torchaudio_on_the_whole(rates: tuple[int, int]) -> None:
    samples = noise(30_011)
    oracle = import_torchaudio().functional.resample(torch.from_numpy(samples), *rates).numpy()
    own = resampled(np.split(samples, range(997, 30_011, 997)), *rates)
    np.testing.assert_allclose(own, oracle, atol=1e-4)


@given(
    lengths=st.lists(st.integers(0, 700), max_size=12),
    rates=st.sampled_from([(44_100, 16_000), (48_000, 16_000), (8_000, 16_000), (16_000, 16_000)]),
)
def test_how_a_stream_is_cut_does_not_show(lengths: list[int], rates: tuple[int, int]) -> None:
    samples = noise(sum(lengths))
    pieces = np.split(samples, np.cumsum(lengths)[:-1]) if lengths else []
    together = resampled([samples], *rates)
    assert len(together) == -(-len(samples) * rates[1] // rates[0])
    np.testing.assert_allclose(resampled(pieces, *rates), together, atol=1e-6)


def test_a_sample_that_is_not_finite_spoils_only_its_neighbours() -> None:
    samples = noise(48_000)
    clean = resampled([samples], 48_000, 16_000)
    samples[24_000], samples[36_000] = np.nan, np.inf
    spoilt = resampled([samples], 48_000, 16_000)
    bad = np.flatnonzero(~np.isfinite(spoilt))
    assert ((abs(bad - 8_000) <= 7) | (abs(bad - 12_000) <= 7)).all()
    assert 8_000 in bad
    assert 12_000 in bad
    good = np.isfinite(spoilt)
    np.testing.assert_array_equal(spoilt[good], clean[good])


def test_a_resampler_starts_afresh_after_its_stream_has_ended() -> None:
    resampler = StreamResampler(44_100, 16_000)
    first, second = (np.concatenate([resampler.push(noise(5_000)), resampler.finish()]) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_an_odd_ratio_is_met_within_three_parts_in_a_million() -> None:
    assert abs(len(resampled([noise(441_010)], 44_101, 16_000)) - 160_000) <= 1


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 Hz"):
        StreamResampler(0, 16_000)
