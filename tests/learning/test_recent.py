"""The ring keeps the last windows and draws pairs that belong together."""

from __future__ import annotations

import numpy as np
import torch

from streamsplit.audio.features import COMPACT_FRONT_END
from streamsplit.learning.recent import RecentWindows, to_codes


def ring(times: list[float], windows: int = 8) -> RecentWindows:
    """Window n is filled with n."""
    recent = RecentWindows(COMPACT_FRONT_END, windows)
    for number, start_s in enumerate(times):
        recent.add(np.full((64, 96), number, np.uint8), start_s)
    return recent


def test_the_oldest_give_way_and_age_counts_from_the_last() -> None:
    recent = ring([float(number) for number in range(11)])
    assert len(recent) == 8
    low, high = COMPACT_FRONT_END.feature_low, COMPACT_FRONT_END.feature_high
    numbers = (recent.mel(torch.arange(8))[:, 0, 0, 0] - low) * 255 / (high - low)
    assert numbers.round().tolist() == [10, 9, 8, 7, 6, 5, 4, 3]
    assert recent.nbytes == 8 * (64 * 96 + 8)


def test_anchors_are_different_and_apart_while_there_are_such() -> None:
    recent = ring([0.0, 1.0, 2.0, 20.0, 21.0, 40.0, 60.0, 61.0])
    for seed in range(20):
        ages = recent.draw(4, 5.0, torch.Generator().manual_seed(seed))
        times = recent.start_s[(recent.heard - 1 - ages) % 8].sort().values
        assert float(times.diff().min()) > 5.0
    assert sorted(recent.draw(8, 5.0, torch.Generator()).tolist()) == list(range(8))
    assert len(recent.draw(20, 5.0, torch.Generator())) == 8


def test_partners_are_near_in_time_or_the_window_itself() -> None:
    recent = ring([0.0, 0.96, 1.92, 50.0, 80.0, 80.96])
    neighbours = {0: {0, 1}, 1: {0, 1, 2}, 2: {1, 2}, 3: {3}, 4: {4, 5}, 5: {4, 5}}
    met: dict[int, set[int]] = {number: set() for number in neighbours}
    for seed in range(60):
        partners = recent.partners(torch.arange(6), 1.5, torch.Generator().manual_seed(seed))
        for age, partner in enumerate(partners.tolist()):
            met[5 - age].add(5 - partner)
    assert met == neighbours


def test_partners_never_reach_over_the_rings_seam() -> None:
    """The newest window's place is next to the oldest's."""
    recent = ring([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5])
    for seed in range(40):
        partners = recent.partners(torch.arange(8), 10.0, torch.Generator().manual_seed(seed))
        assert int((partners - torch.arange(8)).abs().max()) <= 3


def test_codes_give_the_features_back_within_half_a_step() -> None:
    front_end = COMPACT_FRONT_END
    chance = torch.Generator().manual_seed(0)
    span = front_end.feature_high - front_end.feature_low
    mel = torch.rand(3, 1, 64, 96, generator=chance) * span + front_end.feature_low
    recent = RecentWindows(front_end, 4)
    for number, window in enumerate(to_codes(mel, front_end)):
        recent.add(window, float(number))
    assert float((recent.mel(torch.tensor([2, 1, 0])) - mel).abs().max()) <= span / 255 / 2 + 1e-5
    beyond = torch.tensor([-100.0, 100.0]).view(2, 1, 1, 1).expand(2, 1, 64, 96)
    assert to_codes(beyond, front_end)[:, 0, 0].tolist() == [0, 255]
