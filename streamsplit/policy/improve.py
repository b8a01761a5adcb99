"""Policy improvement by asking "what if": every option tried from the same moment of the same world, then flown on by the policy.

Nothing in the simulator is random but its worlds, so the options' returns differ by nothing but the choice: where PPO has to find a
difference of 0.05 in rewards that vary by 1 from window to window, here it stands alone. One round:

    fly the policy through training worlds -> moments
    fork each moment into its options, fly each `horizon` windows on with the policy -> returns [M, N]
    climb the mean over moments of sum_n softmax(scores)_n x return_n

The objective is linear in the returns, so what the future brought by chance averages out. A battery's rest is worth the windows it will
last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.flight import EVERY, Flight
from streamsplit.policy.scorer import Scorer
from streamsplit.policy.worlds import Array, Worlds

WORTH = 7.0
"""Of a window that a battery still lasts: about the mean reward of one."""


KEPT = 3
"""Earlier rounds whose moments are learned from again: their options were followed by another policy, but nearly the same one."""

SOFTENED = 0.3
"""PPO's scores times this before the first round: where one option has all the probability nothing is learned."""


@dataclass(frozen=True, slots=True)
class ImproveSettings:
    """How a round goes.

    Attributes:
        share: of the moments met that are asked.
        astray: share of decisions taken by chance, so that moments are met that the policy avoids.
        horizon: windows that each option is followed.
        epochs: over the moments asked in this round and the `KEPT` before it.
        batch: moments a step.
        learning_rate: falls to a tenth within a round.
        entropy: reward, per window of a leg, for not being sure.
    """

    share: float = 0.25
    astray: float = 0.15
    horizon: int = 80
    epochs: int = 25
    batch: int = 256
    learning_rate: float = 2e-3
    entropy: float = 0.002


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """M moments: features [M, LENGTH], and of each option its return over the horizon less the best one's [M, N]; 0 where impossible."""

    features: npt.NDArray[np.float32]
    behind: Array

    @classmethod
    def joined(cls, parts: Sequence[Asked]) -> Asked:
        """All their moments."""
        return cls(
            np.concatenate([part.features for part in parts]), np.concatenate([part.behind for part in parts])
        )

    def lost(self, scorer: Scorer) -> float:
        """Mean over moments of what the scorer's choice falls behind the best, per window of a leg; 0 or less."""
        with torch.no_grad():
            chosen = _best(scorer, self.features)
        return float(self.behind[np.arange(len(chosen)), chosen].mean() / EVERY)


class Improver:
    """Round after round on one scorer.

    Args:
        scorer: changed in place, and softened at once.
        settings: of a round.
        generator: of the moments asked and of the steps' order.
    """

    def __init__(self, scorer: Scorer, settings: ImproveSettings, generator: np.random.Generator) -> None:
        self.scorer, self.settings, self._generator = scorer, settings, generator
        self._asked: list[Asked] = []
        with torch.no_grad():
            scorer.out.weight.mul_(SOFTENED)
            scorer.log_bias.add_(math.log(SOFTENED))

    def round(self, worlds: Worlds) -> float:
        """One round in these worlds; returns what the choices lost before it, see `Asked.lost`."""
        asked = ask(self.scorer, worlds, self.settings, self._generator)
        lost = asked.lost(self.scorer)
        self._asked = [*self._asked[-KEPT:], asked]
        climb(self.scorer, Asked.joined(self._asked), self.settings, self._generator)
        return lost


@torch.no_grad()
def ask(scorer: Scorer, worlds: Worlds, settings: ImproveSettings, generator: np.random.Generator) -> Asked:
    """Flies once through the worlds and tries every option at some moments.

    Raises:
        ValueError: no moment was asked: the share is too small for worlds so short, or none of them leaves a choice.
    """
    flight = Flight(Simulator(worlds, np.arange(len(worlds))))
    features, behind = [], []
    while not (over := flight.simulator.ended | flight.simulator.empty).all():
        seen = flight.features()
        chosen = np.flatnonzero(
            ~over & (generator.random(len(over)) < settings.share) & (flight.possible.sum(1) > 1)
        )
        if len(chosen):
            features.append(seen[chosen])
            behind.append(_tried(scorer, flight, chosen, settings.horizon))
        slots = _best(scorer, seen)
        wishes = np.where(flight.possible, generator.random(flight.possible.shape), -1.0).argmax(axis=1)
        flight.fly(np.where(generator.random(len(slots)) < settings.astray, wishes, slots))
    if not features:
        raise ValueError(
            f"worlds: expected a moment with a choice among a share of {settings.share:g}, got none"
        )
    return Asked(np.concatenate(features), np.concatenate(behind))


def climb(scorer: Scorer, asked: Asked, settings: ImproveSettings, generator: np.random.Generator) -> None:
    """Moves the scorer towards the options that paid."""
    features = torch.from_numpy(asked.features)
    behind = torch.from_numpy(asked.behind / EVERY).float()
    steps = settings.epochs * -(-len(features) // settings.batch)
    optimizer = torch.optim.Adam(
        [p for n, p in scorer.named_parameters() if "critic" not in n], settings.learning_rate
    )
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    for _ in range(settings.epochs):
        for part in np.array_split(generator.permutation(len(features)), -(-len(features) // settings.batch)):
            log_share = torch.log_softmax(scorer.forward_actor(features[part]), dim=1)
            share = log_share.exp()
            loss = -(share * (behind[part] - settings.entropy * log_share.clamp(min=-20.0))).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(scorer.parameters(), 0.5)
            optimizer.step()
            falling.step()


def _best(scorer: Scorer, features: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    chosen: Tensor = scorer.forward_actor(torch.from_numpy(features)).argmax(dim=1)
    best: npt.NDArray[np.int64] = chosen.numpy()
    return best


def _tried(scorer: Scorer, flight: Flight, rows: npt.NDArray[np.int64], horizon: int) -> Array:
    """[rows, N] returns over the horizon, each option from the same state, less the best; 0 where impossible."""
    place, option = np.nonzero(flight.possible[rows])
    forked = Flight(flight.simulator.fork(rows[place]))
    simulator = forked.simulator
    began_j, left = simulator.battery_j, np.full(len(place), horizon)
    total, slots = np.zeros(len(place)), option
    while (going := (left > 0) & ~(simulator.ended | simulator.empty)).any():
        leg = forked.fly(slots, np.where(going, left, 0))
        total += leg.reward * EVERY
        left = left - leg.windows
        slots = _best(scorer, forked.features())
    total += _rest(simulator, began_j, horizon - left)
    returns = np.full((len(rows), flight.possible.shape[1]), np.nan)
    returns[place, option] = total
    behind: Array = np.nan_to_num(returns - np.nanmax(returns, axis=1, keepdims=True), nan=0.0)
    return behind


def _rest(simulator: Simulator, began_j: Array, windows: npt.NDArray[np.int64]) -> Array:
    """What the battery's rest is worth: windows that it lasts at the pace so far, to the end of the world at most; 0 on mains."""
    powered = np.isfinite(began_j)
    left_j = np.where(powered, np.maximum(simulator.battery_j, 0.0), 0.0)
    burnt_j = (np.where(powered, began_j, 1.0) - left_j) / np.maximum(windows, 1)
    lasts = np.minimum(left_j / np.maximum(burnt_j, 1e-6), simulator.worlds.windows - simulator.window)
    worth: Array = WORTH * np.where(powered, lasts, 0.0)
    return worth
