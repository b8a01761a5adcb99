"""What the refiner may learn from: which stored payloads still mean something to the weights being trained."""

from __future__ import annotations

import torch

from streamsplit.encoders.version import Version
from streamsplit.errors import StorageError
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.server.publications import Publications
from streamsplit.wire.codec import Ranges


class KnownVersions:
    """The published versions, seen from the one that is refined.

    Features mean the same to every version with an equal front end. An activation is of use only where the blocks before it are, to
    the bit, those of the base, and do not move.

    Args:
        publications: where versions are.
        base: the version that is refined.
        frozen: how many blocks do not move.
    """

    def __init__(self, publications: Publications, base: Version, frozen: int) -> None:
        self.base, self.frozen = base, frozen
        current = publications.current()
        self._publications = publications
        fingerprint = base.front_end.fingerprint
        self._same_front_end = {
            one.id for one in (current.history if current else ()) if one.front_end == fingerprint
        }
        self._loaded: dict[str, Version | None] = {base.id: base}
        self._equal: dict[tuple[str, int], bool] = {}

    def usable(self, window: BufferedWindow) -> bool:
        """Whether a window's payload can be learned from."""
        if window.version not in self._same_front_end or window.split > self.frozen:
            return False
        return window.split == 0 or self._same_blocks(window.version, window.split)

    def ranges(self, version: str, split: int) -> Ranges:
        """The ranges that packed a usable window."""
        if split == 0:
            return self.base.front_end.ranges
        known = self._load(version)
        if known is None:
            raise StorageError(f"{version}: expected a version that is still here")
        return known.ranges[split]

    def _same_blocks(self, version: str, split: int) -> bool:
        if (version, split) not in self._equal:
            known = self._load(version)
            names = tuple(f"blocks.{number}." for number in range(split))
            self._equal[version, split] = known is not None and all(
                torch.equal(tensor, known.state[name])
                for name, tensor in self.base.state.items()
                if name.startswith(names) and tensor.is_floating_point()
            )
        return self._equal[version, split]

    def _load(self, version: str) -> Version | None:
        if version not in self._loaded:
            here = self._publications.has(version)
            self._loaded[version] = self._publications.load(version) if here else None
        return self._loaded[version]
