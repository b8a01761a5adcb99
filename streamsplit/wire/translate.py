"""The protocol's messages to protobuf and back.

Decoding checks what a message says about itself (enums, ranges of numbers); what it says in its context is the session's to check.
"""

from __future__ import annotations

from streamsplit.errors import RemoteProtocolError
from streamsplit.wire.codec import Codec
from streamsplit.wire.messages import (
    Acknowledgement,
    Busy,
    DeviceSays,
    Drain,
    EncoderVersion,
    Hello,
    NameVersion,
    Newest,
    OpenStream,
    Piece,
    Rejected,
    ServerSays,
    Taken,
    Thing,
    VersionGone,
    Want,
    Welcome,
    WindowMessage,
)
from streamsplit.wire.v1 import streamsplit_pb2 as pb

_CODEC_TO_WIRE = {codec: pb.Codec.Value(f"CODEC_{codec.name}") for codec in Codec}
_CODEC_FROM_WIRE = {number: codec for codec, number in _CODEC_TO_WIRE.items()}
_THING_TO_WIRE = {thing: pb.Thing.Value(f"THING_{thing.name}") for thing in Thing}
_THING_FROM_WIRE = {number: thing for thing, number in _THING_TO_WIRE.items()}


def device_message(message: DeviceSays) -> pb.DeviceMessage:
    """A device's message, ready to send."""
    match message:
        case WindowMessage():
            window = pb.Window(
                stream=message.stream,
                sequence=message.sequence,
                start_sample=message.start_sample,
                version=message.version,
                split=message.split,
                codec=_CODEC_TO_WIRE[message.codec],
                payload=message.payload,
                level_cb=round(message.level_dbfs * 10),
                served_version=message.served_version,
            )
            if message.source is not None:
                window.mark.CopyFrom(pb.Mark(source=message.source, label=message.label or ""))
            return pb.DeviceMessage(window=window)
        case OpenStream():
            return pb.DeviceMessage(
                open_stream=pb.OpenStream(
                    index=message.index,
                    stream=message.stream,
                    started_unix_ms=message.started_unix_ms,
                    sample_rate_hz=message.sample_rate_hz,
                )
            )
        case Want():
            return pb.DeviceMessage(
                want=pb.Want(
                    thing=_THING_TO_WIRE[message.thing],
                    version=message.version,
                    base=message.base,
                    offset=message.offset,
                )
            )
        case Piece():
            return pb.DeviceMessage(piece=_piece(message))
        case NameVersion():
            return pb.DeviceMessage(name_version=pb.NameVersion(index=message.index, version=message.version))
        case Hello():
            return pb.DeviceMessage(
                hello=pb.Hello(
                    protocol=message.protocol,
                    device=message.device,
                    versions=message.versions,
                    software=message.software,
                )
            )


def read_device_message(message: pb.DeviceMessage) -> DeviceSays | None:
    """What a device said; None for a kind that a newer minor version added.

    Raises:
        RemoteProtocolError: a codec or thing this version does not know.
    """
    match message.WhichOneof("kind"):
        case "window":
            window = message.window
            codec = _CODEC_FROM_WIRE.get(window.codec)
            if codec is None:
                raise RemoteProtocolError(
                    f"window {window.sequence}: expected a known codec, got number {window.codec}"
                )
            marked = window.HasField("mark")
            return WindowMessage(
                window.stream,
                window.sequence,
                window.start_sample,
                window.version,
                window.split,
                codec,
                window.payload,
                window.level_cb / 10,
                window.mark.source if marked else None,
                (window.mark.label or None) if marked else None,
                window.served_version,
            )
        case "open_stream":
            stream = message.open_stream
            return OpenStream(stream.index, stream.stream, stream.started_unix_ms, stream.sample_rate_hz)
        case "want":
            want = message.want
            return Want(_thing(want.thing), want.version, want.base, want.offset)
        case "piece":
            return _read_piece(message.piece)
        case "name_version":
            return NameVersion(message.name_version.index, message.name_version.version)
        case "hello":
            hello = message.hello
            return Hello(hello.protocol, hello.device, tuple(hello.versions), hello.software)
        case _:
            return None


