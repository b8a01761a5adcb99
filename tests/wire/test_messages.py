"""Messages: what is sent is what is read, and strangers are told apart from mistakes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.errors import RemoteProtocolError
from streamsplit.wire import messages, translate
from streamsplit.wire.codec import Codec
from streamsplit.wire.v1 import streamsplit_pb2 as pb

SERVED = (messages.EncoderVersion("compact-1", "compact", "abc"),)

windows = st.builds(
    messages.WindowMessage,
    stream=st.integers(0, 255),
    sequence=st.integers(0, 2**32 - 1),
    start_sample=st.integers(0, 2**63 - 1),
    version=st.integers(0, 15),
    split=st.integers(-1, 12),
    codec=st.sampled_from(list(Codec)),
    payload=st.binary(max_size=64),
    level_dbfs=st.integers(-1200, 0).map(lambda tenth: tenth / 10),
    source=st.one_of(st.none(), st.text(max_size=20)),
    label=st.none(),
    served_version=st.text(max_size=10),
)


def fields(message: object) -> dict[str, object]:
    return {name: getattr(message, name) for name in message.__slots__}  # type: ignore[attr-defined]


@given(windows)
def test_a_window_reads_back_as_it_was_sent(window: messages.WindowMessage) -> None:
    wire = translate.device_message(window).SerializeToString()
    read = translate.read_device_message(pb.DeviceMessage.FromString(wire))
    assert isinstance(read, messages.WindowMessage)
    assert fields(read) == fields(window)


@pytest.mark.parametrize(
    "message",
    [
        messages.NameVersion(3, "compact-3"),
        messages.Want(messages.Thing.UPGRADE, "", "compact-1", 16_384),
        messages.Piece(messages.Thing.DIFFERENCE, "", "compact-1", 5, 9, b"abc"),
        messages.Hello("1.0", "pi", ("compact-1", "compact-2"), "x"),
        messages.OpenStream(3, "s", 1_700_000_000_000, 16_000),
    ],
)
def test_device_messages_read_back(message: messages.DeviceSays) -> None:
    wire = translate.device_message(message).SerializeToString()
    assert translate.read_device_message(pb.DeviceMessage.FromString(wire)) == message


@pytest.mark.parametrize(
    "message",
    [
        messages.Newest(SERVED[0], 7),
        messages.Piece(messages.Thing.WHOLE, "compact-2", "", 0, 0, b""),
        messages.Taken(messages.Thing.MEMORY, 33_808, "no room"),
        messages.Welcome("1.0", SERVED, 64, 1 << 20),
        messages.Acknowledgement(1, 2, b"\x01\x02", 0.5, 10, 20, 30, True, b"\x03"),
        messages.Acknowledgement(1, 2, b"", None, 0, 0, 0, False),
        messages.Busy(500, 1, 2),
        messages.VersionGone(1, 2, SERVED),
        messages.Rejected(1, 2, "window 2: why"),
        messages.Drain(5000),
    ],
)
def test_server_messages_read_back(message: messages.ServerSays) -> None:
    wire = translate.server_message(message).SerializeToString()
    assert translate.read_server_message(pb.ServerMessage.FromString(wire)) == message


def test_every_codec_has_a_number_on_the_wire() -> None:
    numbers = {pb.Codec.Value(f"CODEC_{codec.name}") for codec in Codec}
    assert numbers == set(pb.Codec.values()) - {pb.CODEC_UNSPECIFIED}


def test_a_kind_of_message_from_a_newer_minor_version_is_passed_over() -> None:
    newer = b"\xfa\x01\x02\x08\x01"  # field 31, which this version does not know
    assert translate.read_device_message(pb.DeviceMessage.FromString(newer)) is None
    assert translate.read_server_message(pb.ServerMessage.FromString(newer)) is None


def test_an_unknown_codec_is_the_peers_mistake() -> None:
    message = pb.DeviceMessage(window=pb.Window(sequence=7))
    message.window.codec = 99
    with pytest.raises(RemoteProtocolError, match="window 7: expected a known codec, got number 99"):
        translate.read_device_message(message)


@given(st.text(max_size=8))
def test_only_the_major_number_decides_who_can_talk(text: str) -> None:
    assert messages.interoperates(f"1.{abs(hash(text)) % 100}")
    assert not messages.interoperates(f"2.{text}")
