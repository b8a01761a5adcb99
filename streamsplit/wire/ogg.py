"""Opus packets in and out of their Ogg container (RFC 3533, RFC 7845).

libsndfile reads and writes Opus only inside Ogg, and for one second of sound the container weighs 800 bytes
beside 1,500 of Opus. Both machines know everything it says, so only the packets cross the wire:

    pre-skip in samples at 48 kHz, 2 bytes little-endian
    each packet: its length (RFC 6716, 3.2.1), its bytes
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

from streamsplit.errors import PayloadError

OPUS_HZ = 48_000
"""Opus counts time at this rate whatever it codes."""

MAX_PACKET_BYTES = 1275

_LONGEST_PACKET = 5760
"""120 ms at 48 kHz."""

_BEGINS, _ENDS = 2, 4
_SERIAL = 1
_REFLECTED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def strip(ogg: bytes) -> bytes:
    """The payload of an Ogg file that we have just written: one mono Opus stream.

    Raises:
        ValueError: it is something else.
    """
    head, _, *packets = _packets(ogg)
    if head[:8] != b"OpusHead" or head[9] != 1:
        raise ValueError("ogg: expected one mono Opus stream")
    return head[10:12] + b"".join(_length(len(packet)) + packet for packet in packets)


def wrap(payload: bytes, sample_rate_hz: int, samples: int) -> bytes:
    """An Ogg file of exactly `samples` samples at `sample_rate_hz` around the packets of `payload`.

    Raises:
        PayloadError: not packets of mono Opus that last as long as they should.
    """
    pre_skip, packets = _split(payload)
    ends = np.cumsum([_duration(packet) for packet in packets], dtype=np.int64)
    last = pre_skip + samples * OPUS_HZ // sample_rate_hz
    if not last <= ends[-1] <= last + 2 * _LONGEST_PACKET:
        raise PayloadError(f"opus: expected {last / 48:.1f} ms of packets, got {ends[-1] / 48:.1f} ms")
    head = struct.pack("<8sBBHIhB", b"OpusHead", 1, 1, pre_skip, sample_rate_hz, 0, 0)
    pages = [
        _page([head], number=0, granule=0, flags=_BEGINS),
        _page([struct.pack("<8sII", b"OpusTags", 0, 0)], number=1, granule=0, flags=0),
    ]
    for begin in range(0, len(packets), 40):  # 40 packets of 6 segments at most fit the 255 of a page
        end = min(begin + 40, len(packets))
        final = end == len(packets)
        granule = last if final else int(ends[end - 1])
        pages.append(_page(packets[begin:end], len(pages), granule, _ENDS if final else 0))
    return b"".join(pages)


def _packets(ogg: bytes) -> Iterator[bytes]:
    """Packets of an Ogg file with one stream, in order."""
    position, packet = 0, b""
    while position < len(ogg):
        if ogg[position : position + 4] != b"OggS":
            raise ValueError(f"ogg: expected a page at byte {position}")
        segments = ogg[position + 27 : position + 27 + ogg[position + 26]]
        position += 27 + len(segments)
        for size in segments:
            packet += ogg[position : position + size]
            position += size
            if size < 255:
                yield packet
                packet = b""


def _page(packets: Sequence[bytes], number: int, granule: int, flags: int) -> bytes:
    segments = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
    begin = struct.pack("<4sBBqII", b"OggS", 0, flags, granule, _SERIAL, number)
    end = bytes([len(segments)]) + segments + b"".join(packets)
    return begin + _checksum(begin + bytes(4) + end) + end


def _checksum(page: bytes) -> bytes:
    """Ogg's CRC-32: zlib's with bits reflected going in and coming out, and without its inversions."""
    crc = zlib.crc32(page.translate(_REFLECTED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return crc.to_bytes(4, "big").translate(_REFLECTED)


def _length(size: int) -> bytes:
    if size < 252:
        return bytes([size])
    low = 252 + (size & 3)
    return bytes([low, (size - low) // 4])


def _split(payload: bytes) -> tuple[int, list[bytes]]:
    """Pre-skip and packets of a payload."""
    if len(payload) < 4:
        raise PayloadError(f"opus: expected 4 bytes or more, got {len(payload)}")
    pre_skip = int.from_bytes(payload[:2], "little")
    packets, position = [], 2
    while position < len(payload):
        size, position = payload[position], position + 1
        if size >= 252 and position < len(payload):
            size, position = size + 4 * payload[position], position + 1
        packet = payload[position : position + size]
        if not 1 <= size == len(packet):
            raise PayloadError(
                f"opus: expected a packet of 1 to {MAX_PACKET_BYTES} bytes, got {len(packet)} of {size}"
            )
        packets.append(packet)
        position += size
    return pre_skip, packets


def _duration(packet: bytes) -> int:
    """Samples at 48 kHz, from the packet's first bytes (RFC 6716, 3.1)."""
    configuration, code = packet[0] >> 3, packet[0] & 3
    if configuration < 12:
        frame = (480, 960, 1920, 2880)[configuration & 3]
    elif configuration < 16:
        frame = (480, 960)[configuration & 1]
    else:
        frame = (120, 240, 480, 960)[configuration & 3]
    if code == 3 and len(packet) < 2:
        raise PayloadError("opus: expected a packet with a frame count, got one byte")
    frames = 1 if code == 0 else 2 if code < 3 else packet[1] & 63
    if packet[0] & 4 or not 0 < frame * frames <= _LONGEST_PACKET:
        raise PayloadError(
            f"opus: expected a mono packet of at most 120 ms, "
            f"got one of {frames} frames, first byte {packet[0]:#04x}"
        )
    return frame * frames
