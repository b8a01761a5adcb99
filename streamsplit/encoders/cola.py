"""COLA's encoder: EfficientNet-B0 on one-channel log-mel, a projection to D, and its bilinear similarity for training."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from streamsplit.audio.features import FrontEndSettings
from streamsplit.encoders.blocks import ConvNorm, EmbeddingBlock, InvertedResidual
from streamsplit.encoders.split import SplitEncoder

STAGES: Final = (
    # expansion, outputs, blocks, stride, kernel
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
"""Tan and Le, "EfficientNet" (2019), table 1."""


class ColaEncoder(SplitEncoder):
    """EfficientNet-B0: stem 32x32x48, seven stages down to 320x2x3, then 1280 channels, mean pooling and the projection.

    After Saeed et al., "Contrastive learning of general-purpose audio representations" (2021). Two changes: the gate of the
    squeeze-excitation is a hard sigmoid (see `SqueezeExcitation`), and the embedding ends on the unit sphere.
    """

    name = "cola"

    def __init__(self, front_end: FrontEndSettings) -> None:
        super().__init__(front_end)
        blocks: dict[str, nn.Module] = {"stem": ConvNorm(1, 32, 3, 2, "silu")}
        inputs = 32
        for index, (expansion, outputs, repeats, stride, kernel) in enumerate(STAGES, start=1):
            blocks[f"stage{index}"] = _stage(inputs, expansion, outputs, repeats, stride, kernel)
            inputs = outputs
        top = ConvNorm(inputs, 1280, 1, activation="silu")
        blocks["embedding"] = EmbeddingBlock(top, channels=1280, dim=self.embedding_dim, with_max=False)
        self.set_blocks(**blocks)


class BilinearSimilarity(nn.Module):
    """COLA's similarity: s(a, b) = a' M b, M learned and begun as the identity, which is the cosine of unit vectors."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(dim))

    def forward(self, anchors: Tensor, others: Tensor) -> Tensor:
        """[A, D] and [N, D] to every pair's similarity [A, N]."""
        return anchors @ self.matrix @ others.t()


def _stage(
    inputs: int, expansion: int, outputs: int, repeats: int, stride: int, kernel: int
) -> nn.Sequential:
    layers = []
    for index in range(repeats):
        width = outputs if index else inputs
        step = 1 if index else stride
        layers.append(
            InvertedResidual(width, expansion * width, outputs, kernel, step, "silu", max(1, width // 4))
        )
    return nn.Sequential(*layers)
