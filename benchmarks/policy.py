"""Deciders against each other in simulated worlds on held-out seeds, on real link traces and under real sound where they are given.

Per scenario: mean reward per window of every fixed split, the best of them in hindsight, greedy-profile, heuristic,
LinUCB, a myopic decider with the same reward, the learned policy (or several: other seeds of its training, one trained on
laptops only), and the oracle; differences are paired by world, with 95 % bootstrap intervals over worlds. Two controls: the
learned policy with its uncertainty held constant, and with one that means nothing (mostly 0, else near its maximum, as posterior
entropies of mixtures are in 128 dimensions). Under a journal's sound (`policy_signals`) the uncertainty is what a device really
knew: its prediction, or the paper's posterior entropy. Everything is modelled: energies by the profiles' power models, quality by a table.

Targets: a decision <= 50 us; learned above best fixed and above greedy-profile in most scenarios.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.policy_signals import journeys, signals_markdown
from benchmarks.policy_worlds import hear, interval, traced
from streamsplit.policy.cost import Goals
from streamsplit.policy.decide import Decider, GreedyProfile, Heuristic, mask
from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.evaluate import Blinded, Myopic, Result, fly, fly_fixed, fly_oracle
from streamsplit.policy.learned import SHIPPED_POLICY, LearnedPolicy, Weights, load_weights
from streamsplit.policy.linucb import LinUcb
from streamsplit.policy.pilot import Pilot
from streamsplit.policy.published import PublishedTask
from streamsplit.policy.quality import assumed_quality, load_quality
from streamsplit.policy.scenarios import make_worlds, shipped_scenarios, under
from streamsplit.policy.worlds import Device, Worlds

WINDOWS = 600
FIRST_SEED = 10_000
"""Held out: training takes seeds from 1,000,000 on, validation 900,000 to 900,071."""

LEARNED, SHIPPED = "learned", "shipped"
AGAINST = ("best_fixed", "greedy_profile", "heuristic", "myopic", "constant_uncertainty", SHIPPED)
ROUNDS = 20
ORACLES = 16
"""Worlds of a scenario in which the oracle plans."""

Make = Callable[[Device], Decider]


def run(
    folder: Path,
    seed: int,
    quick: bool,
    traces: Path | None = None,
    policies: Sequence[Path] = (),
    only: Sequence[str] = (),
    journals: Sequence[Path] = (),
    quality: Path | None = None,
) -> dict[str, Any]:
    """All shipped scenarios, and those with the traces below `traces`.

    Args:
        folder: for table.md; figures are returned.
        seed: of held-out worlds and of the bootstrap.
        quick: 6 worlds a scenario instead of 64, shorter ones.
        traces: folder with Mahimahi uplinks (*.up) and Norway 3G files (norway*).
        policies: others than the shipped one, which then stands beside them; the first is `learned`.
        only: names of shipped scenarios; all unless told.
        journals: of devices, for real uncertainty.
        quality: a table for `compact` instead of the assumed one of made worlds.
    """
    worlds, windows = (6, 240) if quick else (64, WINDOWS)
    seeds = range(FIRST_SEED + 1000 * seed, FIRST_SEED + 1000 * seed + worlds)
    weights = named(policies)
    learners = {name: flown_by(own) for name, own in weights.items()}
    heard = hear(journals)
    qualities = assumed_quality("compact") if quality is None else load_quality(quality)
    scenarios = {name: under(scenario, qualities) for name, scenario in shipped_scenarios().items()}
    chosen = [name for name in scenarios if not only or name in only]
    few = seeds[:ORACLES]
    table = {}
    for name in chosen:
        scenario = [scenarios[name]]
        drawn, first = make_worlds(scenario, seeds, windows), make_worlds(scenario, few, windows)
        table[name] = compared(drawn, first, learners, seed)
    if traces is not None:
        flown, planned = (traced(traces, scenarios, own, windows) for own in (seeds, few))
        table |= {name: compared(flown[name], planned[name], learners, seed) for name in flown}
    signals = {
        name: {
            scenario: journeys(scenarios[scenario], own, seeds, windows, learners[LEARNED], seed)
            for scenario in chosen
        }
        for name, own in heard.items()
    }
    (folder / "table.md").write_text(markdown(table, list(learners)) + signals_markdown(signals))
    return {
        "windows": windows,
        "worlds": worlds,
        "seeds": [seeds.start, seeds.stop],
        "quality": qualities.source,
        "policies": {name: own.note for name, own in weights.items()},
        "scenarios": table,
        "wins": {name: wins(table, name) for name in learners},
        "signals": signals,
        "decision_us": decision_us(learners[LEARNED]),
        "simulator_decisions_per_s": simulator_speed(200 if quick else 1000),
        "published_task": published(),
        "targets": {"decision_us_p50": 50},
    }


def named(policies: Sequence[Path]) -> dict[str, Weights]:
    """ "learned", "learned 2"...; and "shipped", where that is not "learned" itself."""
    names = [LEARNED, *(f"{LEARNED} {place}" for place in range(2, len(policies) + 1))]
    own = {name: load_weights(path) for name, path in zip(names, policies or [SHIPPED_POLICY], strict=True)}
    return own | ({SHIPPED: load_weights(SHIPPED_POLICY)} if policies else {})


def flown_by(weights: Weights) -> Callable[[Device], LearnedPolicy]:
    """A learned decider for each device."""
    return lambda device: LearnedPolicy(
        weights,
        device.profile,
        device.quality,
        hold_windows=device.hold_windows,
        predicts=device.predicts,
    )


def compared(worlds: Worlds, few: Worlds, learners: Mapping[str, Make], seed: int) -> dict[str, Any]:
    """Every system in these worlds; the oracle, which takes longer than all others, in the `few` first of them."""
    fixed = {
        f"fixed:{option.split}": fly_fixed(option.split, worlds) for option in worlds.devices[0].ordered()
    }
    best = max(fixed, key=lambda name: float(fixed[name].returns.mean()))
    learned = learners[LEARNED]
    meaningless = np.random.default_rng([seed, 9])
    entropies = tuple(np.where(meaningless.random(997) < 0.9, 0.0, 0.6).tolist())
    results: dict[str, Result] = {
        **fixed,
        "best_fixed": fixed[best],
        "greedy_profile": fly(lambda device: GreedyProfile(device.profile), worlds),
        "greedy_energy": fly(lambda device: GreedyProfile(device.profile, "energy"), worlds),
        "heuristic": fly(lambda _: Heuristic(), worlds),
        "linucb": fly(lambda _: LinUcb(), worlds),
        "myopic": fly(lambda device: Myopic(device.profile, device.quality, Goals()), worlds),
        **{name: fly(make, worlds) for name, make in learners.items()},
        "constant_uncertainty": fly(lambda device: Blinded(learned(device), (0.11,), []), worlds),
        "meaningless_uncertainty": fly(lambda device: Blinded(learned(device), entropies, []), worlds),
        "oracle": fly_oracle(few),
    }
    # Of what the oracle did not fly nothing is compared with it.
    behind = {ours: results[ours].returns[: len(few)] - results["oracle"].returns for ours in learners}
    return {
        "best_fixed": best,
        "systems": {name: described(result, seed) for name, result in results.items()},
        "leads": {
            ours: {
                name: interval(results[ours].returns - result.returns, seed)
                for name, result in results.items()
                if name not in (*fixed, ours, "oracle")
            }
            | {"oracle": interval(behind[ours], seed)}
            for ours in learners
        },
    }


def wins(table: Mapping[str, Any], policy: str) -> dict[str, Any]:
    """In how many scenarios a policy's lead lies above 0 with its whole interval, and below; "both": above best fixed and greedy."""
    leads = {name: row["leads"][policy] for name, row in table.items()}
    said: dict[str, Any] = {
        against: {
            "above": sum(lead[against]["interval"][0] > 0 for lead in leads.values()),
            "below": sum(lead[against]["interval"][1] < 0 for lead in leads.values()),
        }
        for against in AGAINST
        if all(against in lead for lead in leads.values())
    }
    both = [
        name
        for name, lead in leads.items()
        if min(lead[against]["interval"][0] for against in ("best_fixed", "greedy_profile")) > 0
    ]
    return said | {"both": both, "scenarios": len(leads)}


