"""The pool keeps what is heard, within its bound, and pairs only neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from streamsplit.audio.features import COMPACT_FRONT_END, LogMel
from streamsplit.errors import ConfigError, RecordingError
from streamsplit.learning.pool import SEGMENT_WINDOWS, WindowPool, gather
from streamsplit.learning.sources import Samples, Track
from tests.learning.conftest import clips, of

S, HOP = 15_360, 7_680


def noise(windows: float, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    return (0.05 * rng.standard_normal(int(windows * S))).astype(np.float32)


def test_windows_are_the_sounds_at_half_window_hops_within_a_byte_step() -> None:
    sound = noise(40)
    pool = gather([of(sound)], COMPACT_FRONT_END, 1_000, seed=0)
    assert len(pool) == pool.heard == 2 * 40 - 1
    windows = torch.arange(len(pool))
    cut = torch.from_numpy(np.stack([sound[HOP * n : HOP * n + S] for n in range(len(pool))]))
    direct = LogMel(COMPACT_FRONT_END)(cut)
    assert float((pool.mel(windows) - direct).abs().max()) <= 4.8 / 255 / 2 + 1e-5
    assert pool.count.tolist() == [8] * 9 + [7]


def test_pairs_are_of_one_segment_and_near_and_a_batch_has_no_segment_twice(pool: WindowPool) -> None:
    segment = torch.repeat_interleave(torch.arange(pool.segments), pool.count)
    apart = set()
    for seed in range(60):
        window, partner = pool.draw(40, 1.5, torch.Generator().manual_seed(seed))
        assert torch.equal(segment[window], segment[partner])
        assert len(set(segment[window].tolist())) == 40
        apart |= set((pool.at_hop[partner] - pool.at_hop[window]).tolist())
    assert apart == {-3, -2, -1, 0, 1, 2, 3}
    window, partner = pool.draw(40, 0.0, torch.Generator().manual_seed(0))
    assert torch.equal(window, partner)
    with pytest.raises(ValueError, match=f"expected 1..{pool.segments}"):
        pool.draw(pool.segments + 1, 1.5, torch.Generator())


def test_silent_windows_are_left_out_and_counted_and_neighbours_across_them_stay_near() -> None:
    sound = noise(40)
    sound[4 * S : 7 * S] = 0.0
    pool = gather([of(sound)], COMPACT_FRONT_END, 1_000, seed=0)
    assert pool.silent == 5
    assert len(pool) == 79 - 5
    for seed in range(40):
        window, partner = pool.draw(pool.segments, 1.5, torch.Generator().manual_seed(seed))
        assert int((pool.at_hop[window] - pool.at_hop[partner]).abs().max()) <= 3


def test_more_sound_than_fits_is_kept_evenly_and_the_same_for_the_same_seed() -> None:
    tracks = [of(noise(4.5, seed)) for seed in range(120)]
    pools = [gather(tracks, COMPACT_FRONT_END, 30 * SEGMENT_WINDOWS, seed) for seed in (1, 1, 2)]
    assert {pool.segments for pool in pools} == {30}
    assert pools[0].heard == 120 * SEGMENT_WINDOWS
    assert pools[0].fingerprint == pools[1].fingerprint != pools[2].fingerprint
    kept = torch.cat([pool.track[pool.first] for pool in pools[1:]]).double()
    assert 40 < float(kept.mean()) < 80
    assert int((kept < 60).sum()) > 15


def test_short_tracks_are_completed_and_what_is_not_finite_is_silence() -> None:
    sound = noise(40)
    sound[: 2 * S] = np.nan
    tracks = [of(sound), *(of(noise(0.4, seed)) for seed in range(8))]
    pool = gather(tracks, COMPACT_FRONT_END, 1_000, seed=0)
    assert pool.silent == 3
    assert torch.isfinite(pool.mel(torch.arange(len(pool)))).all()
    assert int((pool.track > 0).sum()) == 8


def broken() -> Iterator[Samples]:
    yield noise(6)
    raise RecordingError("x.wav: broken after 5.8 s")


def test_a_recording_that_breaks_costs_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    pool = gather([Track("x", broken), *clips(1)], COMPACT_FRONT_END, 1_000, seed=0)
    assert pool.unreadable == 1
    assert int((pool.track > 0).sum()) == len(pool) - 8
    assert "broken after 5.8 s" in caplog.text


def test_too_little_sound_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"at least 8 stretches of 4\.3 s, got 0 .* in 1 recordings"):
        gather([of(np.zeros(60 * S, np.float32))], COMPACT_FRONT_END, 1_000, seed=0)
    with pytest.raises(ConfigError, match="got 3 that are not silent"):
        gather([of(noise(9))], COMPACT_FRONT_END, 1_000, seed=0)


def test_samples_for_judging_are_spread_over_everything(pool: WindowPool) -> None:
    chosen = pool.sample(50)
    assert (int(chosen[0]), int(chosen[-1]), len(chosen)) == (0, len(pool) - 1, 50)
    assert len(pool.sample(10**6)) == len(pool)
