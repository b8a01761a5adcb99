"""The uplink's rate and round trip, from nothing but the windows' own acknowledgements.

The model. The uplink is a queue served at some rate; a window that is handed to it

    sent                 waits for the bytes before it,
    passes               takes bytes / rate,
    reaches the server   which works on it for `server_ms` (the acknowledgement says how long),
    acknowledged         after the way back.

``acknowledged - server time`` is the window's arrival, later by the constant way back; only differences of it are used, so the two
machines' clocks never meet. With ``base`` the round trip of an empty message, two situations tell the rate:

*Queued*: ``sent + base`` lies before the previous window's arrival. The link was busy in between, so the time between the two arrivals
is this window's own passage: ``rate = bytes / (arrival - previous arrival)``, summed over the busy period, where the jitter of single
arrivals cancels.

*Alone*: it lies after. Then its wire time is ``base`` plus its own passage. Against the quickest lone window of the last minute that was
clearly smaller, ``rate = difference in bytes / difference in wire time``. Lone windows of one size say nothing of the rate while their
wire time stays: `uplink_bps` is then None. When it rises clearly above the quickest of the last minute, the rise is taken for passage:
that is right when the rate fell and too pessimistic when the way grew longer, for a minute, after which the longer way is the base.

Samples enter as sums of bits and of seconds, halved every `half_life_s`, so that long passages weigh more than short ones. A sample
too short to be timed (`floor_s`, or twice the jitter seen) says only "at least so fast": it can raise the estimate, not lower it. An unacknowledged window bounds
the estimate from above as it waits, so an outage shows before it ends.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

_MESSAGE_OVERHEAD_BYTES = 60
"""Beside the payload, per window: the message's other fields, HTTP/2 and TLS framing, TCP/IP headers where it fits one segment."""

_STALL_S = 1.0
"""A window may wait so long before its waiting says something of the link: the server may be what is slow."""

_RISE_S = 0.01
_RISE_OF_BASE = 0.5
"""A lone window's wire time counts as risen beyond the larger of these, the second a share of the base."""

_LONE_KEPT = 64
"""Lone windows compared with: a minute's worth at one window a second."""


@dataclass(frozen=True, slots=True)
class _Sent:
    bits: float
    sent_s: float


@dataclass(frozen=True, slots=True)
class _Lone:
    at_s: float
    bits: float
    wire_s: float


