from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamsplit.errors import StorageError
from streamsplit.server.store import EmbeddingStore, StoredWindow
from tests.disks import fill, make_read_only, small_disk

D = 16


def window(
    sequence: int, stream: str = "s", device: str = "pi", version: str = "v1", dim: int = D
) -> StoredWindow:
    embedding = np.random.default_rng(sequence).normal(size=dim).astype(np.float32)
    return StoredWindow(
        device=device,
        stream=stream,
        sequence=sequence,
        start_sample=sequence * 15360,
        sample_rate_hz=16000,
        started_unix_ms=1_700_000_000_000,
        version=version,
        split=3,
        codec="int4",
        computed_on="server",
        embedding=embedding / np.linalg.norm(embedding),
        received_unix_ms=1_700_000_001_000,
        payload_bytes=325,
        level_dbfs=-31.5,
        uncertainty=0.25,
        source="dogs/a.wav",
        label="dog",
    )


def fields(stored: StoredWindow) -> list[object]:
    plain = [name for name in StoredWindow.__slots__ if name not in ("embedding", "id")]
    return [*(getattr(stored, name) for name in plain), stored.embedding.tobytes()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "store.db"


def test_a_stored_window_comes_back_as_it_was(path: Path) -> None:
    rows = [window(0), replace(window(1), uncertainty=None, source=None, label=None, split=-1, codec="flac")]
    with EmbeddingStore(path) as store:
        assert store.insert(rows) == [True, True]
        found = list(store.iterate())
    assert [fields(row) for row in found] == [fields(row) for row in rows]
    assert [row.id for row in found] == [1, 2]


def test_a_window_is_stored_once_and_the_first_one_stays(path: Path) -> None:
    with EmbeddingStore(path) as store:
        store.insert([window(0)])
        assert store.insert([replace(window(0), payload_bytes=1), window(1), window(1)]) == [
            False,
            True,
            False,
        ]
        assert store.count() == 2
        first = store.get(1)
        assert first is not None
        assert first.payload_bytes == 325


def test_the_same_sequence_of_another_stream_or_device_is_another_window(path: Path) -> None:
    with EmbeddingStore(path) as store:
        assert store.insert([window(0), window(0, stream="t"), window(0, device="mac")]) == [True] * 3
        assert store.count(device="pi") == 2
        assert store.count(device="pi", stream="t") == 1
        assert [(info.device, info.stream, info.windows) for info in store.streams()] == [
            ("pi", "s", 1),
            ("pi", "t", 1),
            ("mac", "s", 1),
        ]


def test_what_is_stored_is_there_after_reopening(path: Path) -> None:
    with EmbeddingStore(path) as store:
        store.insert([window(n) for n in range(5)])
    with EmbeddingStore(path, "power") as store:
        assert store.insert([window(4), window(5)]) == [False, True]
        assert store.count() == 6


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_iterating_in_any_batches_gives_every_window_once_in_order(path: Path, batch: int) -> None:
    with EmbeddingStore(path) as store:
        store.insert([window(n, device="pi" if n % 2 else "mac", version=f"v{n % 3}") for n in range(21)])
        assert [row.sequence for row in store.iterate(batch=batch)] == list(range(21))
        assert [row.sequence for row in store.iterate("v1", "pi", batch=batch)] == [1, 7, 13, 19]
        assert [row.sequence for row in store.iterate(after=18, batch=batch)] == [18, 19, 20]


def test_vectors_are_those_of_one_version_and_go_on_after_a_number(path: Path) -> None:
    rows = [window(n, version=f"v{n % 2}") for n in range(10)]
    with EmbeddingStore(path) as store:
        store.insert(rows)
        ids, vectors = store.vectors("v1")
        assert ids.tolist() == [2, 4, 6, 8, 10]
        np.testing.assert_array_equal(vectors, np.stack([row.embedding for row in rows[1::2]]))
        assert store.vectors("v1", after=6)[0].tolist() == [8, 10]
        assert store.vectors("other")[1].shape == (0, 0)
        assert store.versions() == {"v0": 5, "v1": 5}
        assert store.ids("pi", "s").tolist() == list(range(1, 11))


def test_vectors_of_differing_length_in_one_version_are_an_error(path: Path) -> None:
    with EmbeddingStore(path) as store:
        store.insert([window(0), window(1, dim=4)])
        with pytest.raises(StorageError, match="window 2: expected an embedding of 64 bytes, got 16"):
            store.vectors("v1")


@pytest.mark.parametrize(
    "bad", [np.full(D, np.nan, np.float32), np.zeros(0, np.float32), np.zeros((2, 2), np.float32)]
)
def test_an_embedding_that_is_no_finite_vector_is_refused_with_its_batch(path: Path, bad: np.ndarray) -> None:
    with EmbeddingStore(path) as store:
        with pytest.raises(ValueError, match="window pi/s/1: expected a finite embedding"):
            store.insert([window(0), replace(window(1), embedding=bad)])
        assert store.count() == 0


def test_a_batch_that_breaks_a_rule_of_the_file_leaves_nothing(path: Path) -> None:
    with EmbeddingStore(path) as store:
        with pytest.raises(StorageError, match="cannot insert"):
            store.insert([window(0, stream="new"), replace(window(1), computed_on="moon")])
        assert store.count() == 0
        assert store.streams() == []
        assert store.insert([window(0, stream="new")]) == [True]


def test_readers_see_commits_of_a_writer_in_another_connection(path: Path) -> None:
    with EmbeddingStore(path) as writer, EmbeddingStore(path, read_only=True) as reader:
        writer.insert([window(0)])
        assert reader.count() == 1
        with pytest.raises(StorageError, match="reading only"):
            reader.insert([window(1)])


def test_reading_goes_on_while_another_thread_inserts(path: Path) -> None:
    problems: list[Exception] = []
    with EmbeddingStore(path) as store:
        store.insert([window(0)])
        done = threading.Event()

        def read() -> None:
            try:
                while not done.is_set():
                    ids, vectors = store.vectors("v1")
                    if len(ids) != len(vectors) or not np.isfinite(vectors).all():
                        raise AssertionError("torn read")
            except (AssertionError, StorageError) as error:
                problems.append(error)

        threads = [threading.Thread(target=read) for _ in range(2)]
        for thread in threads:
            thread.start()
        for batch in range(30):
            store.insert([window(1 + batch * 8 + n) for n in range(8)])
        done.set()
        for thread in threads:
            thread.join()
    assert problems == []


def test_the_view_names_device_and_stream_for_people(path: Path) -> None:
    with EmbeddingStore(path) as store:
        store.insert([window(2)])
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT device, stream, start_s, label FROM windows").fetchall() == [
        ("pi", "s", 1.92, "dog")
    ]
    connection.close()


