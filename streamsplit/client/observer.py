"""Puts one `Observation` together: from the running device, or from made conditions in a replay."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from streamsplit.audio.window import Window
from streamsplit.client.spool import Spool
from streamsplit.client.telemetry import MachineTelemetry
from streamsplit.client.uplink import Uplink
from streamsplit.policy.conditions import MadeConditions
from streamsplit.policy.observation import Observation

LOADED_PERCENT = 80.0
"""Of the processor with others: from there on times of messages tell of it as much as of the link."""


class Observer(Protocol):
    """What the daemon asks before each decision."""

    def observe(self, window: Window, last_split: int | None) -> Observation:
        """The device and its link, now."""


class LiveObserver:
    """Reads the machine, the uplink and the spool.

    Args:
        uncertainty: the last known uncertainty of the stream, or None.
    """

    def __init__(
        self,
        telemetry: MachineTelemetry,
        uplink: Uplink,
        spool: Spool,
        uncertainty: Callable[[], float | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._telemetry = telemetry
        self._uplink = uplink
        self._spool = spool
        self._uncertainty = uncertainty
        self._clock = clock

    def observe(self, window: Window, last_split: int | None) -> Observation:
        """Measured, all of it; the machine's part at most half a second old."""
        machine = self._telemetry.read()
        link = self._uplink.estimator
        link.loaded = machine.cpu_percent >= LOADED_PERCENT
        now_s, sent_s = self._clock(), self._uplink.last_sent_s
        return Observation(
            cpu_percent=machine.cpu_percent,
            memory_percent=machine.memory_percent,
            level_dbfs=round(window.level_dbfs, 1),
            server_available=self._uplink.available,
            backlog_windows=self._spool.windows,
            backlog_bytes=self._spool.payload_bytes,
            temperature_c=machine.temperature_c,
            throttled=bool(machine.throttled),
            battery_percent=machine.battery_percent,
            on_mains=machine.on_mains,
            uplink_bps=link.uplink_bps,
            rtt_ms=link.rtt_ms,
            uncertainty=self._uncertainty(),
            last_split=last_split,
            lag_s=round(max(0.0, now_s - window.captured_s), 4),
            since_send_s=None if sent_s is None else round(now_s - sent_s, 3),
        )


class ReplayObserver:
    """Made conditions, a pure function of (seed, sequence): two replays with one seed observe, and so decide, the same.

    Nothing measured enters, the backlog and the server's presence included; the journal says "made" beside each decision.
    """

    def __init__(self, conditions: MadeConditions) -> None:
        self._conditions = conditions

    def observe(self, window: Window, last_split: int | None) -> Observation:
        """The conditions made for this window."""
        made = self._conditions.at(window.sequence)
        return Observation(
            cpu_percent=made.cpu_percent,
            memory_percent=0.0,
            level_dbfs=round(window.level_dbfs, 1),
            server_available=True,
            uplink_bps=made.uplink_bps,
            rtt_ms=made.rtt_ms,
            last_split=last_split,
        )
