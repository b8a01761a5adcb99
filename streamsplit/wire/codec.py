"""Tensor <-> bytes: what crosses the split.

    activation --pack--> quantise per channel -> residuals -> dense bits -> zstd block --unpack--> activation

The receiver states the shape it expects; byte counts are checked before anything is decoded, and NaN and
infinite numbers are refused on both sides. Stated errors, inside a channel's range [low, high] (values
outside are clipped to it):

| codec | bytes per number before compression | largest error |
| --- | --- | --- |
| fp32 | 4 | 0 |
| fp16 | 2 | 2^-11 of the value (2^-25 near 0); saturates at 65,504 |
| int8, int5, int4, int3 | 1, 5/8, 1/2, 3/8 | half a step = (high - low) / (2^bits - 1) / 2 |

Embeddings carry their own scale: see `pack_embedding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from math import prod

import numpy as np
import numpy.typing as npt

from streamsplit.errors import PayloadError
from streamsplit.wire import dense
from streamsplit.wire.block import deflate, inflate

Array = npt.NDArray[np.float32]
_Bytes = npt.NDArray[np.uint8]

_FP16_MAX = 65504.0


class Codec(StrEnum):
    """How a payload is written: the first six carry tensors, the last three PCM."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT5 = "int5"
    INT4 = "int4"
    INT3 = "int3"
    PCM16 = "pcm16"
    FLAC = "flac"
    OPUS = "opus"


TENSOR_CODECS = (Codec.FP32, Codec.FP16, Codec.INT8, Codec.INT5, Codec.INT4, Codec.INT3)
EMBEDDING_CODECS = (Codec.FP32, Codec.FP16, Codec.INT8, Codec.INT4)

