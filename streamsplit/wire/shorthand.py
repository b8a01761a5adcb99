"""What a window's message need not say, because it follows from the window before on the same stream and connection.

    device: full message -> Shorthand.shorten -> wire -> Shorthand.complete -> full message :server

Both ends keep the same few numbers per stream and see the same windows in the same order, so what one leaves out the other puts
back. Of an embedding's 165 bytes on the wire, 11 were such repetition: position, version, split and codec of an undisturbed stream.
The rules stand in ``proto/streamsplit/v1/streamsplit.proto``, at `Window`.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamsplit.errors import RemoteProtocolError
from streamsplit.wire.v1 import streamsplit_pb2 as pb

_HELD = ("version", "split", "codec")


@dataclass(slots=True)
class _Before:
    sequence: int = -1
    start_sample: int = 0
    advance: int = 0
    held: tuple[int, int, int] | None = None

    def follow(self, window: pb.Window) -> None:
        self.advance = window.start_sample - self.start_sample
        self.sequence, self.start_sample = window.sequence, window.start_sample
        self.held = (window.version, window.split, window.codec)


class Shorthand:
    """One end's memory of one connection: every message passes through it, in order.

    >>> device, server = Shorthand(), Shorthand()
    >>> for end in (device.shorten, server.complete):
    ...     end(pb.DeviceMessage(open_stream=pb.OpenStream(index=0)))
    >>> def sent(sequence: int) -> int:
    ...     window = pb.Window(sequence=sequence, start_sample=sequence * 15360, version=0, split=4, codec=3)
    ...     message = pb.DeviceMessage(window=window)
    ...     device.shorten(message)
    ...     size = message.ByteSize()
    ...     server.complete(message)
    ...     assert (message.window.sequence, message.window.start_sample) == (sequence, sequence * 15360)
    ...     return size
    >>> [sent(sequence) for sequence in (200, 201, 202, 207)]
    [16, 7, 2, 10]
    """

    def __init__(self) -> None:
        self._streams: dict[int, _Before] = {}

    def shorten(self, message: pb.DeviceMessage) -> None:
        """Clears what the other end will know."""
        before = self._before(message)
        if before is None:
            return
        window = message.window
        follows = window.sequence == before.sequence + 1
        placed = window.start_sample == before.start_sample + before.advance
        held = before.held or ()
        before.follow(window)
        if follows:
            window.ClearField("sequence")
        if placed:
            window.ClearField("start_sample")
        for name, value in zip(_HELD, held, strict=False):
            if getattr(window, name) == value:
                window.ClearField(name)

    def complete(self, message: pb.DeviceMessage) -> None:
        """Sets what was left out.

        Raises:
            RemoteProtocolError: the first window of a stream leaves out what only a window before it could tell.
        """
        before = self._before(message)
        if before is None:
            return
        window = message.window
        if not window.HasField("sequence"):
            window.sequence = (before.sequence + 1) & 0xFFFFFFFF
        if not window.HasField("start_sample"):
            window.start_sample = max(0, before.start_sample + before.advance) & 0xFFFFFFFFFFFFFFFF
        for place, name in enumerate(_HELD):
            if not window.HasField(name):
                if before.held is None:
                    raise RemoteProtocolError(
                        f"window {window.sequence}: expected its {name}: none came before it on this stream"
                    )
                setattr(window, name, before.held[place])
        before.follow(window)

    def _before(self, message: pb.DeviceMessage) -> _Before | None:
        """The state a window is relative to; a stream that is opened begins anew, one that never was has none to keep."""
        match message.WhichOneof("kind"):
            case "open_stream":
                self._streams[message.open_stream.index] = _Before()
            case "window":
                return self._streams.get(message.window.stream) or _Before()
        return None
