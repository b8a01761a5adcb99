from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from streamsplit.errors import ConfigError, StorageError
from streamsplit.server.export import export_parquet
from streamsplit.server.store import EmbeddingStore
from tests.disks import fill, small_disk
from tests.server.test_store import D, window

parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (extra `server`)")


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    with EmbeddingStore(path) as store:
        store.insert([window(n, device="pi" if n % 2 else "mac", version=f"v{n % 3}") for n in range(30)])
        store.insert([replace(window(30), uncertainty=None, source=None, label=None)])
    return path


@pytest.mark.parametrize("row_group", [1, 7, 31, 1000])
def test_every_window_is_in_the_file_as_it_is_in_the_store(
    store_path: Path, tmp_path: Path, row_group: int
) -> None:
    out = tmp_path / "out" / "x.parquet"
    seen: list[tuple[int, int]] = []
    assert (
        export_parquet(
            store_path, out, row_group=row_group, progress=lambda done, total: seen.append((done, total))
        )
        == 31
    )
    table = parquet.read_table(out)
    with EmbeddingStore(store_path, read_only=True) as store:
        stored = list(store.iterate())
    for name in table.column_names[:-1]:
        assert table[name].to_pylist() == [getattr(row, name) for row in stored]
    embeddings = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(embeddings, np.stack([row.embedding for row in stored]))
    assert table.schema.field("embedding").type.list_size == D
    assert seen[-1] == (31, 31)
    assert len(seen) == -(-31 // row_group)
    assert parquet.ParquetFile(out).num_row_groups == len(seen)


def test_one_version_or_device_can_be_exported(store_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.parquet"
    assert export_parquet(store_path, out, version="v2") == 10
    assert set(parquet.read_table(out)["version"].to_pylist()) == {"v2"}
    assert export_parquet(store_path, out, version="v2", device="mac") == 5
    assert set(parquet.read_table(out)["device"].to_pylist()) == {"mac"}


def test_nothing_to_export_is_said_and_leaves_no_file(store_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.parquet"
    with pytest.raises(ConfigError, match="nothing to export of version 'v9' and device 'pi'"):
        export_parquet(store_path, out, version="v9", device="pi")
    assert not out.exists()


def test_embeddings_of_two_lengths_need_a_version_and_leave_the_old_file(
    store_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "x.parquet"
    export_parquet(store_path, out)
    before = out.read_bytes()
    with EmbeddingStore(store_path) as store:
        store.insert([window(99, version="large", dim=2 * D)])
    with pytest.raises(
        ConfigError, match=r"window 32 of large: expected an embedding of 16 numbers .* got 32"
    ):
        export_parquet(store_path, out)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.glob("*x.parquet*")] == ["x.parquet"]
    assert export_parquet(store_path, out, version="large") == 1


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such database"):
        export_parquet(tmp_path / "none.db", tmp_path / "x.parquet")


def test_a_full_disk_is_named_and_leaves_no_half_file(store_path: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kib=64) as disk:
        filler = fill(disk)
        with pytest.raises(StorageError, match=r"x\.parquet: cannot be written"):
            export_parquet(store_path, disk / "x.parquet")
        assert list(disk.iterdir()) == [filler]
