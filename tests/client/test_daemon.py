"""The daemon against a real server on a real socket: every window is stored once and journaled."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamsplit.audio.window import Block, Gap, Samples
from streamsplit.client.journal import read
from streamsplit.client.recording import Skip
from streamsplit.client.uplink import LinkState
from streamsplit.config import LearnerSettings
from streamsplit.encoders.registry import make_untrained
from streamsplit.encoders.version import Version
from streamsplit.lab.links import LinkProxy, LinkSettings
from tests.client.devices import WINDOW, Played, blocks, client, connected, journaled, rows
from tests.conftest import Serve


@pytest.mark.parametrize("split", [-1, 0, 1, 2, 3, 4])
async def test_every_window_is_stored_once_and_journaled(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path, split: int
) -> None:
    source = Played(blocks(sound, 12))
    async with connected(
        serve, tmp_path, compact, source, decider=f"fixed:{split}", send_audio=split < 0
    ) as made:
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
    async with connected(serve, tmp_path, compact, source, stream="later") as made:
        await made.run()
    stored = {(row.stream, row.sequence, row.computed_on) for row in rows(tmp_path)}
    assert stored == {("s", n, "device") for n in range(5)} | {("later", n, "server") for n in range(3)}


async def test_a_server_without_our_version_gets_our_features(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    other = make_untrained("compact", seed=1)
    async with connected(serve, tmp_path, other, Played(blocks(sound, 8))) as made:
        await made.run()
    stored = rows(tmp_path)
    assert sorted(row.sequence for row in stored) == list(range(8))
    assert {(row.version, row.split) for row in stored} == {(compact.id, 0)}


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


async def test_gaps_and_skips_are_journaled_and_move_time(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    items = [
        *blocks(sound, 1),
        Gap(16_000, "overrun"),
        Skip("broken.wav", "broken.wav: not audio"),
        *blocks(sound, 1),
    ]
    async with connected(serve, tmp_path, compact, Played(items)) as made:
        await made.run()
    records = list(read(tmp_path / "c" / "journal.jsonl"))
    assert [r["samples"] for r in records if r["kind"] == "gap"] == [16_000]
    assert [r["reason"] for r in records if r["kind"] == "skip"] == ["broken.wav: not audio"]
    assert [row.start_sample for row in rows(tmp_path)] == [0, WINDOW + 16_000]


async def test_samples_that_are_not_numbers_are_a_gap(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    items = [*blocks(sound, 1), Block(np.full(WINDOW, np.nan, np.float32)), *blocks(sound, 1)]
    async with connected(serve, tmp_path, compact, Played(items)) as made:
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


async def test_at_leisure_a_window_is_on_the_wire_before_it_is_on_the_disk(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    source = Played(blocks(sound, 10), pause_s=0.1)
    async with connected(serve, tmp_path, compact, source) as made:
        await made.run()
        assert made.spool.windows == 0
        assert made.uplink.state is LinkState.UP
    measured = [r["measured"] for r in read(tmp_path / "c" / "journal.jsonl") if r["kind"] == "window"]
    assert sum(one["spool_ms"] == 0.0 for one in measured) >= 8
    assert [row.sequence for row in rows(tmp_path)] == list(range(10))


async def test_a_device_that_has_sent_nothing_knows_the_round_trip_from_the_greeting(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    source = Played(blocks(sound, 20), pause_s=0.05)
    async with (
        serve() as server,
        LinkProxy(LinkSettings(f"127.0.0.1:{server.port}", delay_ms=40.0)) as link,
        client(
            tmp_path / "c",
            compact,
            source,
            f"127.0.0.1:{link.port}",
            decider="fixed:4",
            hold_windows=30,
            learn=LearnerSettings(mode="off"),
        ) as made,
    ):
        running = asyncio.create_task(made.run())
        await made.uplink.welcomed()
        told_ms, sent_s = made.uplink.estimator.rtt_ms, made.uplink.last_sent_s
        await running
    assert sent_s is None
    assert told_ms is not None
    assert 60.0 <= told_ms < 200.0, "80 ms, less what the write took to return, more what the server did"


async def test_embeddings_made_here_wait_for_each_other_if_they_may(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path
) -> None:
    source = Played(blocks(sound, 25), pause_s=0.05)
    async with connected(
        serve, tmp_path, compact, source, decider="fixed:4", hold_windows=9, learn=LearnerSettings(mode="off")
    ) as made:
        await made.run()
    stored = rows(tmp_path)
    assert [row.sequence for row in stored] == list(range(25))
    starts = [row.received_unix_ms for row in stored]
    bursts = 1 + sum(later - earlier > 100 for earlier, later in itertools.pairwise(starts))
    assert bursts == 3, "two full ones, and the rest at the end"
