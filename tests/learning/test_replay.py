"""The ring on disk: bounded, sampled fairly and repeatably, there after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from streamsplit.errors import ConfigError, StorageError
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.learning.replay import ROW_OVERHEAD_BYTES, FeatureReplay, ReplayReader
from streamsplit.wire.codec import Codec
from tests.disks import fill, small_disk

LEAST = 1 << 16


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def window(sequence: int, size: int = 400, version: str = "v", stream: str = "s") -> BufferedWindow:
    payload = bytes([sequence % 256]) * size
    return BufferedWindow("d", stream, sequence, 0.96 * sequence, version, 3, Codec.INT4, payload)


def sequences(windows: list[BufferedWindow]) -> list[int]:
    return [one.sequence for one in windows]


def test_what_is_added_comes_back_whole_and_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "replay.db"
    with FeatureReplay(path) as replay:
        assert replay.add([window(0), window(1), window(0)]) == 2
        assert replay.add([window(1), window(2)]) == 1
    with FeatureReplay(path) as replay:
        assert len(replay) == 3
        back = replay.newest(2)
    assert sequences(back) == [1, 2]
    one, kept = window(2), back[1]
    assert (kept.key, kept.kind, kept.start_s, kept.payload) == (one.key, one.kind, one.start_s, one.payload)
    assert kept.embedding is None


def test_the_oldest_make_room_and_are_counted(tmp_path: Path) -> None:
    fits = LEAST // (400 + ROW_OVERHEAD_BYTES)
    with FeatureReplay(tmp_path / "r.db", LEAST) as replay:
        for begin in range(0, 500, 50):
            replay.add([window(sequence) for sequence in range(begin, begin + 50)])
            assert replay.stored_bytes <= LEAST
        assert len(replay) == fits
        assert replay.dropped == 500 - fits
        assert sequences(replay.newest(1000)) == list(range(500 - fits, 500))


def test_a_window_larger_than_the_ring_replaces_all_of_it(tmp_path: Path) -> None:
    with FeatureReplay(tmp_path / "r.db", LEAST) as replay:
        replay.add([window(0), window(1, size=2 * LEAST)])
        assert sequences(replay.newest(9)) == [1]
        replay.add([window(2)])
        assert sequences(replay.newest(9)) == [2]
        assert replay.stored_bytes == 400 + ROW_OVERHEAD_BYTES


def test_the_file_stays_near_its_bound_however_much_passes_through(tmp_path: Path) -> None:
    path, most = tmp_path / "r.db", 512 << 10
    with FeatureReplay(path, most) as replay:
        for begin in range(0, 8000, 200):
            replay.add([window(sequence) for sequence in range(begin, begin + 200)])
    assert path.stat().st_size < 1.2 * most


def test_every_window_is_as_likely_as_any_other(tmp_path: Path) -> None:
    with FeatureReplay(tmp_path / "r.db") as replay:
        replay.add([window(sequence, size=10) for sequence in range(40)])
        generator = chance(1)
        drawn = Counter(sequence for _ in range(600) for sequence in sequences(replay.sample(10, generator)))
    assert set(drawn) == set(range(40))
    assert 100 < min(drawn.values()) < max(drawn.values()) < 205  # 150 expected, deviation 10.6


def test_samples_are_different_windows_and_repeat_with_the_seed(tmp_path: Path) -> None:
    with FeatureReplay(tmp_path / "r.db") as replay:
        replay.add([window(sequence, size=10) for sequence in range(1000)])
        one, again = (sequences(replay.sample(600, chance(3))) for _ in range(2))
        assert one == again
        assert len(set(one)) == 600
        assert sequences(replay.sample(600, chance(4))) != one
        assert sorted(sequences(replay.sample(5000, chance()))) == list(range(1000))
        assert replay.sample(0, chance()) == []


def test_an_empty_ring_has_nothing_to_sample(tmp_path: Path) -> None:
    with FeatureReplay(tmp_path / "r.db") as replay:
        assert len(replay) == 0
        assert replay.sample(5, chance()) == []
        assert replay.newest(5) == []


def test_only_windows_of_versions_that_can_still_be_unpacked_are_drawn(tmp_path: Path) -> None:
    with FeatureReplay(tmp_path / "r.db") as replay:
        replay.add([window(sequence, version=f"v{sequence % 4}", size=10) for sequence in range(200)])
        drawn = replay.sample(30, chance(), versions={"v2"})
        assert len(set(sequences(drawn))) == 30
        assert {one.version for one in drawn} == {"v2"}
        assert len(replay.sample(500, chance(), versions={"v1", "v2"})) == 100


def test_near_is_in_order_of_time_without_the_window_itself(tmp_path: Path) -> None:
    with FeatureReplay(tmp_path / "r.db") as replay:
        replay.add([window(sequence) for sequence in (4, 2, 3, 9, 5)])
        assert sequences(replay.near(window(4), 2.0)) == [2, 3, 5]


def test_a_reader_sees_what_the_writer_commits_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with FeatureReplay(path) as replay, ReplayReader(path) as reader:
        replay.add([window(0)])
        assert sequences(reader.newest(9)) == [0]
        replay.add([window(1)])
        assert sequences(reader.sample(9, chance(1))) in ([0, 1], [1, 0])


WRITER = """
import sys
from pathlib import Path
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.learning.replay import FeatureReplay
from streamsplit.wire.codec import Codec
replay = FeatureReplay(Path(sys.argv[1]), 1 << 16)
for sequence in range(1_000_000):
    replay.add([BufferedWindow("d", "s", sequence, sequence * 0.96, "v", 3, Codec.INT4, bytes(400))])
    sys.stdout.write(f"{sequence}\\n")
    sys.stdout.flush()
"""


def test_what_was_committed_survives_a_kill_and_the_ring_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    told = -1
    for line in writer.stdout:
        told = int(line)
        if told == 300:
            os.kill(writer.pid, signal.SIGKILL)
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    with FeatureReplay(path, LEAST) as replay:
        kept = sequences(replay.newest(1000))
        assert kept == list(range(kept[0], kept[-1] + 1))
        assert kept[-1] >= told
        assert replay.dropped == kept[0]
        assert replay.stored_bytes == len(kept) * (400 + ROW_OVERHEAD_BYTES) <= LEAST
        assert replay.add([window(kept[-1]), window(kept[-1] + 1)]) == 1


def test_a_full_disk_keeps_what_was_there_and_nothing_by_halves(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1024) as disk, FeatureReplay(disk / "r.db") as replay:
        replay.add([window(0)])
        filler = fill(disk)
        with pytest.raises(StorageError, match="cannot add windows: the disk is full"):
            replay.add([window(sequence, size=20_000) for sequence in range(1, 9)])
        assert sequences(replay.newest(9)) == [0]
        filler.unlink()
        assert replay.add([window(1)]) == 1


def test_wrong_files_and_bounds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected 65536 bytes or more, got 100"):
        FeatureReplay(tmp_path / "r.db", 100)
    with pytest.raises(StorageError, match="no such database"):
        ReplayReader(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("not a database, whatever its name says\n" * 50)
    with pytest.raises(StorageError, match="not a database"):
        FeatureReplay(tmp_path / "text.db")
