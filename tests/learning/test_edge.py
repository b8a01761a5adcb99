"""The edge learner learns in small steps from whatever it hears, holds a bounded memory, and leaves the served weights alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError
from streamsplit.learning.edge import EdgeLearner, EdgeSettings
from streamsplit.learning.objectives import OBJECTIVES, ObjectiveSettings
from streamsplit.learning.pool import WindowPool
from streamsplit.learning.views import ViewSettings
from tests.learning.learners import (
    SMALL,
    codes,
    hear,
    same,
    scenario,
    settings,
    until_updates,
    work_on,
)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_the_lite_path_and_leaves_the_served_version_alone(
    compact: Version, name: str
) -> None:
    before = {key: tensor.clone() for key, tensor in compact.state.items()}
    learner = EdgeLearner(compact, settings(name))
    hear(learner, 0, 8)
    work = until_updates(learner, 2)
    listened = {"none": 0, "fresh": 2, "stream": 0}[OBJECTIVES[name].memory]
    if OBJECTIVES[name].whole_step:
        listened = 2
    assert [step.kind for step in work] == 2 * (listened * ["listened"] + 2 * ["learned"])
    assert [step.updated for step in work].count(True) == 2
    assert all("total" in step.terms for step in work if step.kind == "learned")
    difference = learner.shadow.difference()
    assert all(torch.isfinite(part).all() for part in difference.values())
    for place, module in (("blocks.0", "front"), ("blocks.3", "lite tail")):
        moved = [key for key, part in difference.items() if key.startswith(place) and part.abs().max() > 0]
        assert moved, f"{module} has not moved"
    assert not any(key.startswith("dense") for key in difference)
    assert all(torch.equal(compact.state[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("name", ["cached", "transport", "expected", "published"])
def test_objectives_that_need_no_batch_learn_at_any(compact: Version, name: str, batch: int) -> None:
    learner = EdgeLearner(compact, settings(name, batch=batch, fewest_windows=16, windows=32))
    hear(learner, 0, 16)
    work = until_updates(learner, 1)
    assert all(np.isfinite(value) for step in work for value in step.terms.values())
    assert max(float(part.abs().max()) for part in learner.shadow.difference().values()) > 0


@pytest.mark.parametrize("name", ["in-batch", "reservoir"])
def test_infonce_of_one_pair_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"edge batch: expected at least 2 for objective {name}, got 1"):
        settings(name, batch=1)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "in-batch"])
def test_following_an_objective_makes_it_smaller(compact: Version, name: str) -> None:
    """The same sixteen windows, views hardly changed. (`in-batch` is `reservoir` of windows heard once.)"""
    gentle = replace(
        SMALL.views, shortest=0.98, longest=1.0, narrowest=0.98, widest=1.0, mix_share=0.0, mask_bands=1, mask_frames=1
    )  # fmt: skip
    objective = ObjectiveSettings(name, fresh_windows=16, sampled=16)
    learner = EdgeLearner(
        compact,
        replace(
            SMALL,
            objective=objective,
            batch=4,
            windows=16,
            kept_share=0.0,
            fewest_windows=16,
            warm_up_steps=2,
            neighbour_s=0.0,
            views=gentle,
        ),
    )
    hear(learner, 0, 16)
    totals = []
    while learner.counters.updates < 16:
        work = learner.step()
        if work and work.kind == "learned":
            totals.append(work.terms["total"])
    assert sum(totals[-8:]) < 0.97 * sum(totals[:8])


class Watched(EdgeLearner):
    """Keeps the gradient each optimiser step is made with."""

    pull: dict[str, Tensor]

    def _update(self) -> bool:
        self.pull = {
            name: parameter.grad.clone()
            for name, parameter in self.shadow.parameters().items()
            if parameter.grad is not None
        }
        return super()._update()


def test_cached_gradients_are_those_of_the_whole_batch(compact: Version) -> None:
    """With views that change nothing and stored norms, micro-batches of 1 and 4 pull as a batch of 16 does."""
    plain = ViewSettings(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, None, 0, 0)
    pulls = []
    for batch, accumulate in ((16, 1), (4, 4), (1, 16)):
        objective = ObjectiveSettings("cached")
        learner = Watched(
            compact,
            EdgeSettings(objective, batch, accumulate, fewest_windows=64, views=plain, norms="stored"),
        )
        hear(learner, 0, 64)
        until_updates(learner, 1)
        pulls.append(torch.cat([part.flatten() for part in learner.pull.values()]))
    assert float(pulls[0].norm()) > 1e-3
    for other in pulls[1:]:
        assert float((other - pulls[0]).norm() / pulls[0].norm()) < 1e-3


def test_the_seed_decides(compact: Version) -> None:
    learners = [EdgeLearner(compact, replace(SMALL, seed=seed)) for seed in (1, 1, 2)]
    for learner in learners:
        hear(learner, 0, 8)
        until_updates(learner, 1)
    assert same(learners[0], learners[1])
    assert not same(learners[0], learners[2])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_it_holds_stays_below_the_stated_bound(compact: Version, name: str) -> None:
    learner = EdgeLearner(compact, settings(name))
    most = 0
    hear(learner, 0, 40)
    for _ in range(24):
        hear(learner, learner.counters.heard, 12)
        learner.step()
        most = max(most, learner.held_bytes)
    assert learner.counters.updates
    assert 0.5 * learner.bound_bytes < most <= learner.bound_bytes


def test_the_defaults_hold_less_than_twelve_megabytes(compact: Version) -> None:
    assert EdgeLearner(compact).bound_bytes < 12e6


def test_a_momentum_encoder_is_part_of_the_bound(compact: Version) -> None:
    learner = scenario(compact, "expected", momentum=0.9)
    work_on(learner, 6)
    assert learner.counters.updates
    assert learner.held_bytes <= learner.bound_bytes


def test_silent_windows_are_counted_but_not_learned_from(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    for number in range(12):
        assert learner.hear(codes(number), number * 0.96, silent=number % 3 == 0) == (number % 3 != 0)
    learner.step()
    assert (learner.counters.heard, learner.counters.silent, len(learner.recent)) == (12, 4, 8)


def test_the_inbox_overflows_at_its_end_counted(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    hear(learner, 0, 40)
    assert (learner.counters.heard, learner.counters.overflowed) == (40, 8)
    learner.step()
    assert learner.recent.heard == 32
    assert float(learner.recent.start_s.max()) == pytest.approx(31 * 0.96)


def test_windows_learned_from_once_are_taken_in_order_and_none_twice(compact: Version) -> None:
    learner = EdgeLearner(compact, settings("in-batch"))
    assert learner.step() is None
    hear(learner, 0, 5)
    assert learner.step() is not None
    assert learner.step() is not None
    assert learner.step() is None
    assert learner.counters.used == 4
    hear(learner, 5, 1)
    assert learner.step() is not None


def test_too_few_windows_are_waited_for(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    hear(learner, 0, 7)
    assert learner.step() is None
    hear(learner, 7, 1)
    assert learner.step() is not None


def test_a_window_of_another_shape_is_refused(compact: Version) -> None:
    with pytest.raises(ValueError, match=r"window at 3 s: expected uint8 \(64, 96\), got float64 \(64, 96\)"):
        EdgeLearner(compact, SMALL).hear(np.zeros((64, 96)), 3.0)  # type: ignore[arg-type]


def test_what_is_heard_is_copied(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    window = codes(0)
    learner.hear(window, 0.0)
    window[:] = 0
    learner.step()
    assert int(learner.recent.codes[0].max()) > 0


def test_a_gradient_that_is_not_finite_is_thrown_away(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    hear(learner, 0, 8)
    learner.step()
    next(iter(learner.shadow.parameters().values())).grad.fill_(float("nan"))  # type: ignore[union-attr]
    work = learner.step()
    assert work is not None
    assert not work.updated
    assert (learner.counters.updates, learner.counters.skipped) == (0, 1)
    assert all(torch.isfinite(tensor).all() for tensor in learner.shadow.tensors().values())
    until_updates(learner, 1)


def test_the_rate_rises_then_stays_or_falls_to_nothing() -> None:
    assert [SMALL.rate(step) for step in (9, 10, 1_000_000)] == [SMALL.learning_rate] * 3
    assert SMALL.rate(0) == pytest.approx(SMALL.learning_rate / 10)
    ending = replace(SMALL, horizon_steps=100)
    rates = [ending.rate(step) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert ending.rate(500) == pytest.approx(0.0, abs=1e-9)


def test_a_learner_gets_better_at_telling_windows_apart(compact: Version, pool: WindowPool) -> None:
    """Real made sound at the default objective: the loss of the last optimiser steps is below that of the first."""
    learner = EdgeLearner(compact, EdgeSettings(batch=8, accumulate=4, learning_rate=1e-3))
    for number in range(0, len(pool), 4):
        learner.hear(pool.features[number], number * 10.0)
    totals = []
    while learner.counters.updates < 20:
        work = learner.step()
        assert work is not None
        totals.append(work.terms["total"])
    assert sum(totals[-16:]) < 0.85 * sum(totals[:16])
