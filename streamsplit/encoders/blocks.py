"""What encoders are built of: a normalised convolution, an inverted residual, pooling with its embedding head.

Training runs the plain layers. Inference runs what `streamsplit.encoders.folding` makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch.nn.functional as F
from torch import Tensor, cat, nn

NORM_MOMENTUM: Final = 0.02
"""Of every batch norm: small, because a device's batches are small and consecutive windows resemble each other."""

ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "linear": lambda x: x,
    "relu": F.relu,
    "hardswish": F.hardswish,
    "silu": F.silu,
}


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation: [B, inputs, H, W] to [B, outputs, ceil(H / stride), ceil(W / stride)].

    Args:
        inputs: input channels.
        outputs: output channels.
        kernel: odd side length; the border is padded with zeros by half of it.
        stride: of rows and columns, or one for both.
        activation: a key of `ACTIVATIONS`.
        groups: 1, or `inputs` for a depthwise convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        stride: int | tuple[int, int] = 1,
        activation: str = "relu",
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, momentum=NORM_MOMENTUM)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H', W']."""
        return ACTIVATIONS[self.activation](self.norm(self.conv(x)))


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut (ResNet's basic block): [B, inputs, H, W] to [B, outputs, H', W'].

    The shortcut is the input itself, or its 1x1 projection where the shape changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int | tuple[int, int] = 1) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, 3, stride)
        self.second = ConvNorm(outputs, outputs, 3, activation="linear")
        same = inputs == outputs and stride in (1, (1, 1))
        self.shortcut = nn.Identity() if same else ConvNorm(inputs, outputs, 1, stride, "linear")

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H', W']."""
        return F.relu(self.shortcut(x) + self.second(self.first(x)))


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from all channels' means: [B, C, H, W] to the same.

    ReLU and hard sigmoid as in MobileNetV3 (Howard et al. 2019), for EfficientNet too: the exact sigmoid is computed by another
    formula at the end of a vector register's worth of numbers, so its last bit would depend on a window's place in the batch.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H, W]."""
        gate = F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.excite(gate))


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-excitation, linear 1x1 projection (MobileNetV2 and its heirs).

    Args:
        inputs: input channels.
        expanded: channels of the depthwise convolution; no expansion where it equals `inputs`.
        outputs: output channels.
        kernel: of the depthwise convolution.
        stride: of the depthwise convolution.
        activation: a key of `ACTIVATIONS`.
        squeezed: channels inside the squeeze-excitation; 0 for none.
    """

    def __init__(
        self,
        inputs: int,
        expanded: int,
        outputs: int,
        kernel: int,
        stride: int,
        activation: str,
        squeezed: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != inputs:
            layers.append(ConvNorm(inputs, expanded, 1, activation=activation))
        layers.append(ConvNorm(expanded, expanded, kernel, stride, activation, groups=expanded))
        if squeezed:
            layers.append(SqueezeExcitation(expanded, squeezed))
        layers.append(ConvNorm(expanded, outputs, 1, activation="linear"))
        self.layers = nn.Sequential(*layers)
        self.has_shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H', W']."""
        y: Tensor = self.layers(x)
        return x + y if self.has_shortcut else y


class EmbeddingBlock(nn.Module):
    """The end of an encoder: layers, pooling over time and frequency, and the way to the unit sphere.

    Linear to D, layer norm, unit norm. Probes read the pooled features: in our prototype they were 3 to 5 points better than
    the embedding.

    Args:
        layers: what runs before the pooling.
        channels: of the last layer's output.
        dim: D.
        with_max: join the maximum to the mean (short events survive it), which doubles P.
    """

    def __init__(self, layers: nn.Module, channels: int, dim: int, with_max: bool) -> None:
        super().__init__()
        self.layers = layers
        self.with_max = with_max
        self.project = nn.Linear(2 * channels if with_max else channels, dim)
        self.norm = nn.LayerNorm(dim)

    def pooled(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the pooled features [B, P]."""
        y: Tensor = self.layers(x)
        mean = y.mean((2, 3))
        return cat([mean, y.amax((2, 3))], dim=1) if self.with_max else mean

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the embedding [B, D], unit norm."""
        return F.normalize(self.norm(self.project(self.pooled(x))), dim=1)
