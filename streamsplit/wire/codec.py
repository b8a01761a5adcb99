"""Tensor <-> bytes. (Contract only for the moment; see the class docstrings.)"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]


class Codec(StrEnum):
    """How a payload is written. The first six carry tensors (features, activations, embeddings), the last three PCM."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"
    INT5 = "int5"
    INT4 = "int4"
    INT3 = "int3"
    PCM16 = "pcm16"
    FLAC = "flac"
    OPUS = "opus"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape of one window's tensor, without batch: (C, H, W) for activations and features, (D,) for embeddings."""

    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Numbers in the tensor."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """Static range per channel, calibrated on data and versioned with the weights: low, high [C] float32."""

    low: Array
    high: Array
