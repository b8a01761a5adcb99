"""Made worlds small enough to follow: the device of `device` under constant conditions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamsplit.policy.cost import Goals
from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.quality import Quality
from streamsplit.policy.worlds import Device, Timeline, Worlds, stack
from tests.policy.device import OPTIONS, PROFILE

QUALITY = Quality(
    "made for tests",
    False,
    (0.0, 0.5),
    {"device": (0.9, 0.4), "server": (0.9, 0.9), "skip": (0.5, 0.5)},
)

DEVICE = Device("made", PROFILE, tuple(OPTIONS), QUALITY)

FEATURES, FIRST, SECOND, LOCAL = 0, 1, 2, 3
"""Slots of `DEVICE`: options by split."""


def timeline(windows: int = 40, **changed: object) -> Timeline:
    """A steady day: 1 Mbit/s, 20 ms, an idle processor, a server, certain and audible sound."""
    steady: dict[str, object] = {
        "uplink_bps": np.full(windows, 1e6),
        "rtt_ms": np.full(windows, 20.0),
        "load": np.zeros(windows),
        "server_up": np.ones(windows, bool),
        "uncertainty": np.full(windows, 0.1),
        "level_dbfs": np.full(windows, -30.0),
        "predicted": np.full(windows, 0.1),
    }
    return Timeline(**(steady | changed))  # type: ignore[arg-type]


def worlds(*timelines: Timeline, device: Device = DEVICE, goals: Goals | None = None) -> Worlds:
    """The device in each of these."""
    return stack([device] * len(timelines), timelines, goals or Goals())


def simulator(*timelines: Timeline, device: Device = DEVICE) -> Simulator:
    """One row in each of these."""
    made = worlds(*timelines, device=device)
    return Simulator(made, np.arange(len(made)))


def slots(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A choice for each row."""
    return np.array(values, np.int64)


def slow_device(factor: float) -> Device:
    """The device with a processor so many times slower."""
    heads = {
        split: replace(timing, p50=factor * timing.p50, p95=factor * timing.p95)
        for split, timing in PROFILE.head_ms.items()
    }
    return replace(DEVICE, profile=replace(PROFILE, head_ms=heads))
