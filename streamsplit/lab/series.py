"""Journal records as arrays over the stream's own time, ready to be drawn or compared. Pure functions of the records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
Record = Mapping[str, Any]

PARTS = {
    "features": ("features_ms",),
    "head": ("head_ms", "decode_ms"),
    "pack, spool": ("late_ms", "pack_ms", "spool_ms", "wait_ms"),
    "queue": ("queue_ms",),
    "wire": ("wire_ms",),
    "server queue": ("server_queue_ms",),
    "tail": ("tail_ms",),
    "store": ("store_ms",),
}
"""Parts of a window's latency, in the order they happen, and the fields of `measured` they are the sum of."""
ON_DEVICE = ("features", "head", "pack, spool")
"""The parts a window that is embedded on the device waits for; the rest follows after its embedding is usable."""
RATE_SPANS, RATE_SPAN_MS = 30, (1000.0, 3000.0)
"""Bytes a second are means over a thirtieth of the run, within these bounds: the counter is read twice a second and acknowledgements come in bunches."""


@dataclass(frozen=True, slots=True, eq=False)
class SoundClock:
    """Maps wall-clock time to the stream's own time, for a stream that plays at a steady speed.

    Attributes:
        origin_ms: wall clock at the stream's sample 0.
        speed: seconds of sound per second.
    """

    origin_ms: float
    speed: float

    def seconds(self, unix_ms: npt.ArrayLike) -> Numbers:
        """The stream's time at wall-clock times."""
        return (np.asarray(unix_ms, np.float64) - self.origin_ms) / 1000.0 * self.speed

    @classmethod
    def fit(cls, end_s: Numbers, unix_ms: Numbers) -> SoundClock:
        """From when windows ended in the stream and when they were done with on the wall: a window is never done before its end.

        The lower edge of the cloud counts: windows that waited for the link lie above it.
        """
        if len(end_s) < 2 or np.ptp(end_s) <= 0 or np.ptp(unix_ms) <= 0:
            return cls(float(unix_ms[0] - 1000 * end_s[0]) if len(end_s) else 0.0, 1.0)
        third = max(1, len(end_s) // 3)
        order = np.argsort(end_s)
        delay_ms = unix_ms - 1000.0 * end_s * (np.ptp(unix_ms) / 1000.0 / np.ptp(end_s))
        early, late = order[:third], order[-third:]
        first, last = early[np.argmin(delay_ms[early])], late[np.argmin(delay_ms[late])]
        pace_ms = (unix_ms[last] - unix_ms[first]) / max(1e-9, end_s[last] - end_s[first])
        if pace_ms <= 0:
            return cls(float(unix_ms.min()), 1.0)
        return cls(float(np.min(unix_ms - pace_ms * end_s)), 1000.0 / float(pace_ms))


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """One stream's windows in order. N windows; NaN where a record does not say.

    Attributes:
        start_s: [N] on the stream's clock.
        window_s: length of a window.
        sample_rate_hz: of the stream.
        split: [N].
        last_split: L, or the deepest split seen.
        latency_ms: [N] end of the window to its embedding being usable.
        cpu_percent: [N] that others take of the machine, as observed at the decision.
        backlog: [N] windows spooled, as observed at the decision.
        server_up: [N] 1 or 0, as observed at the decision.
        payload_bytes: [N].
        parts_ms: name -> [N], see `PARTS`.
        uplink_s, uplink_bps: [M] measured on the socket over 1 to 3 wall-clock seconds each, at the stream's time.
        sent_bytes: on the uplink between the first and the last record.
        clock: wall clock to stream time.
    """

    start_s: Numbers
    window_s: float
    sample_rate_hz: int
    split: Numbers
    last_split: int
    latency_ms: Numbers
    cpu_percent: Numbers
    backlog: Numbers
    server_up: Numbers
    payload_bytes: Numbers
    parts_ms: Mapping[str, Numbers]
    uplink_s: Numbers
    uplink_bps: Numbers
    sent_bytes: float
    clock: SoundClock

    def __len__(self) -> int:
        return len(self.start_s)

    @property
    def end_s(self) -> float:
        """When the last window ends."""
        return float(self.start_s[-1]) + self.window_s if len(self) else 0.0

    @property
    def share_of_pcm(self) -> float:
        """Uplink bytes over those of the same sound as 16-bit PCM; NaN where nothing was measured."""
        seconds = len(self) * self.window_s
        return (
            self.sent_bytes / (2.0 * self.sample_rate_hz * seconds)
            if seconds and self.sent_bytes
            else float("nan")
        )

    def away(self) -> list[tuple[float, float]]:
        """Stretches of (start, end) seconds in which the device saw no server."""
        down = np.concatenate([[0.0], np.nan_to_num(1.0 - self.server_up, nan=0.0), [0.0]])
        begins, ends = np.flatnonzero(np.diff(down) > 0), np.flatnonzero(np.diff(down) < 0)
        return [
            (float(self.start_s[b]), float(self.start_s[e - 1]) + self.window_s)
            for b, e in zip(begins, ends, strict=True)
        ]

    @classmethod
    def of(cls, records: Iterable[Record], last_split: int | None = None) -> Timeline:
        """From journal records in any order; those that do not say where a window was cut are left out.

        Args:
            records: any kinds.
            last_split: L; None: the stream's record or the deepest split seen.
        """
        everything = list(records)
        stream: Record = next((record for record in everything if record.get("kind") == "stream"), {})
        windows = [r for r in everything if r.get("kind") == "window" and "split" in r and "start_s" in r]
        windows.sort(key=lambda record: float(record["start_s"]))
        rate_hz = int(stream.get("sample_rate_hz", 16_000))
        window_s = int(stream.get("window_samples", 15_360)) / rate_hz
        start_s, split = _column(windows, "start_s"), _column(windows, "split")
        unix_ms, sent = _column(windows, "measured", "unix_ms"), _column(windows, "measured", "uplink_bytes")
        known = np.isfinite(unix_ms)
        clock = SoundClock.fit(start_s[known] + window_s, unix_ms[known])
        span_ms = float(np.clip(np.ptp(unix_ms[known]) / RATE_SPANS if known.any() else 0.0, *RATE_SPAN_MS))
        uplink_ms, uplink_bps = byte_rate(unix_ms, sent, span_ms)
        deepest = int(split.max()) if len(split) else 1
        observed = ("decision", "observation")
        return cls(
            start_s=start_s,
            window_s=window_s,
            sample_rate_hz=rate_hz,
            split=split,
            last_split=max(1, deepest, int(last_split or stream.get("last_split") or 0)),
            latency_ms=_column(windows, "measured", "total_ms"),
            cpu_percent=_column(windows, *observed, "cpu_percent"),
            backlog=_column(windows, *observed, "backlog_windows"),
            server_up=_column(windows, *observed, "server_available"),
            payload_bytes=_column(windows, "payload_bytes"),
            parts_ms={name: _sum(windows, fields) for name, fields in PARTS.items()},
            uplink_s=clock.seconds(uplink_ms),
            uplink_bps=uplink_bps,
            sent_bytes=float(np.nanmax(sent) - np.nanmin(sent)) if np.isfinite(sent).any() else 0.0,
            clock=clock,
        )


def byte_rate(unix_ms: Numbers, sent_bytes: Numbers, span_ms: float) -> tuple[Numbers, Numbers]:
    """Bits per second from a cumulative byte counter read now and then.

    Args:
        unix_ms: [N] when, in any order; NaN is left out.
        sent_bytes: [N] the counter; where it falls (a new process) the rate is NaN.
        span_ms: length of the stretches that the rate is the mean of.

    Returns:
        [M] their middles in milliseconds, and [M] bits per second.
    """
    known = np.isfinite(unix_ms) & np.isfinite(sent_bytes)
    when, counter = unix_ms[known], sent_bytes[known]
    order = np.lexsort((counter, when))
    when, counter = when[order], counter[order]
    if len(when) < 2 or when[-1] <= when[0]:
        return np.zeros(0), np.zeros(0)
    edges = np.arange(when[0], when[-1] + span_ms, span_ms / 2)
    at = counter[np.clip(np.searchsorted(when, edges, side="right") - 1, 0, len(counter) - 1)]
    rate = (at[2:] - at[:-2]) * 8000.0 / span_ms
    return edges[1:-1], np.where(rate >= 0, rate, np.nan)


def _column(windows: Sequence[Record], *keys: str) -> Numbers:
    return np.array([_number(window, keys) for window in windows], np.float64)


def _number(record: Record, keys: Sequence[str]) -> float:
    value: Any = record
    for key in keys:
        value = (value or {}).get(key)
    return float("nan") if value is None else float(value)


def _sum(windows: Sequence[Record], fields: Sequence[str]) -> Numbers:
    columns = np.array([_column(windows, "measured", name) for name in fields])
    return np.where(np.isnan(columns).all(axis=0), np.nan, np.nansum(columns, axis=0))
