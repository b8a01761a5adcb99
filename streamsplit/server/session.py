"""One device's connection as a state machine without I/O.

Theory of operation
-------------------
`service.py` reads messages from the socket and hands them to `Session.receive`; what comes back is a list of commands, which the
service carries out. The compute and storage side reports back through the same door (`Done`, `Failed`, `Fetched`, `Kept`), and so does
the server's own life (`Published`, `DrainRequested`, `HelloOverdue`, `HalfClosed`). The session never waits, never reads a clock, never touches a socket.

    GREETING --Hello ok--> OPEN --DrainRequested--> DRAINING --HalfClosed and last window done--> CLOSED
        |                    |--HalfClosed--> DRAINING (or CLOSED if nothing is in flight)
        `--anything wrong--> CLOSED

    state     | Hello      | OpenStream, NameVersion | Window  | Want, Piece        | Done/Failed | DrainRequested | HalfClosed
    GREETING  | Welcome    | Close                   | Close   | Close              | ignored     | Close          | Close
    OPEN      | Close      | remember                | Process | Fetch, Keep, Reply | Reply       | Drain          | finish in flight
    DRAINING  | Close      | remember                | Busy    | Fetch, Keep, Reply | Reply       | -              | finish in flight
    CLOSED    | -          | -                       | -       | -                  | ignored     | -              | -

A device's mistake about one window costs that window (`Rejected`, `VersionGone`, `Busy`); a mistake about the conversation itself
closes the call with a status that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from streamsplit.config import NAME_PATTERN
from streamsplit.server.events import (
    Close,
    Code,
    Command,
    Done,
    DrainRequested,
    Event,
    Failed,
    Fetch,
    Fetched,
    HalfClosed,
    HelloOverdue,
    Keep,
    Kept,
    Process,
    Published,
    Reply,
    WindowJob,
)
from streamsplit.server.uploads import Uploads
from streamsplit.wire import messages
from streamsplit.wire.codec import Codec

MAX_STREAMS_PER_CONNECTION = 4096
MAX_TEXT = 1024
MAX_SAMPLE = 1 << 62
"""What the store can hold; at 768 kHz 190,000 years."""
BUSY_RETRY_MS = 1000
STORAGE_RETRY_MS = 5000


MAX_FETCHING = 4
"""Wants of one connection that may be unanswered, and things it has sent whole."""


class State(Enum):
    """Where a connection stands."""

    GREETING = "greeting"
    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


class Served(Protocol):
    """What the session must know of an encoder version (`versions.ServedVersion`)."""

    description: messages.EncoderVersion

    def problem(self, split: int, codec: Codec, payload_bytes: int) -> str | None:
        """Why such a payload cannot be one of this version's, or None."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one connection may do.

    Attributes:
        max_in_flight: windows taken and not yet answered.
        max_message_bytes: told to the device; the transport enforces it.
    """

    max_in_flight: int
    max_message_bytes: int


@dataclass(slots=True)
class _Stream:
    name: str
    sample_rate_hz: int
    started_unix_ms: int
    source: str | None = None
    label: str | None = None


@dataclass(slots=True)
class Session:
    """See the theory of operation above.

    Attributes:
        identity: who the credentials say this is; None where the server asks for none (loopback).
        served: encoder versions by name, a live view: versions may come and go.
        limits: of this connection.
        admit: called once with the device's name at Hello; a returned text is the reason to turn it away (too many devices).
        take: called per window; False when the device's rate or the server's queue is exhausted.
        newest: the version devices should have; None where this server publishes none.
        most_bytes: of a thing a device may send, (thing, version or base) -> bytes; 0: it is not wanted.
    """

    identity: str | None
    served: Mapping[str, Served]
    limits: SessionLimits
    admit: Callable[[str], str | None] = lambda device: None
    take: Callable[[], bool] = lambda: True
    newest: Callable[[], messages.Newest | None] = lambda: None
    most_bytes: Callable[[messages.Thing, str], int] = lambda thing, name: 0
    state: State = State.GREETING
    device: str = ""
    in_flight: int = 0
    _versions: tuple[str, ...] = ()
    _streams: dict[int, _Stream] = field(default_factory=dict)
    _half_closed: bool = False
    _uploads: Uploads = field(default_factory=Uploads)
    _fetching: int = 0
    _keeping: int = 0

    def receive(self, event: Event) -> list[Command]:
        """Takes one event; returns what is to be done, in order."""
        if self.state is State.CLOSED:
            return []
        match event:
            case messages.WindowMessage():
                return self._window(event)
            case Done() | Failed():
                return self._finished(event)
            case messages.OpenStream():
                return self._open_stream(event)
            case messages.Hello():
                return self._hello(event)
            case messages.Piece():
                return self._piece(event)
            case messages.Want():
                return self._want(event)
            case messages.NameVersion():
                return self._name_version(event)
            case Fetched(piece):
                self._fetching -= 1
                return [Reply(piece)]
            case Kept(thing, size, problem):
                self._keeping -= 1
                return [Reply(messages.Taken(thing, size, problem))]
            case Published(newest):
                return [Reply(newest)] if self.state is State.OPEN else []
            case DrainRequested(grace_ms):
                return self._drain(grace_ms)
            case HalfClosed():
                return self._half_close()
            case HelloOverdue():
                return (
                    self._close(Code.OVERDUE, "no Hello came in time") if self.state is State.GREETING else []
                )

    def _hello(self, hello: messages.Hello) -> list[Command]:
        if self.state is not State.GREETING:
            return self._close(Code.BAD_MESSAGE, "Hello came twice")
        if not messages.interoperates(hello.protocol):
            return self._close(
                Code.INCOMPATIBLE,
                f"protocol: expected {messages.PROTOCOL.split('.')[0]}.x, got {hello.protocol[:16]!r}",
            )
        if not NAME_PATTERN.fullmatch(hello.device):
            return self._close(
                Code.BAD_MESSAGE, f"device name {hello.device[:80]!r}: expected 1 to 64 of [A-Za-z0-9._-]"
            )
        if self.identity is not None and hello.device != self.identity:
            return self._close(
                Code.WRONG_IDENTITY,
                f"device {hello.device!r}: the credentials are those of {self.identity!r}",
            )
        if not 1 <= len(hello.versions) <= 16 or any(len(version) > 128 for version in hello.versions):
            return self._close(
                Code.BAD_MESSAGE, "Hello.versions: expected 1 to 16 names of at most 128 characters"
            )
        refusal = self.admit(hello.device)
        if refusal:
            return self._close(Code.TOO_MANY, refusal)
        self.device, self._versions, self.state = hello.device, hello.versions, State.OPEN
        limits, newest = self.limits, self.newest()
        welcome = messages.Welcome(
            messages.PROTOCOL, self._descriptions(), limits.max_in_flight, limits.max_message_bytes
        )
        return [Reply(welcome), *([Reply(newest)] if newest else [])]

    def _name_version(self, named: messages.NameVersion) -> list[Command]:
        if self.state is State.GREETING:
            return self._close(Code.BAD_MESSAGE, "NameVersion came before Hello")
        if named.index != len(self._versions) or named.index >= messages.MAX_VERSIONS:
            return self._close(
                Code.BAD_MESSAGE,
                f"version index: expected {len(self._versions)}, below {messages.MAX_VERSIONS}, got {named.index}",
            )
        if not 1 <= len(named.version) <= MAX_TEXT:
            return self._close(
                Code.BAD_MESSAGE,
                f"version name: expected 1 to {MAX_TEXT} characters, got {len(named.version)}",
            )
        self._versions = (*self._versions, named.version)
        return []

    # Lazy synchronisation.

    def _want(self, want: messages.Want) -> list[Command]:
        if self.state is State.GREETING:
            return self._close(Code.BAD_MESSAGE, "Want came before Hello")
        if self._fetching >= MAX_FETCHING:
            return self._close(Code.BAD_MESSAGE, f"Want: expected at most {MAX_FETCHING} unanswered ones")
        if self.newest() is None:
            nothing = messages.Piece(want.thing, want.version, want.base, 0, 0, b"")
            return [Reply(nothing)]
        self._fetching += 1
        return [Fetch(want)]

    def _piece(self, piece: messages.Piece) -> list[Command]:
        if self.state is State.GREETING:
            return self._close(Code.BAD_MESSAGE, "a Piece came before Hello")
        if self._keeping >= MAX_FETCHING:
            return self._close(Code.BAD_MESSAGE, f"Piece: expected at most {MAX_FETCHING} unanswered things")
        said = self._uploads.take(piece, self.most_bytes(piece.thing, piece.base or piece.version))
        if isinstance(said, messages.Taken):
            return [Reply(said)]
        self._keeping += 1
        return [Keep(self.device, piece.thing, piece.version, piece.base, said)]

    def _open_stream(self, message: messages.OpenStream) -> list[Command]:
        if self.state is State.GREETING:
            return self._close(Code.BAD_MESSAGE, "OpenStream came before Hello")
        if not 0 <= message.index < MAX_STREAMS_PER_CONNECTION:
            return self._close(Code.BAD_MESSAGE, f"stream index: expected 0..4095, got {message.index}")
        if not NAME_PATTERN.fullmatch(message.stream):
            return self._close(
                Code.BAD_MESSAGE, f"stream {message.stream[:80]!r}: expected 1 to 64 of [A-Za-z0-9._-]"
            )
        if abs(message.started_unix_ms) > MAX_SAMPLE:
            return self._close(Code.BAD_MESSAGE, f"start of stream: got {message.started_unix_ms} ms")
        if not 1000 <= message.sample_rate_hz <= 768_000:
            return self._close(
                Code.BAD_MESSAGE, f"sample rate: expected 1000..768000 Hz, got {message.sample_rate_hz}"
            )
        self._streams[message.index] = _Stream(
            message.stream, message.sample_rate_hz, message.started_unix_ms
        )
        return []

    def _window(self, window: messages.WindowMessage) -> list[Command]:
        if self.state is State.GREETING:
            return self._close(Code.BAD_MESSAGE, "a Window came before Hello")
        stream = self._streams.get(window.stream)
        if stream is None:
            return self._close(
                Code.BAD_MESSAGE, f"window {window.sequence}: stream index {window.stream} was never opened"
            )
        if window.source is not None:
            stream.source, stream.label = (
                window.source[:MAX_TEXT] or None,
                (window.label or "")[:MAX_TEXT] or None,
            )
        if self.state is State.DRAINING or self.in_flight >= self.limits.max_in_flight or not self.take():
            return [Reply(messages.Busy(BUSY_RETRY_MS, window.stream, window.sequence))]
        if window.start_sample > MAX_SAMPLE:
            return self._reject(
                window, f"start sample: expected at most {MAX_SAMPLE}, got {window.start_sample}"
            )
        version = self._version_of(window)
        if version is None:
            return self._reject(window, f"version index {window.version} was not in Hello")
        served = self.served.get(version)
        if served is None:
            return [Reply(messages.VersionGone(window.stream, window.sequence, self._descriptions()))]
        problem = served.problem(window.split, window.codec, len(window.payload))
        if problem:
            return self._reject(window, problem)
        self.in_flight += 1
        return [
            Process(
                WindowJob(
                    self.device,
                    stream.name,
                    window.stream,
                    window.sequence,
                    window.start_sample,
                    stream.sample_rate_hz,
                    stream.started_unix_ms,
                    version,
                    window.split,
                    window.codec,
                    window.payload,
                    window.level_dbfs,
                    stream.source,
                    stream.label,
                )
            )
        ]

    def _version_of(self, window: messages.WindowMessage) -> str | None:
        if window.served_version:
            return window.served_version if window.split <= 0 else None
        return self._versions[window.version] if window.version < len(self._versions) else None

    def _reject(self, window: messages.WindowMessage, reason: str) -> list[Command]:
        return [
            Reply(messages.Rejected(window.stream, window.sequence, f"window {window.sequence}: {reason}"))
        ]

    def _finished(self, event: Done | Failed) -> list[Command]:
        if self.state is State.GREETING:
            return []
        self.in_flight -= 1
        job = event.job
        reply: messages.ServerSays
        if isinstance(event, Done):
            reply = messages.Acknowledgement(
                job.stream_index,
                job.sequence,
                event.embedding,
                event.uncertainty,
                event.queue_us,
                event.tail_us,
                event.store_us,
                event.duplicate,
                event.own,
            )
        elif event.again:
            reply = messages.Busy(STORAGE_RETRY_MS, job.stream_index, job.sequence)
        else:
            reply = messages.Rejected(
                job.stream_index, job.sequence, f"window {job.sequence}: {event.reason}"
            )
        commands: list[Command] = [Reply(reply)]
        if self._half_closed and self.in_flight == 0:
            commands += self._close(Code.OK)
        return commands

    def _drain(self, grace_ms: int) -> list[Command]:
        if self.state is State.GREETING:
            return self._close(Code.DRAINING, "the server is going down")
        if self.state is State.DRAINING:
            return []
        self.state = State.DRAINING
        return [Reply(messages.Drain(grace_ms))]

    def _half_close(self) -> list[Command]:
        if self.state is State.GREETING:
            return self._close(Code.BAD_MESSAGE, "the device left before its Hello")
        self._half_closed, self.state = True, State.DRAINING
        return self._close(Code.OK) if self.in_flight == 0 else []

    def _close(self, code: Code, reason: str = "") -> list[Command]:
        self.state = State.CLOSED
        return [Close(code, reason)]

    def _descriptions(self) -> tuple[messages.EncoderVersion, ...]:
        return tuple(served.description for served in self.served.values())
