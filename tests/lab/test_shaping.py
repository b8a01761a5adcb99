"""The bottleneck and the delay line against arithmetic, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from streamsplit.lab.shaping import Bottleneck, DelayLine, Signal
from streamsplit.lab.traces import Trace

Run = Callable[[Any], Any]


class Way:
    """A bottleneck at work with one delay line, and what came out of it when."""

    def __init__(
        self, trace: Trace | None, delay_s: float = 0.0, jitter_s: float = 0.0, window: int = 1 << 20
    ) -> None:
        self.now = asyncio.get_running_loop().time
        self.thawed = asyncio.Event()
        self.thawed.set()
        generator = random.Random(1)
        self.bottleneck = Bottleneck(trace, 32_768, delay_s, jitter_s, self.now, self.thawed, generator)
        self.line = DelayLine(window, self.now, self.thawed)
        self.came: list[tuple[float, bytes]] = []
        self.tasks = [asyncio.create_task(self.bottleneck.run()), asyncio.create_task(self._collect())]

    async def send(self, data: bytes) -> None:
        await self.line.room()
        await self.bottleneck.send(self.line, data)

    async def finish(self) -> list[tuple[float, bytes]]:
        await self.bottleneck.send(self.line, Signal.END)
        await self.tasks[1]
        self.tasks[0].cancel()
        return self.came

    async def _collect(self) -> None:
        while isinstance(item := await self.line.pop(), bytes):
            self.line.done(item)
            self.came.append((self.now(), item))


def test_a_transfer_takes_its_bits_divided_by_the_rate(run_virtual: Run) -> None:
    async def transfer() -> list[tuple[float, bytes]]:
        way = Way(Trace.constant(2e6))
        for _ in range(500):
            await way.send(bytes(2000))
        return await way.finish()

    came = run_virtual(transfer())
    assert sum(len(data) for _, data in came) == 1_000_000
    assert came[-1][0] == pytest.approx(4.0, rel=1e-6)


def test_messages_arrive_one_delay_later_and_do_not_pile_up(run_virtual: Run) -> None:
    async def talk() -> tuple[list[float], list[tuple[float, bytes]]]:
        way, sent = Way(Trace.constant(1e9), delay_s=0.05), []
        for _ in range(200):
            sent.append(way.now())
            await way.send(b"12345678")
            await asyncio.sleep(0.01)
        return sent, await way.finish()

    sent, came = run_virtual(talk())
    assert len(came) == 200
    assert [at for at, _ in came] == pytest.approx([at + 0.05 for at in sent], abs=1e-6)


def test_jitter_never_changes_the_order(run_virtual: Run) -> None:
    async def talk() -> list[tuple[float, bytes]]:
        way = Way(Trace.constant(1e9), delay_s=0.01, jitter_s=0.1)
        for index in range(200):
            await way.send(index.to_bytes(2, "big"))
            await asyncio.sleep(0.001)
        return await way.finish()

    came = run_virtual(talk())
    assert b"".join(data for _, data in came) == b"".join(index.to_bytes(2, "big") for index in range(200))
    assert max(at for at, _ in came) <= 0.2 + 0.11 + 1e-6


def test_a_black_hole_moves_everything_behind_it_by_its_length(run_virtual: Run) -> None:
    async def talk() -> list[tuple[float, bytes]]:
        way = Way(Trace.constant(80_000))
        sending = asyncio.create_task(way.send(bytes(10_000)))  # one second of the link
        await asyncio.sleep(0.25)
        way.thawed.clear()
        way.bottleneck.wake()
        assert way.bottleneck.rate_bps == 0.0
        await asyncio.sleep(10)
        way.thawed.set()
        await sending
        return await way.finish()

    assert run_virtual(talk())[-1][0] == pytest.approx(11.0, abs=0.01)


def test_a_change_of_rate_counts_what_has_passed_already(run_virtual: Run) -> None:
    async def talk() -> list[tuple[float, bytes]]:
        way = Way(Trace.constant(80_000))
        await way.send(bytes(10_000))
        await asyncio.sleep(0.5)
        way.bottleneck.use(Trace.constant(8_000))
        return await way.finish()

    assert run_virtual(talk())[-1][0] == pytest.approx(0.5 + 5.0, abs=0.01)


def test_a_trace_that_ends_in_an_outage_waits_for_a_new_rate(run_virtual: Run) -> None:
    async def talk() -> list[tuple[float, bytes]]:
        way = Way(Trace.steps([(0, 80_000), (1, 0)]))
        await asyncio.sleep(2)
        await way.send(bytes(1000))
        await asyncio.sleep(100)
        assert not way.came
        way.bottleneck.use(None)
        return await way.finish()

    assert run_virtual(talk())[-1][0] == pytest.approx(102.0)


def test_a_full_queue_makes_the_sender_wait_for_the_link(run_virtual: Run) -> None:
    async def talk() -> float:
        way = Way(Trace.constant(80_000))
        for _ in range(20):
            await way.send(bytes(10_000))
        waited = way.now()
        await way.finish()
        return waited

    # 200 kB at 10 kB/s, of which 32 kB may wait in the queue (three whole pieces).
    assert run_virtual(talk()) == pytest.approx(17.0, abs=0.01)


def test_a_full_window_makes_the_sender_wait_for_the_receiver(run_virtual: Run) -> None:
    async def talk() -> tuple[int, int]:
        way = Way(None, delay_s=1.0, window=20_000)
        most = 0
        for _ in range(10):
            await way.send(bytes(10_000))
            most = max(most, way.line.inside)
        await way.finish()
        return most, way.line.delivered

    most, delivered = run_virtual(talk())
    assert (most, delivered) == (20_000, 100_000)


def test_what_a_closed_line_left_in_the_queue_takes_no_time(run_virtual: Run) -> None:
    async def talk() -> list[tuple[float, bytes]]:
        way = Way(Trace.constant(80_000))
        dead = DelayLine(1 << 20, way.now, way.thawed)
        await way.send(bytes(1000))
        for _ in range(3):
            await way.bottleneck.send(dead, bytes(10_000))
        dead.closed = True
        await way.send(bytes(1000))
        return await way.finish()

    assert run_virtual(talk())[-1][0] == pytest.approx(0.2, abs=0.001)