_BITS = {Codec.FP32: 32, Codec.FP16: 16, Codec.INT8: 8, Codec.INT5: 5, Codec.INT4: 4, Codec.INT3: 3}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape of one window's tensor, without batch: (C, H, W) for activations, (D,) for embeddings."""

    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Numbers in the tensor."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """Static range per channel, calibrated on data and versioned with the weights: low, high [C] float32.

    Raises:
        ValueError: not two finite vectors of one length, or a low above its high. Equal ones are legal: that
            channel is constant.
    """

    low: Array
    high: Array

    def __post_init__(self) -> None:
        low = np.ascontiguousarray(self.low, dtype=np.float32)
        high = np.ascontiguousarray(self.high, dtype=np.float32)
        if low.ndim != 1 or low.shape != high.shape or len(low) == 0:
            raise ValueError(
                f"ranges: expected two vectors of one length, got shapes {low.shape}, {high.shape}"
            )
        legal = (
            np.isfinite(low) & np.isfinite(high) & (low <= high) & (np.maximum(abs(low), abs(high)) < 1e30)
        )
        if not legal.all():
            channel = int(np.argmin(legal))
            raise ValueError(
                f"ranges: expected finite low <= high, got {low[channel]}, {high[channel]} "
                f"in channel {channel}"
            )
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)


def most_packed_bytes(spec: TensorSpec, codec: Codec) -> int:
    """The most bytes `pack` can return: those before compression, which only lowers them.

    What a real window costs is less and depends on the weights: see `streamsplit.encoders.version.Version.packed_bytes`.
    """
    return dense.dense_bytes(spec.elements, _bits(codec))


def step(codec: Codec, ranges: Ranges) -> Array:
    """[C] distance between neighbouring levels of an integer codec; 0 for a constant channel."""
    bits = _bits(codec)
    if bits > 8:
        raise ValueError(f"step: expected an integer codec, got {codec}")
    return (ranges.high - ranges.low) / np.float32(2**bits - 1)


def error_bound(codec: Codec, ranges: Ranges, spec: TensorSpec) -> Array:
    """[C, 1, ...] the largest error per channel for values inside its range.

    Half a step, and 2^-20 of the range's farther end for float32 rounding; see the module for the floats.
    """
    ends = np.maximum(abs(ranges.low), abs(ranges.high))
    if codec is Codec.FP32:
        bound = np.zeros_like(ends)
    elif codec is Codec.FP16:
        bound = ends * 2.0**-11 + 2.0**-25
    else:
        bound = step(codec, ranges) / 2 + ends * 2.0**-20
    return bound.astype(np.float32).reshape(_per_channel(spec, ranges))


def pack(tensor: Array, codec: Codec, ranges: Ranges | None = None) -> bytes:
    """One window's tensor as bytes: [C, ...] float32, channels first, last axis time; at most `most_packed_bytes`.

    Args:
        tensor: features or an activation, without batch.
        codec: one of `TENSOR_CODECS`.
        ranges: needed by the integer codecs.

    Raises:
        PayloadError: the tensor holds NaN or infinite numbers.
        ValueError: the codec carries no tensors, or the ranges are missing or for another number of channels.
    """
    values = np.ascontiguousarray(tensor, dtype=np.float32)
    bits = _bits(codec)
    if not np.isfinite(values).all():
        raise PayloadError(
            f"tensor {values.shape}: expected finite numbers, got {_not_finite(values)} that are not"
        )
    if bits > 8:
        halved = values if bits == 32 else np.clip(values, -_FP16_MAX, _FP16_MAX).astype("<f2")
        planes = halved.astype(f"<f{bits // 8}", copy=False).reshape(-1, 1).view(np.uint8).T
        return deflate(planes.tobytes())
    low, scale, _ = _scales(_needed(codec, ranges), codec)
    grid = values.reshape(_grid(values.shape))
    if len(grid) != len(low):
        raise ValueError(f"ranges: expected {len(grid)} channels, got {len(low)}")
    levels = np.rint((grid - low) * scale)
    np.clip(levels, 0, (1 << bits) - 1, out=levels)
    folded = dense.residuals(levels.astype(np.uint8), bits)
    return deflate(dense.pack_bits(folded.ravel(), bits))


def unpack(payload: bytes, codec: Codec, spec: TensorSpec, ranges: Ranges | None = None) -> Array:
    """The tensor of `spec.shape` that `pack` wrote, within `error_bound`.

    Raises:
        PayloadError: not the bytes of such a tensor, or they decode to NaN or infinite numbers.
    """
    tensor: Array = unpack_many([payload], codec, spec, ranges)[0]
    return tensor


def unpack_many(
    payloads: Sequence[bytes], codec: Codec, spec: TensorSpec, ranges: Ranges | None = None
) -> Array:
    """B windows of one kind at once: [B, *spec.shape], each equal to `unpack` of its payload.

    Raises:
        PayloadError: as `unpack`; the message says which payload of the batch.
    """
    bits = _bits(codec)
    expected = dense.dense_bytes(spec.elements, bits)
    many = len(payloads)
    raw = [
        payload if len(payload) == expected else inflate(payload, expected, f"payload {index + 1} of {many}")
        for index, payload in enumerate(payloads)
    ]
    rows: _Bytes = np.frombuffer(b"".join(raw), np.uint8).reshape(many, expected)
    if bits > 8:
        return _floats(rows, bits, (many, *spec.shape))
    low, _, steps = _scales(_needed(codec, ranges), codec)
    if spec.shape[0] != len(low):
        raise ValueError(f"ranges: expected {spec.shape[0]} channels, got {len(low)}")
    folded = dense.unpack_bits(rows, bits, spec.elements).reshape(many, *_grid(spec.shape))
    values: Array = dense.levels_of(folded, bits) * steps
    values += low
    return values.reshape(many, *spec.shape)


def embedding_bytes(codec: Codec, dim: int) -> int:
    """Bytes of one packed embedding, exactly: int8 2 + D, int4 2 + D/2, fp16 2 D, fp32 4 D."""
    _embedding_codec(codec)
    return {Codec.FP32: 4 * dim, Codec.FP16: 2 * dim, Codec.INT8: 2 + dim, Codec.INT4: 2 + (dim + 1) // 2}[
        codec
    ]


def pack_embedding(embedding: Array, codec: Codec) -> bytes:
    """A unit-norm embedding [D] as bytes; see `pack_embeddings`."""
    if np.ndim(embedding) != 1:
        raise PayloadError(f"embedding: expected [D], got {np.shape(embedding)}")
    return pack_embeddings(embedding[None], codec)[0]


def pack_embeddings(embeddings: Array, codec: Codec) -> list[bytes]:
    """Unit-norm embeddings [B, D], each as bytes.

    The integer codecs write one fp16 scale and then multiples of it in -127..127 or -7..7: the largest
    component is represented exactly (within fp16), every other one within half the scale.

    Raises:
        PayloadError: NaN or infinite numbers.
        ValueError: the codec carries no embeddings.
    """
    z = np.ascontiguousarray(embeddings, dtype=np.float32)
    _embedding_codec(codec)
    if z.ndim != 2 or not np.isfinite(z).all():
        raise PayloadError(
            f"embeddings: expected [B, D] finite numbers, got {z.shape} with {_not_finite(z)} not finite"
        )
    if codec is Codec.FP32:
        return [row.tobytes() for row in z.astype("<f4", copy=False)]
    if codec is Codec.FP16:
        return [row.tobytes() for row in np.clip(z, -_FP16_MAX, _FP16_MAX).astype("<f2")]
    most = 127 if codec is Codec.INT8 else 7
    # The smallest normal fp16 keeps the scale of an all-zero vector legal.
    largest = np.abs(z).max(axis=1, initial=0.0, keepdims=True)
    scale = np.clip(largest / most, 2.0**-14, _FP16_MAX).astype("<f2")
    levels = np.clip(np.rint(z / scale.astype(np.float32)), -most, most).astype(np.int8)
    if codec is Codec.INT8:
        return [one.tobytes() + row.tobytes() for one, row in zip(scale, levels, strict=True)]
    nibbles = (levels + np.int8(8)).view(np.uint8)
    return [one.tobytes() + dense.pack_bits(row, 4) for one, row in zip(scale, nibbles, strict=True)]


def unpack_embedding(payload: bytes, codec: Codec, dim: int) -> Array:
    """The embedding [D] that `pack_embedding` wrote, brought back to unit norm.

    Raises:
        PayloadError: not the bytes of such an embedding, not finite, or of length 0.
    """
    z: Array = unpack_embeddings([payload], codec, dim)[0]
    return z


def unpack_embeddings(payloads: Sequence[bytes], codec: Codec, dim: int) -> Array:
    """B embeddings at once: [B, D], unit norm; each equal to `unpack_embedding` of its payload.

    Raises:
        PayloadError: as `unpack_embedding`; the message says which payload of the batch.
    """
    expected, many = embedding_bytes(codec, dim), len(payloads)
    for index, payload in enumerate(payloads):
        if len(payload) != expected:
            raise PayloadError(
                f"embedding {index + 1} of {many}: expected {expected} bytes, got {len(payload)}"
            )
    rows: _Bytes = np.frombuffer(b"".join(payloads), np.uint8).reshape(many, expected)
    with np.errstate(invalid="ignore"):  # a stranger's NaN is found just below
        z = _components(rows, codec, dim)
        norms = np.sqrt(np.square(z).sum(axis=1, keepdims=True))
    legal = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
    if not legal.all():
        index = int(np.argmin(legal))
        raise PayloadError(
            f"embedding {index + 1} of {many}: expected a finite length above 0, got {norms[index, 0]}"
        )
    unit: Array = (z / norms).astype(np.float32)
    return unit


def _components(rows: _Bytes, codec: Codec, dim: int) -> npt.NDArray[np.float64]:
    if codec in (Codec.FP32, Codec.FP16):
        return rows.view("<f4" if codec is Codec.FP32 else "<f2").astype(np.float64)
    scales = np.ascontiguousarray(rows[:, :2]).view("<f2").astype(np.float64)
    if codec is Codec.INT8:
        return rows[:, 2:].view(np.int8) * scales
    return (dense.unpack_bits(rows[:, 2:], 4, dim).astype(np.float64) - 8) * scales


def _bits(codec: Codec) -> int:
    bits = _BITS.get(codec)
    if bits is None:
        raise ValueError(f"codec: expected one of {', '.join(TENSOR_CODECS)}, got {codec}")
    return bits


def _embedding_codec(codec: Codec) -> None:
    if codec not in EMBEDDING_CODECS:
        raise ValueError(f"codec of an embedding: expected one of {', '.join(EMBEDDING_CODECS)}, got {codec}")


def _needed(codec: Codec, ranges: Ranges | None) -> Ranges:
    if ranges is None:
        raise ValueError(f"{codec}: expected ranges, got none")
    return ranges


@lru_cache(maxsize=256)
def _scales(ranges: Ranges, codec: Codec) -> tuple[Array, Array, Array]:
    """low, 1 / step, step as [C, 1, 1]; a constant channel has 0 for both. `Ranges` hash by identity."""
    steps = step(codec, ranges).reshape(-1, 1, 1)
    inverse = np.divide(1.0, steps, out=np.zeros_like(steps), where=steps > 0)
    return ranges.low.reshape(-1, 1, 1), inverse, steps


def _grid(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Any shape as channels, rows, time."""
    if len(shape) == 3:
        return shape
    return shape[0], prod(shape[1:-1]), shape[-1] if len(shape) > 1 else 1


def _per_channel(spec: TensorSpec, ranges: Ranges) -> tuple[int, ...]:
    return (len(ranges.low), *(1 for _ in spec.shape[1:]))


def _floats(rows: _Bytes, bits: int, shape: tuple[int, ...]) -> Array:
    width = bits // 8
    planes = rows.reshape(len(rows), width, -1).transpose(0, 2, 1)
    with np.errstate(invalid="ignore"):  # a stranger's NaN is found just below
        values: Array = np.ascontiguousarray(planes).view(f"<f{width}").astype(np.float32).reshape(shape)
    finite = np.isfinite(values)
    if not finite.all():
        index = int(np.argmin(finite.reshape(len(rows), -1).all(axis=1)))
        raise PayloadError(
            f"payload {index + 1} of {len(rows)}: expected finite numbers, "
            f"got {_not_finite(values[index])} that are not"
        )
    return values


def _not_finite(values: Array) -> int:
    return int(values.size - np.count_nonzero(np.isfinite(values)))
