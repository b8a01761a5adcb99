"""The published task in our simulator's terms: constant choices are optimal there, and the future ignores them."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.policy.published import PublishedTask


@pytest.mark.parametrize("accuracy_gain", [0.0, 0.05, 0.2])
def test_everything_on_the_device_is_best_in_every_state(accuracy_gain: float) -> None:
    task = PublishedTask(accuracy=(0.7, accuracy_gain))
    assert (task.best_splits() == task.last_split).all()


def test_the_reward_is_linear_in_the_split() -> None:
    task = PublishedTask()
    states = np.random.default_rng(0).random((100, 3))
    rewards = np.stack([task.reward(states, split) for split in range(task.last_split + 1)])
    assert np.abs(np.diff(rewards, n=2, axis=0)).max() < 1e-12


def test_every_other_policy_earns_less_than_the_constant_one() -> None:
    task, generator = PublishedTask(), np.random.default_rng(1)
    states = np.stack([task.next_state(generator) for _ in range(500)])
    constant = task.reward(states, task.last_split).mean()
    adaptive = [
        np.mean([task.reward(state, int(split)) for state, split in zip(states, choices, strict=True)])
        for choices in generator.integers(0, task.last_split + 1, (20, 500))
    ]
    assert max(adaptive) < constant
