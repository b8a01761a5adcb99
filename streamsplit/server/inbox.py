"""Devices' differences on their way to the refiner: one file each, written by the server, read by the refiner's process.

A file is a message of `learning.differences` whose header also says "device", "base", "windows". It appears whole or not at all. A
device has one place: what it sends before the refiner has looked takes the place of what it sent before, so the folder is bounded by
the number of devices, and a device's difference must be all it has learned since its base.

What has been merged is put away in taken/, again one for a device: of a later difference of the same base only what is new is to be merged.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from streamsplit.encoders.version import Version
from streamsplit.errors import PayloadError, StorageError
from streamsplit.learning.averaging import DeviceDifference
from streamsplit.learning.device_difference import device_difference
from streamsplit.learning.differences import header_of, most_bytes, spec_of
from streamsplit.whole_file import write_whole

logger = logging.getLogger(__name__)

TAKEN = "taken"


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
        write_whole(self.folder / f"{name}.{stamp}.difference", message)
        for other in self.folder.glob(f"{name}.*.difference"):
            if stamp not in other.name:
                other.unlink(missing_ok=True)

    def waiting(self) -> list[Path]:
        """Files that wait, by name."""
        return sorted(self.folder.glob("*.difference"))

    def read(self, path: Path, versions: Mapping[str, Version]) -> DeviceDifference | None:
        """A waiting difference; None, and a warning, if it cannot be used.

        Args:
            path: of `waiting`.
            versions: by id: those it may be based on.
        """
        try:
            with path.open("rb") as file:
                message = file.read(2 * max(most_bytes(spec_of(one.state)) for one in versions.values()))
            base = str(header_of(message).get("base"))
            if base not in versions:
                raise PayloadError(f"its base {base} is not served any more")
            return device_difference(message, versions[base])
        except (OSError, PayloadError) as error:
            logger.warning("%s: left out: %s", path.name, error)
            return None

    def since(self, path: Path, versions: Mapping[str, Version]) -> DeviceDifference | None:
        """A waiting difference less what has been merged of the same device and base; None, and a warning, if it cannot be used."""
        one = self.read(path, versions)
        taken = self._place(path.name)
        if one is None or not taken.exists():
            return one
        before = self.read(taken, versions)
        if before is None or before.base != one.base or before.tensors.keys() != one.tensors.keys():
            return one
        return replace(one, tensors={name: part - before.tensors[name] for name, part in one.tensors.items()})

    def take(self, names: list[str]) -> None:
        """Puts away differences that have been merged."""
        for name in names:
            place = self._place(name)
            with contextlib.suppress(FileNotFoundError):
                place.parent.mkdir(exist_ok=True)
                (self.folder / name).replace(place)

    def forget(self) -> None:
        """Forgets what has been merged: training starts again from weights without it."""
        for path in (self.folder / TAKEN).glob("*.difference"):
            path.unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        return self.folder / TAKEN / f"{name.partition('.')[0]}.difference"
