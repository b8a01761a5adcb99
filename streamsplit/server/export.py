"""Stored embeddings to Parquet: for pandas, Polars, DuckDB, Spark. Needs pyarrow (extras `server` or `train`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from streamsplit.errors import ConfigError
from streamsplit.server.store import EmbeddingStore, StoredWindow
from streamsplit.whole_file import make_folder, whole

ROW_GROUP = 16384
"""Windows held in memory and written at once: about 10 MiB at D = 128."""

_TEXT = ("device", "stream", "version", "codec", "computed_on", "source", "label")
_WHOLE = (
    "id",
    "sequence",
    "start_sample",
    "sample_rate_hz",
    "started_unix_ms",
    "received_unix_ms",
    "split",
    "payload_bytes",
)
_REAL = ("start_s", "uncertainty", "level_dbfs")


def export_parquet(
    store_path: Path,
    out: Path,
    version: str | None = None,
    device: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    row_group: int = ROW_GROUP,
) -> int:
    """Writes windows, in order of arrival, with their embeddings as a fixed-size list of float32.

    The file appears whole under its name or not at all; a server may go on writing to the store meanwhile.

    Args:
        store_path: the server's database.
        out: the file to write; replaced if it is there.
        version: only this encoder version; needed where the store holds embeddings of several lengths.
        device: only this device.
        progress: called with (windows written, windows in all) after each row group.
        row_group: windows per row group.

    Returns:
        How many windows were written.

    Raises:
        ConfigError: pyarrow is missing, nothing matches, or embeddings differ in length.
        StorageError: the store cannot be read, or the file cannot be written.
    """
    pyarrow, parquet = _pyarrow()
    out = Path(out)
    with EmbeddingStore(store_path, read_only=True) as store:
        total = store.count(device=device, version=version)
        windows = store.iterate(version=version, device=device)
        first = next(windows, None)
        if first is None:
            asked = " and ".join(
                f"{name} {value!r}"
                for name, value in (("version", version), ("device", device))
                if value is not None
            )
            raise ConfigError(
                f"{store_path}: nothing to export" + (f" of {asked}" if asked else ": the store is empty")
            )
        dim = len(first.embedding)
        schema = _schema(pyarrow, dim)
        written = 0
        make_folder(out)
        with whole(out) as partial, parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
            for group in _groups(first, windows, row_group):
                writer.write_table(_table(pyarrow, schema, group, dim))
                written += len(group)
                progress(written, max(total, written))
    return written


def _groups(first: StoredWindow, rest: Iterator[StoredWindow], size: int) -> Iterator[list[StoredWindow]]:
    group = [first, *islice(rest, size - 1)]
    while group:
        yield group
        group = list(islice(rest, size))


def _schema(pyarrow: Any, dim: int) -> Any:
    fields = [
        *((name, pyarrow.int64()) for name in _WHOLE),
        *((name, pyarrow.string()) for name in _TEXT),
        *((name, pyarrow.float64()) for name in _REAL),
        ("embedding", pyarrow.list_(pyarrow.float32(), dim)),
    ]
    return pyarrow.schema(fields)


def _table(pyarrow: Any, schema: Any, windows: list[StoredWindow], dim: int) -> Any:
    for window in windows:
        if len(window.embedding) != dim:
            raise ConfigError(
                f"window {window.id} of {window.version}: expected an embedding of {dim} numbers as the first, got "
                f"{len(window.embedding)}: export one version at a time"
            )
    columns: dict[str, Any] = {
        name: [getattr(window, name) for window in windows] for name in (*_WHOLE, *_TEXT, *_REAL)
    }
    numbers = np.concatenate([window.embedding for window in windows])
    columns["embedding"] = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(numbers), dim)
    return pyarrow.table(columns, schema=schema)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"export needs the extra `server`: pip install 'streamsplit[server]' ({error.name} is missing)"
        ) from error
    return pyarrow, pyarrow.parquet
