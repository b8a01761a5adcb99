"""ResNet-18 on one-channel log-mel, cut after each of its eight residual blocks: the paper's reference encoder."""

from __future__ import annotations

from typing import Final

from torch import nn

from streamsplit.audio.features import FrontEndSettings
from streamsplit.encoders.blocks import ConvNorm, EmbeddingBlock, Residual
from streamsplit.encoders.split import SplitEncoder

WIDTHS: Final = (64, 64, 128, 128, 256, 256, 512, 512)
"""Channels of the eight residual blocks (He et al. 2016, table 1)."""


class ResNetEncoder(SplitEncoder):
    """Stem and first block 64x16x24, then seven more: 128x8x12, 256x4x6, 512x2x3, mean pooling and the projection.

    The eighth block ends in the embedding. No boundary is narrow: on real sound none of them beats Opus on bytes.
    """

    name = "resnet18"

    def __init__(self, front_end: FrontEndSettings) -> None:
        super().__init__(front_end)
        stem = nn.Sequential(ConvNorm(1, 64, 7, 2), nn.MaxPool2d(3, 2, 1))
        residuals = [
            Residual(inputs, outputs, 1 if inputs == outputs else 2)
            for inputs, outputs in zip((64, *WIDTHS), WIDTHS, strict=False)
        ]
        blocks: dict[str, nn.Module] = {"b1": nn.Sequential(stem, residuals[0])}
        blocks.update((f"b{index}", residual) for index, residual in enumerate(residuals[1:-1], start=2))
        blocks["embedding"] = EmbeddingBlock(residuals[-1], WIDTHS[-1], self.embedding_dim, with_max=False)
        self.set_blocks(**blocks)
