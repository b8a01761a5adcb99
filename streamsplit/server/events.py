"""What goes into a session besides the device's messages, and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from streamsplit.wire import messages
from streamsplit.wire.codec import Codec


class Code(Enum):
    """Why a connection is closed; `service.py` maps these to gRPC status codes in one place."""

    OK = "ok"
    BAD_MESSAGE = "bad message"
    INCOMPATIBLE = "incompatible"
    WRONG_IDENTITY = "wrong identity"
    TOO_MANY = "too many"
    OVERDUE = "overdue"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True, eq=False)
class WindowJob:
    """A window that passed every check that needs no decoding."""

    device: str
    stream: str
    stream_index: int
    sequence: int
    start_sample: int
    sample_rate_hz: int
    started_unix_ms: int
    version: str
    split: int
    codec: Codec
    payload: bytes
    level_dbfs: float
    source: str | None
    label: str | None


# Events that do not come from the device.


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """A job's embedding is committed.

    Attributes:
        job: what came.
        embedding, own: as `messages.Acknowledgement` takes them back.
        uncertainty: likewise.
        queue_us, tail_us, store_us: likewise.
        duplicate: it was there already.
    """

    job: WindowJob
    embedding: bytes
    own: bytes
    uncertainty: float | None
    queue_us: int
    tail_us: int
    store_us: int
    duplicate: bool


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """A job came to nothing: `again` says whether the device should try again."""

    job: WindowJob
    reason: str
    again: bool


@dataclass(frozen=True, slots=True)
class Published:
    """Another version is the newest now."""

    newest: messages.Newest


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """What a device wanted."""

    piece: messages.Piece


@dataclass(frozen=True, slots=True)
class Kept:
    """What a device sent is kept, or why it is not."""

    thing: messages.Thing
    bytes: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The server goes down."""

    grace_ms: int


@dataclass(frozen=True, slots=True)
class HalfClosed:
    """The device will send no more."""


@dataclass(frozen=True, slots=True)
class HelloOverdue:
    """No Hello came in time."""


Event = (
    messages.DeviceSays
    | Done
    | Failed
    | Published
    | Fetched
    | Kept
    | DrainRequested
    | HalfClosed
    | HelloOverdue
)


# Commands.


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this."""

    message: messages.ServerSays


@dataclass(frozen=True, slots=True, eq=False)
class Process:
    """Embed and store this; report `Done` or `Failed`."""

    job: WindowJob


@dataclass(frozen=True, slots=True)
class Fetch:
    """Find this piece; report `Fetched`."""

    want: messages.Want


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep what the device has sent; report `Kept`."""

    device: str
    thing: messages.Thing
    version: str
    base: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """End the call."""

    code: Code
    reason: str = ""


Command = Reply | Process | Fetch | Keep | Close
