from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from streamsplit.errors import StorageError
from streamsplit.lab.summary import Run, digest, summarise, table, write_summary

RUN = Run(sample_rate_hz=16000, window_samples=15360)


def record(
    sequence: int, stream: str = "run-1", state: str = "acknowledged", **changes: Any
) -> dict[str, Any]:
    return {
        "kind": "window",
        "stream": stream,
        "sequence": sequence,
        "start_sample": sequence * 15360,
        "split": 3,
        "codec": "int4",
        "version": "compact-abc",
        "payload_bytes": 300,
        "state": state,
        "duplicate": False,
        "embedding_hash": f"{sequence:016x}",
        "measured": {"total_ms": float(sequence), "wire_ms": 1.0, "unix_ms": 1_700_000_000_000},
    } | changes


def test_equal_runs_have_equal_digests_whatever_their_name_order_times_and_resends() -> None:
    one = [record(n) for n in range(20)]
    other = [
        record(n, stream="run-2", measured={"total_ms": 9.0}, duplicate=True, source="x") for n in range(20)
    ]
    other += [record(n, stream="run-2") for n in (3, 7)]
    random.Random(0).shuffle(other)
    noise = [
        {"kind": "stream", "stream": "run-2"},
        {"kind": "gap", "samples": 5},
        {"kind": "skip", "source": "bad.wav"},
    ]
    assert digest(one) == digest(noise + other)


@pytest.mark.parametrize(
    "change",
    [
        {"start_sample": 1},
        {"split": 4},
        {"codec": "int8"},
        {"embedding_hash": "0" * 15 + "f"},
        {"sequence": 77},
        {"state": "dropped"},
    ],
)
def test_a_change_of_one_window_changes_the_digest(change: dict[str, Any]) -> None:
    records = [record(n) for n in range(5)]
    assert digest(records) != digest([*records[:2], records[2] | change, *records[3:]])


def test_a_missing_window_changes_the_digest() -> None:
    assert digest([record(n) for n in range(5)]) != digest([record(n) for n in range(4)])


def test_streams_count_by_rank_and_do_not_mix() -> None:
    def two(first: str, second: str) -> list[dict[str, Any]]:
        return [record(0, first), record(0, second, embedding_hash="b" * 16)]

    assert digest(two("a-1", "a-2")) == digest(two("z-1", "z-2"))
    assert digest(two("a-1", "a-2")) != digest(two("a-2", "a-1"))


def test_a_clean_run_has_no_trouble() -> None:
    records = [{"kind": "stream", "stream": "run-1"}, *(record(n) for n in range(100))]
    summary = summarise(records, Run(16000, 15360, windows=100, stored=100, uplink_bytes=35_000))
    assert {
        name: summary[name]
        for name in ("windows", "acknowledged", "stored", "audio_s", "uplink_bytes", "payload_bytes")
    } == {
        "windows": 100,
        "acknowledged": 100,
        "stored": 100,
        "audio_s": 96.0,
        "uplink_bytes": 35_000,
        "payload_bytes": 30_000,
    }
    for trouble in ("lost", "duplicated", "dropped", "rejected", "skipped", "gaps", "resent"):
        assert summary[trouble] == 0
    assert summary["latency_ms"] == {"p50": 49.5, "p95": 94.05, "p99": 98.01}
    assert summary["parts_ms"] == {"wire_ms": {"p50": 1.0, "p95": 1.0, "p99": 1.0}}
    assert summary["splits"] == {"3": 100}
    assert summary["version"] == "compact-abc"
    assert summary["digest"] == digest(records)


def test_trouble_is_counted_by_window() -> None:
    records = [
        *(record(n) for n in range(5)),
        record(4, duplicate=True),
        record(5, state="rejected"),
        record(6, state="dropped"),
        {"kind": "gap", "stream": "run-1", "start_sample": 1, "samples": 2, "reason": "overrun"},
        {"kind": "skip", "source": "bad.wav", "reason": "truncated"},
    ]
    summary = summarise(records, RUN)
    counts = {
        name: summary[name]
        for name in ("windows", "acknowledged", "rejected", "dropped", "lost", "resent", "gaps", "skipped")
    }
    assert counts == {
        "windows": 7,
        "acknowledged": 5,
        "rejected": 1,
        "dropped": 1,
        "lost": 0,
        "resent": 1,
        "gaps": 1,
        "skipped": 1,
    }


def test_a_window_that_nobody_accounts_for_is_lost() -> None:
    records = [record(n) for n in range(9)]
    assert summarise(records, Run(16000, 15360, windows=10))["lost"] == 1
    assert summarise(records, Run(16000, 15360, windows=10, stored=10))["lost"] == 0
    assert summarise(records, Run(16000, 15360, windows=9, stored=7))["lost"] == 2
    assert (
        summarise([*records, record(9, state="dropped")], Run(16000, 15360, windows=10, stored=9))["lost"]
        == 0
    )


def test_rows_beyond_one_a_window_are_duplicates() -> None:
    assert summarise([record(0)], Run(16000, 15360, windows=1, stored=3))["duplicated"] == 2


def test_windows_embedded_alone_are_finished_but_not_acknowledged() -> None:
    summary = summarise([record(n, state="local") for n in range(4)], RUN)
    assert (summary["windows"], summary["acknowledged"], summary["lost"]) == (4, 0, 0)
    assert summary["latency_ms"]["p50"] == 1.5


def test_a_window_first_dropped_and_yet_acknowledged_is_acknowledged() -> None:
    summary = summarise([record(0, state="dropped"), record(0)], RUN)
    assert (summary["acknowledged"], summary["dropped"], summary["lost"]) == (1, 0, 0)


def test_dropped_windows_need_no_more_than_their_key() -> None:
    bare = {"kind": "window", "stream": "run-1", "sequence": 1, "state": "dropped"}
    assert summarise([record(0), bare], RUN)["dropped"] == 1


def test_an_empty_run_can_be_summed_up_and_shown() -> None:
    summary = summarise([], RUN)
    assert summary["windows"] == 0
    assert summary["latency_ms"] is None
    assert summary["digest"] == digest([])
    assert "digest" in rendered(summary)


def rendered(summary: dict[str, Any]) -> str:
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115 - closed below
    console.print(table(summary))
    console.file.close()
    return console.export_text()


def test_the_table_names_what_matters() -> None:
    run = Run(
        16000,
        15360,
        windows=3,
        stored=3,
        uplink_bytes=1234,
        downlink_bytes=99,
        bytes_measured_on="socket",
        wall_s=2.0,
    )
    shown = rendered(summarise([record(n) for n in range(3)], run))
    for text in (
        "3 windows",
        "0 lost",
        "1,234 bytes up",
        "counted on socket",
        "p95 1.9 ms",
        "wire 1.00",
        "compact-abc",
    ):
        assert text in shown


def test_the_written_file_is_the_summary(tmp_path: Path) -> None:
    summary = summarise([record(0)], RUN)
    path = write_summary(tmp_path / "deep", summary)
    assert path.name == "summary.json"
    assert json.loads(path.read_text()) == summary
    assert [file.name for file in path.parent.iterdir()] == ["summary.json"]


def test_a_summary_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"summary\.json: cannot be written"):
        write_summary(tmp_path / "file", {})
