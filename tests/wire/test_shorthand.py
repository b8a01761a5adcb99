"""What follows from the window before is left out, and put back exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.errors import RemoteProtocolError
from streamsplit.wire.shorthand import Shorthand
from streamsplit.wire.v1 import streamsplit_pb2 as pb


def opened(index: int = 0) -> pb.DeviceMessage:
    return pb.DeviceMessage(open_stream=pb.OpenStream(index=index, stream="s", sample_rate_hz=16_000))


def window(sequence: int, start: int, stream: int = 0, split: int = 4, version: int = 0) -> pb.DeviceMessage:
    return pb.DeviceMessage(
        window=pb.Window(
            stream=stream,
            sequence=sequence,
            start_sample=start,
            split=split,
            codec=pb.CODEC_INT8,
            version=version,
            payload=b"p",
        )
    )


def sent(device: Shorthand, server: Shorthand, message: pb.DeviceMessage) -> tuple[pb.DeviceMessage, int]:
    device.shorten(message)
    wire = message.SerializeToString()
    arrived = pb.DeviceMessage.FromString(wire)
    server.complete(arrived)
    return arrived, len(wire)


ANY_WINDOW = st.tuples(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**63 - 1),
    st.integers(0, 3),
    st.integers(-1, 8),
    st.integers(0, 15),
)


@given(st.lists(st.one_of(ANY_WINDOW, st.integers(0, 3)), max_size=30))
def test_any_sequence_of_windows_and_openings_arrives_as_it_was(said: list[tuple[int, ...] | int]) -> None:
    device, server = Shorthand(), Shorthand()
    for index in range(4):
        sent(device, server, opened(index))
    for one in said:
        message = opened(one) if isinstance(one, int) else window(*one)
        full = pb.DeviceMessage.FromString(message.SerializeToString())
        arrived, _ = sent(device, server, message)
        assert arrived == full


def test_an_undisturbed_stream_says_nothing_but_its_payload() -> None:
    device, server = Shorthand(), Shorthand()
    sent(device, server, opened())
    sizes = [sent(device, server, window(n, n * 15_360))[1] for n in range(500, 510)]
    assert set(sizes[2:]) == {len(pb.DeviceMessage(window=pb.Window(payload=b"p")).SerializeToString())}


def test_a_gap_costs_only_the_place_it_moves() -> None:
    device, server = Shorthand(), Shorthand()
    sent(device, server, opened())
    for n in range(3):
        sent(device, server, window(n, n * 15_360))
    arrived, _ = sent(device, server, window(3, 99_999))
    assert (arrived.window.sequence, arrived.window.start_sample) == (3, 99_999)


def test_streams_do_not_mix() -> None:
    device, server = Shorthand(), Shorthand()
    for index in (0, 1):
        sent(device, server, opened(index))
    for n in range(4):
        for stream, split in ((0, 2), (1, 4)):
            arrived, _ = sent(device, server, window(n + 10 * stream, n * 15_360, stream, split))
            assert (arrived.window.sequence, arrived.window.split) == (n + 10 * stream, split)


def test_a_device_may_always_say_everything() -> None:
    server = Shorthand()
    server.complete(opened())
    for n in (0, 1, 2, 7):
        message = window(n, n * 15_360)
        full = pb.DeviceMessage.FromString(message.SerializeToString())
        server.complete(message)
        assert message == full


@pytest.mark.parametrize("name", ["version", "split", "codec"])
def test_the_first_window_must_say_what_nothing_before_it_told(name: str) -> None:
    server = Shorthand()
    server.complete(opened())
    message = window(0, 0)
    message.window.ClearField(name)
    with pytest.raises(RemoteProtocolError, match=name):
        server.complete(message)
