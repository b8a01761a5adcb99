"""What a replay on an emulated device observes: the device's load instead of the machine's, and its own time.

The lab runs a client on one core, perhaps on a share of it, with sound and link hastened by a factor. Whoever decides must see
what the device would: the load of *its* core against *its* share, the link's rate divided by the factor, its round trip
multiplied by it. A file, written by the lab and named to ``streamsplit replay --emulation``, says how.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import psutil

from streamsplit.audio.window import Window
from streamsplit.client.app import Device
from streamsplit.client.observer import LiveObserver, Observer
from streamsplit.client.telemetry import MachineTelemetry, PsutilSystem
from streamsplit.errors import ConfigError
from streamsplit.policy.observation import Observation

HALF_SECOND: Final = 0.5
"""A live device's load is of the last half second; of the device's time."""


@dataclass(frozen=True, slots=True)
class Emulation:
    """What the file says.

    Attributes:
        core: the one that the client runs on; None: any, and the machine's load counts.
        share: of it that is the device's.
        speed: of sound and link.
        usage: the kernel's file that counts the processor time of the device's processes; None: nothing counts them apart.
    """

    core: int | None
    share: float
    speed: float
    usage: str | None = None

    def save(self, path: Path) -> None:
        """Writes the file."""
        path.write_text(json.dumps(asdict(self)))


def load_emulation(path: Path) -> Emulation:
    """Reads what `Emulation.save` wrote.

    Raises:
        ConfigError: it cannot be read, or a figure is out of range.
    """
    try:
        emulation = Emulation(**json.loads(path.read_text(encoding="utf-8")))
        if not 0.0 < emulation.share <= 1.0 or not emulation.speed > 0.0:
            raise ValueError(f"expected a share of 0 to 1 and a speed above 0, got {emulation}")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"emulation {path}: {error}") from error
    return emulation


class DeviceSystem(PsutilSystem):
    """The real machine, but for the load: what the device's processes use of the device's share of a core.

    Where the kernel does not count them apart, whatever runs on the device's core counts, others' work included.
    """

    def __init__(self, emulation: Emulation, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._clock, self._emulation = clock, emulation

    def process(self) -> tuple[float, int]:
        """As of any process, but to the nanosecond: over a hastened half second the kernel's ticks are too coarse."""
        return time.process_time(), super().process()[1]

    def cpu_seconds(self) -> tuple[float, float]:
        """(busy, all) processor seconds of the device."""
        core, usage = self._emulation.core, self._emulation.usage
        if usage is not None:
            return used_s(Path(usage)), self._clock() * self._emulation.share
        if core is None:
            return super().cpu_seconds()
        busy_s, all_s = core_seconds(core)
        # `MachineTelemetry` bounds the quotient: others' work may push it above 1.
        return busy_s, all_s * self._emulation.share


def core_seconds(core: int) -> tuple[float, float]:
    """(busy, all) processor seconds of one core since boot."""
    times = psutil.cpu_times(percpu=True)[core]
    idle_s = times.idle + getattr(times, "iowait", 0.0)
    all_s = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return all_s - idle_s, all_s


def used_s(usage: Path) -> float:
    """Processor seconds in a control group's file: nanoseconds alone (version 1), or a line ``usage_usec`` (version 2).

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        words = usage.read_text().split()
        return (
            float(words[words.index("usage_usec") + 1]) / 1e6
            if "usage_usec" in words
            else float(words[0]) / 1e9
        )
    except (OSError, ValueError, IndexError) as error:
        raise ConfigError(f"emulation: {usage}: {error}") from error


class EmulatedObserver:
    """A live observer that sees with the device's eyes. Bound to the client once that is put together."""

    def __init__(self, emulation: Emulation) -> None:
        self._emulation = emulation
        self._live: Observer | None = None

    def bind(self, client: Device) -> None:
        """From now on observes this client."""
        system, speed = DeviceSystem(self._emulation), self._emulation.speed
        telemetry = MachineTelemetry(system=system, cached_s=HALF_SECOND / max(1.0, speed))
        daemon = client.daemon
        self._live = LiveObserver(telemetry, client.uplink, client.spool, lambda: daemon.uncertainty)

    def observe(self, window: Window, last_split: int | None) -> Observation:
        """As a device would see it whose time runs `speed` times slower than this machine's."""
        if self._live is None:
            raise ConfigError("emulation: observed before a client was bound")
        seen, speed = self._live.observe(window, last_split), self._emulation.speed
        return replace(
            seen,
            uplink_bps=None if seen.uplink_bps is None else seen.uplink_bps / speed,
            rtt_ms=None if seen.rtt_ms is None else seen.rtt_ms * speed,
            lag_s=None if seen.lag_s is None else seen.lag_s * speed,
            since_send_s=None if seen.since_send_s is None else seen.since_send_s * speed,
        )
