"""What simulated devices observe, and what a window of theirs came to: B of them side by side, see `dynamics`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamsplit.policy.observation import Observation
from streamsplit.policy.worlds import Array


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What one window came to, [B] each; zeros where a row was not active.

    Attributes:
        reward: alpha A - beta Lat / T_max - eta E / E_budget.
        quality: A; 0 if the window was lost.
        latency_ms: as `cost.Latency.total`, the wait for the processor included.
        energy_mj: beyond idle.
        uplink_bytes: sent, messages' own bytes included.
        lost: the processor's queue was full.
    """

    reward: Array
    quality: Array
    latency_ms: Array
    energy_mj: Array
    uplink_bytes: Array
    lost: Array


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What the devices observe: [B] each, or numbers of one device; NaN: not known. Fields as in `Observation`.

    `cpu` and `battery` are shares, `throttled` and `available` 0 or 1, `split` the last one.
    """

    cpu: Any
    throttled: Any
    temperature_c: Any
    battery: Any
    uplink_bps: Any
    rtt_ms: Any
    backlog_windows: Any
    backlog_bytes: Any
    uncertainty: Any
    level_dbfs: Any
    available: Any
    split: Any
    lag_s: Any
    since_send_s: Any

    def observation(self, row: int) -> Observation:
        """One row's observation, as a decider on a device gets it."""
        mains = bool(np.isnan(self.battery[row]))
        return Observation(
            cpu_percent=float(100.0 * self.cpu[row]),
            memory_percent=0.0,
            level_dbfs=float(self.level_dbfs[row]),
            server_available=bool(self.available[row]),
            backlog_windows=int(self.backlog_windows[row]),
            backlog_bytes=int(self.backlog_bytes[row]),
            temperature_c=_known(self.temperature_c[row]),
            throttled=bool(self.throttled[row]),
            battery_percent=None if mains else float(100.0 * self.battery[row]),
            on_mains=mains,
            uplink_bps=_known(self.uplink_bps[row]),
            rtt_ms=_known(self.rtt_ms[row]),
            uncertainty=_known(self.uncertainty[row]),
            last_split=None if np.isnan(self.split[row]) else int(self.split[row]),
            lag_s=_known(self.lag_s[row]),
            since_send_s=_known(self.since_send_s[row]),
        )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
