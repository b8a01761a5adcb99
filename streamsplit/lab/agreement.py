"""Whether a scenario run faster than real time gives the figures of real time.

Latency is compared in the device's time and allowed to differ by a fifth or by 10 ms, whichever is more: the software between the
sockets is taken out by its median only (see `lab.software`), and single windows wait for a busy machine. Bytes may
differ by a tenth (headers are shared by what the socket sends at once), returns by 0.15, accuracy by five points.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from streamsplit.lab.campaign import CampaignSettings, Told, run_campaign
from streamsplit.lab.scenario import load
from streamsplit.lab.systems import BEST_FIXED

logger = logging.getLogger(__name__)

DISTURBED: Final = 0.1
SYSTEMS: Final = ("server_pcm", "split_2", "edge_only")
TOLERANCES: Final = {
    # relative, absolute
    "latency p50 ms": (0.2, 10.0),
    "bytes/s up": (0.1, 20.0),
    "return": (0.0, 0.15),
    "quality": (0.0, 0.01),
    "accuracy": (0.0, 0.05),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of one system at both speeds.

    Attributes:
        system, figure: which.
        real, fast: its values.
        allowed_by: the difference allowed.
    """

    system: str
    figure: str
    real: float
    fast: float
    allowed_by: float

    @property
    def agrees(self) -> bool:
        """Whether they are no further apart than allowed."""
        return abs(self.real - self.fast) <= self.allowed_by

    @property
    def apart(self) -> str:
        """For people."""
        return f"{self.fast - self.real:+,.4g}"

    @property
    def allowed(self) -> str:
        """For people."""
        return f"±{self.allowed_by:,.4g}"


def check_agreement(
    name: str, out: Path, traces: Path | None, speed: float, seconds: float, told: Told
) -> list[Comparison]:
    """Runs three systems of a scenario at real time and at `speed`.

    Raises:
        StreamSplitError: as `run_campaign`.
    """
    found = []
    for label, factor in (("real", 1.0), ("fast", speed)):
        scenario = load(name, speed=factor, seconds=seconds, seeds=(0,))
        summary = run_campaign(CampaignSettings((scenario,), out / label, SYSTEMS, traces), told)
        found.append(summary["scenarios"][scenario.name]["systems"])
    shares = [each["disturbed"] for systems in found for each in systems.values() if each.get("disturbed")]
    if max(shares, default=0.0) > DISTURBED:
        logger.warning(
            "other work took up to %.0f %% of the device's core: repeat it on an idle machine",
            100 * max(shares),
        )
    return compare(*found)


def compare(real: Mapping[str, Any], fast: Mapping[str, Any]) -> list[Comparison]:
    """Every figure that both have, of systems of the same name.

    >>> system = {"latency_ms": {"p50": 100.0}, "uplink_bytes_per_s": 400.0, "return": {"mean": 6.0}, "quality": 0.8}
    >>> quicker = {**system, "latency_ms": {"p50": 125.0}}
    >>> [line.agrees for line in compare({"split_2": system}, {"split_2": quicker})]
    [False, True, True, True]
    """
    lines = []
    for system in real:
        if system not in fast or system == BEST_FIXED or real[system].get("modelled"):
            continue
        ours, theirs = _figures(real[system]), _figures(fast[system])
        for figure, (relative, absolute) in TOLERANCES.items():
            left, right = ours[figure], theirs[figure]
            if left is not None and right is not None:
                lines.append(Comparison(system, figure, left, right, max(relative * abs(left), absolute)))
    return lines


def _figures(system: Mapping[str, Any]) -> dict[str, float | None]:
    return {
        "latency p50 ms": system["latency_ms"]["p50"],
        "bytes/s up": system["uplink_bytes_per_s"],
        "return": system["return"]["mean"],
        "quality": system["quality"],
        "accuracy": (system.get("accuracy") or {}).get("mean"),
    }
