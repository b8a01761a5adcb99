"""Published versions on disk: the newest, the one before it, and the way from one to the other.

    published/current.json                  which version is served, and the history; replaced as a whole: the only thing that commits
    published/ID.safetensors                a version
    published/BASE..ID.difference           the message that makes ID of BASE (`learning.upgrade`)
    published/ID.memory                     the distribution memory that belongs to ID, as it goes down to devices
    published/lock                          held while current.json is changed: the refiner, the server and the command line all may

Files appear whole or not at all, and before the current.json that names them, so a kill at any instruction leaves the version before or
the version after. The files of the last `KEEP` versions stay.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streamsplit.encoders.checkpoint import load, save
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, StorageError
from streamsplit.whole_file import write_whole

FORMAT_VERSION = 1
KEEP = 8
MOST_HISTORY = 256


@dataclass(frozen=True, slots=True)
class Published:
    """One line of the history.

    Attributes:
        id: the version.
        number: 0, 1, 2, ... in order of publication; a rollback is a publication too.
        parent: the version served before; None for the first.
        by: "start" (the server's own weights), "refiner" or "rollback".
        at_unix_ms: when.
        difference_bytes: of the message that makes it of its parent; 0 without one.
        front_end: fingerprint of its front end: features of versions with equal ones are the same.
    """

    id: str
    number: int
    parent: str | None
    by: str
    at_unix_ms: int
    difference_bytes: int = 0
    front_end: str = ""


@dataclass(frozen=True, slots=True)
class Current:
    """What is served.

    Attributes:
        newest: id of version N.
        previous: id of version N - 1, still served; None if there is none.
        history: oldest first, `MOST_HISTORY` at most.
    """

    newest: str
    previous: str | None
    history: tuple[Published, ...]


class Publications:
    """The folder of published versions. Any process may have one; changes are made one at a time.

    Args:
        folder: made at the first publication.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def current(self) -> Current | None:
        """What is served; None before the first publication.

        Raises:
            StorageError: unreadable or damaged.
        """
        path = self.folder / "current.json"
        try:
            said = json.loads(path.read_text())
            if said["format_version"] != FORMAT_VERSION:
                raise StorageError(f"{path}: expected format {FORMAT_VERSION}, got {said['format_version']}")
            history = tuple(Published(**one) for one in said["history"])
            return Current(said["newest"], said["previous"], history)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{path}: damaged: {error}") from None

    def load(self, id: str) -> Version:
        """A published version.

        Raises:
            ConfigError, StorageError: its file is gone or damaged.
        """
        return load(self._file(id))

    def has(self, id: str) -> bool:
        """Whether its file is still here."""
        return self._file(id).is_file()

    def start(self, version: Version, at_unix_ms: int) -> Current:
        """Publishes the server's own weights where they are not in the history; otherwise what was published stays.

        So a restart goes on with what was refined, and other weights in the settings begin anew.
        """
        with self._changing():
            now = self.current()
            if now is not None and version.id in {one.id for one in now.history}:
                return now
            save(version, self._file(version.id))
            return self._append(now, version.id, version.front_end.fingerprint, "start", at_unix_ms)

    def publish(
        self, version: Version, base: str, difference: bytes, memory: bytes | None, at_unix_ms: int
    ) -> Current | None:
        """Publishes a version that was made of `base`; None, and nothing done, if that is not the newest any more."""
        with self._changing():
            now = self.current()
            if now is None or now.newest != base:
                return None
            save(version, self._file(version.id))
            write_whole(self._difference(base, version.id), difference)
            if memory is not None:
                write_whole(self._memory(version.id), memory)
            return self._append(
                now, version.id, version.front_end.fingerprint, "refiner", at_unix_ms, len(difference)
            )

    def rollback(self, at_unix_ms: int) -> Current:
        """Publishes the version before the newest again; the newest stays served as N - 1.

        Raises:
            ConfigError: there is none before it.
        """
        with self._changing():
            now = self.current()
            if now is None or now.previous is None or not self.has(now.previous):
                raise ConfigError(f"{self.folder}: rollback: no version before the newest is there")
            front_end = next(one.front_end for one in now.history if one.id == now.previous)
            return self._append(now, now.previous, front_end, "rollback", at_unix_ms)

    def keep_memory(self, id: str, memory: bytes) -> None:
        """Puts a newer memory beside a version."""
        with self._changing():
            write_whole(self._memory(id), memory)

    # What the synchronisation sends.

    def difference(self, base: str) -> tuple[str, list[bytes]] | None:
        """(newest id, messages that make it of `base`, to be applied in order); None if there is no such way.

        A device that has the newest gets no message. After a rollback there is no difference from the version that was rolled back:
        take `whole`.
        """
        now = self.current()
        if now is None:
            return None
        made_of = {}
        for one in now.history:
            if one.parent is not None and self._difference(one.parent, one.id).is_file():
                made_of[one.id] = one.parent
        at, messages = now.newest, list[bytes]()
        while at != base:
            parent = made_of.pop(at, None)
            if parent is None:
                return None
            messages.insert(0, self._difference(parent, at).read_bytes())
            at = parent
        return now.newest, messages

    def whole(self, id: str) -> bytes:
        """A version's file, for a device that has nothing to make it of (`checkpoint.load` reads it)."""
        try:
            return self._file(id).read_bytes()
        except OSError as error:
            raise StorageError(f"{self._file(id)}: cannot be read: {error.strerror}") from None

    def memory(self, id: str) -> bytes | None:
        """The memory of a version as it goes down (`memory_file.unpack` reads it); None if there is none yet."""
        try:
            return self._memory(id).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"{self._memory(id)}: cannot be read: {error.strerror}") from None

    # Files.

    def _file(self, id: str) -> Path:
        return self.folder / f"{id}.safetensors"

    def _memory(self, id: str) -> Path:
        return self.folder / f"{id}.memory"

    def _difference(self, base: str, id: str) -> Path:
        return self.folder / f"{base}..{id}.difference"

    def _append(
        self, now: Current | None, id: str, front_end: str, by: str, at_unix_ms: int, size: int = 0
    ) -> Current:
        history = now.history if now else ()
        parent = now.newest if now else None
        number = history[-1].number + 1 if history else 0
        line = Published(id, number, parent, by, at_unix_ms, size, front_end)
        new = Current(id, parent if parent != id else None, (*history, line)[-MOST_HISTORY:])
        said: dict[str, Any] = {"format_version": FORMAT_VERSION, **asdict(new)}
        write_whole(self.folder / "current.json", json.dumps(said, indent=1).encode())
        self._forget(new)
        return new

    def _forget(self, now: Current) -> None:
        """Removes the files of all but the last `KEEP` versions, and what a kill left half written."""
        kept = {one.id for one in now.history[-KEEP:]} | {now.newest, now.previous}
        for path in self.folder.iterdir():
            if path.suffix in (".safetensors", ".memory", ".difference"):
                if not set(path.stem.split("..")) <= kept:
                    path.unlink(missing_ok=True)
            elif path.name.startswith("."):
                path.unlink(missing_ok=True)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be changed: {error.strerror}") from None
