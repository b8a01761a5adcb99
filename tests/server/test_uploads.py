"""Things that devices send in pieces: whole, in order, within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.server.uploads import Uploads
from streamsplit.wire.messages import PIECE_BYTES, Piece, Taken, Thing

MOST = 100_000


def piece(content: bytes, offset: int, size: int = PIECE_BYTES, total: int | None = None) -> Piece:
    whole = len(content) if total is None else total
    return Piece(Thing.DIFFERENCE, "", "v1", offset, whole, content[offset : offset + size])


@given(st.binary(min_size=1, max_size=50_000), st.integers(1_000, PIECE_BYTES))
def test_pieces_in_order_make_the_whole(content: bytes, size: int) -> None:
    uploads = Uploads()
    for offset in range(0, len(content), size):
        said = uploads.take(piece(content, offset, size), MOST)
        if offset + size < len(content):
            assert said == Taken(Thing.DIFFERENCE, offset + size)
    assert said == content


def test_a_piece_out_of_order_begins_anew() -> None:
    uploads, content = Uploads(), bytes(range(250)) * 200
    uploads.take(piece(content, 0), MOST)
    assert uploads.take(piece(content, 2 * PIECE_BYTES), MOST) == Taken(Thing.DIFFERENCE, 0)
    assert uploads.take(piece(content, PIECE_BYTES), MOST) == Taken(Thing.DIFFERENCE, 0)
    assert uploads.take(piece(content, 0), MOST) == Taken(Thing.DIFFERENCE, PIECE_BYTES)


@pytest.mark.parametrize(
    "bad",
    [
        piece(b"x" * 10, 0, total=MOST + 1),
        piece(b"x" * 10, 0, total=0),
        piece(b"", 0, total=5),
        Piece(Thing.DIFFERENCE, "", "v1", 0, 90_000, bytes(PIECE_BYTES + 1)),
        piece(b"x" * 10, 0, total=4),
    ],
)
def test_what_breaks_its_bounds_is_refused_with_a_reason(bad: Piece) -> None:
    said = Uploads().take(bad, MOST)
    assert isinstance(said, Taken)
    assert said.problem


def test_what_is_not_wanted_is_refused_before_a_byte_is_kept() -> None:
    said = Uploads().take(piece(b"abc", 0), 0)
    assert said == Taken(Thing.DIFFERENCE, 0, "difference: not wanted here")
