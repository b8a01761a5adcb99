"""Small edge learners and made windows for them to hear."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from streamsplit.encoders.catalogue import build
from streamsplit.encoders.version import Version
from streamsplit.learning.edge import EdgeLearner, EdgeSettings, Work
from streamsplit.learning.objectives import ObjectiveSettings
from streamsplit.learning.shadow import Norms

SMALL = EdgeSettings(batch=2, accumulate=2, windows=32, fewest_windows=8, queue_windows=32)


def settings(name: str, **changes: object) -> EdgeSettings:
    objective = ObjectiveSettings(name, fresh_windows=8, sampled=16, directions=8)
    return replace(SMALL, objective=objective, **changes)  # type: ignore[arg-type]


def codes(number: int) -> np.ndarray:
    """Made of its number: bands of noise, each window others."""
    rng = np.random.default_rng(number)
    bands = rng.integers(0, 200, (64, 1)) * (rng.random((64, 1)) < 0.3)
    return (bands + rng.integers(0, 40, (64, 96))).astype(np.uint8)


def hear(learner: EdgeLearner, first: int, count: int) -> None:
    for number in range(first, first + count):
        learner.hear(codes(number), number * 0.96)


def mobile(other: Version) -> Version:
    """Another encoder, not calibrated: training does not ask for that."""
    encoder = build("mobile")
    return replace(other, encoder=encoder.for_inference(), state=encoder.state_dict())


def until_updates(learner: EdgeLearner, updates: int) -> list[Work]:
    """Steps, a window heard before each."""
    done: list[Work] = []
    while learner.counters.updates < updates:
        hear(learner, learner.counters.heard, 2)
        done.append(learner.step() or pytest.fail("expected work"))
    return done


def same(one: EdgeLearner, other: EdgeLearner) -> bool:
    first, second = one.shadow.tensors(), other.shadow.tensors()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def scenario(compact: Version, name: str, momentum: float = 0.0, norms: Norms = "batch") -> EdgeLearner:
    objective = ObjectiveSettings(name, fresh_windows=8, sampled=16, directions=8, momentum=momentum)
    learner = EdgeLearner(compact, replace(SMALL, objective=objective, norms=norms))
    hear(learner, 0, 8)
    return learner


def work_on(learner: EdgeLearner, steps: int) -> None:
    for _ in range(steps):
        learner.step()
        hear(learner, learner.counters.heard, 2)
