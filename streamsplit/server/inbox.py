"""Devices' differences on their way to the refiner: one file each, written by the server, read by the refiner's process.

A file is a message of `learning.differences` whose header also says "device", "base", "windows". It appears whole or not at all. A
device has one place: what it sends before the refiner has looked takes the place of what it sent before, so the folder is bounded by
the number of devices, and a device's difference must be all it has learned since its base.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

from streamsplit.encoders.version import Version
from streamsplit.errors import PayloadError, StorageError
from streamsplit.learning.averaging import DeviceDifference
from streamsplit.learning.device_difference import device_difference
from streamsplit.learning.differences import header_of, most_bytes, spec_of
from streamsplit.server.publications import write_whole

logger = logging.getLogger(__name__)

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

    def remove(self, names: list[str]) -> None:
        """Removes differences that have been merged."""
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
