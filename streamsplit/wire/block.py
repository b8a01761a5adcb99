"""Lossless compression of one small message: a single zstd block without its frame.

A zstd frame of a few hundred bytes spends five of them on what both machines know: frame descriptor, window size, and a block header that
says "last, compressed, this long" (RFC 8878, 3.1.1). They are cut off here and put back before decoding. A message is kept compressed
only if that made it shorter, so the receiver tells the two apart by length and no flag byte is needed.
"""

from __future__ import annotations

import threading

import zstandard

from streamsplit.errors import PayloadError

MAX_BLOCK_BYTES = 128 * 1024
"""The largest block zstd allows; longer messages are not compressed."""

_DESCRIPTOR = b"\x00\x28"
"""No content size, checksum or dictionary; window 32 KiB (only a limit here: a message of one block needs none)."""

_COMPRESSED_LAST = 0b101


class _Coders(threading.local):
    """One compressor and decompressor per thread: neither may be used by two threads at once.

    zstd's own level 3 looks for short repeats first, which 4-bit noise is full of, and then codes the rest badly. The optimal parser
    weighs a repeat against plain entropy coding: at the 16x4x12 boundary, after `dense.residuals`, 255 bytes a window in 35 us where
    level 3 made 276 in 30 us.
    """

    def __init__(self) -> None:
        parameters = zstandard.ZstdCompressionParameters(
            format=zstandard.FORMAT_ZSTD1_MAGICLESS,
            strategy=zstandard.STRATEGY_BTULTRA,
            window_log=15,
            hash_log=12,
            chain_log=12,
            search_log=3,
            min_match=6,
            target_length=16,
            write_content_size=False,
            write_checksum=False,
            write_dict_id=False,
        )
        self.compressor = zstandard.ZstdCompressor(compression_params=parameters)
        self.decompressor = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)


_coders = _Coders()


def deflate(message: bytes) -> bytes:
    """The shorter of `message` and its zstd block: never longer than `message`, and equal to it if not shorter."""
    if not 8 <= len(message) <= MAX_BLOCK_BYTES:
        return message
    frame = _coders.compressor.compress(message)
    header = int.from_bytes(frame[2:5], "little")
    one_block = frame[0] == 0 and header == (len(frame) - 5) << 3 | _COMPRESSED_LAST
    if not one_block or len(frame) - 5 >= len(message):
        return message
    return frame[5:]


def inflate(payload: bytes, expected_bytes: int, item: str = "payload") -> bytes:
    """Undoes `deflate` for a message known to have `expected_bytes` bytes.

    Never allocates more than `expected_bytes`, whatever the payload says of itself.

    Raises:
        PayloadError: too long, or not a block of exactly `expected_bytes` bytes.
    """
    if len(payload) == expected_bytes:
        return payload
    if len(payload) > expected_bytes or expected_bytes > MAX_BLOCK_BYTES:
        raise PayloadError(f"{item}: expected {_at_most(expected_bytes)} bytes, got {len(payload)}")
    header = (len(payload) << 3 | _COMPRESSED_LAST).to_bytes(3, "little")
    try:
        message = _coders.decompressor.decompress(
            _DESCRIPTOR + header + payload, max_output_size=expected_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise PayloadError(
            f"{item}: expected {expected_bytes} bytes raw or as a zstd block, got {len(payload)} that are neither"
        ) from error
    if len(message) != expected_bytes:
        raise PayloadError(
            f"{item}: expected a zstd block of {expected_bytes} bytes, got one of {len(message)}"
        )
    return message


def _at_most(expected_bytes: int) -> str:
    return str(expected_bytes) if expected_bytes > MAX_BLOCK_BYTES else f"at most {expected_bytes}"
