"""One connection to the server: messages in and out, counted, and what need not be said again on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from streamsplit.audio.window import Mark
from streamsplit.client.channel import meaning
from streamsplit.client.spool import SpooledStream
from streamsplit.client.step import Step
from streamsplit.errors import LinkError, RemoteProtocolError
from streamsplit.wire import messages, translate
from streamsplit.wire.shorthand import Shorthand

Call = Any  # grpc.aio.StreamStreamCall: generated stubs have no types

MAX_STREAMS = 4096
"""The protocol's limit per connection."""

SYNC = (messages.Want, messages.Piece, messages.NameVersion, messages.Newest, messages.Taken)
_PREFIX_BYTES = 5


class Connection:
    """One call to the server, and the indices both ends have agreed on.

    Args:
        call: the gRPC stream.
        server: its address, for messages to people.

    `write`, `read` and `greet` raise LinkError where the stream broke and RefusedError where the server does not want this device.

    Attributes:
        versions: encoder versions named in our Hello, by index.
        welcome: what the server answered.
        greeted_s: from our Hello's leaving to its answer, seconds.
        sent_bytes, received_bytes: of messages, with the five bytes gRPC puts before each.
        sync_sent_bytes, sync_received_bytes: those of them that are lazy synchronisation.
    """

    def __init__(self, call: Call, server: str) -> None:
        self._call = call
        self._server = server
        self.versions: tuple[str, ...] = ()
        self.welcome = messages.Welcome("", (), 0, 0)
        self.greeted_s = 0.0
        self.sent_bytes = 0
        self.received_bytes = 0
        self.sync_sent_bytes = 0
        self.sync_received_bytes = 0
        self._shorthand = Shorthand()
        self._streams: dict[str, int] = {}
        self._names: list[str] = []
        self._marks: dict[str, Mark | None] = {}

    async def greet(self, hello: messages.Hello) -> None:
        """Introduces the device and waits to be let in.

        A first word leaves once the connection stands, so that `greeted_s` holds no handshake of TCP or TLS.

        Raises:
            RemoteProtocolError: the server's first word is no Welcome.
        """
        self.versions = hello.versions
        await self.write(hello)
        said_s = time.monotonic()
        welcome = await self.read()
        self.greeted_s = time.monotonic() - said_s
        if not isinstance(welcome, messages.Welcome):
            raise RemoteProtocolError(f"server: expected Welcome, got {type(welcome).__name__}")
        self.welcome = welcome

    async def write(self, message: messages.DeviceSays) -> None:
        """Sends a message; one at a time."""
        wire = translate.device_message(message)
        self._shorthand.shorten(wire)
        size = wire.ByteSize() + _PREFIX_BYTES
        self.sent_bytes += size
        if isinstance(message, SYNC):
            self.sync_sent_bytes += size
        with self._meaning():
            await self._call.write(wire)

    async def done_writing(self) -> None:
        """Says that no more windows come; the server answers those it has and ends the call."""
        with self._meaning():
            await self._call.done_writing()

    async def read(self) -> messages.ServerSays | None:
        """The next message; None at the end of a stream that ended well."""
        while True:
            with self._meaning():
                wire = await self._call.read()
            if wire is grpc.aio.EOF:
                return None
            size = wire.ByteSize() + _PREFIX_BYTES
            self.received_bytes += size
            said = translate.read_server_message(wire)
            if isinstance(said, SYNC):
                self.sync_received_bytes += size
            if said is not None:
                return said

    @contextmanager
    def _meaning(self) -> Iterator[None]:
        try:
            yield
        except asyncio.InvalidStateError:  # gRPC's word for a write to a call that has just ended
            raise LinkError(f"server {self._server}: the stream ended") from None
        except grpc.aio.AioRpcError as error:
            raise meaning(error.code(), error.details() or "", self._server) from None

    def introductions(
        self, step: Step, stream: Callable[[str], SpooledStream]
    ) -> list[messages.OpenStream | messages.NameVersion]:
        """What must be said before a step's window, the first time: its stream's name, and its version's.

        Raises:
            LinkError: this connection has as many streams or versions as the protocol allows; a new one begins anew.
        """
        said: list[messages.OpenStream | messages.NameVersion] = []
        if step.split > 0 and step.version not in self.versions:
            if len(self.versions) == messages.MAX_VERSIONS:
                raise LinkError(f"{messages.MAX_VERSIONS} versions on one connection: beginning a new one")
            said.append(messages.NameVersion(len(self.versions), step.version))
            self.versions = (*self.versions, step.version)
        if step.stream not in self._streams:
            if len(self._names) == MAX_STREAMS:
                raise LinkError(f"{MAX_STREAMS} streams on one connection: beginning a new one")
            index = self._streams[step.stream] = len(self._names)
            self._names.append(step.stream)
            about = stream(step.stream)
            said.append(messages.OpenStream(index, step.stream, about.started_unix_ms, about.sample_rate_hz))
        return said

    def key(self, stream: int, sequence: int) -> tuple[str, int]:
        """The window that the server means."""
        return (self._names[stream] if stream < len(self._names) else "", sequence)

    def window_message(self, step: Step) -> messages.WindowMessage:
        """The step as a message; its mark only where it changed."""
        source = label = None
        if self._marks.get(step.stream) != step.mark:
            self._marks[step.stream] = step.mark
            source, label = (step.mark.source, step.mark.label) if step.mark else ("", None)
        known = step.version in self.versions
        return messages.WindowMessage(
            self._streams[step.stream],
            step.sequence,
            step.start_sample,
            self.versions.index(step.version) if known else 0,
            step.split,
            step.codec,
            step.payload,
            step.level_dbfs,
            source,
            label,
            "" if known else step.version,
        )
