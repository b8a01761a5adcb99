"""Lazy synchronisation, the server's half: versions and memories go down piece by piece, differences and memories come up whole.

    Want  -> [published/ files, the last few kept in memory; heads of labels] -> Piece
    Piece, Piece, ... -> (put together by the session) -> difference: into the refiner's inbox
                                                       -> memory: beside those of other devices, all merged, published with its version

It holds no state of any device's download: a device that comes back goes on at its offset, with this server or the next.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from streamsplit.errors import ConfigError, PayloadError, StorageError
from streamsplit.learning.device_difference import DEVICE_PREFIX
from streamsplit.learning.differences import most_bytes, spec_of
from streamsplit.learning.memory import DistributionMemory
from streamsplit.learning.memory_file import pack, unpack
from streamsplit.learning.merging import merge
from streamsplit.learning.upgrade import bases
from streamsplit.server.inbox import Inbox
from streamsplit.server.labels import LabelBook
from streamsplit.server.publications import Publications
from streamsplit.server.versions import ServedVersion
from streamsplit.whole_file import write_whole
from streamsplit.wire import messages
from streamsplit.wire.messages import Thing

logger = logging.getLogger(__name__)

MEMORY_BYTES = 40_000
"""Of a memory without its reservoir, at most: 35 KB and what describes it."""
MOST_MEMORIES = 1024
MOST_MERGED = 15
"""Other devices whose memories are merged into one's own, the most recent: merging two takes 10 ms, a thousand would take many seconds."""
HELD_THINGS = 4


