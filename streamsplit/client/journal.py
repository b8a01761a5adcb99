"""The journal: one JSON line for every window that is done with, and for every gap, skip and stream.

A line is written when a window's fate is known: acknowledged, embedded here for good ("local"), dropped for room, or rejected.
Everything that differs between two runs of the same recording (times, loads, bytes on a socket) sits in the record's `measured`,
so that two replays can be compared without it; everything else is a pure function of recording, weights, settings and seed. Lines of
kind `signals` are not: a memory hears windows embedded here at once and others when their answers come, and says what it knew then.

The file is rotated by size: ``journal.jsonl`` is the newest, ``journal.jsonl.1`` the one before, and so on; the oldest beyond `keep`
goes. Each line reaches the operating system before `write` returns: ``kill -9`` tears at most the line being written, and a reader
drops a torn line and counts it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from streamsplit.errors import ConfigError, StorageError

log = logging.getLogger(__name__)


class Journal:
    """Appends records to a file, one JSON line each.

    Args:
        path: the file; made when missing, gone on with otherwise.
        max_bytes: rotate before a line would make the file larger than this; None: never.
        keep: rotated files kept beside the current one.

    Raises:
        ConfigError: a bound is not positive.
        StorageError: the file cannot be opened for appending.
    """

    def __init__(self, path: Path, max_bytes: int | None = None, keep: int = 3) -> None:
        if max_bytes is not None and max_bytes <= 0:
            raise ConfigError(f"journal: max_bytes must be positive, got {max_bytes}")
        if keep < 1:
            raise ConfigError(f"journal: keep must be at least 1, got {keep}")
        self.path = Path(path)
        self._max_bytes = max_bytes
        self._keep = keep
        self._descriptor, self._size, self._torn = self._open()
        self.records = 0

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends one record.

        Args:
            record: made of plain JSON types; NaN and infinity are not JSON.

        Raises:
            ValueError: the record is not JSON; nothing was written.
            StorageError: the disk is full, ... The line is lost; a later one may be written.
        """
        line = (
            json.dumps(record, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode("utf-8")
            + b"\n"
        )
        if self._max_bytes is not None and self._size > 0 and self._size + len(line) > self._max_bytes:
            self._rotate()
        if self._torn:  # what a full disk or a crash left of an earlier line must not swallow this one
            line = b"\n" + line
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise StorageError(f"{self.path}: cannot write the journal: {error.strerror}") from error
        self._size += written
        self._torn = written < len(line)
        if self._torn:
            raise StorageError(
                f"{self.path}: cannot write the journal: only {written} of {len(line)} bytes fitted"
            )
        self.records += 1

    def close(self) -> None:
        """Closes the file. A second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> tuple[int, int, bool]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        except OSError as error:
            raise StorageError(f"{self.path}: cannot open the journal: {error.strerror}") from error
        return descriptor, size, torn

    def _rotate(self) -> None:
        try:
            for number in range(self._keep - 1, 0, -1):
                older = _numbered(self.path, number)
                if older.exists():
                    os.replace(older, _numbered(self.path, number + 1))
            os.replace(self.path, _numbered(self.path, 1))
        except OSError as error:
            raise StorageError(f"{self.path}: cannot rotate the journal: {error.strerror}") from error
        previous = self._descriptor
        self._descriptor, self._size, self._torn = self._open()
        os.close(previous)


class JournalReader:
    """Reads a journal with its rotated files, oldest record first.

    Attributes:
        damaged: lines that were no JSON object (torn by a crash or a full disk): dropped, and counted while iterating.

    Raises:
        StorageError: while iterating, when there is no such journal or it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.damaged = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.damaged = 0
        files = [*reversed(_rotated(self.path)), self.path]
        if not any(file.is_file() for file in files):
            raise StorageError(f"{self.path}: no such journal")
        for file in files:
            yield from self._lines(file)

    def _lines(self, file: Path) -> Iterator[dict[str, Any]]:
        try:
            with file.open("rb") as lines:
                for line in lines:
                    record = _parse(line)
                    if record is not None:
                        yield record
                    elif line.strip():
                        self.damaged += 1
        except FileNotFoundError:
            return  # rotated away while reading
        except OSError as error:
            raise StorageError(f"{file}: cannot read the journal: {error.strerror}") from error


class JournalFollower:
    """Reads a journal while another process writes it, from its beginning and without its rotations.

    It stays with the file it opened: a replay that has ended puts its journal in order, as another file with the same records.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._begun = b""

    def new(self) -> list[dict[str, Any]]:
        """The whole records that were written since the last call; none while there is no file."""
        if self._file is None:
            try:
                self._file = self.path.open("rb")
            except FileNotFoundError:
                return []
        *lines, self._begun = (self._begun + self._file.read()).split(b"\n")
        return [record for line in lines if (record := _parse(line)) is not None]

    def close(self) -> None:
        """Lets the file go. A second call does nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole record of a journal and its rotated files, oldest first; damaged lines are dropped with one WARNING.

    Raises:
        StorageError: there is no such journal, or it cannot be read.
    """
    reader = JournalReader(path)
    yield from reader
    if reader.damaged:
        log.warning("%s: %d damaged lines were left out", path, reader.damaged)


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _rotated(path: Path) -> list[Path]:
    numbered: list[Path] = []
    while (file := _numbered(path, len(numbered) + 1)).is_file():
        numbered.append(file)
    return numbered


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # UnicodeDecodeError too
        return None
    return record if isinstance(record, dict) else None
