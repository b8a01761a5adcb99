"""One way to open an SQLite file, and one place where its failures become `StorageError`.

The server's store and the device's spool share the same three promises, and they are kept here: a write is one transaction that is
there whole or not at all, ``kill -9`` loses nothing that was committed, and a disk that is full, read-only, corrupt or locked says so
in one line that names the file.

Durability. "process" is the write-ahead log with ``synchronous=NORMAL``: it survives the death of the process at any instruction;
after a power cut the last commits before it may be missing (never half done). "power" is ``FULL``: it waits for the disk at every
commit and survives that too; on an SD card that costs milliseconds a commit instead of microseconds.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from streamsplit.errors import StorageError

BUSY_TIMEOUT_S = 5.0
"""How long a write waits for another connection's write before it is reported as locked."""

_WHAT = {
    sqlite3.SQLITE_FULL: "the disk is full",
    sqlite3.SQLITE_READONLY: "the disk or file is read-only",
    sqlite3.SQLITE_CORRUPT: "the file is corrupt",
    sqlite3.SQLITE_NOTADB: "the file is not a database",
    sqlite3.SQLITE_BUSY: "locked by another process",
    sqlite3.SQLITE_LOCKED: "locked by another process",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
    sqlite3.SQLITE_IOERR: "the disk reported an error",
    sqlite3.SQLITE_PERM: "no permission",
}


Durability = Literal["process", "power"]
"""What a commit outlives: the death of the process, or a power cut too."""

_SYNCHRONOUS: dict[Durability, str] = {"process": "NORMAL", "power": "FULL"}


class CorruptError(StorageError):
    """The file is there and is no database any more: its owner may move it aside."""


def storage_error(path: Path, doing: str, error: sqlite3.Error) -> StorageError:
    """The one-line error for a failed statement: ``out/store.db: cannot insert: the disk is full (SQLITE_FULL)``."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    what = _WHAT.get(primary, str(error)) if primary is not None else str(error)
    if primary == sqlite3.SQLITE_CANTOPEN and path.parent.is_dir() and not os.access(path.parent, os.W_OK):
        what = "its folder is read-only"
    kind = CorruptError if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else StorageError
    return kind(f"{path}: cannot {doing}: {what} ({name})")


def open_writer(path: Path, schema: str, version: int, durability: Durability) -> sqlite3.Connection:
    """Opens or makes a database for writing.

    The connection may be used from any thread, by one at a time: the owner holds a lock.

    Args:
        path: the file; missing folders are made.
        schema: statements that make an empty file into ours.
        version: number of that schema, kept in the file.
        durability: see the module's text.

    Raises:
        StorageError: the file cannot be opened or written, or was made by another version of the software.
        CorruptError: the file is no database.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot make its folder: {error.strerror}") from error
    try:
        connection = sqlite3.connect(path, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise storage_error(path, "open", error) from error
    try:
        _settle(connection, path, schema, version, durability)
    except sqlite3.Error as error:
        connection.close()
        raise storage_error(path, "open", error) from error
    except StorageError:
        connection.close()
        raise
    return connection


def open_reader(path: Path, version: int) -> sqlite3.Connection:
    """Opens an existing database for reading only; a writer elsewhere goes on undisturbed.

    Raises:
        StorageError: it is not there, not readable, or of another schema version.
    """
    if not path.is_file():
        raise StorageError(f"{path}: no such database")
    uri = f"{path.absolute().as_uri()}?mode=ro"
    try:
        return _read(uri, path, version)
    except StorageError:
        # On a read-only disk SQLite cannot make its shared-memory file. Without a log nobody is writing, so none is needed.
        if path.with_name(path.name + "-wal").exists() or path.stat().st_size == 0:
            raise
    return _read(f"{uri}&immutable=1", path, version)


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path, doing: str) -> Iterator[sqlite3.Connection]:
    """All statements inside are committed together, or none of them is.

    Raises:
        StorageError: with `doing` in its message; nothing was written, and later transactions work again once the cause is gone.
    """
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise storage_error(path, doing, error) from error


def _read(uri: str, path: Path, version: int) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(
            uri, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, uri=True
        )
    except sqlite3.Error as error:
        raise storage_error(path, "read", error) from error
    try:
        _check_version(connection, path, version)
    except sqlite3.Error as error:
        connection.close()
        raise storage_error(path, "read", error) from error
    except StorageError:
        connection.close()
        raise
    return connection


def _settle(
    connection: sqlite3.Connection, path: Path, schema: str, version: int, durability: Durability
) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={_SYNCHRONOUS[durability]}")
    # The log would otherwise keep its largest size for ever.
    connection.execute(f"PRAGMA journal_size_limit={4 << 20}")
    if connection.execute("SELECT COUNT(*) FROM sqlite_schema").fetchone()[0] == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {schema}; PRAGMA user_version={version}; COMMIT")
    _check_version(connection, path, version)


def _check_version(connection: sqlite3.Connection, path: Path, version: int) -> None:
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found != version:
        raise StorageError(
            f"{path}: expected schema version {version}, got {found}: made by other software or another release"
        )
