"""The device's half of lazy synchronisation, without a socket."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streamsplit.client.synchroniser import Fetched, Synchroniser, Wish
from streamsplit.errors import RemoteProtocolError
from streamsplit.server.uploads import Uploads
from streamsplit.wire.messages import PIECE_BYTES, PROTOCOL, EncoderVersion, Newest, Piece, Taken, Thing, Want

CONTENT = bytes(range(251)) * 300


class Device:
    """A synchroniser that remembers what it was told."""

    def __init__(self) -> None:
        self.allowed = True
        self.newest: list[EncoderVersion] = []
        self.fetched: list[Fetched] = []
        self.given: list[tuple[Thing, str]] = []
        self.sync = Synchroniser(
            lambda: self.allowed,
            self.newest.append,
            self.fetched.append,
            lambda thing, problem: self.given.append((thing, problem)),
        )


def answer(want: Want, content: bytes = CONTENT, version: str = "v2") -> Piece:
    data = content[want.offset : want.offset + PIECE_BYTES]
    return Piece(want.thing, version, want.base, want.offset, len(content), data)


def wanted(device: Device) -> Want:
    message = device.sync.next()
    assert isinstance(message, Want)
    return message


def test_a_thing_is_fetched_piece_by_piece() -> None:
    device = Device()
    device.sync.fetch(Wish(Thing.UPGRADE, base="v1"), 100_000)
    while not device.fetched:
        want = wanted(device)
        assert device.sync.next() is None, "one question at a time"
        device.sync.heard(answer(want))
    assert device.fetched[0].content == CONTENT
    assert device.fetched[0].version == "v2"
    assert device.sync.next() is None


def test_a_download_goes_on_at_its_offset_after_a_reconnect() -> None:
    device = Device()
    device.sync.fetch(Wish(Thing.WHOLE, "v2"), 100_000)
    device.sync.heard(answer(wanted(device)))
    assert wanted(device).offset == PIECE_BYTES
    device.sync.connected(PROTOCOL)
    assert wanted(device).offset == PIECE_BYTES


def test_an_upgrade_that_changed_meanwhile_begins_anew() -> None:
    device = Device()
    device.sync.fetch(Wish(Thing.UPGRADE, base="v1"), 100_000)
    device.sync.heard(answer(wanted(device), version="v2"))
    device.sync.heard(answer(wanted(device), version="v3"))
    assert wanted(device).offset == 0


def test_what_is_wished_for_again_goes_on_at_its_offset() -> None:
    device = Device()
    device.sync.fetch(Wish(Thing.UPGRADE, base="v1"), 100_000)
    device.sync.heard(answer(wanted(device)))
    device.sync.fetch(Wish(Thing.UPGRADE, base="v1"), 100_000)
    assert wanted(device).offset == PIECE_BYTES


def test_a_piece_that_answers_an_earlier_wish_is_not_taken_for_another() -> None:
    device = Device()
    device.sync.fetch(Wish(Thing.MEMORY, "v1"), 100_000)
    device.sync.heard(answer(wanted(device), version="v1"))
    late = answer(wanted(device), version="v1")
    device.sync.fetch(Wish(Thing.MEMORY, "v2"), 100_000)
    assert device.sync.next() is None, "one question at a time"
    device.sync.heard(late)
    assert wanted(device) == Want(Thing.MEMORY, "v2", "", 0)


@pytest.mark.parametrize("other", [CONTENT[:20_000], CONTENT[:-1], CONTENT + b"x"])
def test_what_has_another_length_now_begins_anew(other: bytes) -> None:
    device = Device()
    device.sync.fetch(Wish(Thing.UPGRADE, base="v1"), 100_000)
    device.sync.heard(answer(wanted(device)))
    device.sync.heard(answer(wanted(device)))
    while not device.fetched:
        device.sync.heard(answer(wanted(device), other))
    assert device.fetched[0].content == other


def test_memories_of_one_version_are_not_mixed() -> None:
    device = Device()
    device.sync.fetch(Wish(Thing.MEMORY, "v1"), 100_000)
    device.sync.heard(replace(answer(wanted(device), version="v1"), base="first"))
    other = CONTENT[::-1]
    while not device.fetched:
        device.sync.heard(replace(answer(wanted(device), other, "v1"), base="other"))
    assert device.fetched[0].content == other


def test_what_changes_faster_than_it_comes_is_done_without() -> None:
    device = Device()
    device.sync.fetch(Wish(Thing.MEMORY, "v1"), 100_000)
    for number in range(100):
        if not device.fetched:
            device.sync.heard(replace(answer(wanted(device), version="v1"), base=str(number)))
    assert device.fetched[0].content == b""
    assert device.sync.next() is None


def test_what_is_larger_than_it_may_be_is_done_without() -> None:
    device = Device()
    device.sync.fetch(Wish(Thing.WHOLE, "v2"), 100)
    device.sync.heard(answer(wanted(device)))
    assert device.fetched[0].content == b""
    assert device.sync.next() is None


def test_what_is_not_there_is_reported_empty() -> None:
    device = Device()
    device.sync.fetch(Wish(Thing.MEMORY, "v1"), 100_000)
    device.sync.heard(Piece(wanted(device).thing, "v1", "", 0, 0, b""))
    assert device.fetched[0].content == b""


@pytest.mark.parametrize(
    "piece",
    [
        Piece(Thing.WHOLE, "v2", "", 1 << 30, 9, b"x"),
        Piece(Thing.WHOLE, "v2", "", 7, 9, b"xy"),
        Piece(Thing.WHOLE, "v2", "", 0, 9, b""),
    ],
)
def test_a_piece_that_was_not_asked_for_ends_the_connection(piece: Piece) -> None:
    device = Device()
    device.sync.fetch(Wish(Thing.WHOLE, "v2"), 100_000)
    wanted(device)
    with pytest.raises(RemoteProtocolError):
        device.sync.heard(piece)


def test_a_thing_is_sent_whole_and_again_from_its_beginning_after_a_reconnect() -> None:
    device, server = Device(), Uploads()
    device.sync.send(Thing.DIFFERENCE, "", "v1", CONTENT)
    for connection in range(2):
        device.sync.connected(PROTOCOL)
        said: Taken | bytes = Taken(Thing.DIFFERENCE, 0)
        for _ in range(2 + 10 * connection):
            message = device.sync.next()
            if message is None:
                break
            assert isinstance(message, Piece)
            said = server.take(message, 100_000)
            device.sync.heard(said if isinstance(said, Taken) else Taken(Thing.DIFFERENCE, len(said)))
    assert said == CONTENT
    assert device.given == [(Thing.DIFFERENCE, "")]


def test_what_the_server_refuses_is_not_sent_again() -> None:
    device = Device()
    device.sync.send(Thing.MEMORY, "v1", "", CONTENT)
    device.sync.next()
    device.sync.heard(Taken(Thing.MEMORY, 0, "not wanted here"))
    assert device.given == [(Thing.MEMORY, "not wanted here")]
    assert device.sync.next() is None


def test_nothing_is_asked_while_the_device_has_better_things_to_do() -> None:
    device = Device()
    device.allowed = False
    device.sync.fetch(Wish(Thing.WHOLE, "v2"), 100_000)
    device.sync.send(Thing.MEMORY, "v1", "", CONTENT)
    assert device.sync.next() is None
    device.allowed = True
    assert device.sync.next() is not None


def test_the_newest_version_is_passed_on() -> None:
    device = Device()
    version = EncoderVersion("v2", "compact", "f")
    device.sync.heard(Newest(version, 3))
    assert device.newest == [version]


def test_what_is_withdrawn_is_sent_no_more_and_not_reported() -> None:
    device = Device()
    device.sync.send(Thing.DIFFERENCE, "", "v1", CONTENT)
    device.sync.next()
    device.sync.withdraw(Thing.DIFFERENCE)
    device.sync.heard(Taken(Thing.DIFFERENCE, PIECE_BYTES))
    assert device.sync.next() is None
    assert device.given == []


def test_a_server_of_an_earlier_protocol_is_not_asked_for_a_head() -> None:
    device = Device()
    device.sync.connected("1.1")
    device.sync.fetch(Wish(Thing.HEAD, "v2"), 100_000)
    assert device.sync.next() is None
    assert [(one.wish.thing, one.content) for one in device.fetched] == [(Thing.HEAD, b"")]
    device.sync.send(Thing.MEMORY, "v2", "", CONTENT)
    device.sync.fetch(Wish(Thing.HEAD, "v2"), 100_000)
    assert isinstance(device.sync.next(), Piece)
