"""A bounded sample of the embeddings heard: of everything at first, then of the horizon."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streamsplit.errors import PayloadError

_MASK = 2**64 - 1


class Reservoir:
    """Embeddings as bytes. While there are no more than it holds, it holds all; later each has the same chance, then the recent more.

    Attributes:
        codes: [R, D] int8, a row's largest value is 127.
        scales: [R] float16; 0 where a row is free.
    """

    def __init__(self, windows: int, dim: int, horizon_windows: int, seed: int) -> None:
        self.horizon_windows, self.seed = horizon_windows, seed
        self.codes = torch.zeros(windows, dim, dtype=torch.int8)
        self.scales = torch.zeros(windows, dtype=torch.float16)
        self.filled = torch.zeros((), dtype=torch.int64)

    def tensors(self) -> dict[str, Tensor]:
        """Everything it is, by name."""
        return {"codes": self.codes, "scales": self.scales, "filled": self.filled}

    @property
    def kept(self) -> int:
        """How many embeddings are there; rows beyond are free."""
        return int(self.filled)

    @property
    def nbytes(self) -> int:
        """Bytes of a full one, saved."""
        return self.codes.nbytes + self.scales.nbytes

    def embeddings(self) -> Tensor:
        """All that is kept: [n, D] float32, within half a step of 127 of what was put in."""
        kept = self.kept
        return self.codes[:kept].float() * self.scales[:kept, None].float()

    def offer(self, z: Tensor, heard: int) -> None:
        """Takes some of these embeddings [B, D], windows number `heard` and on of the stream.

        A window goes in with chance R / min(its number, horizon), in place of a random one. Chance is a hash of seed and number:
        there is no generator to save, and a stream that goes on after a restart keeps the same windows.
        """
        room = len(self.codes)
        for row, number in enumerate(range(heard, heard + len(z))):
            if self.kept < room:
                self._put(self.kept, z[row])
                self.filled += 1
            else:
                chance = _hashed(self.seed, number)
                if (chance >> 32) * min(number + 1, self.horizon_windows) < room << 32:
                    self._put((chance & 0xFFFFFFFF) * room >> 32, z[row])

    def take_shares(self, others: Sequence[Reservoir], shares: Sequence[float]) -> None:
        """Fills itself from others, so many of each as its share, spread over what each keeps."""
        self.clear()
        for other, share in zip(others, shares, strict=True):
            many = min(other.kept, int(share * len(self.codes)), len(self.codes) - self.kept)
            if many:
                chosen = torch.linspace(0, other.kept - 1, many).round().long()
                place = slice(self.kept, self.kept + many)
                self.codes[place], self.scales[place] = other.codes[chosen], other.scales[chosen]
                self.filled += many

    def restore(self, codes: Tensor | None, scales: Tensor | None) -> None:
        """Takes rows [n, D] and their scales [n] as they were saved.

        Raises:
            PayloadError: one is missing, of another shape or type, or there are more than fit.
        """
        room, dim = self.codes.shape
        if (
            codes is None
            or scales is None
            or codes.dtype != torch.int8
            or scales.dtype != torch.float16
            or codes.ndim != 2
            or codes.shape[1] != dim
            or scales.shape != codes.shape[:1]
            or len(codes) > room
            or not bool(torch.isfinite(scales).all())
        ):
            raise PayloadError(
                f"reservoir: expected up to {room} rows of {dim} int8 and a finite scale for each, got others"
            )
        self.clear()
        self.codes[: len(codes)], self.scales[: len(codes)] = codes, scales
        self.filled.fill_(len(codes))

    def clear(self) -> None:
        """Forgets all."""
        self.codes.zero_()
        self.scales.zero_()
        self.filled.zero_()

    def _put(self, place: int, z: Tensor) -> None:
        scale = (z.abs().max() / 127).half()
        self.scales[place] = scale
        self.codes[place] = torch.round(z / scale.float()).clamp(-127, 127).to(torch.int8)


def _hashed(seed: int, number: int) -> int:
    """64 well-mixed bits of a seed and a number (the finaliser of SplitMix64, Steele et al. 2014)."""
    x = (seed * 0xD1342543DE82EF95 + (number + 1) * 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)
