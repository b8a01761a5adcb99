"""What an uncertainty is worth to the policy: flown under the sound of a device's journal, told one signal or another.

    disagreement   answers tell the true 1 - cos(lite, dense), between them the device's own prediction: what a client does
    constant       the mean of the journal's
    entropy        of the posterior under the device's memory, tempered, as it is: the paper's uncertainty
    calibrated     the same entropy, read by the curve from entropy to mean truth that fits these very windows best

Quality follows the true disagreement in all four; worlds differ in nothing else, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from benchmarks.policy_worlds import interval, sounding
from streamsplit.policy.decide import Decider
from streamsplit.policy.evaluate import Blinded, fly, fly_fixed
from streamsplit.policy.heard import Heard
from streamsplit.policy.scenarios import Scenario
from streamsplit.policy.worlds import Device

TOLD = ("disagreement", "constant", "entropy", "calibrated")


def journeys(
    scenario: Scenario,
    heard: Heard,
    seeds: range,
    windows: int,
    learned: Callable[[Device], Decider],
    seed: int,
) -> dict[str, Any]:
    """One scenario under one sound: returns by signal, what every other signal costs, and how well each tells the truth."""
    worlds = sounding(scenario, heard, seeds, windows, "disagreement")
    mean = float(heard.uncertainty.mean())
    returns = {
        "disagreement": fly(learned, worlds).returns,
        "constant": fly(lambda device: Blinded(learned(device), (mean,), []), worlds).returns,
    }
    for signal in ("entropy", "calibrated"):
        returns[signal] = fly(learned, sounding(scenario, heard, seeds, windows, signal)).returns
    fixed = [fly_fixed(option.split, worlds).returns for option in worlds.devices[0].ordered()]
    returns["best_fixed"] = max(fixed, key=lambda own: float(own.mean()))
    ours = returns["disagreement"]
    return {
        "returns": {name: interval(own, seed) for name, own in returns.items()},
        "costs": {name: interval(own - ours, seed) for name, own in returns.items() if own is not ours},
        "correlation": {
            "predicted": ranked(heard.predicted, heard.uncertainty),
            "entropy": ranked(heard.entropy, heard.uncertainty),
        },
        "uncertainty": [round(float(q), 4) for q in np.percentile(heard.uncertainty, [10, 50, 90])],
        "entropy": [round(float(q), 4) for q in np.percentile(heard.entropy, [10, 50, 90])],
    }


def ranked(one: Any, other: Any) -> float:
    """Spearman's correlation; ties in the order they come."""
    first, second = (np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (one, other))
    return round(float(np.corrcoef(first.astype(np.float64), second.astype(np.float64))[0, 1]), 3)


def signals_markdown(signals: Mapping[str, Mapping[str, Any]]) -> str:
    """Per journal: the return with the true signal, and what the others cost."""
    lines = []
    for name, rows in signals.items():
        others = [*TOLD[1:], "best_fixed"]
        lines += ["", f"| {name} | disagreement | {' | '.join(f'{other} less' for other in others)} |"]
        lines.append("| --- |" + " --- |" * (len(others) + 1))
        for scenario, row in rows.items():
            cells = [f"{row['returns']['disagreement']['mean']:.3f}"]
            for other in others:
                low, high = row["costs"][other]["interval"]
                cells.append(f"{row['costs'][other]['mean']:+.3f} [{low:+.3f}, {high:+.3f}]")
            lines.append(f"| {scenario} | {' | '.join(cells)} |")
    return "\n".join(lines) + ("\n" if lines else "")