class Synchronisation:
    """What sessions fetch from and keep in. Any thread may call; each call may wait for the disk.

    Args:
        publications: what is published.
        inbox: of differences.
        folder: of devices' memories.
        served: versions by name, a live view.
        labels: what labels have taught.
    """

    def __init__(
        self,
        publications: Publications,
        inbox: Inbox,
        folder: Path,
        served: Mapping[str, ServedVersion],
        labels: LabelBook,
    ) -> None:
        self._publications = publications
        self._inbox = inbox
        self._folder = folder
        self._served = served
        self._labels = labels
        self._held: OrderedDict[tuple[str, ...], tuple[str, bytes]] = OrderedDict()
        self._lock = threading.Lock()
        self._newest: messages.Newest | None = None

    # What the session asks on the event loop.

    def newest(self) -> messages.Newest | None:
        """The version devices should have; as of the last `look`."""
        return self._newest

    def most_bytes(self, thing: Thing, name: str) -> int:
        """Of what a device may send about a version; 0 where it is not wanted."""
        served = self._served.get(name)
        if served is None:
            return 0
        if thing is Thing.MEMORY:
            return MEMORY_BYTES
        if thing is Thing.DIFFERENCE:
            return most_bytes(spec_of(served.version.state, DEVICE_PREFIX))
        return 0

    # What waits for the disk.

    def look(self) -> messages.Newest | None:
        """Reads what is published; the newest if it is another one than before."""
        current = self._publications.current()
        served = self._served.get(current.newest) if current else None
        if current is None or served is None:
            return None
        newest = messages.Newest(served.description, current.history[-1].number)
        changed = newest != self._newest
        self._newest = newest
        return newest if changed else None

    def fetch(self, want: messages.Want) -> messages.Piece:
        """The piece a device wants; one of an empty whole where there is no such thing."""
        try:
            version, content = self._thing(want)
        except (StorageError, ConfigError, PayloadError) as error:
            logger.warning("%s %s of %s: %s", want.thing.value, want.version, want.base or "-", error)
            version, content = want.version, b""
        data = content[want.offset : want.offset + messages.PIECE_BYTES]
        base = want.base
        if want.thing in (
            Thing.MEMORY,
            Thing.HEAD,
        ):  # made anew now and then: pieces of two must not be put together
            base = hashlib.sha256(content).hexdigest()[:12]
        return messages.Piece(want.thing, version, base, want.offset, len(content), data)

    def keep(self, device: str, thing: Thing, version: str, base: str, content: bytes) -> str:
        """Keeps what a device sent; the problem with it, or nothing."""
        try:
            if thing is Thing.DIFFERENCE:
                served = self._served.get(base)
                if served is None:
                    return f"difference: {base} is not served any more"
                self._inbox.put(device, content, served.version)
            else:
                self._keep_memory(device, version, content)
        except PayloadError as error:
            return str(error)
        except StorageError as error:
            logger.error("%s of %s is not kept: %s", thing.value, device, error)
            return "the server cannot keep it now"
        return ""

    def _thing(self, want: messages.Want) -> tuple[str, bytes]:
        if want.thing is Thing.MEMORY:
            return want.version, self._memory(want.version)
        if want.thing is Thing.HEAD:
            return want.version, self._labels.head(want.version)
        if want.thing is Thing.DIFFERENCE:
            return want.version, b""
        newest = str(self._newest.number if self._newest else "")  # with another, the way to it is another
        key = (want.thing.value, want.version, want.base, newest)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        found = self._upgrade(want.base) if want.thing is Thing.UPGRADE else self._whole(want.version)
        with self._lock:
            self._held[key] = found
            while len(self._held) > HELD_THINGS:
                self._held.popitem(last=False)
        return found

    def _upgrade(self, base: str) -> tuple[str, bytes]:
        way = self._publications.difference(base)
        if way is None or not way[1]:
            return "", b""
        step = way[1][0]
        return bases(step)[1], step

    def _whole(self, version: str) -> tuple[str, bytes]:
        return (version, self._publications.whole(version)) if version in self._served else (version, b"")

    def _memory(self, version: str) -> bytes:
        """A file's name is made of a version's only where it is one that is served: a device may ask for anything."""
        return (self._publications.memory(version) if version in self._served else None) or b""

    def _keep_memory(self, device: str, version: str, content: bytes) -> None:
        memory = unpack(content)
        served = self._served.get(version)
        if served is None or memory.settings.dim != served.version.encoder.embedding_dim:
            raise PayloadError(f"memory: expected one of a served version, got one of {version}")
        name = hashlib.sha256(device.encode()).hexdigest()[:16]
        with self._lock:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"{self._folder}: cannot be made: {error.strerror}") from None
            write_whole(self._folder / f"{name}.{version}.memory", content)
            merged = self._merged(name, version, memory)
        self._publications.keep_memory(version, pack(merged, with_reservoir=False))

    def _merged(self, name: str, version: str, memory: DistributionMemory) -> DistributionMemory:
        """All devices' memories of a version as one; those of versions that are served no more are forgotten.

        A device that goes over to a version goes on from what comes down with it, counts included, and sends all of it up again. Where all
        go over at once, as a rule, only the refiner's r windows are counted once per device. The n-th that goes over after the others have
        sent, with a_n windows of its own, sends c_n = c_1 + ... + c_(n-1) + a_n, c_1 = r + a_1, which doubles from one to the next: what the
        first ones heard is in there several times, and what they hear from then on would count for next to nothing, 0.5 % for the first of
        eight (r = a = 1000). `merge` lets no memory count for more than its horizon, so it is 4 %, and an eighth once all have heard a
        horizon (8,192 windows, two hours). Nothing of it reaches the next version, whose memory the refiner estimates anew.
        """
        paths = sorted(self._folder.glob("*.memory"), key=lambda path: path.stat().st_mtime)
        others = []
        for place, path in enumerate(paths):
            owner, _, of = path.name.removesuffix(".memory").partition(".")
            if of not in self._served or place < len(paths) - MOST_MEMORIES:
                path.unlink(missing_ok=True)
            elif of == version and owner != name:
                others.append(unpack(path.read_bytes()))
        sort = memory.settings.kind, memory.settings.centred
        alike = [one for one in others if (one.settings.kind, one.settings.centred) == sort and one.count > 0]
        return merge([memory, *alike[-MOST_MERGED:]]) if alike and memory.count > 0 else memory
