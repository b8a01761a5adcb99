"""What a running client's journal says about it at this moment: recent history, rates and percentiles. Draws nothing."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import quantiles
from typing import Any

HISTORY = 240
RECENT = 60
"""Windows that percentiles are taken over."""
RATE_SPAN_MS = 3000.0
"""Bytes a second are taken over so much time: acknowledgements, and with them records, come in bunches."""
PCM16_BYTES = 2


def _history() -> deque[float | None]:
    return deque(maxlen=HISTORY)


@dataclass(slots=True)
class Vitals:
    """Takes journal records, remembers the last 240 windows' figures and counts everything.

    Attributes:
        windows: seen.
        counts: windows per state, "duplicate", and records of other kinds ("gaps", "skips", "streams").
        last: the last window's record that says where it was cut.
        encoder, block_names, sample_rate_hz, window_samples, last_split: of the stream, as far as its record says.
        seconds: of sound done with.
        splits, latency_ms, bytes_per_s, link_bps, backlog, cpu_percent, level_dbfs: newest last; None where not known.
        server_up: None: not known.
        nearest: (label, cosine) of known sounds near the last window, best first.
    """

    windows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    last: Mapping[str, Any] = field(default_factory=dict)
    encoder: str = ""
    block_names: Sequence[str] = ()
    sample_rate_hz: int = 16_000
    window_samples: int = 15_360
    last_split: int | None = None
    seconds: float = 0.0
    splits: deque[float | None] = field(default_factory=_history)
    latency_ms: deque[float | None] = field(default_factory=_history)
    bytes_per_s: deque[float | None] = field(default_factory=_history)
    link_bps: deque[float | None] = field(default_factory=_history)
    backlog: deque[float | None] = field(default_factory=_history)
    cpu_percent: deque[float | None] = field(default_factory=_history)
    level_dbfs: deque[float] = field(default_factory=lambda: deque(maxlen=8))
    server_up: bool | None = None
    nearest: Sequence[tuple[str, float]] = ()
    _sent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=HISTORY))
    _first: tuple[float, float] | None = None

    def take(self, record: Mapping[str, Any]) -> None:
        """Takes one record of any kind, with whatever fields it has."""
        kind = record.get("kind")
        if kind == "stream":
            self._take_stream(record)
        if kind != "window":
            self.counts[f"{kind}s"] += 1
            return
        self.windows += 1
        self.counts[str(record.get("state", "unknown"))] += 1
        self.counts["duplicate"] += bool(record.get("duplicate"))
        if "split" not in record:  # dropped for room: nothing else is known of it
            return
        self.last = record
        self.seconds = max(self.seconds, float(record.get("start_s") or 0.0) + self.window_s)
        self.level_dbfs.append(float(record.get("level_dbfs", -120.0)))
        self._take_figures(record)

    @property
    def window_s(self) -> float:
        """Seconds of sound in a window."""
        return self.window_samples / self.sample_rate_hz

    @property
    def split(self) -> int | None:
        """The split in force; None before the first window."""
        split = self.last.get("split")
        return None if split is None else int(split)

    @property
    def deepest(self) -> int:
        """L, or the deepest split seen where the stream's record does not tell."""
        return max(1, self.last_split or 0, self.split or 0)

    @property
    def percentiles_ms(self) -> tuple[float | None, float | None, float | None]:
        """Latency of the last window, p50 and p95 of the last 60."""
        recent = [value for value in list(self.latency_ms)[-RECENT:] if value is not None]
        if len(recent) < 2:
            only = recent[0] if recent else None
            return only, only, only
        cuts = quantiles(recent, n=20, method="inclusive")
        return recent[-1], cuts[9], cuts[18]

    @property
    def share_of_pcm(self) -> float | None:
        """Bytes on the uplink so far over those of the same sound as 16-bit PCM."""
        if self._first is None or not self._sent or self.seconds <= self._first[0]:
            return None
        sent = self._sent[-1][1] - self._first[1]
        return sent / ((self.seconds - self._first[0]) * self.sample_rate_hz * PCM16_BYTES)

    def _take_stream(self, record: Mapping[str, Any]) -> None:
        self.encoder = str(record.get("encoder", ""))
        self.sample_rate_hz = int(record.get("sample_rate_hz", self.sample_rate_hz))
        self.window_samples = int(record.get("window_samples", self.window_samples))
        self.block_names = tuple(record.get("block_names", ()))
        self.last_split = self.last_split or record.get("last_split")

    def _take_figures(self, record: Mapping[str, Any]) -> None:
        measured = record.get("measured") or {}
        observed = (record.get("decision") or {}).get("observation") or {}
        self.splits.append(float(record["split"]))
        self.latency_ms.append(measured.get("total_ms"))
        self.backlog.append(observed.get("backlog_windows"))
        self.cpu_percent.append(measured.get("cpu_percent", observed.get("cpu_percent")))
        if "uplink_bytes" in measured and "unix_ms" in measured:
            self._sent.append((float(measured["unix_ms"]), float(measured["uplink_bytes"])))
            self._first = self._first or (self.seconds, self._sent[-1][1])
            self.bytes_per_s.append(self._rate())

    def _rate(self) -> float | None:
        """Bytes per second over the last three seconds; a counter that began anew (a new process) makes a hole."""
        now_ms, now_bytes = self._sent[-1]
        for then_ms, then_bytes in islice(reversed(self._sent), 1, None):
            if now_bytes < then_bytes:
                break
            if now_ms - then_ms >= RATE_SPAN_MS:
                return (now_bytes - then_bytes) * 1000.0 / (now_ms - then_ms)
        span_ms, sent = now_ms - self._sent[0][0], now_bytes - self._sent[0][1]
        return sent * 1000.0 / span_ms if sent >= 0 and span_ms > 500 else None


def newest(series: Sequence[float | None] | deque[float | None]) -> float | None:
    """The last value, or None where there is none."""
    return series[-1] if series else None
