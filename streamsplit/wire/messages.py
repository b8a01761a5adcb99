"""The protocol's messages as the domain sees them; `translate` takes them to protobuf and back.

What the fields mean stands in ``proto/streamsplit/v1/streamsplit.proto``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from streamsplit.wire.codec import Codec

PROTOCOL = "1.3"


@dataclass(frozen=True, slots=True)
class EncoderVersion:
    """An encoder version a server can finish."""

    version: str
    encoder: str
    front_end: str


@dataclass(frozen=True, slots=True)
class Hello:
    """A device introduces itself."""

    protocol: str
    device: str
    versions: tuple[str, ...]
    software: str = ""


@dataclass(frozen=True, slots=True)
class OpenStream:
    """A device names a stream for this connection."""

    index: int
    stream: str
    started_unix_ms: int
    sample_rate_hz: int


@dataclass(frozen=True, slots=True, eq=False)
class WindowMessage:
    """One window; `stream` and `version` are indices into what `OpenStream` and `Hello` named."""

    stream: int
    sequence: int
    start_sample: int
    version: int
    split: int
    codec: Codec
    payload: bytes
    level_dbfs: float
    source: str | None = None
    label: str | None = None
    served_version: str = ""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The server takes the device in."""

    protocol: str
    served: tuple[EncoderVersion, ...]
    max_in_flight: int
    max_message_bytes: int


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """One window's embedding is committed.

    Attributes:
        stream, sequence: which.
        embedding: int8; empty where the device has made it.
        uncertainty: 1 - cosine of `embedding` and `own_embedding`, 0..2; None where there is one embedding only.
        queue_us, tail_us, store_us: what it waited for and took.
        duplicate: it was there already.
        own_embedding: int8; what the device would have embedded the window as, where that is another embedding.
    """

    stream: int
    sequence: int
    embedding: bytes
    uncertainty: float | None
    queue_us: int
    tail_us: int
    store_us: int
    duplicate: bool
    own_embedding: bytes = b""


@dataclass(frozen=True, slots=True)
class Busy:
    """The server could not take this window now."""

    retry_ms: int
    stream: int
    sequence: int


@dataclass(frozen=True, slots=True)
class VersionGone:
    """The window's encoder version is not served."""

    stream: int
    sequence: int
    served: tuple[EncoderVersion, ...]


@dataclass(frozen=True, slots=True)
class Rejected:
    """The window is malformed and will never be accepted."""

    stream: int
    sequence: int
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """The server is going down."""

    grace_ms: int


MAX_VERSIONS = 16
"""Encoder versions named on one connection."""
PIECE_BYTES = 16 << 10
"""Of a thing that is synchronised, at most, in one message."""


class Thing(Enum):
    """What is synchronised."""

    UPGRADE = "upgrade"
    WHOLE = "whole"
    MEMORY = "memory"
    DIFFERENCE = "difference"
    HEAD = "head"


@dataclass(frozen=True, slots=True)
class NameVersion:
    """A device names one more version for this connection."""

    index: int
    version: str


@dataclass(frozen=True, slots=True)
class Want:
    """A device asks for a piece."""

    thing: Thing
    version: str
    base: str
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of something; total 0: there is no such thing."""

    thing: Thing
    version: str
    base: str
    offset: int
    total: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Newest:
    """The version the server would like devices to have."""

    version: EncoderVersion
    number: int


@dataclass(frozen=True, slots=True)
class Taken:
    """How far the server has come with what a device sends; with a problem, it wants no more of it."""

    thing: Thing
    next: int
    problem: str = ""


DeviceSays = Hello | OpenStream | WindowMessage | NameVersion | Want | Piece
ServerSays = Welcome | Acknowledgement | Busy | VersionGone | Rejected | Drain | Newest | Piece | Taken


def interoperates(protocol: str) -> bool:
    """Whether a peer of this protocol version can be talked to: the same major number.

    >>> interoperates("1.7"), interoperates("2.0"), interoperates("1")
    (True, False, False)
    """
    major, separator, minor = protocol.partition(".")
    return bool(separator) and major == PROTOCOL.partition(".")[0] and minor.isdecimal()


def knows_heads(protocol: str) -> bool:
    """Whether a peer that `interoperates` knows `Thing.HEAD`; one that does not would take it for damage.

    >>> knows_heads("1.1"), knows_heads("1.2"), knows_heads("1.10")
    (False, True, True)
    """
    return int(protocol.partition(".")[2]) >= 2