def server_message(message: ServerSays) -> pb.ServerMessage:
    """A server's message, ready to send."""
    match message:
        case Acknowledgement():
            acknowledgement = pb.Acknowledgement(
                stream=message.stream,
                sequence=message.sequence,
                embedding=message.embedding,
                queue_us=message.queue_us,
                tail_us=message.tail_us,
                store_us=message.store_us,
                duplicate=message.duplicate,
                own_embedding=message.own_embedding,
            )
            if message.uncertainty is not None:
                acknowledgement.uncertainty = message.uncertainty
            return pb.ServerMessage(acknowledgement=acknowledgement)
        case Busy():
            return pb.ServerMessage(
                busy=pb.Busy(retry_ms=message.retry_ms, stream=message.stream, sequence=message.sequence)
            )
        case VersionGone():
            gone = pb.VersionGone(
                stream=message.stream, sequence=message.sequence, served=_served(message.served)
            )
            return pb.ServerMessage(version_gone=gone)
        case Rejected():
            return pb.ServerMessage(
                rejected=pb.Rejected(stream=message.stream, sequence=message.sequence, reason=message.reason)
            )
        case Newest():
            return pb.ServerMessage(
                newest=pb.Newest(version=_served((message.version,))[0], number=message.number)
            )
        case Piece():
            return pb.ServerMessage(piece=_piece(message))
        case Taken():
            return pb.ServerMessage(
                taken=pb.Taken(
                    thing=_THING_TO_WIRE[message.thing], next=message.next, problem=message.problem
                )
            )
        case Drain():
            return pb.ServerMessage(drain=pb.Drain(grace_ms=message.grace_ms))
        case Welcome():
            return pb.ServerMessage(
                welcome=pb.Welcome(
                    protocol=message.protocol,
                    served=_served(message.served),
                    max_in_flight=message.max_in_flight,
                    max_message_bytes=message.max_message_bytes,
                )
            )


def read_server_message(message: pb.ServerMessage) -> ServerSays | None:
    """What the server said; None for a kind that a newer minor version added.

    Raises:
        RemoteProtocolError: a thing this version does not know.
    """
    match message.WhichOneof("kind"):
        case "acknowledgement":
            ack = message.acknowledgement
            uncertainty = ack.uncertainty if ack.HasField("uncertainty") else None
            return Acknowledgement(
                ack.stream,
                ack.sequence,
                ack.embedding,
                uncertainty,
                ack.queue_us,
                ack.tail_us,
                ack.store_us,
                ack.duplicate,
                ack.own_embedding,
            )
        case "busy":
            return Busy(message.busy.retry_ms, message.busy.stream, message.busy.sequence)
        case "version_gone":
            gone = message.version_gone
            return VersionGone(gone.stream, gone.sequence, _read_served(gone.served))
        case "rejected":
            return Rejected(message.rejected.stream, message.rejected.sequence, message.rejected.reason)
        case "drain":
            return Drain(message.drain.grace_ms)
        case "newest":
            return Newest(_read_served([message.newest.version])[0], message.newest.number)
        case "piece":
            return _read_piece(message.piece)
        case "taken":
            return Taken(_thing(message.taken.thing), message.taken.next, message.taken.problem)
        case "welcome":
            welcome = message.welcome
            return Welcome(
                welcome.protocol,
                _read_served(welcome.served),
                welcome.max_in_flight,
                welcome.max_message_bytes,
            )
        case _:
            return None


def _thing(number: int) -> Thing:
    thing = _THING_FROM_WIRE.get(number)
    if thing is None:
        raise RemoteProtocolError(f"synchronisation: expected a known thing, got number {number}")
    return thing


def _piece(piece: Piece) -> pb.Piece:
    return pb.Piece(
        thing=_THING_TO_WIRE[piece.thing],
        version=piece.version,
        base=piece.base,
        offset=piece.offset,
        total=piece.total,
        data=piece.data,
    )


def _read_piece(piece: pb.Piece) -> Piece:
    return Piece(_thing(piece.thing), piece.version, piece.base, piece.offset, piece.total, piece.data)


def _served(versions: tuple[EncoderVersion, ...]) -> list[pb.EncoderVersion]:
    return [pb.EncoderVersion(version=v.version, encoder=v.encoder, front_end=v.front_end) for v in versions]


def _read_served(versions: list[pb.EncoderVersion]) -> tuple[EncoderVersion, ...]:
    return tuple(EncoderVersion(v.version, v.encoder, v.front_end) for v in versions)
