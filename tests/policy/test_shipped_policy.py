"""The policy that comes with the project: says how it was made, and beats what it must where it can, on held-out seeds."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.policy.decide import GreedyProfile, Heuristic
from streamsplit.policy.evaluate import fly, fly_fixed
from streamsplit.policy.learned import SHIPPED_POLICY, LearnedPolicy, load_weights
from streamsplit.policy.scenarios import make_worlds, shipped_scenarios
from streamsplit.policy.worlds import Device

WEIGHTS = load_weights(SHIPPED_POLICY)


def learned(device: Device) -> LearnedPolicy:
    live = (device.hold_windows, device.predicts)
    return LearnedPolicy(WEIGHTS, device.profile, device.quality, "learned", *live)


def test_it_names_the_command_that_makes_it() -> None:
    assert WEIGHTS.note.startswith("streamsplit train-policy --algorithm maskable-ppo --steps ")


@pytest.mark.parametrize("name", ["umts", "laptop-lte", "lte-eager"])
def test_it_beats_the_best_fixed_split_and_greedy_and_the_heuristic(name: str) -> None:
    drawn = make_worlds([shipped_scenarios()[name]], range(20_000, 20_008), 400)
    ours = fly(learned, drawn).returns.mean()
    fixed = [fly_fixed(option.split, drawn).returns.mean() for option in drawn.devices[0].ordered()]
    assert ours > np.max(fixed)
    assert ours > fly(lambda device: GreedyProfile(device.profile), drawn).returns.mean()
    assert ours > fly(lambda _: Heuristic(), drawn).returns.mean()
