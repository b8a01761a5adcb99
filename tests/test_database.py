from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from streamsplit.database import open_reader, open_writer, transaction
from streamsplit.errors import StorageError

SCHEMA = "CREATE TABLE numbers(n INTEGER PRIMARY KEY)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


def numbers(connection: sqlite3.Connection) -> list[int]:
    return [row[0] for row in connection.execute("SELECT n FROM numbers ORDER BY n")]


def insert_three(connection: sqlite3.Connection, path: Path, third: int) -> None:
    with transaction(connection, path, "count"):
        for n in (1, 2, third):
            connection.execute("INSERT INTO numbers VALUES (?)", (n,))


def test_a_transaction_is_there_whole_or_not_at_all(path: Path) -> None:
    connection = open_writer(path, SCHEMA, 7, "process")
    with pytest.raises(StorageError, match=r"x\.db: cannot count: .*SQLITE_CONSTRAINT"):
        insert_three(connection, path, third=2)
    assert numbers(connection) == []
    insert_three(connection, path, third=3)
    assert numbers(connection) == [1, 2, 3]
    connection.close()


def test_an_exception_of_the_caller_undoes_the_transaction_and_passes_through(path: Path) -> None:
    connection = open_writer(path, SCHEMA, 7, "process")

    def change_of_mind() -> None:
        with transaction(connection, path, "count"):
            connection.execute("INSERT INTO numbers VALUES (1)")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        change_of_mind()
    assert numbers(connection) == []
    connection.close()


def test_a_lock_held_elsewhere_is_reported_and_survived(path: Path) -> None:
    connection = open_writer(path, SCHEMA, 7, "process")
    connection.execute("PRAGMA busy_timeout=10")
    other = open_writer(path, SCHEMA, 7, "process")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageError, match="cannot count: locked by another process"):
        insert_three(connection, path, third=3)
    other.execute("ROLLBACK")
    other.close()
    insert_three(connection, path, third=3)
    connection.close()


@pytest.mark.parametrize(("durability", "level"), [("process", 1), ("power", 2)])
def test_durability_is_what_sqlite_is_told(path: Path, durability: str, level: int) -> None:
    connection = open_writer(path, SCHEMA, 7, durability)  # type: ignore[arg-type]
    assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_reader_cannot_write_and_sees_what_is_committed_later(path: Path) -> None:
    writer = open_writer(path, SCHEMA, 7, "process")
    reader = open_reader(path, 7)
    insert_three(writer, path, third=3)
    assert numbers(reader) == [1, 2, 3]
    with pytest.raises(StorageError, match="cannot count: the disk or file is read-only"):
        insert_three(reader, path, third=3)
    reader.close()
    writer.close()


def test_an_empty_file_is_no_database_to_a_reader(path: Path) -> None:
    path.touch()
    with pytest.raises(StorageError, match="expected schema version 7, got 0"):
        open_reader(path, 7)
