"""Things that a device sends in pieces, put together within bounds that are checked before a byte is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from streamsplit.wire import messages


@dataclass(slots=True)
class _Upload:
    total: int
    content: bytearray = field(default_factory=bytearray)


class Uploads:
    """One connection's half-sent things, one of each kind at most."""

    def __init__(self) -> None:
        self._open: dict[messages.Thing, _Upload] = {}

    def take(self, piece: messages.Piece, most_bytes: int) -> messages.Taken | bytes:
        """Adds a piece.

        Args:
            piece: as it came.
            most_bytes: of such a thing; 0: it is not wanted.

        Returns:
            The whole thing once it is there; before, what the device is to be told.
        """
        thing = piece.thing
        if most_bytes == 0:
            return messages.Taken(thing, 0, f"{thing.value}: not wanted here")
        if not 0 < piece.total <= most_bytes or not 0 < len(piece.data) <= messages.PIECE_BYTES:
            self._open.pop(thing, None)
            problem = (
                f"{thing.value}: expected 1..{most_bytes} bytes in pieces of 1..{messages.PIECE_BYTES}, "
                f"got {piece.total} in one of {len(piece.data)}"
            )
            return messages.Taken(thing, 0, problem)
        if piece.offset == 0:
            self._open[thing] = _Upload(piece.total)
        upload = self._open.get(thing)
        if upload is None or piece.offset != len(upload.content) or piece.total != upload.total:
            self._open.pop(thing, None)
            return messages.Taken(thing, 0)  # from the beginning, please
        upload.content += piece.data
        if len(upload.content) < upload.total:
            return messages.Taken(thing, len(upload.content))
        del self._open[thing]
        if len(upload.content) > upload.total:
            return messages.Taken(thing, 0, f"{thing.value}: more bytes than the {upload.total} it announced")
        return bytes(upload.content)
