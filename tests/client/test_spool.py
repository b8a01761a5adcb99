from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.audio.window import Mark
from streamsplit.client.spool import Cursor, Spool
from streamsplit.client.spool_rows import ROW_OVERHEAD_BYTES
from streamsplit.client.step import Step
from streamsplit.errors import ConfigError, StorageError
from streamsplit.wire.codec import Codec
from tests.disks import fill, make_read_only, small_disk

MIB = 1 << 20


def step(sequence: int, stream: str = "s", payload: bytes = b"p" * 100, features: bytes = b"") -> Step:
    return Step(
        stream=stream,
        sequence=sequence,
        start_sample=sequence * 15360,
        split=3,
        codec=Codec.INT4,
        version="compact-1",
        payload=payload,
        features=features,
        mark=Mark("dogs/a.wav", "dog"),
        level_dbfs=-30.25,
        captured_s=12.5,
        device_ms={"head": 1.25},
        decision={"decider": "fixed:3", "observation": {"cpu_percent": 3.0, "rtt_ms": None}},
    )


def fields(kept: Step) -> list[object]:
    return [getattr(kept, name) for name in Step.__slots__]


def keys(spool: Spool) -> list[tuple[str, int]]:
    return [kept.key for _, kept in spool.pending(limit=10_000)]


def opened(path: Path, max_bytes: int = MIB) -> Spool:
    spool = Spool(path, max_bytes)
    spool.open_stream("s", 1_700_000_000_000, 16000)
    return spool


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "spool.db"


def test_a_kept_window_comes_back_as_it_was(path: Path) -> None:
    with opened(path) as spool:
        assert spool.put(step(0, features=b"f" * 7)) == []
        ((row, kept),) = spool.pending()
        assert row == 1
        assert fields(kept) == fields(step(0, features=b"f" * 7))
        assert spool.versions() == ["compact-1"]


def test_a_window_without_a_mark_comes_back_without_one(path: Path) -> None:
    bare = Step("s", 0, 0, 4, Codec.INT8, "v", b"")
    with opened(path) as spool:
        spool.put(bare)
        assert fields(spool.pending()[0][1]) == fields(bare)


def test_pending_is_in_order_of_arrival_and_goes_on_after_a_number(path: Path) -> None:
    with opened(path) as spool:
        spool.open_stream("t", 1, 48000)
        for stream, sequence in (("t", 5), ("s", 0), ("t", 6), ("s", 1)):
            spool.put(step(sequence, stream))
        assert keys(spool) == [("t", 5), ("s", 0), ("t", 6), ("s", 1)]
        assert [row for row, _ in spool.pending(after=2, limit=1)] == [3]


def test_numbers_grow_although_everything_was_acknowledged_in_between(path: Path) -> None:
    with opened(path) as spool:
        spool.put(step(0))
        ((first, _),) = spool.pending()
        spool.acknowledge([("s", 0)])
        spool.put(step(1))
        assert [kept.sequence for _, kept in spool.pending(after=first)] == [1]


def test_acknowledged_windows_leave_and_unknown_keys_do_not_matter(path: Path) -> None:
    with opened(path) as spool:
        for sequence in range(3):
            spool.put(step(sequence))
        assert spool.acknowledge([("s", 1), ("s", 9), ("x", 0)]) == 1
        assert keys(spool) == [("s", 0), ("s", 2)]
        assert spool.acknowledge([("s", 0), ("s", 2)]) == 2
        assert (spool.windows, spool.bytes, spool.payload_bytes, spool.dropped) == (0, 0, 0, 0)


def test_the_oldest_go_when_it_is_full_and_are_counted_for_good(path: Path) -> None:
    size = opened_size(path.with_name("probe.db"))
    with opened(path, max_bytes=3 * size) as spool:
        assert [spool.put(step(sequence)) for sequence in range(5)] == [[], [], [], [("s", 0)], [("s", 1)]]
        assert keys(spool) == [("s", 2), ("s", 3), ("s", 4)]
        assert (spool.windows, spool.bytes, spool.dropped) == (3, 3 * size, 2)
        assert spool.payload_bytes == 3 * 100
    with opened(path, max_bytes=3 * size) as spool:
        assert spool.dropped == 2
        assert spool.put(step(5)) == [("s", 2)]
        assert spool.dropped == 3


def opened_size(path: Path) -> int:
    with opened(path) as spool:
        spool.put(step(0))
        return spool.bytes


def test_one_large_window_drops_as_many_small_ones_as_it_needs(path: Path) -> None:
    size = opened_size(path.with_name("probe.db"))
    with opened(path, max_bytes=4 * size) as spool:
        for sequence in range(4):
            spool.put(step(sequence))
        assert spool.put(step(4, payload=b"p" * (100 + size))) == [("s", 0), ("s", 1)]
        assert spool.bytes <= spool.max_bytes


