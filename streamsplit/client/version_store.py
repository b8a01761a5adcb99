"""The version a device has taken from its server, kept over restarts, and where what belongs to one version alone is kept.

version       the version taken last; version.json: whose descendant it is
KIND-VERSION  what was learned with a version; it is there before that version is kept, and gone once another one is
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from streamsplit.encoders.checkpoint import load, save
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, PayloadError, StorageError
from streamsplit.whole_file import left_behind, write_whole

logger = logging.getLogger(__name__)

LEARNED = ("memory", "disagreement", "training")
"""Kinds of what is learned with one version."""


class VersionStore:
    """One version in a device's state folder, and which version the device's own settings named when it came.

    Args:
        folder: the device's state folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._version = folder / "version.safetensors"
        self._origin = folder / "version.json"

    def instead_of(self, own: Version) -> Version:
        """What the device goes on with: the version kept here if it descends from its own, its own otherwise."""
        try:
            said = json.loads(self._origin.read_text())
        except (OSError, ValueError):
            return own
        if not isinstance(said, dict) or said.get("origin") != own.id or not self._version.exists():
            return own
        try:
            kept = load(self._version)
        except (ConfigError, StorageError) as error:
            logger.warning("the version taken from the server is lost: %s", error)
            return own
        return kept if kept.name == own.name else own

    def begin(self, own: Version) -> Version:
        """As `instead_of`; remembers whose descendants are kept from here on. For who holds the folder's lock.

        Raises:
            StorageError: the folder cannot be used.
        """
        for left in (  # by a kill
            *self._folder.glob(".coming.*.safetensors"),
            *left_behind(self._version),
            *left_behind(self._origin),
        ):
            left.unlink(missing_ok=True)
        for kind in LEARNED:
            for half in self._folder.glob(f".{kind}-*"):
                half.unlink(missing_ok=True)
        version = self.instead_of(own)
        if version is own:
            # In this order: whatever a kill leaves, a file that is here descends from the origin.
            try:
                self._version.unlink(missing_ok=True)
            except OSError as error:
                raise StorageError(f"{self._version}: cannot be removed: {error.strerror}") from None
            self._remember(own.id)
        self._forget_others(version)
        return version

    def keep(self, version: Version) -> None:
        """Keeps a version that has come, and nothing more of what was learned with others.

        Raises:
            StorageError: the disk has no room for it; the one before stays, with all that is its own.
        """
        save(version, self._version)
        self._forget_others(version)

    def beside(self, kind: str, version: Version) -> Path:
        """The file of what is learned with a version; `kind`: of `LEARNED`."""
        return self._folder / f"{kind}-{version.id}.safetensors"

    def read(self, content: bytes, id: str) -> Version:
        """A version's file as it came over the wire.

        Raises:
            PayloadError: damaged, or another version than announced.
            StorageError: no room to look at it.
        """
        path = self._folder / f".coming.{os.getpid()}.safetensors"
        try:
            path.write_bytes(content)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise StorageError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            version = load(path)
        except (ConfigError, StorageError) as error:
            raise PayloadError(f"version {id}: {error}") from None
        finally:
            path.unlink(missing_ok=True)
        if version.id != id:
            raise PayloadError(f"version: expected {id}, got {version.id}")
        return version

    def _forget_others(self, version: Version) -> None:
        for kind in LEARNED:
            own = self.beside(kind, version)
            for path in self._folder.glob(f"{kind}-*.safetensors"):
                if path != own:
                    try:
                        path.unlink(missing_ok=True)
                    except OSError as error:
                        logger.warning("%s: cannot be removed: %s", path, error.strerror)

    def _remember(self, origin: str) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self._folder}: cannot be made: {error.strerror}") from None
        write_whole(self._origin, json.dumps({"origin": origin}).encode())
