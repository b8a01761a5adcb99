"""The oracle: what it plans can be flown, nothing that does not know the future does better, a wider beam never worse by much."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.oracle import plan
from streamsplit.policy.power import PI4_3G
from tests.policy.device import PROFILE
from tests.policy.worlds import DEVICE, timeline, worlds


def test_a_plan_earns_what_it_says_when_flown() -> None:
    made = worlds(timeline(uncertainty=np.where(np.arange(40) % 20 < 8, 0.5, 0.0)))
    found = plan(made, 0)
    simulator = Simulator(made, np.zeros(1, np.int64))
    flown = np.mean([simulator.apply(found.slots[window : window + 1]).reward[0] for window in range(40)])
    assert flown == pytest.approx(found.reward)


def test_it_finds_the_best_of_all_plans_where_all_can_be_tried() -> None:
    device = replace(DEVICE, profile=replace(PROFILE, power=PI4_3G), hold_windows=100)
    day = timeline(25, uncertainty=np.where((np.arange(25) > 7) & (np.arange(25) < 16), 0.5, 0.02))
    made = worlds(day, device=device)
    every_plan = np.array(list(itertools.product(range(4), repeat=5)))
    simulator = Simulator(made, np.zeros(len(every_plan), np.int64))
    best = sum(simulator.apply(every_plan[:, window // 5]).reward for window in range(25)).max() / 25
    found = plan(made, 0, every=5, beam=16)
    assert found.reward == pytest.approx(best, abs=1e-9)
    assert len(set(found.slots.tolist())) > 1


def test_it_saves_a_battery_for_later() -> None:
    device = replace(DEVICE, profile=replace(PROFILE, power=PI4_3G), hold_windows=100, battery_j=90.0)
    found = plan(worlds(timeline(40, uncertainty=np.full(40, 0.2)), device=device), 0)
    alone = plan(
        worlds(timeline(40, uncertainty=np.full(40, 0.2)), device=replace(device, battery_j=None)), 0
    )
    assert found.reward <= alone.reward
    assert found.reward > 0.6 * alone.reward
