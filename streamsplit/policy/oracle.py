"""The oracle: plans with the whole trace before it. For the lab only; no device can do it.

Beam search over the simulator itself: every plan kept is continued with every option for a few windows, and the
best of what results are kept, no two of which stand in nearly the same state. Where a battery may run empty the
search is repeated with several prices on its charge, or no plan would save any. What it finds can be flown, so it
is a bound from below on the best possible return; how far below the optimum it stays is not known (a wider beam
tells whether it still rises).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.worlds import Array, Worlds


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """The best plan found for one world.

    Attributes:
        reward: mean per window of the timeline; windows after the battery's end count 0.
        slots: [W] the option of each window.
        quality, latency_ms, energy_mj, uplink_bytes: means per window flown.
    """

    reward: float
    slots: npt.NDArray[np.int64]
    quality: float
    latency_ms: float
    energy_mj: float
    uplink_bytes: float


PRICES = (0.0, 0.5, 1.0, 2.0, 4.0)
"""Reward per joule left in a battery, tried in turn."""


def plan(worlds: Worlds, world: int, every: int = 5, beam: int = 24) -> Plan:
    """Searches one world.

    Args:
        worlds: where it is.
        world: which one.
        every: windows per decision.
        beam: plans kept.
    """
    finite = np.isfinite(worlds.figures["battery_j"][world])
    plans = [_search(worlds, world, every, beam, price) for price in (PRICES if finite else PRICES[:1])]
    return max(plans, key=lambda found: found.reward)


def _search(worlds: Worlds, world: int, every: int, beam: int, price: float) -> Plan:
    options = np.flatnonzero(worlds.figures["exists"][world])
    local = int(worlds.figures["local"][world].argmax())
    simulator = Simulator(worlds, np.array([world]))
    totals = np.zeros((6, 1))
    history = np.zeros((1, 0), np.int64)
    for begin in range(0, worlds.windows, every):
        count = min(every, worlds.windows - begin)
        parents = np.repeat(np.arange(len(simulator)), len(options))
        wished = np.tile(options, len(simulator))
        children = simulator.fork(parents)
        sums, flown = totals[:, parents], np.zeros((len(parents), count), np.int64)
        for step in range(count):
            possible = children.possible(children.seen())
            slots = np.where(possible[np.arange(len(parents)), wished], wished, local)
            active = ~children.empty
            done = children.apply(slots, active)
            flown[:, step] = slots
            sums = sums + np.stack(
                [done.reward, done.quality, done.latency_ms, done.energy_mj, done.uplink_bytes, active]
            )
        left_j = children.battery_j if price else 0.0
        keep = _kept(children, sums[0] + price * left_j, beam)
        simulator, totals = children.fork(keep), sums[:, keep]
        history = np.concatenate([history[parents[keep]], flown[keep]], axis=1)
    best = int(totals[0].argmax())
    windows = max(float(totals[5, best]), 1.0)
    return Plan(
        float(totals[0, best] / worlds.windows),
        history[best],
        *(float(totals[row, best] / windows) for row in (1, 2, 3, 4)),
    )


def _kept(children: Simulator, rewards: Array, beam: int) -> npt.NDArray[np.int64]:
    """The best, one of each kind of state, up to `beam`."""
    signature = children.signature()
    kept: list[int] = []
    kinds: set[bytes] = set()
    for row in np.argsort(-rewards, kind="stable"):
        kind = signature[:, row].tobytes()
        if kind not in kinds:
            kinds.add(kind)
            kept.append(int(row))
            if len(kept) == beam:
                break
    return np.array(kept)
