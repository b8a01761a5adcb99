"""Devices' differences on their way to the refiner: one file each, written by the server, read by the refiner's process.

A file is a message of `learning.differences` whose header also says "device", "base", "windows". It appears whole or not at all. A
device has one place: what it sends before the refiner has looked takes the place of what it sent before, so the folder is bounded by
the number of devices, and a device's difference must be all it has learned since its base.

A round first moves what it will merge to claimed/, where the server replaces nothing: what a device sends from then on is the next round's.
What has been merged is put away in taken/, again one for a device: of a later difference of the same base only what is new is to be merged.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from streamsplit.encoders.version import Version
from streamsplit.errors import PayloadError, StorageError
from streamsplit.learning.averaging import DeviceDifference
from streamsplit.learning.device_difference import device_difference
from streamsplit.learning.differences import header_of
from streamsplit.whole_file import write_whole

CLAIMED, TAKEN = "claimed", "taken"


class Inbox:
    """The folder.

    Args:
        folder: made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{folder}: cannot be made: {error.strerror}") from None

    def put(self, device: str, message: bytes, version: Version) -> None:
        """Takes a device's difference; one that waits from the same device is replaced.

        Args:
            device: as its credentials name it, whatever the message says.
            message: as `pack_device_difference` makes it.
            version: that it must be based on, one that is served.

        Raises:
            PayloadError: not a legal difference of this version, or another device's.
            StorageError: it cannot be written.
        """
        one = device_difference(message, version)
        if one.device != device:
            raise PayloadError(f"difference: expected one of device {device}, got one of {one.device}")
        name = hashlib.sha256(device.encode()).hexdigest()[:16]
        stamp = hashlib.sha256(message).hexdigest()[:12]
        place = self.folder / f"{name}.{stamp}.difference"
        write_whole(place, message)
        _leave_only(place)

    def waiting(self) -> list[Path]:
        """Files that wait, by name."""
        return sorted(self.folder.glob("*.difference"))

    def claim(self) -> list[Path]:
        """Keeps what waits for who calls, until `take` or `drop`; what was claimed before a kill is among it, unless a newer one waited.

        Raises:
            StorageError: it cannot be moved.
        """
        claimed = self.folder / CLAIMED
        try:
            claimed.mkdir(exist_ok=True)
            for path in self.waiting():
                with contextlib.suppress(
                    FileNotFoundError
                ):  # replaced this moment: the newer one waits for the next claim
                    path.replace(claimed / path.name)
                    _leave_only(claimed / path.name)
        except OSError as error:
            raise StorageError(f"{claimed}: differences cannot be moved there: {error.strerror}") from error
        return sorted(claimed.glob("*.difference"))

    def read(self, path: Path, base_of: Callable[[str], Version | None]) -> DeviceDifference:
        """A difference.

        Args:
            path: of `waiting` or `claim`.
            base_of: id -> the version, where a difference may be based on it.

        Raises:
            PayloadError: it cannot be used.
        """
        try:
            message = path.read_bytes()
        except OSError as error:
            raise PayloadError(f"{path.name}: {error.strerror}") from None
        said = header_of(message)
        base = base_of(str(said.get("base")))
        if base is None:
            device, id = (str(said.get(name))[:80] for name in ("device", "base"))
            raise PayloadError(f"device {device}: its base {id} is not kept any more")
        return device_difference(message, base)

    def since(self, path: Path, base_of: Callable[[str], Version | None]) -> DeviceDifference:
        """A difference less what has been merged of the same device and base. Raises as `read` does."""
        one = self.read(path, base_of)
        taken = self._place(path.name)
        if not taken.exists():
            return one
        try:
            before = self.read(taken, lambda id: base_of(id) if id == one.base else None)
        except PayloadError:
            return one  # of another base: nothing of this one has been merged
        if before.tensors.keys() != one.tensors.keys():
            return one
        return replace(one, tensors={name: part - before.tensors[name] for name, part in one.tensors.items()})

    def take(self, names: Iterable[str]) -> None:
        """Puts away differences, by their claimed files' names, that have been merged."""
        for name in names:
            place = self._place(name)
            with contextlib.suppress(FileNotFoundError):
                place.parent.mkdir(exist_ok=True)
                (self.folder / CLAIMED / name).replace(place)

    def drop(self, names: Iterable[str]) -> None:
        """Removes claimed differences that cannot be merged."""
        for name in names:
            (self.folder / CLAIMED / name).unlink(missing_ok=True)

    def forget(self) -> None:
        """Forgets what has been merged: training starts again from weights without it."""
        for path in (self.folder / TAKEN).glob("*.difference"):
            path.unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        return self.folder / TAKEN / f"{name.partition('.')[0]}.difference"


def _leave_only(place: Path) -> None:
    """Removes a device's other differences beside this one."""
    for other in place.parent.glob(f"{place.name.partition('.')[0]}.*.difference"):
        if other != place:
            other.unlink(missing_ok=True)
