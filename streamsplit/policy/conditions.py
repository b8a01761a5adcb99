"""Made conditions for replays: processor load and link, invented from a seed so that two runs decide alike.

Each quantity wanders like a random walk that is pulled back to its middle: value noise, a sum of four smooth
curves through random points that lie 7, 19, 53 and 149 windows apart. A point is a hash of (seed, quantity,
curve, index), so any window's conditions can be asked for in any order; the points around the last ones are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import erf, sqrt

_PERIODS = (7, 19, 53, 149)
_CPU, _UPLINK, _RTT = 1, 2, 3
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Conditions:
    """Made conditions of one window.

    Attributes:
        cpu_percent: 3 to 97.
        uplink_bps: 150 kbit/s to 20 Mbit/s, evenly on a logarithmic scale.
        rtt_ms: 8 to 180, mostly long where the link is slow.
    """

    cpu_percent: float
    uplink_bps: float
    rtt_ms: float


class MadeConditions:
    """Conditions as a pure function of (seed, window).

    >>> made = MadeConditions(seed=1)
    >>> made.at(500) == MadeConditions(seed=1).at(500)
    True
    """

    def __init__(self, seed: int) -> None:
        self._seed = _mixed(seed & _MASK)

    def at(self, sequence: int) -> Conditions:
        """Of window `sequence`, 0 and up.

        Raises:
            ValueError: a negative sequence.
        """
        if sequence < 0:
            raise ValueError(f"sequence: expected 0 or more, got {sequence}")
        rate = self._share(_UPLINK, sequence)
        slowness = 0.7 * (1.0 - rate) + 0.3 * self._share(_RTT, sequence)
        return Conditions(
            cpu_percent=round(3.0 + 94.0 * self._share(_CPU, sequence), 1),
            uplink_bps=float(round(150e3 * (20e6 / 150e3) ** rate)),
            rtt_ms=round(8.0 * (180.0 / 8.0) ** slowness, 1),
        )

    def _share(self, quantity: int, sequence: int) -> float:
        """The wandering value in 0..1, nearly uniform over a long time."""
        total, power = 0.0, 0.0
        for curve, period in enumerate(_PERIODS):
            index, offset = divmod(sequence, period)
            x = offset / period
            blend = x * x * (3.0 - 2.0 * x)
            left, right = (_point(self._seed, quantity, curve, end) for end in (index, index + 1))
            total += left + (right - left) * blend
            # A point is uniform on -1..1, variance 1/3; between two points the blend takes some away.
            power += ((1.0 - blend) ** 2 + blend**2) / 3.0
        return 0.5 * (1.0 + erf(total / sqrt(2.0 * power)))


@lru_cache(maxsize=256)
def _point(seed: int, quantity: int, curve: int, index: int) -> float:
    """A point of a curve, -1..1."""
    key = _mixed(_mixed(seed ^ (quantity << 8 | curve)) + index)
    return key / (1 << 63) - 1.0


def _mixed(key: int) -> int:
    """The finaliser of splitmix64: every bit of the result depends on every bit of `key`."""
    key = (key + 0x9E3779B97F4A7C15) & _MASK
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
    return key ^ (key >> 31)