def test_a_window_larger_than_the_spool_is_dropped_itself_and_the_others_stay(path: Path) -> None:
    with opened(path, max_bytes=4096) as spool:
        spool.put(step(0))
        assert spool.put(step(1, payload=b"p" * 5000), Cursor(2, 30720)) == [("s", 1)]
        assert keys(spool) == [("s", 0)]
        assert (spool.windows, spool.dropped) == (1, 1)
        assert spool.cursor("s") == Cursor(2, 30720)


def test_the_same_window_twice_is_refused_and_moves_nothing(path: Path) -> None:
    with opened(path) as spool:
        spool.put(step(0), Cursor(1, 15360))
        before = spool.bytes
        with pytest.raises(ValueError, match="window s/0: already in the spool"):
            spool.put(step(0), Cursor(9, 9))
        assert (spool.windows, spool.bytes, spool.cursor("s")) == (1, before, Cursor(1, 15360))


def test_the_cursor_comes_with_the_window_and_moves_over_gaps(path: Path) -> None:
    with opened(path) as spool:
        assert spool.cursor("s") is None
        assert spool.cursor("unknown") is None
        spool.put(step(0), Cursor(1, 15360, {"recording": 3}))
        assert spool.cursor("s") == Cursor(1, 15360, {"recording": 3})
        spool.advance("s", Cursor(1, 99999))
    with opened(path) as spool:
        assert spool.cursor("s") == Cursor(1, 99999)


def test_a_cursor_of_a_stream_nobody_opened_is_a_mistake(path: Path) -> None:
    with opened(path) as spool:
        with pytest.raises(ValueError, match="stream t: expected open_stream"):
            spool.put(step(0, "t"), Cursor(1, 1))
        assert spool.windows == 0
        with pytest.raises(ValueError, match="stream t: expected one that open_stream recorded"):
            spool.stream("t")


def test_a_stream_keeps_what_it_said_first(path: Path) -> None:
    with opened(path) as spool:
        known = spool.open_stream("s", 5, 16000)
        assert known.started_unix_ms == 1_700_000_000_000
        assert spool.streams() == {"s": known}
        assert spool.stream("s") == known
        with pytest.raises(ConfigError, match="stream s: expected 16000 Hz as before, got 48000 Hz"):
            spool.open_stream("s", 5, 48000)


def test_a_replaced_window_keeps_its_number_and_changes_its_payload(path: Path) -> None:
    with opened(path) as spool:
        for sequence in range(3):
            spool.put(step(sequence, features=b"f" * 50))
        before = spool.bytes
        again = step(1, payload=b"features", features=b"")
        assert spool.replace(("s", 1), again)
        assert [(row, kept.sequence) for row, kept in spool.pending()] == [(1, 0), (2, 1), (3, 2)]
        assert spool.pending()[1][1].payload == b"features"
        assert spool.bytes == before - 100 - 50 + 8
        assert spool.payload_bytes == 2 * 100 + 8
        assert not spool.replace(("s", 7), step(7))
        with pytest.raises(ValueError, match="expected the same window"):
            spool.replace(("s", 1), step(2))


def test_after_a_restart_everything_is_there_but_the_old_clock(path: Path) -> None:
    with opened(path) as spool:
        for sequence in range(4):
            spool.put(step(sequence), Cursor(sequence + 1, 15360 * (sequence + 1)))
        size = spool.bytes
    with opened(path) as spool:
        assert (spool.windows, spool.bytes, spool.payload_bytes) == (4, size, 4 * 100)
        assert [kept.captured_s for _, kept in spool.pending()] == [0.0] * 4
        assert spool.cursor("s") == Cursor(4, 61440)
        spool.put(step(4))
        assert spool.pending()[-1][1].captured_s == 12.5


