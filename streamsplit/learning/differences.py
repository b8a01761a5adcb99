"""Differences of weights as few bytes: from a device to the server (what it learned), from the server to devices (the next version).

    difference --quantised--> levels and scales --pack--> bytes --unpack--> the same levels and scales --tensors--> difference'

Matrices and convolutions are whole multiples of one scale per output channel, vectors (norms, biases, statistics) half-precision numbers:

| tensor | bytes per number before compression | largest error |
| --- | --- | --- |
| two or more dimensions, b bits | 1 (zstd makes b or less of it), 4 per output channel | half a scale: the channel's largest difference / (2^b - 2) |
| vector | 2 | 2^-11 of the difference (2^-25 near 0) |

The message: 4 bytes "SSD1", 4 bytes length of the header, the header (a JSON object; "which": numbers of the tensors among the sorted
names the receiver expects, "bits", "legal": fingerprint of those names and shapes, and what the caller adds), one zstd frame. The
receiver knows names and shapes from its own weights, so a message carries none: whoever disagrees about them is told before anything
is decoded, and the count of decoded bytes is known in advance. Nothing in it is ever executed.

`added` is exact arithmetic on every machine: one multiplication, one addition and one rounding to half precision, each of them a
single IEEE operation, so server and device reach the same bits.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch
import zstandard
from torch import Tensor

from streamsplit.encoders.version import COUNTER
from streamsplit.errors import PayloadError

MAGIC: Final = b"SSD1"
MOST_HEADER_BYTES: Final = 1 << 16
BITS: Final = range(3, 9)
LEVEL: Final = 9
"""Of zstd: a version is packed once and sent to many."""
RUNNING: Final = ("running_mean", "running_var")

Spec = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, eq=False)
class Quantised:
    """A difference as it travels.

    Attributes:
        bits: of the levels.
        levels: name -> [rows, columns] int8, of tensors with two or more dimensions.
        scales: name -> [rows] float32.
        halves: name -> [n] float16, of vectors.
        shapes: name -> shape, of all.
    """

    bits: int
    levels: Mapping[str, Tensor]
    scales: Mapping[str, Tensor]
    halves: Mapping[str, Tensor]
    shapes: Spec

    def tensors(self) -> dict[str, Tensor]:
        """The difference it stands for: name -> float32."""
        made = {}
        for name, shape in self.shapes.items():
            if name in self.halves:
                made[name] = self.halves[name].float().view(shape)
            else:
                made[name] = (self.levels[name].float() * self.scales[name][:, None]).view(shape)
        return made


def spec_of(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Which tensors of a state a difference may have: all floating ones whose names begin with `prefix`, sorted."""
    return {
        name: tuple(tensor.shape)
        for name, tensor in sorted(state.items())
        if name.startswith(prefix) and tensor.is_floating_point() and not name.endswith(COUNTER)
    }


def quantised(difference: Mapping[str, Tensor], bits: int = 8) -> Quantised:
    """Rounds a difference to what will travel.

    Args:
        difference: name -> float tensor.
        bits: of the levels, 3 to 8.

    Raises:
        ValueError: numbers that are not finite, vectors beyond half precision, or other bits.
    """
    if bits not in BITS:
        raise ValueError(f"difference: expected 3..8 bits, got {bits}")
    most = 2 ** (bits - 1) - 1
    levels, scales, halves, shapes = {}, {}, {}, {}
    for name, tensor in sorted(difference.items()):
        values = tensor.detach().float().cpu()
        shapes[name] = tuple(values.shape)
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"difference of {name}: expected finite numbers, got others")
        if values.ndim < 2:
            halves[name] = values.reshape(-1).half()
            if not bool(torch.isfinite(halves[name]).all()):
                raise ValueError(f"difference of {name}: expected numbers up to 65504, got more")
            continue
        rows = values.reshape(len(values), -1)
        scales[name] = rows.abs().amax(1) / most
        steps = torch.where(scales[name] > 0, scales[name], 1.0)[:, None]
        levels[name] = torch.round(rows / steps).clamp(-most, most).to(torch.int8)
    return Quantised(bits, levels, scales, halves, shapes)


