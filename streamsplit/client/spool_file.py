"""The spool's file: one process at a time, and a corrupt file never keeps the device from starting."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from pathlib import Path

from streamsplit.database import CorruptError, Durability, open_writer, storage_error
from streamsplit.errors import ConfigError, StorageError

log = logging.getLogger(__name__)


def lock_out_others(path: Path) -> int:
    """An open file descriptor that holds the spool's lock; the system lets go of it when the process dies, however it dies.

    Raises:
        ConfigError: another process, named by its id, has the spool.
        StorageError: the lock file beside `path` cannot be written.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(f"{lock_path}: cannot lock the spool: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(descriptor)
        raise ConfigError(
            f"{path}: this spool is in use by process {holder}; stop it, or give this one another state folder"
        ) from None
    except OSError as error:
        os.close(descriptor)
        raise StorageError(f"{lock_path}: cannot lock the spool: {error.strerror}") from error
    return descriptor


def open_or_begin(path: Path, schema: str, version: int, durability: Durability) -> sqlite3.Connection:
    """Opens the spool for writing; a corrupt file is moved aside to ``<name>.corrupt-N``, with a WARNING, and a new one begun.

    Raises:
        StorageError: it cannot be opened or written, or other software made it.
    """
    try:
        return _checked(path, schema, version, durability)
    except CorruptError as error:
        aside = _move_aside(path)
        log.warning("%s; moved to %s and a new spool begun: what was in it is not sent", error, aside.name)
        return _checked(path, schema, version, durability)


def _checked(path: Path, schema: str, version: int, durability: Durability) -> sqlite3.Connection:
    connection = open_writer(path, schema, version, durability)
    try:
        verdict = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.Error as error:
        connection.close()
        raise storage_error(path, "open", error) from error
    if verdict != "ok":
        connection.close()
        raise CorruptError(f"{path}: cannot open: the file is corrupt ({verdict.splitlines()[0]})")
    return connection


def _move_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    try:
        os.replace(path, aside)
        for ending in ("-wal", "-shm"):
            beside = path.with_name(path.name + ending)
            if beside.exists():
                os.replace(beside, aside.with_name(aside.name + ending))
    except OSError as error:
        raise StorageError(f"{path}: is corrupt and cannot be moved aside: {error.strerror}") from error
    return aside
