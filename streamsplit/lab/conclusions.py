"""What the runs come to: ``summary.json``, with every comparison that the report shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from streamsplit.lab.figures import (
    Runs,
    column,
    difference,
    figures,
    finite,
    latency_ms,
    median,
    prediction_error,
    ratio_interval,
)
from streamsplit.lab.modelled import apart
from streamsplit.lab.results import FORMAT, Seed
from streamsplit.lab.systems import BEST_FIXED, LEARNED, ORACLE, STREAMED, System, all_systems, label_of

PAPER: Final = {
    "latency_times_lower": 4.7,
    "bytes_percent": -77.1,
    "energy_percent": -52.3,
    "accuracy_points": 2.2,
}
"""Quan and Pathirana, MobiSys 2026: against server-centric; accuracy within so many points of it."""

REFERENCES: Final = ("server_pcm", "server_opus")
RIVALS: Final = (BEST_FIXED, "greedy_profile")


def conclude(results: Mapping[str, Mapping[int, Seed]]) -> dict[str, Any]:
    """The summary of all scenarios, plain JSON types."""
    return {
        "format": FORMAT,
        "paper": PAPER,
        "scenarios": {name: _scenario(seeds) for name, seeds in results.items()},
    }


def _scenario(seeds: Mapping[int, Seed]) -> dict[str, Any]:
    about = next(iter(seeds.values())).about
    window_s, last_split = about["window_s"], about["last_split"]
    runs = by_system(seeds)
    known = all_systems(last_split)
    systems = {
        name: _system(
            name, runs[name], seeds, window_s, known.get("server_pcm" if name == STREAMED else name)
        )
        for name in in_order(runs, last_split)
    }
    best = best_fixed(systems, last_split)
    if best is not None:
        systems[BEST_FIXED] = {
            **systems[best],
            "label": f"best fixed in hindsight: {label_of(best)}",
            "system": best,
        }
        runs[BEST_FIXED] = runs[best]
    simulated = _simulated(seeds)
    if ORACLE in simulated:
        systems[ORACLE] = {"label": label_of(ORACLE), **simulated[ORACLE]}
        for name, found in systems.items():
            if name != ORACLE and found["return"]["mean"] is not None:
                found["regret_to_modelled_oracle"] = finite(
                    simulated[ORACLE]["return"] - found["return"]["mean"]
                )
    for reference in REFERENCES:
        if reference in runs:
            for name in runs:
                systems[name][f"against_{reference}"] = against(runs[name], runs[reference])
    measured = {name: systems[name]["return"]["mean"] for name in runs if name != BEST_FIXED}
    return {
        "title": about["title"],
        "encoder": about["encoder"],
        "version": about["version"],
        "trained": about["trained"],
        "seeds": sorted(seeds),
        "systems": systems,
        "best_fixed_is": best,
        "learned_against": {
            rival: difference(runs[LEARNED], runs[rival], lambda row: row.reward)
            for rival in RIVALS
            if LEARNED in runs and rival in runs
        },
        "simulated": simulated,
        "simulator_error": apart(measured, simulated),
        "prediction_error": prediction_error(
            [
                row
                for name in measured
                if name != STREAMED
                for rows in runs[name].values()
                for row in rows
                if row.latency_ms is not None
            ]
        ),
        "complete": all(set(seed.rows) == set(next(iter(seeds.values())).rows) for seed in seeds.values()),
    }


def by_system(seeds: Mapping[int, Seed]) -> dict[str, Runs]:
    """Rows of each system, by seed."""
    names = {name for seed in seeds.values() for name in seed.rows}
    return {
        name: {number: seed.rows[name] for number, seed in seeds.items() if name in seed.rows}
        for name in names
    }


def in_order(names: Any, last_split: int) -> list[str]:
    """As tables have them."""
    order = [*all_systems(last_split)]
    order.insert(1, STREAMED)
    return [name for name in order if name in names]


def best_fixed(systems: Mapping[str, Mapping[str, Any]], last_split: int) -> str | None:
    """The fixed split with the highest return; None if none was run."""
    fixed = [
        name
        for name, system in all_systems(last_split).items()
        if system.fixed and name in systems and systems[name]["return"]["mean"] is not None
    ]
    return max(fixed, key=lambda name: float(systems[name]["return"]["mean"]), default=None)


def against(runs: Runs, others: Runs) -> dict[str, Any]:
    """A system against a reference, over the seeds that both have: latency ratio of medians, the rest in percent or points."""
    seeds = sorted(set(runs) & set(others))
    if not seeds:
        return {}
    left, right = ({seed: each[seed] for seed in seeds} for each in (runs, others))
    ours, theirs = column(left, latency_ms), column(right, latency_ms)
    below = median(np.concatenate(ours))
    both_judged = all(
        row.right is not None for each in (left, right) for rows in each.values() for row in rows[:1]
    )
    return {
        "latency_times_lower": finite(median(np.concatenate(theirs)) / below) if below else None,
        "latency_interval": ratio_interval(theirs, ours, median),
        "bytes_percent": _percent(left, right, "uplink_bytes"),
        "energy_percent": _percent(left, right, "energy_mj"),
        "accuracy_points": finite(
            100.0 * difference(left, right, lambda row: float(row.right is True))["mean"]
        )
        if both_judged
        else None,
        "quality_points": finite(100.0 * difference(left, right, lambda row: row.quality)["mean"]),
    }


def _percent(left: Runs, right: Runs, name: str) -> float | None:
    ours, theirs = (
        sum(float(getattr(row, name)) for rows in each.values() for row in rows) for each in (left, right)
    )
    return finite(100.0 * (ours / theirs - 1.0)) if theirs else None


def _system(
    name: str, runs: Runs, seeds: Mapping[int, Seed], window_s: float, known: System | None
) -> dict[str, Any]:
    facts = [seed.facts[name] for seed in seeds.values() if name in seed.facts]
    totals = {}
    for key in ("downlink_bytes", "client_cpu_s"):
        values = [fact.get(key) for fact in facts]
        totals[key] = None if None in values else sum(float(value) for value in values if value is not None)
    found = figures(runs, window_s, totals["downlink_bytes"], totals["client_cpu_s"])
    notes = sorted({fact["note"] for fact in facts if fact.get("note")})
    if known is not None and known.split is not None and (elsewhere := _elsewhere(found, known.split)):
        notes.append(f"{elsewhere:.0%} of windows on the device instead")
    disturbed = [fact["disturbed"] for fact in facts if fact.get("disturbed") is not None]
    return {
        "label": label_of(name),
        **found,
        "modelled": name == STREAMED,
        "notes": notes,
        "disturbed": max(disturbed, default=None),
    }


def _elsewhere(found: Mapping[str, Any], split: int) -> float:
    """Share of windows that a fixed system took elsewhere: a client leaves out what its link can never catch up with."""
    return float(sum(share for other, share in found["splits"].items() if other != str(split)))


def _simulated(seeds: Mapping[int, Seed]) -> dict[str, dict[str, Any]]:
    """Means over seeds of what the simulator says."""
    each = [seed.about.get("simulated") or {} for seed in seeds.values()]
    names = set.intersection(*(set(found) for found in each)) if each else set()
    result = {}
    for name in sorted(names):
        described = [found[name] for found in each]
        result[name] = {
            "return": _average([one["return"] for one in described]),
            "quality": _average([one["quality"] for one in described]),
            "latency_ms": {
                level: _average([one["latency_ms"][level] for one in described])
                for level in ("p50", "p95", "p99")
            },
            "energy_mj": {"mean": _average([one["energy_mj"] for one in described]), "modelled": True},
            "uplink_bytes_per_s": _average([one["uplink_bytes_per_s"] for one in described]),
            "modelled": True,
        }
    return result


def _average(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return finite(np.mean(known)) if known else None
