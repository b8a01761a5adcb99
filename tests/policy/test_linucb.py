"""LinUCB: finds what pays, follows a change, stays bounded, goes on from a file."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from streamsplit.errors import ConfigError
from streamsplit.policy.decide import Choice, FixedSplit, Learner, make_decider
from streamsplit.policy.linucb import LinUcb, LinUcbSettings, context
from streamsplit.policy.observation import Observation
from streamsplit.policy.pilot import Pilot
from tests.policy.device import OPTIONS, observed


def taught(
    learner: LinUcb, pays: Callable[[Observation, int], float], lessons: int, seed: int = 0
) -> list[float]:
    generator, regrets = np.random.default_rng(seed), []
    for _ in range(lessons):
        seen = observed(
            cpu_percent=float(generator.uniform(0, 95)), uplink_bps=float(10 ** generator.uniform(4, 7))
        )
        choice = learner.choose(seen, OPTIONS)
        paid = [pays(seen, option.split) for option in OPTIONS]
        regrets.append(max(paid) - pays(seen, choice.split))
        learner.learn(choice, seen, pays(seen, choice.split) + 0.1 * float(generator.standard_normal()))
    return regrets


def load_decides(seen: Observation, split: int) -> float:
    """A busy processor should not embed; an idle one should."""
    return 7.0 + (1.0 - 2.0 * seen.cpu_percent / 100.0) * {3: 2.0, 0: -2.0}.get(split, 0.0)


def test_it_finds_what_pays_when() -> None:
    regrets = taught(LinUcb(), load_decides, 400)
    assert np.mean(regrets[-100:]) < 0.25 * np.mean(regrets[:20])
    assert np.mean(regrets[-100:]) < 0.1


def test_it_follows_a_device_that_changes() -> None:
    learner = LinUcb(LinUcbSettings(fade=0.97))
    taught(learner, load_decides, 300)
    regrets = taught(learner, lambda seen, split: 14.0 - load_decides(seen, split), 400, seed=1)
    assert np.mean(regrets[-100:]) < 0.5 * np.mean(regrets[:50])


def test_one_lesson_moves_the_choice_by_ridge_regression() -> None:
    learner, seen = LinUcb(LinUcbSettings(width=0.0)), observed()
    learner.learn(Choice(0, "int8", ""), seen, 9.0)
    x = context(seen)
    expected = 2.0 * (x @ x) / (1.0 + x @ x)
    choice = learner.choose(seen, OPTIONS)
    assert choice.split == 0
    assert choice.expected["reward"] == pytest.approx(7.0 + expected, abs=1e-3)


def test_nothing_is_left_untried_while_confidence_counts() -> None:
    learner = LinUcb(LinUcbSettings(width=3.0))
    taught(learner, lambda seen, split: 7.0, 40)
    tried = {learner.choose(observed(cpu_percent=load), OPTIONS).split for load in range(0, 100, 10)}
    assert tried
    assert set(learner._gram) == {0, 1, 2, 3}


def test_state_is_bounded_and_stays_finite() -> None:
    learner, seen = LinUcb(), observed()
    for _ in range(5000):
        learner.learn(Choice(2, "int4", ""), seen, 1e3)
    assert np.isfinite(learner.choose(seen, OPTIONS).expected["reward"])
    for split in (*range(2), *range(3, 12)):
        learner.learn(Choice(split, "int8", ""), seen, 1.0)
    with pytest.raises(ValueError, match="at most 12"):
        learner.learn(Choice(12, "int8", ""), seen, 1.0)
    with pytest.raises(ValueError, match="finite"):
        learner.learn(Choice(0, "int8", ""), seen, float("nan"))


def test_it_goes_on_from_a_file(tmp_path: Path) -> None:
    learner = LinUcb()
    taught(learner, load_decides, 60)
    learner.save(tmp_path / "l.safetensors")
    again = LinUcb.load(tmp_path / "l.safetensors")
    assert again.learned == 60
    for cpu, rate in itertools.product((0.0, 50.0, 95.0), (None, 1e5, 1e7)):
        seen = observed(cpu_percent=cpu, uplink_bps=rate)
        assert again.choose(seen, OPTIONS) == learner.choose(seen, OPTIONS)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "l.safetensors"
    with pytest.raises(ConfigError, match="cannot be read"):
        LinUcb.load(path)
    save_file({"learned": np.array([1])}, path)
    with pytest.raises(ConfigError, match="expected streamsplit-linucb 1 of 10"):
        LinUcb.load(path)


def test_the_pilot_teaches_learners_and_spares_the_rest() -> None:
    learner = LinUcb()
    assert isinstance(learner, Learner)
    assert not isinstance(FixedSplit(2), Learner)
    for decider in (learner, FixedSplit(2)):
        pilot = Pilot(decider)
        choice = pilot.choose(observed(), OPTIONS)
        pilot.learn(choice, observed(), 8.0)
    assert learner.learned == 1
    assert make_decider("linucb").name == "linucb"
