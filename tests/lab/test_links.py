"""The shaped link between real sockets on loopback; durations in virtual time."""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from streamsplit.errors import ConfigError
from streamsplit.lab.links import LinkProxy, LinkSettings, Trace

Run = Callable[[Any], Any]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that reads to the end, answers with the digest and closes."""
    digest = hashlib.sha256()
    while data := await reader.read(65536):
        digest.update(data)
    writer.write(digest.digest())
    writer.close()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that says everything back."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    writer.close()


@asynccontextmanager
async def link_to(handler: Handler, **changes: Any) -> AsyncIterator[LinkProxy]:
    """A server on a free port and a link to it, both in this loop and its time."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    changes.setdefault("uplink", Trace.constant(50e6))
    async with LinkProxy(
        LinkSettings(f"127.0.0.1:{port}", **changes), asyncio.get_running_loop().time
    ) as link:
        yield link
    server.close()
    await asyncio.sleep(1)  # the streams' own farewells


async def send_all(link: LinkProxy, data: bytes) -> bytes:
    """Sends `data` over a new connection, ends it, and returns the whole answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("size", [1, 1500, 100_000, 3_000_000])
def test_every_byte_arrives_unchanged_and_is_counted(run_virtual: Run, size: int) -> None:
    async def talk() -> None:
        data = random.Random(size).randbytes(size)
        async with link_to(echo, downlink=Trace.constant(30e6), delay_ms=20, jitter_ms=10) as link:
            assert await send_all(link, data) == data
            stats = link.stats
        assert (stats.bytes_up, stats.bytes_down, stats.bytes_lost, stats.connections) == (size, size, 0, 1)

    run_virtual(talk())


def test_a_megabyte_at_two_megabits_takes_four_seconds(run_virtual: Run) -> None:
    async def talk() -> float:
        async with link_to(swallow, uplink=Trace.constant(2e6)) as link:
            assert await send_all(link, bytes(1_000_000)) == hashlib.sha256(bytes(1_000_000)).digest()
            return link.stats.elapsed_s

    assert run_virtual(talk()) == pytest.approx(4.0, rel=0.05)


def test_small_messages_come_back_two_delays_later(run_virtual: Run) -> None:
    async def talk() -> list[float]:
        clock, took = asyncio.get_running_loop().time, []
        async with link_to(echo, delay_ms=50) as link:
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            for _ in range(20):
                sent = clock()
                writer.write(b"12345678")
                await reader.readexactly(8)
                took.append(clock() - sent)
            writer.close()
        return took

    assert run_virtual(talk()) == pytest.approx([0.1] * 20, rel=0.05)


def test_two_connections_share_one_uplink(run_virtual: Run) -> None:
    async def talk() -> float:
        async with link_to(swallow, uplink=Trace.constant(2e6)) as link:
            await asyncio.gather(send_all(link, bytes(500_000)), send_all(link, bytes(500_000)))
            return link.stats.elapsed_s

    assert run_virtual(talk()) == pytest.approx(4.0, rel=0.05)


def test_the_trace_decides_when_bytes_pass(run_virtual: Run) -> None:
    async def talk() -> float:
        async with link_to(swallow, uplink=Trace.steps([(0, 8e5), (1, 0), (11, 8e5)])) as link:
            await send_all(link, bytes(200_000))
            return link.stats.elapsed_s

    assert run_virtual(talk()) == pytest.approx(12.0, rel=0.05)


def test_a_slow_link_stops_its_sender(run_virtual: Run) -> None:
    async def talk() -> int:
        async with link_to(swallow, uplink=Trace.constant(0)) as link:
            loop, sent = asyncio.get_running_loop(), 0
            client = socket.create_connection(("127.0.0.1", link.port))
            client.setblocking(False)
            try:
                while True:
                    sent += await asyncio.wait_for(_send_some(loop, client), 5.0)
            except TimeoutError:
                client.close()
            return sent

    assert run_virtual(talk()) < 400_000


async def _send_some(loop: asyncio.AbstractEventLoop, client: socket.socket) -> int:
    await loop.sock_sendall(client, bytes(1000))
    return 1000


def test_a_receiver_that_does_not_read_holds_up_only_itself(run_virtual: Run) -> None:
    async def half_deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.read(1) == b"d":
            await asyncio.sleep(1000)
        await swallow(reader, writer)

    async def talk() -> float:
        async with link_to(half_deaf, window_bytes=100_000) as link:
            deaf = asyncio.create_task(send_all(link, b"d" + bytes(5_000_000)))
            await asyncio.sleep(1)
            await send_all(link, b"h" + bytes(1_000_000))
            elapsed_s = link.stats.elapsed_s
            await deaf
            return elapsed_s

    assert run_virtual(talk()) < 3.0


def test_a_cut_resets_both_ends_and_counts_what_it_lost(run_virtual: Run) -> None:
    server_saw: list[BaseException] = []

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(65536):
                pass
        except ConnectionResetError as error:
            server_saw.append(error)
        writer.close()

    async def talk() -> None:
        async with link_to(watch, uplink=Trace.constant(8000)) as link:
            reader, writer = await asyncio.open_connection("127.0.0.1", link.port)
            writer.write(bytes(3000))
            await asyncio.sleep(2)
            link.cut()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()
            await asyncio.sleep(0.1)
            stats = link.stats
            assert stats.bytes_up + stats.bytes_lost == 3000
            assert (stats.cuts, stats.open_connections, stats.connections) == (1, 0, 1)
            await asyncio.sleep(2)
            assert server_saw
            _, again = await asyncio.open_connection("127.0.0.1", link.port)
            await asyncio.sleep(0.1)
            assert link.stats.open_connections == 1
            again.close()

    run_virtual(talk())


def test_a_scheduled_cut_refuses_connections_until_its_end(run_virtual: Run) -> None:
    async def talk() -> list[bool]:
        served = []
        async with link_to(echo, outages=[(1.0, 3.0, "cut")]) as link:
            for _ in range(5):
                try:
                    served.append(await send_all(link, b"hello") == b"hello")
                except ConnectionError:
                    served.append(False)
                await asyncio.sleep(0.9)
            assert link.stats.refused == served.count(False)
        return served

    assert run_virtual(talk()) == [True, True, False, False, True]


def test_a_scheduled_freeze_delays_and_loses_nothing(run_virtual: Run) -> None:
    async def talk() -> float:
        async with link_to(swallow, uplink=Trace.constant(8e5), outages=[(0.5, 60.5, "freeze")]) as link:
            assert await send_all(link, bytes(100_000)) == hashlib.sha256(bytes(100_000)).digest()
            assert (link.stats.bytes_up, link.stats.bytes_lost) == (100_000, 0)
            return link.stats.elapsed_s

    assert run_virtual(talk()) == pytest.approx(61.0, rel=0.01)


def test_a_link_that_waits_begins_its_traces_and_outages_when_told(run_virtual: Run) -> None:
    async def talk() -> tuple[float, float]:
        steps = Trace.steps([(0, 8e5), (10, 8e4)])
        async with link_to(swallow, uplink=steps, waits=True, outages=[(20.0, 30.0, "freeze")]) as link:
            await asyncio.sleep(100)
            began_s = link.stats.elapsed_s
            await send_all(link, bytes(50_000))  # at the first rate still
            first_s = link.stats.elapsed_s - began_s
            link.begin()
            link.begin()
            await asyncio.sleep(10)
            began_s = link.stats.elapsed_s
            await send_all(link, bytes(150_000))  # 10 s at the second rate, 10 s of outage, 5 s more
            return first_s, link.stats.elapsed_s - began_s

    assert run_virtual(talk()) == pytest.approx((0.5, 25.0), rel=0.02)


def test_an_end_does_not_cross_a_black_hole(run_virtual: Run) -> None:
    ended: list[float] = []

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.append(asyncio.get_running_loop().time())
        writer.close()

    async def talk() -> None:
        async with link_to(watch) as link:
            _, writer = await asyncio.open_connection("127.0.0.1", link.port)
            await asyncio.sleep(0.1)
            link.freeze()
            assert link.stats.frozen
            assert link.stats.rate_up_bps == 0
            writer.close()
            await asyncio.sleep(100)
            assert not ended
            link.thaw()
            await asyncio.sleep(1)
        assert ended == pytest.approx([100.1], abs=0.1)

    run_virtual(talk())


def test_a_set_rate_holds_until_the_trace_is_asked_back(run_virtual: Run) -> None:
    async def talk() -> None:
        async with link_to(echo, uplink=Trace.constant(2e6), downlink=Trace.constant(1e6)) as link:
            link.set_rate(5e5)
            assert (link.stats.rate_up_bps, link.stats.rate_down_bps) == (5e5, 1e6)
            link.set_rate(None, 3e5)
            assert (link.stats.rate_up_bps, link.stats.rate_down_bps) == (2e6, 3e5)

    run_virtual(talk())


def test_a_server_that_is_not_there_resets_the_client(run_virtual: Run) -> None:
    async def talk() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            target = f"127.0.0.1:{free.getsockname()[1]}"
        async with LinkProxy(LinkSettings(target), asyncio.get_running_loop().time) as link:
            with pytest.raises(ConnectionError):
                await send_all(link, b"anyone?")
            assert (link.stats.refused, link.stats.connections) == (1, 0)

    run_virtual(talk())


@pytest.mark.parametrize(
    "wrong",
    [
        {"target": "192.0.2.1:80"},
        {"target": "localhost"},
        {"delay_ms": -1},
        {"queue_bytes": 10},
        {"outages": [(2.0, 1.0, "cut")]},
        {"outages": [(1.0, 2.0, "slow")]},
    ],
)
def test_impossible_settings_are_refused_with_what_was_expected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        LinkSettings(**{"target": "127.0.0.1:1", **wrong})


def test_a_taken_port_is_a_setting_error(run_virtual: Run) -> None:
    async def talk() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            settings = LinkSettings("127.0.0.1:1", listen_port=taken.getsockname()[1])
            with pytest.raises(ConfigError, match="cannot listen"):
                await LinkProxy(settings).__aenter__()

    run_virtual(talk())
