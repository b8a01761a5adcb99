from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODEC_UNSPECIFIED: _ClassVar[Codec]
    CODEC_FP32: _ClassVar[Codec]
    CODEC_FP16: _ClassVar[Codec]
    CODEC_INT8: _ClassVar[Codec]
    CODEC_INT5: _ClassVar[Codec]
    CODEC_INT4: _ClassVar[Codec]
    CODEC_INT3: _ClassVar[Codec]
    CODEC_PCM16: _ClassVar[Codec]
    CODEC_FLAC: _ClassVar[Codec]
    CODEC_OPUS: _ClassVar[Codec]

class Thing(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    THING_UNSPECIFIED: _ClassVar[Thing]
    THING_UPGRADE: _ClassVar[Thing]
    THING_WHOLE: _ClassVar[Thing]
    THING_MEMORY: _ClassVar[Thing]
    THING_DIFFERENCE: _ClassVar[Thing]
    THING_HEAD: _ClassVar[Thing]
CODEC_UNSPECIFIED: Codec
CODEC_FP32: Codec
CODEC_FP16: Codec
CODEC_INT8: Codec
CODEC_INT5: Codec
CODEC_INT4: Codec
CODEC_INT3: Codec
CODEC_PCM16: Codec
CODEC_FLAC: Codec
CODEC_OPUS: Codec
THING_UNSPECIFIED: Thing
THING_UPGRADE: Thing
THING_WHOLE: Thing
THING_MEMORY: Thing
THING_DIFFERENCE: Thing
THING_HEAD: Thing

class DeviceMessage(_message.Message):
    __slots__ = ("hello", "open_stream", "window", "name_version", "want", "piece")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_STREAM_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    NAME_VERSION_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    open_stream: OpenStream
    window: Window
    name_version: NameVersion
    want: Want
    piece: Piece
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., open_stream: _Optional[_Union[OpenStream, _Mapping]] = ..., window: _Optional[_Union[Window, _Mapping]] = ..., name_version: _Optional[_Union[NameVersion, _Mapping]] = ..., want: _Optional[_Union[Want, _Mapping]] = ..., piece: _Optional[_Union[Piece, _Mapping]] = ...) -> None: ...

