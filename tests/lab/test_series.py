"""Journal records as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamsplit.lab.series import PARTS, SoundClock, Timeline, byte_rate

STREAM = {"kind": "stream", "encoder": "compact", "sample_rate_hz": 16000, "window_samples": 16000}


def window(sequence: int, split: int = 2, **changes: Any) -> dict[str, Any]:
    """One-second windows at four times real time, done with 40 ms after their end, 500 bytes each on the socket."""
    measured = {
        "total_ms": 40.0,
        "features_ms": 1.0,
        "head_ms": 2.0,
        "pack_ms": 0.5,
        "spool_ms": 0.5,
        "wire_ms": 30.0,
        "unix_ms": 1_000_000 + 250 * (sequence + 1) + 40,
        "uplink_bytes": 500 * (sequence + 1),
    }
    observation = {"cpu_percent": 10.0, "backlog_windows": sequence % 3, "server_available": True}
    record = {
        "kind": "window", "stream": "s", "sequence": sequence, "start_s": float(sequence), "split": split,
        "payload_bytes": 300, "decision": {"observation": observation}, "measured": measured,
    }  # fmt: skip
    return {**record, **changes}


def run(windows: int = 80) -> list[dict[str, Any]]:
    return [STREAM, *(window(sequence) for sequence in range(windows))]


def test_windows_come_in_the_streams_order_whatever_the_journals() -> None:
    records = run()
    there, back = Timeline.of(records), Timeline.of(records[::-1])
    assert there.start_s.tolist() == back.start_s.tolist() == [float(n) for n in range(80)]
    assert there.end_s == 80.0
    assert len(there) == 80


def test_bits_a_second_are_those_on_the_socket() -> None:
    timeline = Timeline.of(run())
    assert np.nanmean(timeline.uplink_bps) == pytest.approx(500 * 8 / 0.25, rel=0.05)
    assert timeline.share_of_pcm == pytest.approx(500 * 79 / (80 * 32000))


def test_the_clock_finds_speed_and_origin_though_some_windows_waited() -> None:
    end_s = np.arange(1.0, 101.0)
    unix_ms = 5000.0 + 250.0 * end_s + 7.0
    late = unix_ms.copy()
    late[40:60] = unix_ms[60]
    clock = SoundClock.fit(end_s, late)
    assert clock.speed == pytest.approx(4.0, rel=1e-6)
    assert clock.seconds(unix_ms) == pytest.approx(end_s, abs=1e-6)


@pytest.mark.parametrize("points", [0, 1])
def test_a_clock_of_almost_nothing_runs_at_real_time(points: int) -> None:
    assert SoundClock.fit(np.ones(points), np.ones(points)).speed == 1.0


def test_parts_are_sums_of_their_fields_and_unknown_where_none_is_there() -> None:
    records = [STREAM, window(0), window(1, measured={"total_ms": 3.0})]
    timeline = Timeline.of(records)
    assert set(timeline.parts_ms) == set(PARTS)
    assert timeline.parts_ms["pack, spool"][0] == 1.0
    assert np.isnan(timeline.parts_ms["wire"][1])


def test_stretches_without_a_server_are_found_at_the_ends_too() -> None:
    up = [False, False, True, True, False, True, False]
    records = [window(n, decision={"observation": {"server_available": is_up}}) for n, is_up in enumerate(up)]
    assert Timeline.of([STREAM, *records]).away() == [(0.0, 2.0), (4.0, 5.0), (6.0, 7.0)]


def test_records_that_say_little_are_left_out_or_unknown() -> None:
    dropped = {"kind": "window", "stream": "s", "sequence": 9, "state": "dropped"}
    timeline = Timeline.of([{"kind": "gap"}, dropped, window(0, measured={}, decision={})])
    assert len(timeline) == 1
    assert np.isnan(timeline.latency_ms[0])
    assert timeline.away() == []
    assert np.isnan(timeline.share_of_pcm)


def test_nothing_gives_an_empty_timeline() -> None:
    timeline = Timeline.of([])
    assert (len(timeline), timeline.end_s, timeline.away()) == (0, 0.0, [])


def test_the_last_split_is_told_or_read_or_the_deepest_seen() -> None:
    assert Timeline.of(run(2)).last_split == 2
    assert Timeline.of([{**STREAM, "last_split": 5}, window(0)]).last_split == 5
    assert Timeline.of(run(2), last_split=4).last_split == 4


def test_all_bytes_of_a_counter_are_in_its_rate() -> None:
    unix_ms = np.array([0.0, 100.0, 900.0, 2000.0, 3500.0])
    sent = np.array([0.0, 1000.0, 1000.0, 4000.0, 9000.0])
    when_ms, rate_bps = byte_rate(unix_ms, sent, 1000.0)
    assert when_ms.tolist() == [500.0 * step for step in range(1, len(when_ms) + 1)]
    assert rate_bps[::2].sum() / 8 == 9000.0


def test_a_counter_that_begins_anew_leaves_a_hole() -> None:
    _, rate_bps = byte_rate(np.arange(0.0, 9000.0, 1000.0), np.array([0, 1, 2, 3, 0, 1, 2, 3, 4.0]), 1000.0)
    assert np.isnan(rate_bps).any()
    assert np.nanmin(rate_bps) >= 0