def added(state: Mapping[str, Tensor], difference: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with a difference added and rounded to half precision; tensors without any difference stay as they are, to the bit.

    Variances of batch norms stay at 0 or above.

    Raises:
        ValueError: the sum is beyond half precision.
    """
    whole = dict(state)
    for name, change in difference.items():
        if not bool(change.any()):
            continue
        total = state[name] + change
        if name.endswith(RUNNING[1]):
            total = total.clamp(min=0.0)
        whole[name] = total.half().float()
        if not bool(torch.isfinite(whole[name]).all()):
            raise ValueError(f"{name}: expected weights up to 65504, got more")
    return whole


def pack(difference: Quantised, legal: Spec, said: Mapping[str, Any] | None = None) -> bytes:
    """A difference as bytes.

    Args:
        difference: of tensors among `legal`.
        legal: names and shapes that the receiver expects (`spec_of` of the weights both know).
        said: what else the header carries, plain JSON types.

    Raises:
        ValueError: a tensor that is not among them.
    """
    names = sorted(legal)
    for name, shape in difference.shapes.items():
        if legal.get(name) != shape:
            raise ValueError(f"difference of {name}: expected shape {legal.get(name)}, got {shape}")
    header = {
        **(said or {}),
        "which": [number for number, name in enumerate(names) if name in difference.shapes],
        "bits": difference.bits,
        "legal": _fingerprint(legal),
    }
    told = json.dumps(header, sort_keys=True).encode()
    if len(told) > MOST_HEADER_BYTES:
        raise ValueError(
            f"difference: expected a header of at most {MOST_HEADER_BYTES} bytes, got {len(told)}"
        )
    parts = [difference.scales[name].numpy().astype("<f4").tobytes() for name in sorted(difference.scales)]
    parts += [difference.halves[name].numpy().astype("<f2").tobytes() for name in sorted(difference.halves)]
    parts += [difference.levels[name].numpy().tobytes() for name in sorted(difference.levels)]
    frame = zstandard.ZstdCompressor(level=LEVEL).compress(b"".join(parts))
    return MAGIC + struct.pack("<I", len(told)) + told + frame


def most_bytes(legal: Spec) -> int:
    """No legal message is longer: what a receiver may refuse by length alone."""
    numbers = _decoded_bytes(legal)
    return (
        len(MAGIC) + 4 + MOST_HEADER_BYTES + numbers + numbers // 128 + 1024
    )  # zstd adds little to what it cannot compress


def header_of(message: bytes) -> dict[str, Any]:
    """The header alone: whose difference, from which base.

    Raises:
        PayloadError: not such a message.
    """
    return _header(message)[0]


def unpack(message: bytes, legal: Spec) -> tuple[Quantised, dict[str, Any]]:
    """The inverse of `pack`: the difference, and the header.

    Never decodes more bytes than the announced tensors have.

    Raises:
        PayloadError: too long, other tensors than `legal`, damaged, or numbers that are not finite.
    """
    if len(message) > most_bytes(legal):
        raise PayloadError(f"difference: expected at most {most_bytes(legal)} bytes, got {len(message)}")
    header, begin = _header(message)
    if header.get("legal") != _fingerprint(legal):
        raise PayloadError("difference: it is of other tensors than these weights have")
    bits, names = header.get("bits"), _named(header.get("which"), sorted(legal))
    if type(bits) is not int or bits not in BITS:
        raise PayloadError(f"difference: expected 3..8 bits, got {bits!r}")
    shapes = {name: legal[name] for name in names}
    expected = _decoded_bytes(shapes)
    return _split(_inflated(message[begin:], expected), shapes, bits), header


def _header(message: bytes) -> tuple[dict[str, Any], int]:
    if len(message) < 8 or message[:4] != MAGIC:
        raise PayloadError("difference: expected a message that begins with SSD1, got another")
    (length,) = struct.unpack_from("<I", message, 4)
    if length > MOST_HEADER_BYTES or 8 + length > len(message):
        raise PayloadError(
            f"difference: expected a header of at most {MOST_HEADER_BYTES} bytes, got {length}"
        )
    try:
        said = json.loads(message[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"difference: expected a header in JSON, got other bytes: {error}") from None
    if not isinstance(said, dict):
        raise PayloadError("difference: expected a JSON object for its header")
    return said, 8 + length


def _named(which: object, names: list[str]) -> list[str]:
    """The tensors a header announces: numbers in ascending order, none twice."""
    if not isinstance(which, list) or not all(type(number) is int for number in which):
        raise PayloadError("difference: expected the numbers of its tensors, got none")
    if any(one >= other for one, other in pairwise(which)):
        raise PayloadError("difference: expected its tensors in order and once each")
    if which and not 0 <= which[0] <= which[-1] < len(names):
        raise PayloadError(f"difference: expected tensors 0..{len(names) - 1}, got {which[0]}..{which[-1]}")
    return [names[number] for number in which]


def _inflated(frame: bytes, expected: int) -> bytes:
    try:
        parameters = zstandard.get_frame_parameters(frame)
        if parameters.content_size != expected:
            raise PayloadError(
                f"difference: expected {expected} bytes of numbers, got {parameters.content_size}"
            )
        raw = zstandard.ZstdDecompressor().decompress(frame, max_output_size=expected, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PayloadError(f"difference: damaged: {error}") from None
    return raw


def _split(raw: bytes, shapes: Spec, bits: int) -> Quantised:
    matrices = sorted(name for name, shape in shapes.items() if len(shape) >= 2)
    vectors = sorted(name for name, shape in shapes.items() if len(shape) < 2)
    at, most = 0, 2 ** (bits - 1) - 1
    levels, scales, halves = {}, {}, {}

    def take(kind: str, count: int) -> Tensor:
        nonlocal at
        values = np.frombuffer(raw, kind, count, at)
        at += values.nbytes
        return torch.from_numpy(values.copy())

    for name in matrices:
        scales[name] = take("<f4", shapes[name][0])
        if not bool((torch.isfinite(scales[name]) & (scales[name] >= 0)).all()):
            raise PayloadError(f"difference of {name}: expected finite scales from 0, got others")
    for name in vectors:
        halves[name] = take("<f2", _count(shapes[name]))
        if not bool(torch.isfinite(halves[name]).all()):
            raise PayloadError(f"difference of {name}: expected finite numbers, got others")
    for name in matrices:
        levels[name] = take("i1", _count(shapes[name])).view(shapes[name][0], -1)
        if bool((levels[name] < -most).any()) or bool((levels[name] > most).any()):
            raise PayloadError(f"difference of {name}: expected levels up to {most}, got more")
    return Quantised(bits, levels, scales, halves, dict(shapes))


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _decoded_bytes(shapes: Spec) -> int:
    return sum(
        _count(shape) + 4 * shape[0] if len(shape) >= 2 else 2 * _count(shape) for shape in shapes.values()
    )


def _fingerprint(legal: Spec) -> str:
    told = json.dumps(sorted((name, list(shape)) for name, shape in legal.items()))
    return hashlib.sha256(told.encode()).hexdigest()[:16]