class ServerMessage(_message.Message):
    __slots__ = ("welcome", "acknowledgement", "busy", "version_gone", "rejected", "drain", "newest", "piece", "taken")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGEMENT_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    VERSION_GONE_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    NEWEST_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    acknowledgement: Acknowledgement
    busy: Busy
    version_gone: VersionGone
    rejected: Rejected
    drain: Drain
    newest: Newest
    piece: Piece
    taken: Taken
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., acknowledgement: _Optional[_Union[Acknowledgement, _Mapping]] = ..., busy: _Optional[_Union[Busy, _Mapping]] = ..., version_gone: _Optional[_Union[VersionGone, _Mapping]] = ..., rejected: _Optional[_Union[Rejected, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., newest: _Optional[_Union[Newest, _Mapping]] = ..., piece: _Optional[_Union[Piece, _Mapping]] = ..., taken: _Optional[_Union[Taken, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "device", "versions", "software")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    protocol: str
    device: str
    versions: _containers.RepeatedScalarFieldContainer[str]
    software: str
    def __init__(self, protocol: _Optional[str] = ..., device: _Optional[str] = ..., versions: _Optional[_Iterable[str]] = ..., software: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "served", "max_in_flight", "max_message_bytes")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    MAX_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    protocol: str
    served: _containers.RepeatedCompositeFieldContainer[EncoderVersion]
    max_in_flight: int
    max_message_bytes: int
    def __init__(self, protocol: _Optional[str] = ..., served: _Optional[_Iterable[_Union[EncoderVersion, _Mapping]]] = ..., max_in_flight: _Optional[int] = ..., max_message_bytes: _Optional[int] = ...) -> None: ...

class EncoderVersion(_message.Message):
    __slots__ = ("version", "encoder", "front_end")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ENCODER_FIELD_NUMBER: _ClassVar[int]
    FRONT_END_FIELD_NUMBER: _ClassVar[int]
    version: str
    encoder: str
    front_end: str
    def __init__(self, version: _Optional[str] = ..., encoder: _Optional[str] = ..., front_end: _Optional[str] = ...) -> None: ...

class OpenStream(_message.Message):
    __slots__ = ("index", "stream", "started_unix_ms", "sample_rate_hz")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_HZ_FIELD_NUMBER: _ClassVar[int]
    index: int
    stream: str
    started_unix_ms: int
    sample_rate_hz: int
    def __init__(self, index: _Optional[int] = ..., stream: _Optional[str] = ..., started_unix_ms: _Optional[int] = ..., sample_rate_hz: _Optional[int] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("stream", "sequence", "start_sample", "version", "split", "codec", "payload", "mark", "level_cb", "served_version")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    START_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    MARK_FIELD_NUMBER: _ClassVar[int]
    LEVEL_CB_FIELD_NUMBER: _ClassVar[int]
    SERVED_VERSION_FIELD_NUMBER: _ClassVar[int]
    stream: int
    sequence: int
    start_sample: int
    version: int
    split: int
    codec: Codec
    payload: bytes
    mark: Mark
    level_cb: int
    served_version: str
    def __init__(self, stream: _Optional[int] = ..., sequence: _Optional[int] = ..., start_sample: _Optional[int] = ..., version: _Optional[int] = ..., split: _Optional[int] = ..., codec: _Optional[_Union[Codec, str]] = ..., payload: _Optional[bytes] = ..., mark: _Optional[_Union[Mark, _Mapping]] = ..., level_cb: _Optional[int] = ..., served_version: _Optional[str] = ...) -> None: ...

class Mark(_message.Message):
    __slots__ = ("source", "label")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    source: str
    label: str
    def __init__(self, source: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("stream", "sequence", "embedding", "uncertainty", "queue_us", "tail_us", "store_us", "duplicate", "own_embedding")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    UNCERTAINTY_FIELD_NUMBER: _ClassVar[int]
    QUEUE_US_FIELD_NUMBER: _ClassVar[int]
    TAIL_US_FIELD_NUMBER: _ClassVar[int]
    STORE_US_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    OWN_EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    stream: int
    sequence: int
    embedding: bytes
    uncertainty: float
    queue_us: int
    tail_us: int
    store_us: int
    duplicate: bool
    own_embedding: bytes
    def __init__(self, stream: _Optional[int] = ..., sequence: _Optional[int] = ..., embedding: _Optional[bytes] = ..., uncertainty: _Optional[float] = ..., queue_us: _Optional[int] = ..., tail_us: _Optional[int] = ..., store_us: _Optional[int] = ..., duplicate: _Optional[bool] = ..., own_embedding: _Optional[bytes] = ...) -> None: ...

class Busy(_message.Message):
    __slots__ = ("retry_ms", "stream", "sequence")
    RETRY_MS_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    retry_ms: int
    stream: int
    sequence: int
    def __init__(self, retry_ms: _Optional[int] = ..., stream: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class VersionGone(_message.Message):
    __slots__ = ("stream", "sequence", "served")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    stream: int
    sequence: int
    served: _containers.RepeatedCompositeFieldContainer[EncoderVersion]
    def __init__(self, stream: _Optional[int] = ..., sequence: _Optional[int] = ..., served: _Optional[_Iterable[_Union[EncoderVersion, _Mapping]]] = ...) -> None: ...

class Rejected(_message.Message):
    __slots__ = ("stream", "sequence", "reason")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    stream: int
    sequence: int
    reason: str
    def __init__(self, stream: _Optional[int] = ..., sequence: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ("grace_ms",)
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    grace_ms: int
    def __init__(self, grace_ms: _Optional[int] = ...) -> None: ...

class Newest(_message.Message):
    __slots__ = ("version", "number")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    version: EncoderVersion
    number: int
    def __init__(self, version: _Optional[_Union[EncoderVersion, _Mapping]] = ..., number: _Optional[int] = ...) -> None: ...

class NameVersion(_message.Message):
    __slots__ = ("index", "version")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    index: int
    version: str
    def __init__(self, index: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("thing", "version", "base", "offset")
    THING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    thing: Thing
    version: str
    base: str
    offset: int
    def __init__(self, thing: _Optional[_Union[Thing, str]] = ..., version: _Optional[str] = ..., base: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Piece(_message.Message):
    __slots__ = ("thing", "version", "base", "offset", "total", "data")
    THING_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    thing: Thing
    version: str
    base: str
    offset: int
    total: int
    data: bytes
    def __init__(self, thing: _Optional[_Union[Thing, str]] = ..., version: _Optional[str] = ..., base: _Optional[str] = ..., offset: _Optional[int] = ..., total: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Taken(_message.Message):
    __slots__ = ("thing", "next", "problem")
    THING_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    thing: Thing
    next: int
    problem: str
    def __init__(self, thing: _Optional[_Union[Thing, str]] = ..., next: _Optional[int] = ..., problem: _Optional[str] = ...) -> None: ...
