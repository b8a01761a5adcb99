"""Flies deciders through simulated worlds, window by window behind the very `Pilot` a device has.

What is compared: the mean reward per window of a world's whole timeline (`return`), and what it consists of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from streamsplit.policy.cost import Goals, predict_energy_mj, predict_latency_ms, reward
from streamsplit.policy.decide import Choice, Decider, Learner
from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.observation import Observation, Option
from streamsplit.policy.oracle import plan
from streamsplit.policy.pilot import Pilot
from streamsplit.policy.profile import Profile
from streamsplit.policy.quality import Quality
from streamsplit.policy.scenarios import Scenario, make_worlds
from streamsplit.policy.worlds import Array, Device, Worlds

MakeDecider = Callable[[Device], Decider]


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Of one decider in P worlds.

    Attributes:
        returns: [P] mean reward per window; windows after an empty battery count 0.
        quality: mean A.
        latency_ms: median, 95th and 99th percentile over windows.
        energy_mj: mean per window flown, beyond idle; modelled.
        uplink_bytes_per_s: mean.
        splits: share of windows per split.
    """

    returns: Array
    quality: float
    latency_ms: tuple[float, float, float]
    energy_mj: float
    uplink_bytes_per_s: float
    splits: dict[int, float]


def evaluate(
    decider: MakeDecider,
    scenario: Scenario,
    seeds: Sequence[int],
    windows: int = 600,
    goals: Goals | None = None,
) -> Result:
    """A decider in a scenario.

    Args:
        decider: makes one for a device; a learner starts anew in every world.
        scenario: where.
        seeds: a world each; below `training_worlds.FIRST_TRAINING_SEED` for what was trained.
        windows: length of each.
        goals: of the reward.
    """
    return fly(decider, make_worlds([scenario], seeds, windows, goals))


def fly(decider: MakeDecider, worlds: Worlds) -> Result:
    """A decider in every one of these worlds, side by side."""
    simulator = Simulator(worlds, np.arange(len(worlds)))
    pilots = [Pilot(decider(device), hop_s=device.profile.window_s) for device in worlds.devices]
    options = [device.ordered() for device in worlds.devices]
    slot_of = [{option.split: slot for slot, option in enumerate(offered)} for offered in options]
    lessons = [_Lesson() if isinstance(pilot.decider, Learner) else None for pilot in pilots]
    slots = np.zeros((worlds.windows, len(worlds)), np.int64)
    flown = np.zeros((worlds.windows, len(worlds)), bool)
    outcomes = []
    for window in range(worlds.windows):
        seen, flown[window] = simulator.seen(), ~simulator.empty
        for row in np.flatnonzero(flown[window]).tolist():
            observation = seen.observation(row)
            choice = pilots[row].choose(observation, options[row])
            slots[window, row] = slot_of[row][choice.split]
            lesson = lessons[row]
            if lesson is not None:
                lesson.begin(pilots[row], choice, observation)
        done = simulator.apply(slots[window], flown[window])
        outcomes.append(done)
        for row, lesson in enumerate(lessons):
            if lesson is not None:
                lesson.rewards.append(float(done.reward[row]))
    return _result(
        worlds,
        slots,
        flown,
        *(np.stack([getattr(done, name) for done in outcomes]) for name in _SUMMED),
    )


_SUMMED = ("reward", "quality", "latency_ms", "energy_mj", "uplink_bytes")


class _Lesson:
    """Rewards of the choice in force, taught when the next begins."""

    def __init__(self) -> None:
        self.rewards: list[float] = []
        self._made: tuple[Choice, Observation] | None = None
        self._decisions = 0

    def begin(self, pilot: Pilot, choice: Choice, observation: Observation) -> None:
        if pilot.decisions == self._decisions:
            return
        if self._made is not None and self.rewards:
            pilot.learn(*self._made, float(np.mean(self.rewards)))
        self._made, self._decisions = (choice, observation), pilot.decisions
        self.rewards.clear()


