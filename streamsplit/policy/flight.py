"""Many simulated devices, each flown by a pilot: one decision lasts up to ten windows, as `pilot.Pilot` has it.

This is the task a policy is trained on; `env` puts gymnasium's face on it, `train` Stable-Baselines3's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.layout import ARRAYS, MOMENT, PER_OPTION, describe
from streamsplit.policy.observation import LOAD_JUMP, piling_up
from streamsplit.policy.seen import Seen
from streamsplit.policy.worlds import MOST_OPTIONS, Array, Flags

EVERY: Final = 10
"""Windows per decision."""

LENGTH: Final = len(MOMENT) + MOST_OPTIONS * (len(PER_OPTION) + 1)
"""Of an observation: the moment, each option's features, each option's possibility (0 or 1)."""

_OPTION = ("split", "payload_bytes", "device_ms", "tail_ms", "local", "skip", "audio", "quality")


@dataclass(frozen=True, slots=True, eq=False)
class Leg:
    """What came of one decision, [B] each.

    Attributes:
        reward: sum over the leg's windows, divided by `EVERY`: a whole leg's mean, less for one cut short.
        windows: how many there were.
        terminated: the battery is empty.
        truncated: the timeline is over; the state goes on and is worth something.
        quality, latency_ms, energy_mj, uplink_bytes, lost: sums over windows.
    """

    reward: Array
    windows: npt.NDArray[np.int64]
    terminated: Flags
    truncated: Flags
    quality: Array
    latency_ms: Array
    energy_mj: Array
    uplink_bytes: Array
    lost: Array


class Flight:
    """Pilots over a simulator.

    Args:
        simulator: its rows are flown.
        every: windows per decision.
    """

    def __init__(self, simulator: Simulator, every: int = EVERY) -> None:
        self.simulator = simulator
        self._every = every
        self.look()

    def look(self) -> None:
        """Takes the situation anew, after a restart of rows."""
        self.seen: Seen = self.simulator.seen()
        self.possible: Flags = self.simulator.possible(self.seen)

    def features(self) -> npt.NDArray[np.float32]:
        """[B, LENGTH] what the policy sees."""
        figures = self.simulator.figures
        device = {name: values for name, values in figures.items() if values.ndim == 1}
        options = [{name: figures[name][:, slot] for name in _OPTION} for slot in range(MOST_OPTIONS)]
        moment, described = describe(self.seen, device, options, ARRAYS)
        exists = figures["exists"]
        columns = [*moment]
        for slot, features in enumerate(described):
            columns += [feature * exists[:, slot] for feature in features]
        columns += list(self.possible.T.astype(np.float64))
        return np.stack(np.broadcast_arrays(*columns), axis=1).astype(np.float32)

    def fly(self, slots: npt.NDArray[np.int64], most: npt.NDArray[np.int64] | None = None) -> Leg:
        """Keeps to these choices for a leg; an impossible one means embedding on the device.

        A row's leg ends early with what `pilot.Pilot` decides anew at once, and with its world. Only where work goes on piling up the
        two differ: a pilot is asked at every window then, a leg goes on.

        Args:
            slots: [B].
            most: [B] windows that a row's leg may last; None: as many as a decision does.
        """
        simulator = self.simulator
        rows = np.arange(len(simulator))
        local = simulator.figures["local"].argmax(axis=1)
        slots = np.where(self.possible[rows, slots], slots, local)
        decided, possible = self.seen, self.possible
        hop_s = simulator.figures["hop_s"]
        late = piling_up(decided.lag_s, hop_s)
        active = ~(simulator.ended | simulator.empty)
        sums = np.zeros((6, len(rows)))
        windows = np.zeros(len(rows), np.int64)
        for _ in range(self._every):
            if most is not None:
                active &= windows < most
                if not active.any():
                    break
            windows += active
            done = simulator.apply(slots, active)
            sums += (
                done.reward,
                done.quality,
                done.latency_ms,
                done.energy_mj,
                done.uplink_bytes,
                done.lost,
            )
            self.look()
            active &= ~(simulator.ended | simulator.empty)
            seen = self.seen
            active &= (seen.available == decided.available) & (seen.throttled == decided.throttled)
            active &= np.abs(seen.cpu - decided.cpu) < LOAD_JUMP / 100.0
            for name in ("uplink_bps", "rtt_ms", "uncertainty"):
                active &= np.isnan(getattr(seen, name)) == np.isnan(getattr(decided, name))
            active &= (piling_up(seen.lag_s, hop_s) == late) & (self.possible == possible).all(axis=1)
            if not active.any():
                break
        terminated = simulator.empty
        return Leg(sums[0] / self._every, windows, terminated, simulator.ended & ~terminated, *sums[1:])