class LinkEstimator:
    """Estimates of one connection's uplink; made for one server, reset at every reconnect.

    Args:
        half_life_s: after so long, old samples weigh half.
        window_s: how long a lone window's wire time is compared with.
        floor_s: differences in time below this are never told from jitter.
    """

    def __init__(self, half_life_s: float = 10.0, window_s: float = 60.0, floor_s: float = 0.001) -> None:
        self._half_life_s = half_life_s
        self._window_s = window_s
        self._floor_s = floor_s
        self.reset()

    def reset(self) -> None:
        """Forgets everything: another connection may take another way."""
        self._in_flight: dict[Hashable, _Sent] = {}
        self._lone: deque[_Lone] = deque(maxlen=_LONE_KEPT)
        self._arrived_s = -math.inf
        self._now_s = -math.inf
        self._busy = 0.0, 0.0  # bits and seconds of the busy period since its last sample
        self._sums = 0.0, 0.0  # bits and seconds of all samples, decayed
        self._summed_s = 0.0

    def sent(self, key: Hashable, payload_bytes: int, now_s: float) -> None:
        """A window was handed to the connection."""
        self._now_s = max(self._now_s, now_s)
        self._in_flight[key] = _Sent(8.0 * (payload_bytes + _MESSAGE_OVERHEAD_BYTES), now_s)

    def acknowledged(self, key: Hashable, now_s: float, server_ms: float) -> None:
        """Its acknowledgement came; an unknown key is ignored.

        Args:
            key: as given to `sent`.
            now_s: on the same clock.
            server_ms: from the server's receipt to its answer, as the server measured it.
        """
        self._now_s = max(self._now_s, now_s)
        window = self._in_flight.pop(key, None)
        if window is None:
            return
        arrived_s = now_s - server_ms / 1e3
        base_s, jitter_s = self._base_and_jitter_s()
        floor_s = max(self._floor_s, 2.0 * jitter_s)
        reached_s = window.sent_s + (base_s or 0.0)
        if base_s is None or reached_s > self._arrived_s + 0.1 * base_s:
            self._busy = 0.0, 0.0
            self._sample_alone(window, arrived_s - window.sent_s, now_s, floor_s)
        elif reached_s <= self._arrived_s:
            self._sample_queued(window.bits, max(0.0, arrived_s - self._arrived_s), now_s, floor_s)
        self._arrived_s = max(self._arrived_s, arrived_s)

    def lost(self, key: Hashable) -> None:
        """A window will not be acknowledged (refused, busy); nothing is learned of it."""
        self._in_flight.pop(key, None)

    @property
    def rtt_ms(self) -> float | None:
        """Round trip of an empty message: the least wire time of lone windows in the last minute, less their own passage."""
        base_s, _ = self._base_and_jitter_s()
        return None if base_s is None else 1e3 * base_s

    @property
    def uplink_bps(self) -> float | None:
        """Rate of the uplink in bits per second; None while nothing has told it."""
        rate = self._measured_bps
        bound = self._bound_bps()
        if rate is None or bound is None:
            return rate
        return min(rate, bound)

    @property
    def _measured_bps(self) -> float | None:
        bits, seconds = self._sums
        return bits / seconds if seconds > 0 else None

    def _base_and_jitter_s(self) -> tuple[float | None, float]:
        """Least wire time of the lone windows less their own passage, and by how much the mean one exceeds it."""
        if not self._lone:
            return None, 0.0
        rate = self._measured_bps
        per_bit_s = 1.0 / rate if rate else 0.0
        bare = [lone.wire_s - lone.bits * per_bit_s for lone in self._lone]
        base_s = max(0.0, min(bare))
        return base_s, sum(bare) / len(bare) - base_s

    def _sample_alone(self, window: _Sent, wire_s: float, now_s: float, floor_s: float) -> None:
        while self._lone and now_s - self._lone[0].at_s > self._window_s:
            self._lone.popleft()
        smaller = [lone for lone in self._lone if lone.bits <= 0.5 * window.bits]
        if smaller:
            quickest = min(smaller, key=lambda lone: lone.wire_s)
            self._sample(window.bits - quickest.bits, wire_s - quickest.wire_s, now_s, floor_s)
        elif self._lone:
            self._sample_rise(window.bits, wire_s - min(lone.wire_s for lone in self._lone), now_s)
        self._lone.append(_Lone(now_s, window.bits, wire_s))

    def _sample_rise(self, bits: float, rise_s: float, now_s: float) -> None:
        base_s, _ = self._base_and_jitter_s()
        if rise_s > max(_RISE_S, _RISE_OF_BASE * (base_s or 0.0)):
            self._sample(bits, rise_s, now_s, self._floor_s)
        elif self._measured_bps is not None:
            self._sample(bits, 0.0, now_s, _RISE_S)

    def _sample_queued(self, bits: float, seconds: float, now_s: float, floor_s: float) -> None:
        bits, seconds = self._busy[0] + bits, self._busy[1] + seconds
        if seconds >= floor_s:
            self._sample(bits, seconds, now_s, floor_s)
            bits = seconds = 0.0
        self._busy = bits, seconds

    def _sample(self, bits: float, seconds: float, now_s: float, floor_s: float) -> None:
        if seconds < floor_s:
            known = self._measured_bps
            if known is None or bits / floor_s <= known:
                return
            seconds = floor_s
        decay = 0.5 ** (max(0.0, now_s - self._summed_s) / self._half_life_s)
        self._sums = self._sums[0] * decay + bits, self._sums[1] * decay + seconds
        self._summed_s = now_s

    def _bound_bps(self) -> float | None:
        if not self._in_flight:
            return None
        oldest = next(iter(self._in_flight.values()))
        base_s, _ = self._base_and_jitter_s()
        waiting_s = self._now_s - max(oldest.sent_s + (base_s or 0.0), self._arrived_s)
        return oldest.bits / waiting_s if waiting_s > _STALL_S else None
