"""The device's spool: windows that the server has not acknowledged yet, kept over crashes and outages.

A window is put here, in one transaction with its stream's cursor, before any answer to it counts; it leaves when the server has
acknowledged it. So after ``kill -9`` the device knows which sequence number and sample come next, and which windows to send again.
The stated loss window is the one window being processed: what `put` has returned from is safe from the death of the process (and with
durability "power" from a power cut; with "process" a power cut may cost the last seconds).

The spool is bounded in bytes. When a new window does not fit, the oldest go: they are returned to the caller for its journal, and
counted in `dropped`, which outlives restarts.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from streamsplit.client.spool_file import lock_out_others, open_or_begin
from streamsplit.client.spool_rows import (
    COLUMNS,
    FORGET_STREAMS,
    INSERT,
    REPLACE,
    SCHEMA,
    SCHEMA_VERSION,
    row_of,
    step_of,
)
from streamsplit.client.step import Step
from streamsplit.database import Durability, storage_error, transaction
from streamsplit.errors import ConfigError

Key = tuple[str, int]

MOST_PAST_STREAMS = 1000
"""Streams without a window here that are remembered, so that a replay can be gone on with."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a stream goes on after a restart.

    Attributes:
        next_sequence: of the next window.
        next_sample: its first sample on the stream's clock.
        extra: anything else the source needs to go on, made of plain JSON types: recording number, offset, ...
    """

    next_sequence: int
    next_sample: int
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SpooledStream:
    """What the server must be told of a stream before its windows, however old: wall clock at sample 0, and rate."""

    stream: str
    started_unix_ms: int
    sample_rate_hz: int


class Spool:
    """Unacknowledged windows on disk, oldest first.

    Any thread may call any method. `Step.captured_s` comes back as it was within this opening, and as 0 after a restart. One process at a time: a lock file beside the database holds its process id.

    Args:
        path: the database file; made when missing. A corrupt one is moved aside to ``<name>.corrupt-N`` and a new one begun.
        max_bytes: bound on what is kept; reaching it drops the oldest windows.
        durability: "process" survives ``kill -9``, "power" a power cut too.

    Raises:
        ConfigError: another process has this spool open, or `max_bytes` is not positive.
        StorageError: the file cannot be opened or written.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        durability: Durability = "process",
    ) -> None:
        if max_bytes <= 0:
            raise ConfigError(f"spool: max_bytes must be positive, got {max_bytes}")
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._lock_file = lock_out_others(self.path)
        try:
            self._connection = open_or_begin(self.path, SCHEMA, SCHEMA_VERSION, durability)
            self._opening = self._begin()
            self._windows, self._bytes, self._payload_bytes, self._dropped = self._count()
            # Numbers only grow while the spool is open, so `pending(after)` never misses one; SQLite's AUTOINCREMENT would write a
            # second table at every put for that.
            self._next_id: int = 1 + self._fetch("SELECT COALESCE(MAX(id), 0) FROM windows", ())[0][0]
        except BaseException:
            os.close(self._lock_file)
            raise
        self._closed = False

    @property
    def windows(self) -> int:
        """Windows waiting for their acknowledgement."""
        return self._windows

    @property
    def next_row(self) -> int:
        """The number `pending` will give the next window that is put here."""
        return self._next_id

    @property
    def bytes(self) -> int:
        """Their bytes: payload, features, decision and a fixed overhead each."""
        return self._bytes

    @property
    def payload_bytes(self) -> int:
        """Of them what goes over the wire: payloads alone."""
        return self._payload_bytes

    @property
    def dropped(self) -> int:
        """Windows dropped for room since the spool was made, restarts included."""
        return self._dropped

    def open_stream(self, stream: str, started_unix_ms: int, sample_rate_hz: int) -> SpooledStream:
        """Records a stream before its first window; one that is known keeps what it said first.

        Raises:
            ConfigError: the known stream has another sample rate: its clock would mean something else.
            StorageError: it could not be written.
        """
        with self._lock, transaction(self._connection, self.path, "record a stream") as connection:
            connection.execute(
                "INSERT INTO streams(stream, started_unix_ms, sample_rate_hz) VALUES (?, ?, ?) ON CONFLICT(stream) DO NOTHING",
                (stream, started_unix_ms, sample_rate_hz),
            )
            row = connection.execute(
                "SELECT stream, started_unix_ms, sample_rate_hz FROM streams WHERE stream = ?", (stream,)
            ).fetchone()
        known = SpooledStream(*row)
        if known.sample_rate_hz != sample_rate_hz:
            raise ConfigError(
                f"stream {stream}: expected {known.sample_rate_hz} Hz as before, got {sample_rate_hz} Hz"
            )
        return known

    def streams(self) -> dict[str, SpooledStream]:
        """Every stream recorded here, by name."""
        rows = self._fetch(
            "SELECT stream, started_unix_ms, sample_rate_hz FROM streams ORDER BY started_unix_ms, stream", ()
        )
        return {row[0]: SpooledStream(*row) for row in rows}

    def stream(self, name: str) -> SpooledStream:
        """One stream as it was recorded.

        Raises:
            ValueError: it never was.
        """
        rows = self._fetch(
            "SELECT stream, started_unix_ms, sample_rate_hz FROM streams WHERE stream = ?", (name,)
        )
        if not rows:
            raise ValueError(f"stream {name}: expected one that open_stream recorded")
        return SpooledStream(*rows[0])

    def versions(self) -> list[str]:
        """The encoder versions of the windows that wait, most windows first."""
        rows = self._fetch("SELECT version FROM windows GROUP BY version ORDER BY COUNT(*) DESC, version", ())
        return [row[0] for row in rows]

    def put(self, step: Step, cursor: Cursor | None = None) -> list[Key]:
        """Keeps a window, and its stream's cursor with it.

        Args:
            step: a window of a stream that `open_stream` has recorded, not in the spool yet.
            cursor: where the stream goes on after it.

        Returns:
            Keys of the windows dropped to make room, oldest first; the window's own key when it alone exceeds the bound.

        Raises:
            ValueError: the window is in the spool already, or its stream is not recorded.
            StorageError: nothing was written; the next `put` may work.
        """
        values, size = row_of(step, self._opening)
        with self._lock:
            with transaction(self._connection, self.path, "keep a window") as connection:
                dropped, freed, freed_payload = self._make_room(connection, size)
                fits = size <= self.max_bytes
                if fits:
                    try:
                        connection.execute(INSERT, (self._next_id, *values))
                    except sqlite3.IntegrityError as error:
                        raise ValueError(
                            f"window {step.stream}/{step.sequence}: already in the spool"
                        ) from error
                else:
                    dropped.append(step.key)
                if cursor is not None:
                    self._write_cursor(connection, step.stream, cursor)
                if dropped:
                    connection.execute(
                        "UPDATE counters SET value = value + ? WHERE name = 'dropped'", (len(dropped),)
                    )
            self._windows += fits - len(dropped) + (not fits)
            self._bytes += size * fits - freed
            self._payload_bytes += len(step.payload) * fits - freed_payload
            self._next_id += 1
            self._dropped += len(dropped)
        return dropped

    def advance(self, stream: str, cursor: Cursor) -> None:
        """Moves a stream's cursor without a window: over a gap, or past a recording that was skipped."""
        with self._lock, transaction(self._connection, self.path, "move a cursor") as connection:
            self._write_cursor(connection, stream, cursor)

    def cursor(self, stream: str) -> Cursor | None:
        """Where a stream goes on; None when it is unknown or has no cursor yet."""
        rows = self._fetch(
            "SELECT next_sequence, next_sample, extra FROM streams WHERE stream = ?", (stream,)
        )
        if not rows or rows[0][0] is None:
            return None
        return Cursor(rows[0][0], rows[0][1], json.loads(rows[0][2]))

    def pending(self, after: int = 0, limit: int = 64) -> list[tuple[int, Step]]:
        """The oldest windows in order of arrival, each with its number; only numbers above `after`."""
        rows = self._fetch(f"SELECT {COLUMNS} FROM windows WHERE id > ? ORDER BY id LIMIT ?", (after, limit))
        return [(row[0], step_of(row, self._opening)) for row in rows]

    def first_but(self, split: int, after: int, but: Collection[int]) -> tuple[int, Step] | None:
        """The oldest window of another split than this one, with its number: above `after`, and none of `but`."""
        left_out = ",".join(map(str, but))
        rows = self._fetch(
            f"SELECT {COLUMNS} FROM windows WHERE id > ? AND split != ? AND id NOT IN ({left_out}) ORDER BY id LIMIT 1",
            (after, split),
        )
        return (rows[0][0], step_of(rows[0], self._opening)) if rows else None

    def acknowledge(self, keys: Iterable[Key]) -> int:
        """Lets go of windows the server has committed (or refused for good); unknown keys are ignored.

        Returns:
            How many were here.
        """
        removed = freed = freed_payload = 0
        with self._lock:
            with transaction(self._connection, self.path, "let go of windows") as connection:
                for key in keys:
                    row = connection.execute(
                        "DELETE FROM windows WHERE stream = ? AND sequence = ? RETURNING bytes, LENGTH(payload)",
                        key,
                    ).fetchone()
                    if row is not None:
                        removed += 1
                        freed += row[0]
                        freed_payload += row[1]
            self._windows -= removed
            self._bytes -= freed
            self._payload_bytes -= freed_payload
        return removed

    def replace(self, key: Key, step: Step) -> bool:
        """Puts another payload in a waiting window's place, e.g. its features because its version is gone.

        The window keeps its number. The bound is not enforced here: the next `put` does.

        Returns:
            False when it is not in the spool (acknowledged or dropped meanwhile).
        """
        if step.key != key:
            raise ValueError(f"replace {key}: expected the same window, got {step.key}")
        values, size = row_of(step, self._opening)
        with self._lock:
            with transaction(self._connection, self.path, "replace a window") as connection:
                row = connection.execute(
                    "SELECT id, bytes, LENGTH(payload) FROM windows WHERE stream = ? AND sequence = ?", key
                ).fetchone()
                if row is not None:
                    connection.execute(REPLACE, (row[0], *values))
            if row is None:
                return False
            self._bytes += size - row[1]
            self._payload_bytes += len(step.payload) - row[2]
        return True

    def close(self) -> None:
        """Closes the database and lets another process have it. A second call does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._connection.close()
                os.close(self._lock_file)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> int:
        """A number for this opening: times on the monotonic clock of another one mean nothing. Streams long past are forgotten."""
        with transaction(self._connection, self.path, "open") as connection:
            connection.execute(FORGET_STREAMS, (MOST_PAST_STREAMS,))
            connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'openings'")
            return int(connection.execute("SELECT value FROM counters WHERE name = 'openings'").fetchone()[0])

    def _count(self) -> tuple[int, int, int, int]:
        windows, size, payload = self._fetch(
            "SELECT COUNT(*), COALESCE(SUM(bytes), 0), COALESCE(SUM(LENGTH(payload)), 0) FROM windows", ()
        )[0]
        return (
            windows,
            size,
            payload,
            self._fetch("SELECT value FROM counters WHERE name = 'dropped'", ())[0][0],
        )

    def _make_room(self, connection: sqlite3.Connection, size: int) -> tuple[list[Key], int, int]:
        """Windows dropped, and the bytes and payload bytes that this gave back."""
        dropped: list[Key] = []
        freed = freed_payload = 0
        if size > self.max_bytes:  # it can never fit: emptying the spool for it would help nobody
            return dropped, freed, freed_payload
        while self._bytes - freed + size > self.max_bytes and len(dropped) < self._windows:
            row = connection.execute(
                "DELETE FROM windows WHERE id = (SELECT MIN(id) FROM windows) RETURNING stream, sequence, bytes, LENGTH(payload)"
            ).fetchone()
            dropped.append((row[0], row[1]))
            freed += row[2]
            freed_payload += row[3]
        return dropped, freed, freed_payload

    def _write_cursor(self, connection: sqlite3.Connection, stream: str, cursor: Cursor) -> None:
        changed = connection.execute(
            "UPDATE streams SET next_sequence = ?, next_sample = ?, extra = ? WHERE stream = ?",
            (cursor.next_sequence, cursor.next_sample, json.dumps(cursor.extra), stream),
        ).rowcount
        if changed == 0:
            raise ValueError(f"stream {stream}: expected open_stream before its first window")

    def _fetch(self, query: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._connection.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise storage_error(self.path, "read", error) from error
