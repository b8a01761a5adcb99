"""MobileNetV3-Small on one-channel log-mel: the usual choice for a small device."""

from __future__ import annotations

from typing import Final

from torch import nn

from streamsplit.audio.features import FrontEndSettings
from streamsplit.encoders.blocks import ConvNorm, EmbeddingBlock, InvertedResidual
from streamsplit.encoders.split import SplitEncoder

STAGES: Final = (
    # one stage per boundary: (kernel, expanded, outputs, squeezed, activation, stride) of each of its blocks
    ((3, 16, 16, 8, "relu", 2),),
    ((3, 72, 24, 0, "relu", 2), (3, 88, 24, 0, "relu", 1)),
    ((5, 96, 40, 24, "hardswish", 2), (5, 240, 40, 64, "hardswish", 1), (5, 240, 40, 64, "hardswish", 1)),
    ((5, 120, 48, 32, "hardswish", 1), (5, 144, 48, 40, "hardswish", 1)),
    ((5, 288, 96, 72, "hardswish", 2), (5, 576, 96, 144, "hardswish", 1), (5, 576, 96, 144, "hardswish", 1)),
)
"""Howard et al., "Searching for MobileNetV3" (2019), table 2."""


class MobileEncoder(SplitEncoder):
    """MobileNetV3-Small: stem 16x32x48, five stages down to 96x2x3, 576 channels, mean pooling and the projection.

    The published 1024-wide layer between pooling and classifier is left out: an embedding needs no classifier.
    """

    name = "mobile"

    def __init__(self, front_end: FrontEndSettings) -> None:
        super().__init__(front_end)
        blocks: dict[str, nn.Module] = {"stem": ConvNorm(1, 16, 3, 2, "hardswish")}
        inputs = 16
        for index, stage in enumerate(STAGES, start=1):
            layers = []
            for kernel, expanded, outputs, squeezed, activation, stride in stage:
                layers.append(
                    InvertedResidual(inputs, expanded, outputs, kernel, stride, activation, squeezed)
                )
                inputs = outputs
            blocks[f"stage{index}"] = nn.Sequential(*layers)
        top = ConvNorm(inputs, 576, 1, activation="hardswish")
        blocks["embedding"] = EmbeddingBlock(top, channels=576, dim=self.embedding_dim, with_max=False)
        self.set_blocks(**blocks)
