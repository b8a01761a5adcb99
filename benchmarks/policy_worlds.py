"""Worlds for the benchmark of policies: made ones whose link is a real trace, or whose sound comes from a journal."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamsplit.client.journal import read
from streamsplit.errors import ConfigError
from streamsplit.lab.traces import Trace
from streamsplit.policy.cost import Goals
from streamsplit.policy.heard import Heard, Signal
from streamsplit.policy.scenarios import Scenario
from streamsplit.policy.worlds import Worlds, stack

BASES = {
    "LTE": ("lte", "cola-lte", "resnet18-lte"),
    "EVDO": ("evdo-loaded", "cola-loaded"),
    "UMTS": ("umts", "resnet18-umts"),
    "norway": ("commute", "cola-commute"),
}
"""The shipped scenarios whose device, load and sound go with a trace, by what its file name contains."""

Returns = npt.NDArray[np.float64]


def traced(folder: Path, scenarios: Mapping[str, Scenario], seeds: range, windows: int) -> dict[str, Worlds]:
    """Worlds whose link is a real trace from a random place on; all else is made as in the scenario it goes with."""
    files = sorted([*folder.rglob("*.up"), *folder.rglob("norway*")])
    files = [path for path in files if path.is_file()]
    if not files:
        raise ConfigError(f"--traces {folder}: expected *.up or norway* files in it")
    made: dict[str, Worlds] = {}
    groups = {path.name if path.suffix == ".up" else "norway-3g": [path] for path in files}
    groups["norway-3g"] = [path for path in files if path.suffix != ".up"]
    for name, paths in groups.items():
        read = [Trace.read(path) for path in paths]
        for base in next((names for part, names in BASES.items() if read and part in name), ()):
            made[f"{base} on {name}"] = _on(read, scenarios[base], seeds, windows)
    return made


def _on(read: Sequence[Trace], scenario: Scenario, seeds: range, windows: int) -> Worlds:
    devices, timelines = [], []
    for index, seed in enumerate(seeds):
        device, timeline = scenario.world(seed, windows)
        rates = binned(read[index % len(read)], device.profile.window_s, windows, seed)
        devices.append(device)
        timelines.append(replace(timeline, uplink_bps=rates))
    return stack(devices, timelines, Goals())


def binned(trace: Trace, hop_s: float, windows: int, seed: int) -> Returns:
    """[W] mean rates of a trace, which repeats, from a random place on."""
    start_s = float(np.random.default_rng([seed, 8]).uniform(0.0, trace.period_s or 0.0))
    edges = [start_s + hop_s * index for index in range(windows + 1)]
    bits = [trace.bits_between(begin, end) for begin, end in itertools.pairwise(edges)]
    return np.asarray(bits) / hop_s


def hear(journals: Sequence[Path]) -> dict[str, Heard]:
    """By the name of the folder that a journal lies in.

    Raises:
        ConfigError: too little in it.
        StorageError: no such journal.
    """
    return {path.parent.name: Heard.of(read(path)) for path in journals}


def sounding(scenario: Scenario, heard: Heard, seeds: range, windows: int, signal: Signal) -> Worlds:
    """A scenario's worlds under a journal's sound, from a random place on; the same for every signal."""
    devices, timelines = [], []
    for seed in seeds:
        device, timeline = scenario.world(seed, windows)
        start = int(np.random.default_rng([seed, 7]).integers(len(heard)))
        devices.append(device)
        timelines.append(heard.under(timeline, start, signal))
    return stack(devices, timelines, Goals())


def interval(values: Returns, seed: int) -> dict[str, Any]:
    """Mean and 95 % bootstrap interval over worlds."""
    drawn = np.random.default_rng([seed, 4]).integers(len(values), size=(4000, len(values)))
    low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
    return {"mean": round(float(values.mean()), 4), "interval": [round(float(low), 4), round(float(high), 4)]}
