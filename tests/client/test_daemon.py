"""The daemon against a real server on a real socket: nothing lost, nothing doubled, whatever goes wrong between them."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamsplit.audio.window import Block, Gap, Samples
from streamsplit.client.app import Device, device
from streamsplit.client.daemon import DaemonSettings
from streamsplit.client.journal import read
from streamsplit.client.recording import Skip
from streamsplit.client.uplink import LinkState
from streamsplit.config import ClientSettings, ClientTls, LearnerSettings
from streamsplit.encoders.registry import make_untrained
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, LinkError, RefusedError
from streamsplit.lab.links import LinkProxy, LinkSettings
from streamsplit.server.keys import make_token
from streamsplit.server.store import EmbeddingStore, StoredWindow
from tests.conftest import Serve

WINDOW = 15_360


class Played:
    """A source that plays a list and ends."""

    sample_rate_hz = 16_000

    def __init__(self, items: Sequence[Block | Gap | Skip], pause_s: float = 0.0) -> None:
        self._items = items
        self._pause_s = pause_s

    async def __aenter__(self) -> Played:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def items(self) -> AsyncIterator[Block | Gap | Skip]:
        for item in self._items:
            await asyncio.sleep(self._pause_s)
            yield item


def blocks(sound: Samples, windows: int) -> list[Block]:
    return [Block(sound[number * WINDOW : (number + 1) * WINDOW]) for number in range(windows)]


@asynccontextmanager
async def client(
    folder: Path,
    version: Version,
    source: Played,
    server: str | None,
    *,
    lossless: bool = True,
    stream: str = "s",
    patience_s: float = 20.0,
    **changes: Any,
) -> AsyncIterator[Device]:
    settings = ClientSettings(
        **{
            "device": "pi",
            "server": server,
            "state_dir": folder,
            "decider": "fixed:3",
            "acknowledge_timeout_s": 2.0,
            "connect_timeout_s": 2.0,
            **changes,
        }
    )
    daemon = DaemonSettings(
        stream, settings.decider, alone=server is None, lossless=lossless, patience_s=patience_s
    )
    async with device(settings, daemon, source, version) as made:
        yield made


def rows(folder: Path) -> list[StoredWindow]:
    return list(EmbeddingStore(folder / "embeddings.db", read_only=True).iterate())


def journaled(folder: Path, state: str) -> list[int]:
    return [
        r["sequence"] for r in read(folder / "journal.jsonl") if r["kind"] == "window" and r["state"] == state
    ]


@pytest.mark.parametrize("split", [-1, 0, 1, 2, 3, 4])
async def test_every_window_is_stored_once_and_journaled(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path, split: int
) -> None:
    source = Played(blocks(sound, 12))
    async with (
        serve() as server,
        client(
            tmp_path / "c",
            compact,
            source,
            f"127.0.0.1:{server.port}",
            decider=f"fixed:{split}",
            send_audio=split < 0,
        ) as made,
    ):
        counters = await made.run()
        assert made.spool.windows == 0
    assert (counters.windows, counters.acknowledged, counters.dropped) == (12, 12, 0)
    assert sorted(row.sequence for row in rows(tmp_path)) == list(range(12))
    assert sorted(journaled(tmp_path / "c", "acknowledged")) == list(range(12))
    assert {row.split for row in rows(tmp_path)} == {split}
    record = next(r for r in read(tmp_path / "c" / "journal.jsonl") if r["kind"] == "window")
    assert record["measured"]["total_ms"] > 0
    assert len(record["embedding_hash"]) == 16


async def test_alone_it_embeds_and_keeps_and_fills_in_later(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    async with client(tmp_path / "c", compact, Played(blocks(sound, 5)), None) as made:
        await made.run()
        assert made.spool.windows == 5
    assert journaled(tmp_path / "c", "local") == list(range(5))
    source = Played(blocks(sound, 3))
    async with (
        serve() as server,
        client(tmp_path / "c", compact, source, f"127.0.0.1:{server.port}", stream="later") as made,
    ):
        await made.run()
    stored = {(row.stream, row.sequence, row.computed_on) for row in rows(tmp_path)}
    assert stored == {("s", n, "device") for n in range(5)} | {("later", n, "server") for n in range(3)}


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


async def test_a_server_without_our_version_gets_our_features(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    other = make_untrained("compact", seed=1)
    async with (
        serve() as server,
        client(tmp_path / "c", other, Played(blocks(sound, 8)), f"127.0.0.1:{server.port}") as made,
    ):
        await made.run()
    stored = rows(tmp_path)
    assert sorted(row.sequence for row in stored) == list(range(8))
    assert {(row.version, row.split) for row in stored} == {(compact.id, 0)}


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


async def test_windows_of_another_front_end_wait_and_hold_nobody_up(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    async with client(tmp_path / "c", compact, Played(blocks(sound, 3)), None) as made:
        await made.run()
        for _, step in made.spool.pending():
            made.spool.replace(step.key, replace(step, version="clap-000000000000", front_end="another"))
    async with serve() as server:
        address = f"127.0.0.1:{server.port}"
        source = Played(blocks(sound, 6), pause_s=0.05)
        async with client(tmp_path / "c", compact, source, address, stream="new", lossless=False) as made:
            await made.run()
            assert made.spool.windows == 3
            assert made.uplink.serves_ours
    assert {row.stream for row in rows(tmp_path)} == {"new"}


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


async def test_gaps_and_skips_are_journaled_and_move_time(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    items = [
        *blocks(sound, 1),
        Gap(16_000, "overrun"),
        Skip("broken.wav", "broken.wav: not audio"),
        *blocks(sound, 1),
    ]
    async with (
        serve() as server,
        client(tmp_path / "c", compact, Played(items), f"127.0.0.1:{server.port}") as made,
    ):
        await made.run()
    records = list(read(tmp_path / "c" / "journal.jsonl"))
    assert [r["samples"] for r in records if r["kind"] == "gap"] == [16_000]
    assert [r["reason"] for r in records if r["kind"] == "skip"] == ["broken.wav: not audio"]
    assert [row.start_sample for row in rows(tmp_path)] == [0, WINDOW + 16_000]


async def test_samples_that_are_not_numbers_are_a_gap(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    items = [*blocks(sound, 1), Block(np.full(WINDOW, np.nan, np.float32)), *blocks(sound, 1)]
    async with (
        serve() as server,
        client(tmp_path / "c", compact, Played(items), f"127.0.0.1:{server.port}") as made,
    ):
        counters = await made.run()
    assert (counters.windows, counters.gaps) == (2, 1)


async def test_a_restart_goes_on_where_the_stream_stopped(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    async with serve() as server:
        for windows in (4, 9):
            source = Played(blocks(sound, windows))
            async with client(tmp_path / "c", compact, source, f"127.0.0.1:{server.port}") as made:
                counters = await made.run()
    assert counters.processed == 5
    assert sorted(row.sequence for row in rows(tmp_path)) == list(range(9))


async def test_off_this_machine_it_needs_tls(compact: Version, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="TLS is required"):
        async with client(tmp_path, compact, Played([]), "192.0.2.1:50051") as made:
            await made.run()


async def test_a_key_file_that_is_not_there_is_named(compact: Version, tmp_path: Path) -> None:
    tls = ClientTls(ca=tmp_path / "nowhere.pem")
    with pytest.raises(ConfigError, match=r"tls.ca = .*nowhere.pem"):
        async with client(tmp_path, compact, Played([]), "192.0.2.1:50051", tls=tls) as made:
            await made.run()


async def test_at_leisure_a_window_is_on_the_wire_before_it_is_on_the_disk(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    source = Played(blocks(sound, 10), pause_s=0.1)
    async with (
        serve() as server,
        client(tmp_path / "c", compact, source, f"127.0.0.1:{server.port}") as made,
    ):
        await made.run()
        assert made.spool.windows == 0
        assert made.uplink.state is LinkState.UP
    measured = [r["measured"] for r in read(tmp_path / "c" / "journal.jsonl") if r["kind"] == "window"]
    assert sum(one["spool_ms"] == 0.0 for one in measured) >= 8
    assert [row.sequence for row in rows(tmp_path)] == list(range(10))


async def test_a_disk_without_room_for_the_spool_still_lets_windows_through(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    source = Played(blocks(sound, 8), pause_s=0.1)
    async with (
        serve() as server,
        client(
            tmp_path / "c", compact, source, f"127.0.0.1:{server.port}", lossless=False, decider="fixed:1"
        ) as made,
    ):
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


async def test_embeddings_made_here_wait_for_each_other_if_they_may(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    source = Played(blocks(sound, 25), pause_s=0.05)
    async with (
        serve() as server,
        client(
            tmp_path / "c",
            compact,
            source,
            f"127.0.0.1:{server.port}",
            decider="fixed:4",
            hold_windows=9,
            learn=LearnerSettings(mode="off"),
        ) as made,
    ):
        await made.run()
    stored = rows(tmp_path)
    assert [row.sequence for row in stored] == list(range(25))
    starts = [row.received_unix_ms for row in stored]
    bursts = 1 + sum(later - earlier > 100 for earlier, later in itertools.pairwise(starts))
    assert bursts == 3, "two full ones, and the rest at the end"
