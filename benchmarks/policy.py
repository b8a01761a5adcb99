"""Deciders against each other in simulated worlds on held-out seeds, on real link traces too where they are given.

Per scenario: mean reward per window of every fixed split, the best of them in hindsight, greedy-profile, heuristic,
LinUCB, a myopic decider with the same reward, the learned policy, and the oracle; differences are paired by world,
with 95 % bootstrap intervals over worlds. Two controls: the learned policy with its uncertainty held constant, and
with one that means nothing (mostly 0, else near its maximum, as posterior entropies of mixtures are in 128
dimensions). Everything is modelled: energies by the profiles' power models, quality by the shipped table.

Targets: a decision <= 50 us; learned above best fixed and above greedy-profile in most scenarios.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamsplit.errors import ConfigError
from streamsplit.lab.traces import Trace
from streamsplit.policy.cost import Goals
from streamsplit.policy.decide import Decider, GreedyProfile, Heuristic, Pilot, mask
from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.evaluate import Blinded, Myopic, Result, fly, fly_fixed, fly_oracle
from streamsplit.policy.learned import SHIPPED_POLICY, LearnedPolicy, load_weights
from streamsplit.policy.linucb import LinUcb
from streamsplit.policy.published import PublishedTask
from streamsplit.policy.scenarios import make_worlds, shipped_scenarios
from streamsplit.policy.worlds import Device, Worlds, stack

WINDOWS = 600
FIRST_SEED = 10_000
"""Held out: training takes seeds from 1,000,000 on, validation 900,000 to 900,005."""

BASES = {"LTE": "lte", "EVDO": "evdo-loaded", "UMTS": "umts", "norway": "commute"}
"""The shipped scenario whose device, load and sound go with a trace, by what its file name contains."""

Returns = npt.NDArray[np.float64]


def run(
    folder: Path,
    seed: int,
    quick: bool,
    traces: Path | None = None,
    policy: Path | None = None,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """All shipped scenarios, and those with the traces below `traces`.

    Args:
        folder: for table.md; figures are returned.
        seed: of held-out worlds and of the bootstrap.
        quick: 6 worlds a scenario instead of 16, shorter ones.
        traces: folder with Mahimahi uplinks (*.up) and Norway 3G files (norway*).
        policy: another policy than the shipped one.
        only: names of shipped scenarios; all unless told.
    """
    worlds, windows = (6, 240) if quick else (16, WINDOWS)
    seeds = range(FIRST_SEED + 1000 * seed, FIRST_SEED + 1000 * seed + worlds)
    weights = load_weights(policy or SHIPPED_POLICY)

    def learned(device: Device) -> LearnedPolicy:
        return LearnedPolicy(
            weights,
            device.profile,
            device.quality,
            hold_windows=device.hold_windows,
            predicts=device.predicts,
        )

    table = {
        name: compared(make_worlds([scenario], seeds, windows), learned, seed)
        for name, scenario in shipped_scenarios().items()
        if not only or name in only
    }
    if traces is not None:
        for name, drawn in traced(traces, seeds, windows).items():
            table[name] = compared(drawn, learned, seed)
    (folder / "table.md").write_text(markdown(table))
    return {
        "windows": windows,
        "worlds": worlds,
        "seeds": [seeds.start, seeds.stop],
        "policy": weights.note,
        "scenarios": table,
        "wins": {
            against: sum(row["learned_minus"][against]["interval"][0] > 0 for row in table.values())
            for against in ("best_fixed", "greedy_profile", "heuristic", "myopic", "constant_uncertainty")
        },
        "decision_us": decision_us(learned),
        "simulator_decisions_per_s": simulator_speed(200 if quick else 1000),
        "published_task": published(),
        "targets": {"decision_us_p50": 50},
    }


def compared(worlds: Worlds, learned: Callable[[Device], Decider], seed: int) -> dict[str, Any]:
    """Every system in these worlds."""
    fixed = {
        f"fixed:{option.split}": fly_fixed(option.split, worlds) for option in worlds.devices[0].ordered()
    }
    best = max(fixed, key=lambda name: float(fixed[name].returns.mean()))
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
        "learned": fly(learned, worlds),
        "constant_uncertainty": fly(lambda device: Blinded(learned(device), (0.11,), []), worlds),
        "meaningless_uncertainty": fly(lambda device: Blinded(learned(device), entropies, []), worlds),
        "oracle": fly_oracle(worlds),
    }
    ours = results["learned"].returns
    return {
        "best_fixed": best,
        "systems": {name: described(result, seed) for name, result in results.items()},
        "learned_minus": {
            name: interval(ours - result.returns, seed)
            for name, result in results.items()
            if name not in (*fixed, "learned")
        },
    }


COLUMNS = ("best_fixed", "greedy_profile", "heuristic", "linucb", "myopic", "learned", "oracle")


def markdown(table: dict[str, Any]) -> str:
    """Returns per scenario, and the learned policy's lead with its interval."""
    lines = [
        f"| scenario | {' | '.join(COLUMNS)} | learned - best fixed | learned - greedy |",
        "| --- |" + " --- |" * (len(COLUMNS) + 2),
    ]
    for name, row in table.items():
        cells = [f"{row['systems'][column]['return']['mean']:.3f}" for column in COLUMNS]
        cells[0] += f" ({row['best_fixed'].removeprefix('fixed:')})"
        for against in ("best_fixed", "greedy_profile"):
            lead = row["learned_minus"][against]
            low, high = lead["interval"]
            cells.append(f"{lead['mean']:+.3f} [{low:+.3f}, {high:+.3f}]")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


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