def test_a_closed_store_says_so(path: Path) -> None:
    store = EmbeddingStore(path)
    store.close()
    store.close()
    with pytest.raises(StorageError, match="closed"):
        store.insert([window(0)])
    with pytest.raises(StorageError, match="closed"):
        store.count()


def test_a_missing_store_cannot_be_read(path: Path) -> None:
    with pytest.raises(StorageError, match="no such database"):
        EmbeddingStore(path, read_only=True)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_file_that_is_no_database_is_named(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"this is a text of some length, and no database at all" * 100)
    with pytest.raises(StorageError, match=r"store\.db: cannot \w+: the file is not a database"):
        EmbeddingStore(path, read_only=read_only)
    assert path.read_bytes().startswith(b"this is a text")


def test_another_schema_version_is_refused_and_left_alone(path: Path) -> None:
    EmbeddingStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(StorageError, match="expected schema version 1, got 99"):
        EmbeddingStore(path)


def test_a_database_of_other_software_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "other.db")
    connection.execute("CREATE TABLE theirs(x)")
    connection.close()
    with pytest.raises(StorageError, match="expected schema version 1, got 0"):
        EmbeddingStore(tmp_path / "other.db")


def test_a_folder_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot open"):
        EmbeddingStore(tmp_path)


def test_a_full_disk_loses_nothing_and_is_survived(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=1024) as disk, EmbeddingStore(disk / "store.db") as store:
        assert store.insert([window(0)]) == [True]
        filler = fill(disk)
        stored = 1

        def insert_for_ever() -> None:
            nonlocal stored
            for begin in range(1, 10_000, 32):
                store.insert([window(begin + n, dim=128) for n in range(32)])
                stored += 32

        with pytest.raises(StorageError, match=r"store\.db: cannot insert: the disk"):
            insert_for_ever()
        assert store.count() == stored
        filler.unlink()
        assert store.insert([window(20_000)]) == [True]
        assert store.count() == stored + 1


def test_a_read_only_disk_is_named_and_can_be_read(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=1024) as disk:
        with EmbeddingStore(disk / "store.db") as store:
            store.insert([window(0)])
        make_read_only(disk)
        with pytest.raises(StorageError, match="read-only"):
            EmbeddingStore(disk / "store.db")
        with EmbeddingStore(disk / "store.db", read_only=True) as store:
            assert store.count() == 1


CHILD = """
import sys
from pathlib import Path
from streamsplit.server.store import EmbeddingStore
from tests.server.test_store import window
store = EmbeddingStore(Path(sys.argv[1]))
batch = 0
while True:
    store.insert([window(batch * 4 + n) for n in range(4)])
    batch += 1
    sys.stdout.write(f"{batch}\\n")
    sys.stdout.flush()
"""


def test_killed_while_writing_every_reported_commit_is_there_and_none_is_half(path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdout is not None
    reported = 0
    while reported < 50:
        reported = int(child.stdout.readline())
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read().split()
    child.stdout.close()
    child.wait()
    reported = max(reported, *(int(line) for line in rest)) if rest else reported
    with EmbeddingStore(path) as store:
        stored = [row.sequence for row in store.iterate()]
        assert len(stored) % 4 == 0
        assert len(stored) >= reported * 4
        assert stored == list(range(len(stored)))
        assert store.insert([window(0), window(len(stored))]) == [False, True]
