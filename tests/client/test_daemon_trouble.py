"""The daemon when server, link or disk fail it: nothing lost, nothing doubled, and the user told in one line."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from streamsplit.audio.window import Samples
from streamsplit.config import ClientTls
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, LinkError, RefusedError
from streamsplit.lab.links import LinkProxy, LinkSettings
from streamsplit.server.keys import make_token
from tests.client.devices import Played, blocks, client, connected, journaled, rows
from tests.conftest import Serve


async def test_without_the_server_it_stays_local_and_sends_when_it_comes(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path, unused_tcp_port: int
) -> None:
    source = Played(blocks(sound, 30), pause_s=0.1)
    server = f"127.0.0.1:{unused_tcp_port}"
    async with client(tmp_path / "c", compact, source, server, lossless=False) as made:
        running = asyncio.create_task(made.run())
        await asyncio.sleep(1.0)
        async with serve(listen=server):
            await running
            assert made.spool.windows == 0
    stored = rows(tmp_path)
    assert sorted(row.sequence for row in stored) == list(range(30))
    assert {row.computed_on for row in stored} == {"device", "server"}
    assert next(row for row in stored if row.sequence == 0).computed_on == "device"


async def test_a_link_cut_again_and_again_loses_and_doubles_nothing(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    source = Played(blocks(sound, 60), pause_s=0.03)
    async with (
        serve() as server,
        LinkProxy(LinkSettings(f"127.0.0.1:{server.port}", delay_ms=5.0)) as link,
        client(tmp_path / "c", compact, source, f"127.0.0.1:{link.port}") as made,
    ):
        running = asyncio.create_task(made.run())
        while not running.done():
            await asyncio.sleep(0.3)
            link.cut()
        counters = await running
        assert made.uplink.connections > 2
    assert counters.acknowledged >= 60
    assert sorted(row.sequence for row in rows(tmp_path)) == list(range(60))


async def test_a_black_hole_is_noticed_and_its_windows_sent_again(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    source = Played(blocks(sound, 20), pause_s=0.05)
    async with (
        serve() as server,
        LinkProxy(LinkSettings(f"127.0.0.1:{server.port}")) as link,
        client(tmp_path / "c", compact, source, f"127.0.0.1:{link.port}", acknowledge_timeout_s=1.0) as made,
    ):
        running = asyncio.create_task(made.run())
        await asyncio.sleep(0.4)
        link.freeze()
        await asyncio.sleep(2.0)
        link.thaw()
        await running
    assert sorted(row.sequence for row in rows(tmp_path)) == list(range(20))


async def test_a_busy_server_gets_its_windows_later(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    async with (
        serve(max_windows_per_second=4) as server,
        client(tmp_path / "c", compact, Played(blocks(sound, 14)), f"127.0.0.1:{server.port}") as made,
    ):
        await made.run()
    assert sorted(row.sequence for row in rows(tmp_path)) == list(range(14))


async def test_a_backlog_sent_in_one_burst_to_a_busy_server_arrives_whole(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    async with client(tmp_path / "c", compact, Played(blocks(sound, 40)), None) as made:
        await made.run()
    async with serve(max_windows_per_second=15) as server:
        address = f"127.0.0.1:{server.port}"
        async with client(tmp_path / "c", compact, Played(blocks(sound, 1)), address, stream="later") as made:
            await made.run()
            assert made.spool.windows == 0
    assert len(rows(tmp_path)) == 41


async def test_a_journal_without_room_costs_lines_and_not_windows(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    async with serve() as server:
        address = f"127.0.0.1:{server.port}"
        async with client(tmp_path / "c", compact, Played(blocks(sound, 10)), address) as made:
            os.close(made.journal._descriptor)
            made.journal._descriptor = os.open("/dev/full", os.O_WRONLY)
            await made.run()
            assert made.spool.windows == 0
    assert made.daemon.unjournaled > 10
    assert len(rows(tmp_path)) == 10


async def test_a_server_that_is_not_there_ends_a_replay_with_its_address(
    compact: Version, sound: Samples, tmp_path: Path, unused_tcp_port: int
) -> None:
    server = f"127.0.0.1:{unused_tcp_port}"
    async with client(tmp_path, compact, Played(blocks(sound, 2)), server, connect_timeout_s=1.0) as made:
        with pytest.raises(LinkError, match=rf"127\.0\.0\.1:{unused_tcp_port}"):
            await made.run()


async def test_a_server_that_goes_away_ends_a_replay_and_keeps_its_windows(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    source = Played(blocks(sound, 20), pause_s=0.1)
    async with serve() as server:
        address = f"127.0.0.1:{server.port}"
        folder = tmp_path / "c"
        async with client(folder, compact, source, address, patience_s=1.0) as made:
            running = asyncio.create_task(made.run())
            await asyncio.sleep(0.5)
            await server.service.drain(0.0)
            with pytest.raises(LinkError, match="windows unanswered"):
                await running
            assert made.spool.windows > 0


async def test_a_device_without_its_token_is_refused_in_one_line(
    compact: Version, sound: Samples, tmp_path: Path, serve: Serve
) -> None:
    make_token(tmp_path / "devices.json", "pi", tmp_path / "pi.token")
    async with serve(devices=tmp_path / "devices.json") as server:
        address = f"127.0.0.1:{server.port}"
        async with client(tmp_path / "c", compact, Played(blocks(sound, 1)), address) as made:
            with pytest.raises(RefusedError, match=r"UNAUTHENTICATED.*expected a device token, got none"):
                await made.run()
        token = tmp_path / "pi.token"
        async with client(
            tmp_path / "c", compact, Played(blocks(sound, 1)), address, token_file=token
        ) as made:
            await made.run()
    assert len(rows(tmp_path)) == 1


async def test_off_this_machine_it_needs_tls(compact: Version, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TLS is required"):
        async with client(tmp_path, compact, Played([]), "192.0.2.1:50051") as made:
            await made.run()


async def test_a_key_file_that_is_not_there_is_named(compact: Version, tmp_path: Path) -> None:
    tls = ClientTls(ca=tmp_path / "nowhere.pem")
    with pytest.raises(ConfigError, match=r"tls.ca = .*nowhere.pem"):
        async with client(tmp_path, compact, Played([]), "192.0.2.1:50051", tls=tls) as made:
            await made.run()


async def test_a_disk_without_room_for_the_spool_still_lets_windows_through(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    source = Played(blocks(sound, 8), pause_s=0.1)
    async with connected(serve, tmp_path, compact, source, lossless=False, decider="fixed:1") as made:
        with made.spool._lock:
            pages = made.spool._connection.execute("PRAGMA page_count").fetchone()[0]
            made.spool._connection.execute(f"PRAGMA max_page_count={pages}")
        counters = await made.run()
        assert counters.unkept > 0
        assert counters.unkept + counters.dropped + counters.processed == 8
        await asyncio.sleep(0.2)
    stored = {row.sequence for row in rows(tmp_path)}
    assert len(stored) >= 8 - counters.dropped
    assert len(journaled(tmp_path / "c", "unkept")) == counters.unkept