def interval(values: Returns, seed: int) -> dict[str, Any]:
    """Mean and 95 % bootstrap interval over worlds."""
    drawn = np.random.default_rng([seed, 4]).integers(len(values), size=(4000, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return {"mean": round(float(values.mean()), 4), "interval": [round(float(low), 4), round(float(high), 4)]}


def traced(folder: Path, seeds: range, windows: int) -> dict[str, Worlds]:
    """Worlds whose link is a real trace from a random place on; all else is made as in the scenario it goes with."""
    files = sorted([*folder.rglob("*.up"), *folder.rglob("norway*")])
    files = [path for path in files if path.is_file()]
    if not files:
        raise ConfigError(f"--traces {folder}: expected *.up or norway* files in it")
    made: dict[str, Worlds] = {}
    groups = {path.name if path.suffix == ".up" else "norway-3g": [path] for path in files}
    groups["norway-3g"] = [path for path in files if path.suffix != ".up"]
    for name, paths in groups.items():
        base = next((scenario for part, scenario in BASES.items() if part in name), None)
        if not paths or base is None:
            continue
        read = [Trace.read(path) for path in paths]
        pairs = []
        for index, seed in enumerate(seeds):
            device, timeline = shipped_scenarios()[base].world(seed, windows)
            rates = binned(read[index % len(read)], device.profile.window_s, windows, seed)
            pairs.append((device, replace(timeline, uplink_bps=rates)))
        made[f"trace {name}"] = stack(
            [device for device, _ in pairs], [timeline for _, timeline in pairs], Goals()
        )
    return made


def binned(trace: Trace, hop_s: float, windows: int, seed: int) -> Returns:
    """[W] mean rates of a trace, which repeats, from a random place on."""
    start_s = float(np.random.default_rng([seed, 8]).uniform(0.0, trace.period_s or 0.0))
    edges = [start_s + hop_s * index for index in range(windows + 1)]
    bits = [trace.bits_between(begin, end) for begin, end in itertools.pairwise(edges)]
    return np.asarray(bits) / hop_s


def decision_us(learned: Callable[[Device], Decider]) -> dict[str, float]:
    """Microseconds of one choice among five options, on observations of a made flight."""
    worlds = make_worlds([shipped_scenarios()["lte"]], [FIRST_SEED], 400)
    device = worlds.devices[0]
    options, decider, took = device.ordered(), learned(device), []
    simulator, pilot = Simulator(worlds, np.zeros(1, np.int64)), Pilot(Heuristic())
    slots = {option.split: slot for slot, option in enumerate(options)}
    for _ in range(400):
        observation = simulator.observation(simulator.seen(), 0)
        possible = mask(options, observation, device.profile.last_split)
        began_s = time.perf_counter()
        decider.choose(observation, possible)
        took.append(1e6 * (time.perf_counter() - began_s))
        simulator.apply(np.array([slots[pilot.choose(observation, options).split]]))
    p50, p99 = np.percentile(took[20:], [50, 99])
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}


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
