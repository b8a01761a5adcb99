"""The uplink's rate and round trip, from nothing but the windows' own acknowledgements.

The model. The uplink is a queue served at some rate; a window that is handed to it

    sent                 waits for the bytes before it,
    passes               takes bytes / rate,
    reaches the server   which works on it for `server_ms` (the acknowledgement says how long),
    acknowledged         after the way back, and whenever both machines get round to it.

``acknowledged - server time`` is the window's arrival, later by the constant way back and by noise that is never negative: jitter, a
loaded processor, a collector's pause. Only differences of it are used, so the two machines' clocks never meet. With ``base`` the round
trip of an empty message, two situations tell the rate:

*Queued*: ``sent + base`` lies before the previous window's arrival. The link was busy in between, so the time between the two arrivals
is this window's own passage, summed over the busy period, where the noise of single arrivals cancels.

*Alone*: it lies after. Then its wire time is ``base + bytes / rate + noise``, a line in the bytes whose slope only windows of different
sizes tell. As noise only adds, the quickest of the last `_LAST` windows of about one size stands for them, against the quicker quarter
of the last minute's windows that were at most half as large. Their difference counts if it is clearly more than the noise, which is how
much windows of one size vary; otherwise it says "at least so fast", which can raise the estimate and not lower it.

Lone windows of one size tell no rate, and none is made up: `uplink_bps` stays what was last told, or None; but never less than would
have them pass in their whole wire time. There is one exception. When windows of more than a packet all at once take clearly longer than
the quickest of the last minute, the rise bounds the rate for as long as it lasts: right when the rate fell, too pessimistic when the way
grew longer, for a minute, after which the longer way is the base. A window of one packet says nothing that way: a processor's load costs
it as much as a link of 100 kbit/s.

The estimate is the median of the samples, newer ones counting more (`half_life_s`): a stall or a pause makes single samples very slow,
and sums would remember it for minutes. An unacknowledged window bounds the estimate from above as it waits, so an outage shows before it
ends.

While others keep the processor busy (`loaded`), a message takes as long to be written and its answer to be read as a slow link would: then
samples can raise the estimate and not lower it, and a rise of wire times tells nothing.
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
"""Lone windows' wire time counts as risen beyond the larger of these, the second a share of the base."""

_PACKET_BITS = 8.0 * 1500
"""Windows of more than this tell by a rise that the rate fell."""

_ALIKE = 1.25
"""Windows are of about one size up to this factor: packed windows of one split vary by a tenth."""

_LAST = 3
"""The quickest of so many windows of about one size stands for them."""

_RISEN = 5
"""So many windows have to take longer, one after the other, before a rise is believed."""

_NOISES = 2.0
"""A difference between wire times is timed beyond so many times the noise."""

_QUEUED_S = 0.01
"""Queued windows are timed together until they took so long: each single arrival is late by some noise."""

_QUEUED_BITS = 4 * _PACKET_BITS
"""And until they were so much: a pause of a machine between a few small ones would look like a link of 100 kbit/s."""

_BRIEF_S = 0.005
"""A queued window that takes less may be held up by the machines as much as by the link: it says "at least so fast"."""

_LONE_KEPT = 64
"""Lone windows compared with: a minute's worth at one window a second."""

_SAMPLES_KEPT = 64


@dataclass(frozen=True, slots=True)
class _Sent:
    bits: float
    sent_s: float


@dataclass(frozen=True, slots=True)
class _Lone:
    at_s: float
    bits: float
    wire_s: float
    passage_s: float  # as the rate was believed to be then

    def like(self, bits: float) -> bool:
        return bits <= _ALIKE * self.bits and self.bits <= _ALIKE * bits


@dataclass(frozen=True, slots=True)
class _Sample:
    at_s: float
    bps: float


