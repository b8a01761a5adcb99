"""Windows on disk to learn from again: a ring bounded in bytes, in one SQLite file.

The server's storage writes it and the refiner's process reads it, at the same time. A batch that `add` has returned from survives
`kill -9`; after a power cut the last ones may be missing, never half there (`database`, "process"). Nothing here is the only copy of
anything a user asked for, so the oldest rows go when it is full, counted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from streamsplit.database import open_reader, open_writer, storage_error, transaction
from streamsplit.errors import ConfigError
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.wire.codec import Codec

FEWEST_BYTES = 1 << 16
ROW_OVERHEAD_BYTES = 224
"""What a window costs on disk beside its payload: names, numbers, two index entries (measured 80 to 220 bytes below 1 KB, 260 at 6)."""
TRIES = 20
"""Draws per window asked for, before `sample` returns fewer: rows of versions not wanted cost a draw."""

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE windows(
    id INTEGER PRIMARY KEY,
    device TEXT NOT NULL,
    stream TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    start_s REAL NOT NULL,
    version TEXT NOT NULL,
    split INTEGER NOT NULL,
    codec TEXT NOT NULL,
    payload BLOB NOT NULL,
    UNIQUE(device, stream, sequence)
);
CREATE INDEX in_time ON windows(device, stream, start_s);
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('bytes', 0), ('dropped', 0)
"""
_COLUMNS = "id, device, stream, sequence, start_s, version, split, codec, payload"
_INSERT = f"INSERT INTO windows({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_KNOWN = "SELECT 1 FROM windows WHERE device = ? AND stream = ? AND sequence = ?"