COLUMNS = ("best_fixed", "greedy_profile", "heuristic", "linucb", "myopic")


def markdown(table: Mapping[str, Any], policies: Sequence[str]) -> str:
    """Returns per scenario; and each policy's leads with their intervals."""
    columns = (*COLUMNS, *policies, "oracle")
    lines = [f"| scenario | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    for name, row in table.items():
        cells = [f"{row['systems'][column]['return']['mean']:.3f}" for column in columns]
        cells[0] += f" ({row['best_fixed'].removeprefix('fixed:')})"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for policy in policies:
        against = [name for name in AGAINST if all(name in row["leads"][policy] for row in table.values())]
        lines += ["", f"| {policy} less | {' | '.join(against)} |", "| --- |" + " --- |" * len(against)]
        for name, row in table.items():
            leads = [row["leads"][policy][other] for other in against]
            lines.append(f"| {name} | {' | '.join(map(spelt, leads))} |")
    return "\n".join(lines) + "\n"


def spelt(lead: Mapping[str, Any]) -> str:
    """A lead and its interval."""
    low, high = lead["interval"]
    return f"{lead['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"


def described(result: Result, seed: int) -> dict[str, Any]:
    """One system's row."""
    p50, p95, p99 = result.latency_ms
    return {
        "return": interval(result.returns, seed),
        "accuracy_modelled": round(result.quality, 4),
        "latency_ms": {"p50": round(p50, 1), "p95": round(p95, 1), "p99": round(p99, 1)},
        "energy_mj_modelled": round(result.energy_mj, 1),
        "uplink_bytes_per_s": round(result.uplink_bytes_per_s, 1),
        "splits": {str(split): round(share, 3) for split, share in result.splits.items()},
    }


def decision_us(learned: Make) -> dict[str, float]:
    """Microseconds of one choice among up to five options, on observations of a made flight.

    "best" is the median over observations of each one's best of `ROUNDS`: what a decision takes when nobody interrupts it.
    """
    worlds = make_worlds([shipped_scenarios()["lte"]], [FIRST_SEED], 400)
    device = worlds.devices[0]
    options, decider, asked = device.ordered(), learned(device), []
    simulator, pilot = Simulator(worlds, np.zeros(1, np.int64)), Pilot(Heuristic())
    slots = {option.split: slot for slot, option in enumerate(options)}
    for _ in range(400):
        observation = simulator.seen().observation(0)
        asked.append((observation, mask(options, observation, device.profile.last_split)))
        simulator.apply(np.array([slots[pilot.choose(observation, options).split]]))
    took = np.empty((ROUNDS, len(asked)))
    for spent in took:
        for place, question in enumerate(asked):
            began_s = time.perf_counter()
            decider.choose(*question)
            spent[place] = 1e6 * (time.perf_counter() - began_s)
    p50, p99 = np.percentile(took[1:], [50, 99])
    best = float(np.median(took.min(axis=0)))
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1), "best": round(best, 1)}


def simulator_speed(devices: int) -> float:
    """Decisions of ten windows a second, simulator and pilots' masks only, in one process."""
    worlds = make_worlds([shipped_scenarios()["lte"]], [FIRST_SEED], 200)
    simulator = Simulator(worlds, np.zeros(devices, np.int64))
    began_s = time.perf_counter()
    for window in range(200):
        slots = np.full(devices, 3 + window // 10 % 2, np.int64)
        simulator.possible(simulator.seen())
        simulator.apply(slots)
    return round(devices * 20 / (time.perf_counter() - began_s))


def published() -> dict[str, Any]:
    """In the published task, the share of states in which the deepest split is best."""
    task = PublishedTask()
    best = task.best_splits()
    return {**asdict(task), "states": len(best), "on_device_is_best": float((best == task.last_split).mean())}