@settings(max_examples=25, deadline=None)
@given(
    actions=st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 900)),
            st.tuples(st.just("acknowledge"), st.integers(0, 30)),
            st.tuples(st.just("reopen"), st.just(0)),
        ),
        max_size=40,
    )
)
def test_every_window_put_is_waiting_acknowledged_or_dropped(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("spool") / "spool.db"
    spool = opened(path, 3000)
    waiting: list[tuple[str, int]] = []
    dropped = acknowledged = sequence = 0
    for action, amount in actions:
        if action == "put":
            gone = spool.put(step(sequence, payload=b"p" * amount))
            waiting = [key for key in [*waiting, ("s", sequence)] if key not in gone]
            dropped += len(gone)
            sequence += 1
        elif action == "acknowledge":
            acknowledged += spool.acknowledge([("s", amount)])
            waiting = [key for key in waiting if key != ("s", amount)]
        else:
            spool.close()
            spool = opened(path, 3000)
        assert keys(spool) == waiting
        assert (spool.windows, spool.dropped) == (len(waiting), dropped)
        assert spool.bytes <= 3000
        assert spool.windows + acknowledged + spool.dropped == sequence
    assert spool.bytes >= len(waiting) * ROW_OVERHEAD_BYTES
    spool.close()


def test_the_file_does_not_outgrow_its_bound_by_much(path: Path) -> None:
    with opened(path, max_bytes=MIB) as spool:
        for sequence in range(3000):
            spool.put(step(sequence, payload=os.urandom(900)))
    assert path.stat().st_size < 1.5 * MIB


@pytest.mark.parametrize("max_bytes", [0, -5])
def test_a_bound_that_is_not_positive_is_refused(path: Path, max_bytes: int) -> None:
    with pytest.raises(ConfigError, match=f"max_bytes must be positive, got {max_bytes}"):
        Spool(path, max_bytes)


def test_two_processes_cannot_share_a_spool(path: Path) -> None:
    with opened(path), pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        Spool(path, MIB)
    opened(path).close()


def spoil_beginning(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)


def spoil_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("spoil", [spoil_beginning, spoil_middle, cut_off])
def test_a_corrupt_spool_is_moved_aside_and_a_new_one_begun(
    path: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    with opened(path) as spool:
        for sequence in range(100):
            spool.put(step(sequence, payload=os.urandom(1000)))
    for number in (1, 2):
        spoil(path)
        spoiled = path.read_bytes()
        with caplog.at_level(logging.WARNING), opened(path) as spool:
            assert spool.windows == 0
            assert spool.put(step(0)) == []
            assert spool.put(step(1, payload=b"p" * 9000)) == []
        assert f"spool.db.corrupt-{number}" in caplog.text
        assert path.with_name(f"spool.db.corrupt-{number}").read_bytes() == spoiled


def test_a_full_disk_costs_the_window_and_not_the_spool(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=1024) as disk, opened(disk / "spool.db", 64 * MIB) as spool:
        spool.put(step(0), Cursor(1, 1))
        filler = fill(disk)
        kept = 1

        def put_for_ever() -> None:
            nonlocal kept
            for sequence in range(1, 10_000):
                spool.put(step(sequence, payload=b"p" * 5000), Cursor(sequence + 1, sequence + 1))
                kept += 1

        with pytest.raises(StorageError, match=r"spool\.db: cannot keep a window: the disk"):
            put_for_ever()
        assert spool.windows == kept
        assert len(keys(spool)) == kept
        assert spool.cursor("s") == Cursor(kept, kept)
        filler.unlink()
        assert spool.put(step(kept)) == []
        assert spool.acknowledge([("s", 0)]) == 1


def test_a_read_only_disk_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=1024) as disk:
        opened(disk / "spool.db").close()
        make_read_only(disk)
        with pytest.raises(StorageError, match="Read-only file system"):
            Spool(disk / "spool.db", MIB)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    with pytest.raises(StorageError, match="cannot lock the spool"):
        Spool(tmp_path / "state" / "spool.db", MIB)


CHILD = """
import sys
from pathlib import Path
from streamsplit.client.spool import Cursor
from tests.client.test_spool import opened, step
spool = opened(Path(sys.argv[1]), 64 << 20)
begin = spool.cursor("s").next_sequence if spool.cursor("s") else 0
for sequence in range(begin, 1 << 30):
    spool.put(step(sequence), Cursor(sequence + 1, (sequence + 1) * 15360))
    if sequence % 10 == 9:
        spool.acknowledge([("s", sequence - 5)])
    sys.stdout.write(f"{sequence}\\n")
    sys.stdout.flush()
"""


def test_killed_while_writing_again_and_again_no_kept_window_is_lost(path: Path) -> None:
    reported = -1
    for kills in range(1, 4):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        while reported < kills * 60:
            reported = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read().split("\n")[:-1]
        child.stdout.close()
        child.wait()
        reported = int(rest[-1]) if rest else reported
    with opened(path, 64 * MIB) as spool:
        cursor = spool.cursor("s")
        assert cursor is not None
        assert cursor.next_sequence > reported
        assert cursor.next_sample == cursor.next_sequence * 15360
        waiting = [sequence for _, sequence in keys(spool)]
        acknowledged = set(range(4, cursor.next_sequence, 10))
        expected = [sequence for sequence in range(cursor.next_sequence) if sequence not in acknowledged]
        # Each kill may have come between a window and the acknowledgement after it, which then never happened.
        assert set(expected) <= set(waiting)
        assert len(set(waiting) - set(expected)) <= 3
        assert waiting == sorted(waiting)