class LinkEstimator:
    """Estimates of one connection's uplink; made for one server, reset at every reconnect.

    Args:
        half_life_s: after so long, old samples weigh half.
        window_s: how long a lone window's wire time is compared with.
        floor_s: differences in time below this are never told from noise.

    Attributes:
        loaded: others keep this device's processor busy; whoever knows says so.
    """

    def __init__(self, half_life_s: float = 10.0, window_s: float = 60.0, floor_s: float = 0.002) -> None:
        self._half_life_s = half_life_s
        self._window_s = window_s
        self._floor_s = floor_s
        self.loaded = False
        self.reset()

    def reset(self) -> None:
        """Forgets everything: another connection may take another way."""
        self._in_flight: dict[Hashable, _Sent] = {}
        self._lone: deque[_Lone] = deque(maxlen=_LONE_KEPT)
        self._greeted_s: float | None = None
        self._samples: deque[_Sample] = deque(maxlen=_SAMPLES_KEPT)
        self._measured_bps: float | None = None
        self._timed_s = -math.inf
        self._arrived_s = -math.inf
        self._now_s = -math.inf
        self._busy = 0.0, 0.0, 0  # bits, seconds and windows of the busy period since its last sample

    def greeted(self, seconds: float) -> None:
        """The server answered the first word after so long: a round trip until a window tells a better one."""
        self._greeted_s = seconds

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
        base_s = self._base_s
        reached_s = window.sent_s + (base_s or 0.0)
        if base_s is None or reached_s > self._arrived_s + 0.1 * base_s:
            self._busy = 0.0, 0.0, 0
            self._sample_alone(window.bits, arrived_s - window.sent_s, now_s)
        elif reached_s <= self._arrived_s:
            self._sample_queued(window.bits, max(0.0, arrived_s - self._arrived_s), now_s)
        self._arrived_s = max(self._arrived_s, arrived_s)

    def lost(self, key: Hashable) -> None:
        """A window will not be acknowledged (refused, busy); nothing is learned of it."""
        self._in_flight.pop(key, None)

    @property
    def rtt_ms(self) -> float | None:
        """Round trip of an empty message: the least wire time of lone windows in the last minute, less their passage at a rate seen lately.

        While no rate is, their passage is in it. Before the first window's answer: what the server took to answer the greeting.
        """
        base_s = self._greeted_s if self._base_s is None else self._base_s
        return None if base_s is None else 1e3 * base_s

    @property
    def uplink_bps(self) -> float | None:
        """Rate of the uplink in bits per second; None while nothing has told it."""
        told = [bps for bps in (self._measured_bps, self._rise_bps(), self._waiting_bps()) if bps is not None]
        return min(told, default=None)

    @property
    def _base_s(self) -> float | None:
        """A window's passage is taken at the rate of its time or of now, whichever is quicker: too little is taken off rather than too much."""
        if not self._lone:
            return None
        per_bit_s = self._per_bit_s
        bare = (lone.wire_s - min(lone.passage_s, lone.bits * per_bit_s) for lone in self._lone)
        return max(0.0, min(bare))

    @property
    def _per_bit_s(self) -> float:
        """At the measured rate; 0 where that was not seen lately: windows that never queue since then are of a faster link."""
        fresh = self._now_s - self._timed_s <= self._half_life_s
        return 1.0 / self._measured_bps if fresh and self._measured_bps else 0.0

    # Windows that were alone on the link.

    def _sample_alone(self, bits: float, wire_s: float, now_s: float) -> None:
        while self._lone and now_s - self._lone[0].at_s > self._window_s:
            self._lone.popleft()
        if self._measured_bps is not None and self._measured_bps * wire_s < bits:
            # At that rate it would have taken longer even with no way to go.
            self._sample(bits / max(wire_s, self._floor_s), now_s, timed=False)
        self._lone.append(_Lone(now_s, bits, wire_s, bits * self._per_bit_s))
        smaller = [lone for lone in self._lone if lone.bits <= 0.5 * bits]
        if smaller:
            quickest = min(smaller, key=lambda lone: lone.wire_s)
            self._compare([lone for lone in smaller if lone.like(quickest.bits)], self._alike(bits), now_s)

    def _alike(self, bits: float) -> list[_Lone]:
        return [lone for lone in self._lone if lone.like(bits)]

    def _compare(self, small: list[_Lone], large: list[_Lone], now_s: float) -> None:
        """The last large windows against the small ones of the last minute, both by what the quicker quarter takes."""
        if min(len(small), len(large)) < _LAST:
            return
        quick_s, noise_s = _quick_and_noise_s(small)
        passage_s = min(lone.wire_s for lone in large[-_LAST:]) - quick_s
        resolution_s = max(self._floor_s, _NOISES * max(noise_s, _quick_and_noise_s(large)[1]))
        bps = (large[-1].bits - small[-1].bits) / max(passage_s, resolution_s)
        known = self._measured_bps
        timed = passage_s >= resolution_s
        if timed or (known is not None and bps > known):
            self._sample(bps, now_s, timed)

    def _rise_bps(self) -> float | None:
        """The bound that lone windows of one size set while all of the last ones took longer than the quickest of the last minute."""
        if self.loaded or not self._lone or self._lone[-1].bits <= _PACKET_BITS:
            return None
        bits = self._lone[-1].bits
        alike = self._alike(bits)
        if any(lone.bits <= 0.5 * bits for lone in self._lone) or len(alike) <= _RISEN:
            return None
        rise_s = min(lone.wire_s for lone in alike[-_RISEN:]) - min(lone.wire_s for lone in alike)
        clear_s = max(_RISE_S, _RISE_OF_BASE * (self._base_s or 0.0))
        return bits / rise_s if rise_s > clear_s else None

    # Windows that queued.

    def _sample_queued(self, bits: float, seconds: float, now_s: float) -> None:
        bits, seconds, windows = self._busy[0] + bits, self._busy[1] + seconds, self._busy[2] + 1
        if seconds >= _QUEUED_S and bits >= _QUEUED_BITS:
            known = self._measured_bps
            timed = seconds >= _BRIEF_S * windows
            if timed or (known is not None and bits / seconds > known):
                self._sample(bits / seconds, now_s, timed)
            bits, seconds, windows = 0.0, 0.0, 0
        self._busy = bits, seconds, windows

    def _waiting_bps(self) -> float | None:
        if not self._in_flight:
            return None
        oldest = next(iter(self._in_flight.values()))
        waiting_s = self._now_s - max(oldest.sent_s + (self._base_s or 0.0), self._arrived_s)
        return oldest.bits / waiting_s if waiting_s > _STALL_S else None

    # The estimate.

    def _sample(self, bps: float, now_s: float, timed: bool) -> None:
        """Takes a rate; one that is not timed says "at least"."""
        if self.loaded and (self._measured_bps is None or bps < self._measured_bps):
            return
        if timed:
            self._timed_s = now_s
        self._samples.append(_Sample(now_s, bps))
        self._measured_bps = self._median_bps(now_s)

    def _median_bps(self, now_s: float) -> float:
        weighed = sorted(
            (sample.bps, 0.5 ** (max(0.0, now_s - sample.at_s) / self._half_life_s))
            for sample in self._samples
        )
        half = 0.5 * sum(weight for _, weight in weighed)
        for bps, weight in weighed:
            half -= weight
            if half <= 0.0:
                return bps
        return weighed[-1][0]


def _quick_and_noise_s(windows: list[_Lone]) -> tuple[float, float]:
    """Lower quartile of their wire times, which is about the quickest of any three; and by how much the median exceeds the least."""
    wire_s = sorted(lone.wire_s for lone in windows)
    return wire_s[len(wire_s) // 4], wire_s[len(wire_s) // 2] - wire_s[0]
