"""The server's store of embeddings: each window once, committed before it is acknowledged.

SQLite with a write-ahead log. One connection writes, behind a lock; readers have their own, read-only, and never wait for the writer
(nor it for them): searching and exporting go on while windows come in, in this process or another.

Device and stream names are kept once, in `streams`; the view `windows` puts them back for people and SQL tools.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from streamsplit.database import Durability, open_reader, open_writer, storage_error, transaction
from streamsplit.errors import StorageError
from streamsplit.server.store_rows import (
    COLUMNS,
    INSERT,
    SCHEMA,
    SCHEMA_VERSION,
    StoredWindow,
    Vectors,
    row_values,
    window_of,
)

__all__ = ["EmbeddingStore", "Ids", "StoredWindow", "StreamInfo", "Vectors"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What the store knows of a stream: its device, name, rate and the device's wall clock at sample 0."""

    device: str
    stream: str
    sample_rate_hz: int
    started_unix_ms: int
    windows: int


class EmbeddingStore:
    """Embeddings on disk.

    Any thread may call any method. Closing it checkpoints the log into the one file.

    Args:
        path: the database file; made when missing, unless `read_only`.
        durability: "process" survives ``kill -9``, "power" a power cut too.
        read_only: for searching and exporting beside a running server.

    Raises:
        StorageError: the file cannot be opened, is corrupt or of another schema version.
    """

    def __init__(self, path: Path, durability: Durability = "process", read_only: bool = False) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._stream_ids: dict[tuple[str, str], int] = {}
        self._readers: list[sqlite3.Connection] = []
        self._closed = False
        self._writer: sqlite3.Connection | None = None
        if read_only:
            self._readers.append(open_reader(self.path, SCHEMA_VERSION))
        else:
            self._writer = open_writer(self.path, SCHEMA, SCHEMA_VERSION, durability)

    def insert(self, rows: Sequence[StoredWindow]) -> list[bool]:
        """Commits windows in one transaction: all that are new, or on failure none.

        Returns:
            Per row, in order: True when it was stored, False when its key was there already (the first one stays).

        Raises:
            ValueError: an embedding is not a finite vector; nothing was stored.
            StorageError: the disk is full, read-only, ...; nothing was stored, and a later insert may work.
        """
        ready = [row_values(row) for row in rows]
        with self._lock:
            if self._writer is None:
                raise StorageError(f"{self.path}: cannot insert: opened for reading only or closed")
            new_streams: dict[tuple[str, str], int] = {}
            with transaction(self._writer, self.path, "insert") as connection:
                stored = [
                    connection.execute(
                        INSERT, (self._stream_id(connection, row, new_streams), *value)
                    ).rowcount
                    == 1
                    for row, value in zip(rows, ready, strict=True)
                ]
            self._stream_ids.update(new_streams)  # only now are they in the file
        return stored

    def count(self, device: str | None = None, stream: str | None = None, version: str | None = None) -> int:
        """Stored windows, of one device, stream or encoder version if named."""
        where, values = _where(device=device, stream=stream, version=version)
        table = "windows" if where else "embeddings"
        return int(self._fetch(f"SELECT COUNT(*) FROM {table}{where}", values)[0][0])

    def get(self, id: int) -> StoredWindow | None:
        """The window with this number, if there is one."""
        found = self._fetch(f"SELECT {COLUMNS} FROM windows WHERE id = ?", (id,))
        return window_of(found[0]) if found else None

    def iterate(
        self,
        version: str | None = None,
        device: str | None = None,
        stream: str | None = None,
        after: int = 0,
        batch: int = 4096,
    ) -> Iterator[StoredWindow]:
        """Windows in order of arrival numbered above `after`, `batch` read at a time; those that arrive meanwhile are included."""
        where, values = _where(device=device, stream=stream, version=version)
        condition = f"{where} AND id > ?" if where else " WHERE id > ?"
        while True:
            # A new statement per batch: one that stayed open would keep the log from being checkpointed.
            rows = self._fetch(
                f"SELECT {COLUMNS} FROM windows{condition} ORDER BY id LIMIT ?", (*values, after, batch)
            )
            yield from map(window_of, rows)
            if len(rows) < batch:
                return
            after = rows[-1][0]

    def vectors(self, version: str, after: int = 0) -> tuple[Ids, Vectors]:
        """Every embedding of one encoder version, for exact search.

        Args:
            version: encoder version; embeddings of two versions do not compare.
            after: only windows with a larger number: what came since the last call.

        Returns:
            ids [N] int64 increasing, Z [N, D] float32; [0] and [0, 0] when there are none.

        Raises:
            StorageError: also when one version's embeddings differ in length.
        """
        rows = self._fetch(
            "SELECT id, embedding FROM embeddings WHERE version = ? AND id > ? ORDER BY id", (version, after)
        )
        if not rows:
            return np.empty(0, np.int64), np.empty((0, 0), np.float32)
        size = len(rows[0][1])
        for id, blob in rows:
            if len(blob) != size:
                raise StorageError(
                    f"{self.path}: window {id}: expected an embedding of {size} bytes, got {len(blob)}"
                )
        vectors = np.frombuffer(b"".join(blob for _, blob in rows), "<f4").reshape(len(rows), -1)
        return np.fromiter((id for id, _ in rows), np.int64, len(rows)), vectors.astype(
            np.float32, copy=False
        )

    def origins(self, version: str) -> tuple[Ids, list[str]]:
        """Where each embedding of a version came from: ids [N] increasing and its source, or "device/stream" without one."""
        rows = self._fetch(
            "SELECT id, COALESCE(source, device || '/' || stream) FROM windows WHERE version = ? ORDER BY id",
            (version,),
        )
        return np.fromiter((id for id, _ in rows), np.int64, len(rows)), [origin for _, origin in rows]

    def versions(self) -> dict[str, int]:
        """Encoder versions that have embeddings, and how many."""
        return dict(
            self._fetch("SELECT version, COUNT(*) FROM embeddings GROUP BY version ORDER BY version", ())
        )

    def streams(self) -> list[StreamInfo]:
        """Every stream, in order of its first window."""
        rows = self._fetch(
            "SELECT device, stream, sample_rate_hz, started_unix_ms, "
            "(SELECT COUNT(*) FROM embeddings e WHERE e.stream_id = s.id) FROM streams s ORDER BY id",
            (),
        )
        return [StreamInfo(*row) for row in rows]

    def ids(self, device: str, stream: str) -> Ids:
        """Numbers of one stream's windows, increasing: [N] int64."""
        rows = self._fetch(
            "SELECT id FROM windows WHERE device = ? AND stream = ? ORDER BY id", (device, stream)
        )
        return np.fromiter((row[0] for row in rows), np.int64, len(rows))

    def close(self) -> None:
        """Closes every connection; the log is written back into the file. A second call does nothing."""
        with self._lock:
            self._closed = True
            for reader in self._readers:
                reader.close()
            self._readers.clear()
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def __enter__(self) -> EmbeddingStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stream_id(
        self, connection: sqlite3.Connection, row: StoredWindow, new: dict[tuple[str, str], int]
    ) -> int:
        key = row.device, row.stream
        known = self._stream_ids.get(key) or new.get(key)
        if known is not None:
            return known
        connection.execute(
            "INSERT INTO streams(device, stream, sample_rate_hz, started_unix_ms) VALUES (?, ?, ?, ?) "
            "ON CONFLICT(device, stream) DO NOTHING",
            (*key, row.sample_rate_hz, row.started_unix_ms),
        )
        found = connection.execute("SELECT id FROM streams WHERE device = ? AND stream = ?", key).fetchone()
        new[key] = int(found[0])
        return new[key]

    def _fetch(self, query: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        with self._reader() as connection:
            try:
                return connection.execute(query, tuple(values)).fetchall()
            except sqlite3.Error as error:
                raise storage_error(self.path, "read", error) from error

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._closed:
                raise StorageError(f"{self.path}: cannot read: closed")
            connection = self._readers.pop() if self._readers else None
        if connection is None:
            connection = open_reader(self.path, SCHEMA_VERSION)
        try:
            yield connection
        finally:
            self._give_back(connection)

    def _give_back(self, reader: sqlite3.Connection) -> None:
        with self._lock:
            if self._closed:
                reader.close()
            else:
                self._readers.append(reader)


def _where(**conditions: str | None) -> tuple[str, tuple[str, ...]]:
    asked = {column: value for column, value in conditions.items() if value is not None}
    if not asked:
        return "", ()
    return " WHERE " + " AND ".join(f"{column} = ?" for column in asked), tuple(asked.values())