def fly_fixed(split: int, worlds: Worlds) -> Result:
    """As `fly` with `FixedSplit(split)`, which needs no observations: all worlds at once."""
    simulator = Simulator(worlds, np.arange(len(worlds)))
    figures, rows = simulator.figures, np.arange(len(worlds))
    wished = ((figures["split"] == split) & (figures["exists"] > 0)).argmax(axis=1)
    local = figures["local"].argmax(axis=1)
    slots = np.zeros((worlds.windows, len(worlds)), np.int64)
    flown = np.zeros(slots.shape, bool)
    outcomes = []
    for window in range(worlds.windows):
        possible = simulator.possible(simulator.seen())
        # The deepest of what is left: the device itself, or the smallest payload on a link too slow for that.
        deepest = possible.shape[1] - 1 - possible[:, ::-1].argmax(axis=1)
        fallback = np.where(possible[rows, local], local, deepest)
        slots[window] = np.where(possible[rows, wished], wished, fallback)
        flown[window] = ~simulator.empty
        outcomes.append(simulator.apply(slots[window], flown[window]))
    return _result(
        worlds,
        slots,
        flown,
        *(np.stack([getattr(done, name) for done in outcomes]) for name in _SUMMED),
    )


def fly_oracle(worlds: Worlds, every: int = 5, beam: int = 24) -> Result:
    """The oracle's plans, flown; see `oracle` for what they are a bound of."""
    plans = [plan(worlds, world, every, beam) for world in range(len(worlds))]
    slots = np.stack([found.slots for found in plans], axis=1)
    simulator = Simulator(worlds, np.arange(len(worlds)))
    flown = np.zeros(slots.shape, bool)
    outcomes = []
    for window in range(worlds.windows):
        flown[window] = ~simulator.empty
        outcomes.append(simulator.apply(slots[window], flown[window]))
    return _result(
        worlds,
        slots,
        flown,
        *(np.stack([getattr(done, name) for done in outcomes]) for name in _SUMMED),
    )


def _result(
    worlds: Worlds,
    slots: npt.NDArray[np.int64],
    flown: npt.NDArray[np.bool_],
    rewards: Array,
    quality: Array,
    latency_ms: Array,
    energy_mj: Array,
    uplink_bytes: Array,
) -> Result:
    splits = worlds.figures["split"][np.arange(len(worlds)), slots][flown]
    values, counts = np.unique(splits, return_counts=True)
    p50, p95, p99 = np.percentile(latency_ms[flown], [50, 95, 99])
    seconds = float((flown * worlds.figures["hop_s"]).sum())
    return Result(
        rewards.sum(axis=0) / worlds.windows,
        float(quality[flown].mean()),
        (float(p50), float(p95), float(p99)),
        float(energy_mj[flown].mean()),
        float(uplink_bytes.sum() / seconds),
        {int(split): float(count / flown.sum()) for split, count in zip(values, counts, strict=True)},
    )


# Deciders that only an evaluation needs.


@dataclass(frozen=True, slots=True)
class Myopic:
    """The option whose next window promises the most reward: what is left of a policy that looks no further.

    It pays the radio's tail as `cost.predict_energy_mj` does: for every send alike.
    """

    profile: Profile
    quality: Quality
    goals: Goals = field(default_factory=Goals)

    @property
    def name(self) -> str:
        """``myopic``."""
        return "myopic"

    def choose(self, observation: Observation, options: Sequence[Option]) -> Choice:
        """The first of the best."""
        best = max(options, key=lambda option: self._promised(observation, option))
        return Choice(best.split, best.codec, "most reward promised")

    def _promised(self, observation: Observation, option: Option) -> float:
        profile, goals = self.profile, self.goals
        uncertainty = 0.1 if observation.uncertainty is None else observation.uncertainty
        latency_ms = predict_latency_ms(profile, option, observation).total
        energy = predict_energy_mj(profile, option, observation)
        tail = 0.0 if option.split == profile.last_split else energy.tail
        return reward(
            goals,
            float(self.quality.at(option.split, profile.last_split, uncertainty)),
            latency_ms / goals.latency_limit_ms(profile.window_s),
            (energy.compute + energy.send + tail) / goals.energy_budget_mj(profile.power, profile.window_s),
        )


@dataclass(frozen=True, slots=True)
class Blinded:
    """A decider that is shown another uncertainty than the true one: a constant, or a series of its own.

    Attributes:
        decider: who decides.
        uncertainty: of each decision asked for, in turn, from the beginning again at its end.
    """

    decider: Decider
    uncertainty: tuple[float | None, ...]
    asked: list[int]

    @property
    def name(self) -> str:
        """The decider's, and that it is blinded."""
        return f"{self.decider.name}, blinded"

    def choose(self, observation: Observation, options: Sequence[Option]) -> Choice:
        """As the decider would with the false uncertainty."""
        shown = self.uncertainty[len(self.asked) % len(self.uncertainty)]
        self.asked.append(1)
        return self.decider.choose(replace(observation, uncertainty=shown), options)
