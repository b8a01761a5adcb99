from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from streamsplit.client.journal import Journal, JournalFollower, JournalReader, read
from streamsplit.errors import ConfigError, StorageError
from tests.disks import fill, make_read_only, small_disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "journal.jsonl"


def numbered(path: Path) -> list[int]:
    return [record["n"] for record in read(path)]


def test_a_follower_reads_to_the_end_what_is_put_in_order_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    follower = JournalFollower(path)
    assert follower.new() == []
    with Journal(path) as journal:
        journal.write({"sequence": 2, "long": "x" * 50})
        assert [record["sequence"] for record in follower.new()] == [2]
        with path.open("ab") as torn:
            torn.write(b'{"sequence"')
        assert follower.new() == []
        with path.open("ab") as torn:
            torn.write(b": 0}\n")
        journal.write({"sequence": 1})
    ordered = tmp_path / "ordered"
    ordered.write_text('{"sequence": 0}\n{"sequence": 1}\n{"sequence": 2}\n')
    ordered.replace(path)
    assert [record["sequence"] for record in follower.new()] == [0, 1]
    assert follower.new() == []
    follower.close()
    follower.close()


def test_records_come_back_in_order_and_as_they_were(path: Path) -> None:
    records = [{"kind": "window", "n": n, "label": "Hündin", "measured": {"total_ms": 1.5}} for n in range(3)]
    with Journal(path) as journal:
        for record in records:
            journal.write(record)
        assert journal.records == 3
    assert list(read(path)) == records


def test_each_record_is_one_line_that_is_there_at_once(path: Path) -> None:
    with Journal(path) as journal:
        journal.write({"n": 1, "text": "two\nlines"})
        assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1]


def test_a_reopened_journal_goes_on(path: Path) -> None:
    for n in range(3):
        with Journal(path) as journal:
            journal.write({"n": n})
    assert numbered(path) == [0, 1, 2]


def test_a_torn_line_is_left_out_and_counted_and_does_not_swallow_the_next(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Journal(path) as journal:
        journal.write({"n": 0})
        journal.write({"n": 1})
    os.truncate(path, path.stat().st_size - 3)
    with Journal(path) as journal:
        journal.write({"n": 2})
    with path.open("ab") as file:
        file.write(b'{"n":3')
    reader = JournalReader(path)
    assert [record["n"] for record in reader] == [0, 2]
    assert reader.damaged == 2
    with caplog.at_level(logging.WARNING):
        assert numbered(path) == [0, 2]
    assert "2 damaged lines" in caplog.text


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b"[1]\n", b"7\n", b"{]\n"])
def test_lines_that_are_no_json_object_are_damage(path: Path, line: bytes) -> None:
    with Journal(path) as journal:
        journal.write({"n": 0})
    with path.open("ab") as file:
        file.write(line + b"\n" + b'{"n":1}\n')
    reader = JournalReader(path)
    assert [record["n"] for record in reader] == [0, 1]
    assert reader.damaged == 1


def test_rotation_bounds_every_file_and_their_number_and_keeps_the_newest(path: Path) -> None:
    with Journal(path, max_bytes=100, keep=2) as journal:
        for n in range(200):
            journal.write({"n": n})
    files = sorted(file.name for file in path.parent.iterdir())
    assert files == ["journal.jsonl", "journal.jsonl.1", "journal.jsonl.2"]
    assert all(file.stat().st_size <= 100 for file in path.parent.iterdir())
    kept = numbered(path)
    assert kept == list(range(kept[0], 200))
    assert len(kept) > 20


def test_a_record_larger_than_the_bound_is_written_all_the_same(path: Path) -> None:
    with Journal(path, max_bytes=10) as journal:
        journal.write({"n": 0, "text": "x" * 100})
        journal.write({"n": 1})
    assert numbered(path) == [0, 1]


def test_what_is_not_json_is_refused_and_leaves_nothing(path: Path) -> None:
    with Journal(path) as journal:
        with pytest.raises(ValueError, match="JSON compliant"):
            journal.write({"n": float("nan")})
        journal.write({"n": 1})
    assert numbered(path) == [1]


@pytest.mark.parametrize(("bounds", "named"), [({"max_bytes": 0}, "max_bytes"), ({"keep": 0}, "keep")])
def test_bounds_that_make_no_sense_are_refused(path: Path, bounds: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=f"journal: {named} must be"):
        Journal(path, **bounds)


def test_a_missing_journal_is_named(path: Path) -> None:
    with pytest.raises(StorageError, match=r"journal\.jsonl: no such journal"):
        list(read(path))


def test_a_full_disk_costs_the_line_and_later_ones_are_whole(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=64) as disk, Journal(disk / "journal.jsonl") as journal:
        journal.write({"n": 0})
        filler = fill(disk)

        def write_for_ever() -> None:
            for _ in range(1000):
                journal.write({"n": 1, "text": "x" * 100})

        with pytest.raises(StorageError, match=r"journal\.jsonl: cannot write the journal"):
            write_for_ever()
        filler.unlink()
        journal.write({"n": 2})
        assert set(numbered(disk / "journal.jsonl")) <= {0, 1, 2}
        assert numbered(disk / "journal.jsonl")[-1] == 2


def test_a_read_only_disk_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=64) as disk:
        make_read_only(disk)
        with pytest.raises(StorageError, match="cannot open the journal: Read-only"):
            Journal(disk / "journal.jsonl")


CHILD = """
import sys
from pathlib import Path
from streamsplit.client.journal import Journal
journal = Journal(Path(sys.argv[1]))
n = 0
while True:
    journal.write({"n": n, "text": "x" * 500})
    sys.stdout.write(f"{n}\\n")
    sys.stdout.flush()
    n += 1
"""


def test_killed_while_writing_every_written_record_is_there(path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    reported = 0
    while reported < 200:
        reported = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read().split("\n")[:-1]
    child.stdout.close()
    child.wait()
    reported = int(rest[-1]) if rest else reported
    found = numbered(path)
    assert found == list(range(len(found)))
    assert len(found) > reported
