"""Blocks: lossless, never longer, and never more than the receiver expects."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.errors import PayloadError
from streamsplit.wire.block import MAX_BLOCK_BYTES, deflate, inflate


@given(
    st.binary(max_size=200)
    | st.builds(lambda part, times: part * times, st.binary(min_size=1, max_size=9), st.integers(1, 2000))
)
def test_a_message_comes_back_and_never_grows(message: bytes) -> None:
    payload = deflate(message)
    assert len(payload) <= len(message)
    assert inflate(payload, len(message)) == message


@pytest.mark.parametrize("size", [MAX_BLOCK_BYTES, MAX_BLOCK_BYTES + 1])
def test_the_longest_messages_come_back(size: int) -> None:
    message = bytes(size)
    assert inflate(deflate(message), size) == message


def test_silence_shrinks_to_a_few_bytes() -> None:
    assert len(deflate(bytes(384))) < 16


@given(payload=st.binary(max_size=400), expected=st.integers(0, 500))
def test_random_bytes_become_what_was_expected_or_are_refused(payload: bytes, expected: int) -> None:
    try:
        message = inflate(payload, expected)
    except PayloadError:
        return
    assert len(message) == expected


def test_a_decompression_bomb_is_refused() -> None:
    frame = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(
            3, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False, window_log=17
        )
    ).compress(bytes(100_000))
    with pytest.raises(PayloadError, match="expected 384 bytes raw or as a zstd block"):
        inflate(frame[5:], 384)


def test_a_block_of_another_length_is_refused() -> None:
    payload = deflate(b"abcdefg" * 50)
    with pytest.raises(PayloadError, match="window 7: expected a zstd block of 400 bytes, got one of 350"):
        inflate(payload, 400, "window 7")


def test_threads_do_not_disturb_each_other() -> None:
    messages = [bytes([k % 7, k % 5, k % 3] * 200) for k in range(64)]
    with ThreadPoolExecutor(4) as pool:
        payloads = list(pool.map(deflate, messages * 20))
        assert list(pool.map(lambda payload: inflate(payload, 600), payloads)) == messages * 20
