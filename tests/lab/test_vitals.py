"""Figures of a running client from its journal."""

from __future__ import annotations

from typing import Any

import pytest

from streamsplit.lab.vitals import HISTORY, Vitals, newest


def window(sequence: int, **changes: Any) -> dict[str, Any]:
    """A journal record of a window, a second apart on the wall, 100 bytes more on the socket each."""
    measured = {"total_ms": 10.0 + sequence, "uplink_bytes": 100 * sequence, "unix_ms": 1000 * sequence}
    observation = {"cpu_percent": 20.0, "backlog_windows": 3, "server_available": True}
    record: dict[str, Any] = {
        "kind": "window", "stream": "s", "sequence": sequence, "start_s": 0.96 * sequence, "level_dbfs": -30.0, "split": 2,
        "codec": "int4", "payload_bytes": 300, "state": "acknowledged", "duplicate": False,
        "decision": {"reason": "because", "observation": observation}, "measured": measured,
    }  # fmt: skip
    return {**record, **changes}


def test_bytes_a_second_are_those_of_the_counter() -> None:
    vitals = Vitals()
    for sequence in range(10):
        vitals.take(window(sequence))
    assert newest(vitals.bytes_per_s) == pytest.approx(100.0)


def test_a_counter_that_begins_anew_never_gives_a_negative_rate() -> None:
    vitals = Vitals()
    for sequence, sent in enumerate([0, 5000, 9000, 9500, 0, 300, 600, 900, 1200]):
        vitals.take(window(sequence, measured={"uplink_bytes": sent, "unix_ms": 1000 * sequence}))
    assert all(rate is None or rate >= 0 for rate in vitals.bytes_per_s)
    assert newest(vitals.bytes_per_s) == pytest.approx(300.0)


def test_percentiles_are_of_the_recent_windows() -> None:
    vitals = Vitals()
    for value in [9000.0] * 100 + [float(value) for value in range(1, 61)]:
        vitals.take(window(1, measured={"total_ms": value}))
    last, p50, p95 = vitals.percentiles_ms
    assert (last, p50) == (60.0, 30.5)
    assert p95 == pytest.approx(57.05)


def test_nothing_is_known_before_the_first_window() -> None:
    vitals = Vitals()
    assert (vitals.split, vitals.percentiles_ms, vitals.share_of_pcm) == (None, (None, None, None), None)
    assert newest(vitals.bytes_per_s) is None


def test_the_share_of_pcm_counts_what_followed_the_first_record() -> None:
    vitals = Vitals()
    vitals.take({"kind": "stream", "sample_rate_hz": 8000, "window_samples": 8000})
    for sequence in range(11):
        vitals.take(window(sequence, start_s=float(sequence)))
    assert vitals.share_of_pcm == pytest.approx(1000 / (10 * 8000 * 2))


def test_records_of_every_kind_are_counted_and_poor_ones_do_no_harm() -> None:
    vitals = Vitals()
    for record in (
        {"kind": "gap", "samples": 3},
        {"kind": "skip"},
        {"kind": "window", "stream": "s", "sequence": 1, "state": "dropped"},
        window(2, measured={}, decision={}),
        window(3, duplicate=True),
    ):
        vitals.take(record)
    assert vitals.windows == 3
    assert vitals.counts["gaps"] == vitals.counts["skips"] == vitals.counts["dropped"] == 1
    assert vitals.counts["acknowledged"] == 2
    assert vitals.counts["duplicate"] == 1


def test_memory_is_bounded() -> None:
    vitals = Vitals()
    for sequence in range(HISTORY * 3):
        vitals.take(window(sequence))
    assert len(vitals.latency_ms) == len(vitals.splits) == len(vitals.bytes_per_s) == HISTORY


def test_the_last_block_is_the_streams_or_the_deepest_seen() -> None:
    told, seen = Vitals(), Vitals()
    told.take({"kind": "stream", "last_split": 7, "block_names": ["a", "b"]})
    for vitals in (told, seen):
        vitals.take(window(0, split=3))
    assert (told.deepest, seen.deepest, told.block_names) == (7, 3, ("a", "b"))
