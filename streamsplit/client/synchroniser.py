"""Lazy synchronisation, the device's half, as a state machine without I/O: what to ask for, what to send, piece by piece.

    heard(message)  what the server said: Newest, Piece, Taken
    next()          the message to send now, at most one unanswered; None: nothing, or it may not be now

A download goes on at its offset after a reconnect, and begins anew where the thing has changed; an upload begins anew. One thing goes each way at a time, and windows go between
its pieces: 16 KiB on the wire is the most that a window waits for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from streamsplit.errors import RemoteProtocolError
from streamsplit.wire import messages
from streamsplit.wire.messages import Thing

logger = logging.getLogger(__name__)

MOST_BEGINNINGS = 4
"""Of a download whose thing changes under way: then the device does without."""


@dataclass(frozen=True, slots=True)
class Wish:
    """Something to be fetched: a version's file, memory or head, or the upgrade of `base`."""

    thing: Thing
    version: str = ""
    base: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """What came of a wish; empty content: the server has no such thing."""

    wish: Wish
    version: str
    content: bytes


@dataclass(slots=True)
class _Upload:
    piece: messages.Piece
    content: bytes
    offset: int = 0


@dataclass(slots=True)
class _Download:
    wish: Wish
    most_bytes: int
    content: bytearray = field(default_factory=bytearray)
    whole: tuple[str, str, int] = ("", "", 0)  # version, base or stamp, bytes
    beginnings: int = 0


class Synchroniser:
    """See the module's text.

    Args:
        allowed: whether the device may spend link and processor on it now.
        newest: called when the server says which version devices should have.
        fetched: called with every finished wish.
        given: called when the server has taken, or refused, what was sent: (thing, problem or "").
    """

    def __init__(
        self,
        allowed: Callable[[], bool],
        newest: Callable[[messages.EncoderVersion], None],
        fetched: Callable[[Fetched], None],
        given: Callable[[Thing, str], None],
    ) -> None:
        self._allowed = allowed
        self._newest = newest
        self._fetched = fetched
        self._given = given
        self._download: _Download | None = None
        self._uploads: dict[Thing, _Upload] = {}
        self._waiting_for: Thing | None = None
        self._asked: _Download | None = None
        self._knows_heads = True

    @property
    def fetching(self) -> Wish | None:
        """What is being fetched."""
        return self._download.wish if self._download else None

    def fetch(self, wish: Wish, most_bytes: int) -> None:
        """Asks for something; whatever else was being fetched is given up. What is being fetched already goes on.

        Args:
            wish: for what.
            most_bytes: more than this is refused before it is kept.
        """
        if self._download is None or self._download.wish != wish:
            self._download = _Download(wish, most_bytes)

    def send(self, thing: Thing, version: str, base: str, content: bytes) -> None:
        """Sends something; an unsent one of the same kind is replaced."""
        piece = messages.Piece(thing, version, base, 0, len(content), b"")
        self._uploads[thing] = _Upload(piece, content)

    def withdraw(self, thing: Thing) -> None:
        """Sends no more of something; the server forgets what it has of it."""
        self._uploads.pop(thing, None)

    def connected(self, protocol: str) -> None:
        """A new connection, to a server that speaks `protocol`: what was unanswered is unanswered for ever."""
        self._waiting_for = self._asked = None
        self._knows_heads = messages.knows_heads(protocol)
        for upload in self._uploads.values():
            upload.offset = 0

    def next(self) -> messages.Want | messages.Piece | None:
        """The message to send now."""
        if self._waiting_for is not None or not (self._download or self._uploads) or not self._allowed():
            return None
        if self._download and self._download.wish.thing is Thing.HEAD and not self._knows_heads:
            self._finish(self._download, b"")
            return self.next()
        if self._download:
            self._waiting_for = self._download.wish.thing
            self._asked, wish = self._download, self._download.wish
            return messages.Want(wish.thing, wish.version, wish.base, len(self._download.content))
        thing, upload = next(iter(self._uploads.items()))
        self._waiting_for = thing
        data = upload.content[upload.offset : upload.offset + messages.PIECE_BYTES]
        piece = upload.piece
        return messages.Piece(thing, piece.version, piece.base, upload.offset, piece.total, data)

    def heard(self, said: messages.Newest | messages.Piece | messages.Taken) -> None:
        """Takes what the server said.

        Raises:
            RemoteProtocolError: not the piece that was asked for.
        """
        match said:
            case messages.Newest(version):
                self._newest(version)
            case messages.Piece():
                self._piece(said)
            case messages.Taken():
                self._taken(said)

    def _piece(self, piece: messages.Piece) -> None:
        self._waiting_for = None
        asked, self._asked = self._asked, None
        download = self._download
        if download is None or download is not asked or piece.thing is not download.wish.thing:
            return  # of a wish given up meanwhile
        whole = (piece.version, piece.base, piece.total)
        if download.content and whole != download.whole and piece.total:
            download.content.clear()  # another was published meanwhile
            if download.beginnings < MOST_BEGINNINGS:
                return
            logger.warning("%s: it changes faster than it comes", piece.thing.value)
            self._finish(download, b"")
            return
        most = download.most_bytes
        if not 0 < piece.total <= most:
            if piece.total:
                logger.warning("%s: expected at most %d bytes, got %d", piece.thing.value, most, piece.total)
            self._finish(download, b"")
            return
        if piece.offset != len(download.content) or not piece.data:
            raise RemoteProtocolError(
                f"{piece.thing.value}: expected byte {len(download.content)} of {piece.total}, "
                f"got {len(piece.data)} bytes at {piece.offset}"
            )
        if not download.content:
            download.whole, download.beginnings = whole, download.beginnings + 1
        download.content += piece.data
        if len(download.content) >= piece.total:
            self._finish(download, bytes(download.content))

    def _finish(self, download: _Download, content: bytes) -> None:
        self._download = None
        self._fetched(Fetched(download.wish, download.whole[0], content))

    def _taken(self, taken: messages.Taken) -> None:
        self._waiting_for = None
        upload = self._uploads.get(taken.thing)
        if upload is None:
            return
        if taken.problem or taken.next >= len(upload.content):
            del self._uploads[taken.thing]
            if taken.problem:
                logger.warning("the server did not take it: %s", taken.problem)
            self._given(taken.thing, taken.problem)
            return
        upload.offset = taken.next
