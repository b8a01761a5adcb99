"""Small integers to bytes and back: what remains after prediction, written with as many bits as it needs.

Sound changes slowly against the 40-80 ms of one activation column, so a value is predicted by the one before
it in time, and a row's first value by the row above. What remains is small and symmetric around 0; it is
folded to 0, -1, 1, -2, ... -> 0, 1, 2, 3, ... (all modulo the number of levels, so it never needs more bits
than the value) and packed. At the 16x4x12 boundary and 4 bits the entropy stage then needs 255 bytes a window
where it needed 323 for the values themselves.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def dense_bytes(count: int, bits: int) -> int:
    """Bytes of `count` values of `bits` bits: rounded up to a whole byte once, at the end."""
    return (count * bits + 7) // 8


def residuals(levels: Bytes, bits: int) -> Bytes:
    """Each level minus its prediction, folded: [..., H, W] in 0..2^bits-1 to the same shape and range."""
    rest = levels.copy()
    rest[..., 1:] -= levels[..., :-1]
    rest[..., 1:, 0] -= levels[..., :-1, 0]
    rest[..., 0, 0] -= 1 << (bits - 1)
    folded: Bytes = _fold(bits).take(rest)
    return folded


def levels_of(folded: Bytes, bits: int) -> Bytes:
    """Undoes `residuals`."""
    rest = _unfold(bits).take(folded)
    rest[..., 0, 0] += 1 << (bits - 1)
    np.cumsum(rest[..., 0], axis=-1, dtype=np.uint8, out=rest[..., 0])
    levels: Bytes = np.cumsum(rest, axis=-1, dtype=np.uint8)
    if bits < 8:
        levels &= (1 << bits) - 1
    return levels


def pack_bits(values: Bytes, bits: int) -> bytes:
    """[N] values below 2^bits, densely: bytes at 8 bits, two to a byte at 4, else plane after plane.

    Planes, highest first, keep what the entropy stage can use (the high ones are mostly 0) at widths that do
    not divide a byte.
    """
    if bits == 8:
        return values.tobytes()
    if bits == 4:
        if len(values) % 2:
            values = np.append(values, np.uint8(0))
        return ((values[::2] << 4) | values[1::2]).tobytes()
    planes = (values >> _shifts(bits)) & 1
    return np.packbits(planes.ravel()).tobytes()


def unpack_bits(dense: Bytes, bits: int, count: int) -> Bytes:
    """Undoes `pack_bits` for B messages at once: [B, dense_bytes(count, bits)] to [B, count]."""
    if bits == 8:
        return dense
    if bits == 4:
        pairs = np.empty((len(dense), dense.shape[1] * 2), np.uint8)
        np.right_shift(dense, 4, out=pairs[:, ::2])
        np.bitwise_and(dense, 15, out=pairs[:, 1::2])
        return pairs[:, :count]
    planes = np.unpackbits(dense, axis=1, count=bits * count).reshape(len(dense), bits, count)
    values = planes[:, 0].copy()
    for plane in range(1, bits):
        values <<= 1
        values |= planes[:, plane]
    return values


@lru_cache
def _fold(bits: int) -> Bytes:
    """Table over all 256 differences modulo 2^bits: 0, 1, 2, ..., -2, -1 to 0, 2, 4, ..., 3, 1."""
    rest = np.arange(256) & ((1 << bits) - 1)
    return np.where(rest < 1 << (bits - 1), 2 * rest, 2 * ((1 << bits) - rest) - 1).astype(np.uint8)


@lru_cache
def _unfold(bits: int) -> Bytes:
    """Table over folded values; entries from 2^bits on are never asked for."""
    folded = np.arange(1 << bits)
    rest = np.where(folded % 2 == 0, folded // 2, (1 << bits) - (folded + 1) // 2)
    return rest.astype(np.uint8)


@lru_cache
def _shifts(bits: int) -> Bytes:
    return np.arange(bits - 1, -1, -1, dtype=np.uint8)[:, None]
