"""What a shaped link is made of, without sockets: one bottleneck per direction, one delay line per connection and direction.

A chunk leaves the bottleneck when the trace has let its bits pass, counted from when the chunk before it left and not from when we
woke up, so late timers never add up. Time is the link's own, in seconds; every wait is a timer or an event, never a loop that asks.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum

from streamsplit.lab.traces import Trace

MIN_CHUNK, MAX_CHUNK = 1500, 65536
CHUNK_S = 0.002
"""A chunk is about 2 ms of the link's rate: few timers on a fast link, single packets on a slow one."""
QUEUE_S = 0.02
"""The queue holds at least so much of the link's rate: with less, a late timer lets a fast link run dry (200 Mbit/s became 125)."""

EPSILON_S = 1e-6
"""Due within this is due: timers may fire a little early, and a wait for less than a clock's tick may never end."""


class Signal(Enum):
    """What travels besides bytes, in its place among them."""

    END = "the sender has finished"
    RESET = "the sender has reset the connection"


Item = bytes | Signal


def size(item: Item) -> int:
    """Bytes of `item`; a signal has none."""
    return len(item) if isinstance(item, bytes) else 0


class DelayLine:
    """The bytes of one connection and direction that are inside the link; hands them out in order when they are due.

    Args:
        window_bytes: how many may be inside; `room` waits beyond.
        now: the link's time, seconds.
        thawed: clear while the link is a black hole.
    """

    def __init__(self, window_bytes: int, now: Callable[[], float], thawed: asyncio.Event) -> None:
        self.inside = 0
        self.delivered = 0
        self.closed = False
        self._window_bytes, self._now, self._thawed = window_bytes, now, thawed
        self._items: deque[tuple[float, Item]] = deque()
        self._arrived, self._left = asyncio.Event(), asyncio.Event()
        self._last_due_s = 0.0

    async def room(self) -> None:
        """Waits until another chunk may enter."""
        while self.inside >= self._window_bytes:
            self._left.clear()
            await self._left.wait()

    def push(self, item: Item, due_s: float) -> None:
        """Puts `item` in, to come out at `due_s` or with the item before it, whichever is later."""
        self._last_due_s = max(self._last_due_s, due_s)
        self._items.append((self._last_due_s, item))
        self._arrived.set()

    async def pop(self) -> Item:
        """The next item once it is due; bytes that are due together come as one."""
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()
        while (wait_s := self._items[0][0] - self._now()) > EPSILON_S:
            await asyncio.sleep(wait_s)
        await self._thawed.wait()
        first = self._items.popleft()[1]
        if isinstance(first, Signal):
            return first
        parts, total, now_s = [first], len(first), self._now()
        while self._items and total < MAX_CHUNK and self._items[0][0] <= now_s + EPSILON_S:
            if isinstance(self._items[0][1], Signal):
                break
            parts.append(self._items.popleft()[1])  # type: ignore[arg-type]
            total += len(parts[-1])
        return b"".join(parts)

    def done(self, item: Item) -> None:
        """The item that `pop` gave has been handed to the other side."""
        self.inside -= size(item)
        self.delivered += size(item)
        self._left.set()


class Bottleneck:
    """One direction of the link, shared by all connections: a bounded queue, first in first out, emptied at the trace's rate.

    Args:
        trace: its rate; None: no limit.
        queue_bytes: the queue's bound (on a fast link 20 ms of its rate); `send` waits beyond.
        delay_s: seconds every chunk travels.
        jitter_s: at most so many more, uniform.
        now: the link's time, seconds.
        thawed: clear while the link is a black hole.
        generator: of the jitter.

    Attributes:
        origin_s: the link's time at which the trace begins.
    """

    def __init__(
        self,
        trace: Trace | None,
        queue_bytes: int,
        delay_s: float,
        jitter_s: float,
        now: Callable[[], float],
        thawed: asyncio.Event,
        generator: random.Random,
    ) -> None:
        self.origin_s = 0.0
        self._trace, self._queue_bytes, self._delay_s, self._jitter_s = trace, queue_bytes, delay_s, jitter_s
        self._now, self._thawed, self._generator = now, thawed, generator
        self._queue: deque[tuple[DelayLine, Item, float]] = deque()
        self._queued = 0
        self._arrived, self._left, self._changed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @property
    def rate_bps(self) -> float:
        """Bits per second now: 0 in a black hole, infinity without a limit."""
        if not self._thawed.is_set():
            return 0.0
        return float("inf") if self._trace is None else self._trace.rate_at(self._trace_s(self._now()))

    @property
    def chunk_bytes(self) -> int:
        """How much to read at a time at the present rate."""
        rate = self.rate_bps
        return MAX_CHUNK if rate == float("inf") else max(MIN_CHUNK, min(MAX_CHUNK, int(rate * CHUNK_S / 8)))

    @property
    def _bound_bytes(self) -> float:
        rate = self.rate_bps
        return self._queue_bytes if rate == float("inf") else max(self._queue_bytes, rate * QUEUE_S / 8)

    def use(self, trace: Trace | None) -> None:
        """Changes the rate from now on; what has passed of the chunk under way has passed."""
        self._trace = trace
        self.wake()

    def wake(self) -> None:
        """The rate or the black hole has changed: look again."""
        self._changed.set()

    async def send(self, line: DelayLine, item: Item) -> None:
        """Queues `item` of `line`; waits while the queue is full."""
        while self._queued > 0 and self._queued + size(item) > self._bound_bytes:
            self._left.clear()
            await self._left.wait()
        self._queued += size(item)
        line.inside += size(item)
        self._queue.append((line, item, self._now()))
        self._arrived.set()

    async def run(self) -> None:
        """Lets the queue through for ever."""
        free_s = 0.0
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            line, item, entered_s = self._queue[0]
            if not line.closed:  # what a cut connection left behind takes no time of the link
                free_s = await self._pass(max(free_s, entered_s), 8.0 * size(item))
            self._queue.popleft()
            self._queued -= size(item)
            self._left.set()
            line.push(item, free_s + self._delay_s + self._jitter_s * self._generator.random())

    async def _pass(self, begin_s: float, bits: float) -> float:
        """Waits until `bits`, begun at `begin_s`, have passed; returns when they had."""
        while True:
            if not self._thawed.is_set():
                await self._thawed.wait()
                begin_s = self._now()
            trace = self._trace
            if trace is None:
                return begin_s
            origin_s, begun_s = self.origin_s, self._trace_s(begin_s)
            finish_s = origin_s + trace.finish_s(begun_s, bits)
            if finish_s <= self._now() + EPSILON_S:
                return finish_s
            self._changed.clear()
            with suppress(TimeoutError):
                wait_s = None if finish_s == float("inf") else finish_s - self._now()
                await asyncio.wait_for(self._changed.wait(), wait_s)
            now_s = min(self._now(), finish_s)
            passed = trace.bits_between(begun_s, self._trace_s(now_s, origin_s))
            bits = max(0.0, bits - passed) if now_s < finish_s else 0.0
            begin_s = max(begin_s, now_s)

    def _trace_s(self, time_s: float, origin_s: float | None = None) -> float:
        """The trace's time at a time of the link."""
        return max(0.0, time_s - (self.origin_s if origin_s is None else origin_s))