class ReplayReader:
    """The ring as another process reads it. For one thread at a time.

    Raises:
        StorageError: the file is missing, unreadable or of another schema.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = self._opened()

    def _opened(self) -> sqlite3.Connection:
        return open_reader(self.path, SCHEMA_VERSION)

    def __len__(self) -> int:
        first, last = self._span()
        return last - first + 1

    @property
    def stored_bytes(self) -> int:
        """Bytes the windows count for, `ROW_OVERHEAD_BYTES` each included."""
        return self._counter("bytes")

    @property
    def dropped(self) -> int:
        """Windows that gave way to later ones, ever."""
        return self._counter("dropped")

    def sample(
        self, count: int, generator: torch.Generator, versions: Collection[str] | None = None
    ) -> list[BufferedWindow]:
        """Different windows, each of those here as likely as any other.

        Args:
            count: how many.
            generator: the chance; the same state and ring give the same windows.
            versions: only windows packed by one of these; None for all.

        Returns:
            Up to `count`; fewer where fewer are here, or where so few are of these versions that `TRIES` draws each did not find them.
        """
        first, last = self._span()
        size = last - first + 1
        found: list[BufferedWindow] = []
        seen: set[int] = set()
        for _ in range(TRIES):
            missing = min(count, size) - len(found)
            if missing <= 0:
                break
            draws = self._draw(first, size, missing, seen, generator)
            seen.update(draws)
            found += [
                window for window in self._rows(draws) if versions is None or window.version in versions
            ]
        return found

    def near(self, window: BufferedWindow, within_s: float) -> list[BufferedWindow]:
        """Other windows of its stream that begin at most `within_s` before or after it, earliest first."""
        rows = self._fetch(
            f"SELECT {_COLUMNS} FROM windows WHERE device = ? AND stream = ? AND start_s BETWEEN ? AND ? ORDER BY start_s, sequence",
            (window.device, window.stream, window.start_s - within_s, window.start_s + within_s),
        )
        return [other for other in map(_window, rows) if other.key != window.key]

    def run(self, device: str, stream: str, first: int, count: int) -> list[BufferedWindow]:
        """Those of a stream's windows first, first + 1, ..., `count` of them, that are here, in order."""
        rows = self._fetch(
            f"SELECT {_COLUMNS} FROM windows WHERE device = ? AND stream = ? AND sequence BETWEEN ? AND ? ORDER BY sequence",
            (device, stream, first, first + count - 1),
        )
        return [_window(row) for row in rows]

    def newest(self, count: int) -> list[BufferedWindow]:
        """The `count` windows that arrived last, in order of arrival: fills a `TemporalBuffer` after a restart."""
        rows = self._fetch(f"SELECT {_COLUMNS} FROM windows ORDER BY id DESC LIMIT ?", (max(0, count),))
        return [_window(row) for row in reversed(rows)]

    def close(self) -> None:
        """Lets go of the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _span(self) -> tuple[int, int]:
        """First and last number. They have no holes: rows come at the end and go at the beginning."""
        ((first, last),) = self._fetch("SELECT (SELECT MIN(id) FROM windows), (SELECT MAX(id) FROM windows)")
        return (1, 0) if first is None else (int(first), int(last))

    def _draw(
        self, first: int, size: int, missing: int, seen: Collection[int], generator: torch.Generator
    ) -> list[int]:
        """Up to `missing` numbers not seen yet, in the order drawn."""
        if missing + len(seen) > size // 2:  # chance would hit what it has seen too often
            shuffled = torch.randperm(size, generator=generator, device=generator.device).tolist()
        else:
            shuffled = torch.randint(size, (missing,), generator=generator, device=generator.device).tolist()
        fresh = dict.fromkeys(first + place for place in shuffled)
        return [number for number in fresh if number not in seen][:missing]

    def _rows(self, numbers: Sequence[int]) -> list[BufferedWindow]:
        """Those still there, in the order asked for: the writer may have dropped some meanwhile."""
        found: dict[int, BufferedWindow] = {}
        for begin in range(0, len(numbers), 500):  # SQLite bounds the variables of a statement
            part = numbers[begin : begin + 500]
            marks = ", ".join("?" * len(part))
            rows = self._fetch(f"SELECT {_COLUMNS} FROM windows WHERE id IN ({marks})", part)
            found.update((int(row[0]), _window(row)) for row in rows)
        return [found[number] for number in numbers if number in found]

    def _counter(self, name: str) -> int:
        return int(self._fetch("SELECT value FROM counters WHERE name = ?", (name,))[0][0])

    def _fetch(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, tuple(values)).fetchall()
        except sqlite3.Error as error:
            raise storage_error(self.path, "read", error) from error


class FeatureReplay(ReplayReader):
    """The ring as its one writer has it.

    Args:
        path: the file; made with its folders where it is missing.
        most_bytes: bound on `stored_bytes`. The file itself stays within about a fifth more, and 4 MiB of log.

    Raises:
        ConfigError: a bound below 64 KiB.
        StorageError: the file cannot be opened or written.
    """

    def __init__(self, path: Path, most_bytes: int = 256 << 20) -> None:
        if most_bytes < FEWEST_BYTES:
            raise ConfigError(f"replay: expected {FEWEST_BYTES} bytes or more, got {most_bytes}")
        self.most_bytes = most_bytes
        super().__init__(path)

    def _opened(self) -> sqlite3.Connection:
        return open_writer(self.path, SCHEMA, SCHEMA_VERSION, "process")

    def add(self, windows: Sequence[BufferedWindow]) -> int:
        """Keeps windows, in one transaction; their embeddings are not kept, for they can be made again.

        Returns:
            How many were new: a (device, stream, sequence) is kept once, as it first came.

        Raises:
            StorageError: none of them was kept.
        """
        new = 0
        with transaction(self._connection, self.path, "add windows") as connection:
            for window in windows:
                if connection.execute(_KNOWN, window.key).fetchone() is not None:
                    continue
                connection.execute(_INSERT, _row(window))
                _count(connection, "bytes", _bytes(len(window.payload)))
                new += 1
            self._make_room(connection)
        return new

    def _make_room(self, connection: sqlite3.Connection) -> None:
        """Drops the oldest until the bound holds; the newest always stays."""
        excess = self.stored_bytes - self.most_bytes
        if excess <= 0:
            return
        newest = self._span()[1]
        last, freed, dropped = 0, 0, 0
        for number, size in connection.execute("SELECT id, LENGTH(payload) FROM windows ORDER BY id"):
            if freed >= excess or number == newest:
                break
            last, freed, dropped = int(number), freed + _bytes(int(size)), dropped + 1
        connection.execute("DELETE FROM windows WHERE id <= ?", (last,))
        _count(connection, "bytes", -freed)
        _count(connection, "dropped", dropped)


def _bytes(payload: int) -> int:
    return payload + ROW_OVERHEAD_BYTES


def _count(connection: sqlite3.Connection, name: str, by: int) -> None:
    connection.execute("UPDATE counters SET value = value + ? WHERE name = ?", (by, name))


def _row(window: BufferedWindow) -> tuple[object, ...]:
    """As `_INSERT` takes it: without a number, SQLite gives it the one after the last."""
    return (
        None,
        *window.key,
        window.start_s,
        window.version,
        window.split,
        str(window.codec),
        window.payload,
    )


def _window(row: tuple[Any, ...]) -> BufferedWindow:
    _, device, stream, sequence, start_s, version, split, codec, payload = row
    return BufferedWindow(device, stream, sequence, start_s, version, split, Codec(codec), payload)
