"""Improvement: what options bring is compared from the very same moment, and the scorer moves to what paid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.flight import Flight
from streamsplit.policy.improve import Asked, Improver, ImproveSettings, ask, climb
from streamsplit.policy.scorer import G, K, Scorer
from streamsplit.policy.worlds import Worlds
from tests.policy.worlds import DEVICE, FEATURES, FIRST, LOCAL, SECOND, slots, timeline, worlds

ALL = ImproveSettings(share=1.0, astray=0.0, horizon=10)


def scorer(seed: int = 0) -> Scorer:
    torch.manual_seed(seed)
    norms = [torch.stack([torch.zeros(size), torch.ones(size)]) for size in (G, K)]
    return Scorer(16, 8, (norms[0], norms[1]))


def certain_and_uncertain() -> Worlds:
    """Embedding on the device is as good as any in the first world, and half as good in the second."""
    days = [timeline(80, uncertainty=np.full(80, u), predicted=np.full(80, u)) for u in (0.0, 0.5)]
    return worlds(*days)


def test_an_option_is_behind_by_just_what_flying_it_brings_less() -> None:
    single = replace(ALL, horizon=1)  # before the first answer, whereupon a leg ends
    asked = ask(scorer(), certain_and_uncertain(), single, np.random.default_rng(0))
    returns = []
    for slot in (FEATURES, FIRST, SECOND, LOCAL):
        flight = Flight(Simulator(certain_and_uncertain(), np.arange(2)))
        returns.append(10 * flight.fly(slots(slot, slot), slots(1, 1)).reward)
    expected = np.array(returns).T - np.max(returns, axis=0)[:, None]
    assert asked.behind[:2, :4] == pytest.approx(expected)
    assert (asked.behind[:, 4:] == 0).all()
    assert (asked.behind.max(axis=1) == 0).all()


def test_the_horizon_goes_on_with_the_policy_and_ends_with_the_world() -> None:
    long = ask(scorer(), certain_and_uncertain(), replace(ALL, horizon=500), np.random.default_rng(0))
    assert len(long.features) >= 16  # two worlds of eight legs, and the short ones until all is known
    assert np.isfinite(long.behind).all()


@pytest.mark.parametrize("best", [FEATURES, LOCAL])
def test_climbing_ends_at_what_paid(best: int) -> None:
    learner, generator = scorer(), np.random.default_rng(0)
    met = ask(learner, certain_and_uncertain(), replace(ALL, astray=0.5), generator)
    pays = np.where(np.arange(met.behind.shape[1]) == best, 0.0, -10.0)
    asked = Asked(met.features, np.tile(pays, (len(met.features), 1)))
    assert asked.lost(learner) < -0.2
    climb(learner, asked, replace(ALL, epochs=100, batch=8, learning_rate=0.01), generator)
    assert asked.lost(learner) == 0.0


def test_a_flight_in_which_nothing_was_asked_is_told() -> None:
    with pytest.raises(ValueError, match=r"share of 0, got none"):
        ask(scorer(), certain_and_uncertain(), replace(ALL, share=0.0), np.random.default_rng(0))


def test_moments_of_several_rounds_are_joined() -> None:
    parts = [ask(scorer(), certain_and_uncertain(), ALL, np.random.default_rng(seed)) for seed in (0, 1)]
    assert len(Asked.joined(parts).features) == sum(len(part.features) for part in parts)


def test_softening_changes_no_choice() -> None:
    learner = scorer(1)
    features = torch.from_numpy(ask(learner, certain_and_uncertain(), ALL, np.random.default_rng(0)).features)
    with torch.no_grad():
        before = learner.forward_actor(features).argmax(1)
        Improver(learner, ALL, np.random.default_rng(0))
        assert torch.equal(learner.forward_actor(features).argmax(1), before)


def test_what_a_battery_lasts_counts() -> None:
    hungry = replace(DEVICE.profile, power=replace(DEVICE.profile.power, core_w=20.0))
    day = timeline(80, uplink_bps=np.full(80, 1e7))
    behind = {}
    for battery_j in (150.0, None):
        made = worlds(day, device=replace(DEVICE, profile=hungry, battery_j=battery_j))
        behind[battery_j] = ask(scorer(), made, ALL, np.random.default_rng(0)).behind[0]
    assert behind[150.0][LOCAL] - behind[150.0][FEATURES] < behind[None][LOCAL] - behind[None][FEATURES]
