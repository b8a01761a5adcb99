"""The inference form of an encoder: batch norm folded away, and an embedding that does not depend on its neighbours.

A replay must give the same bits twice, yet a server batches whatever windows have arrived. Ordinary convolution kernels choose
their order of summation by the batch size: on our machine `conv2d` gave other last bits at nearly every batch size for 64
channels and more. Here each window is its own matrix product of a fixed shape: its patches (im2col, channels last) times the
weights, all windows through one batched call. The bits are then the same for every batch size, place and neighbour, by
construction and by test (one thread on a CPU). Measured per window on one thread: no slower than `conv2d` for a lone window, about
1.3 times as long in batches of 32. Also tried: oneDNN switched off (other bits from 16 windows on, and twice as slow), linear layers
padded to 16 rows (equal, but twice as slow for a lone window).

Depthwise convolutions stay `conv2d`: their kernels take one window at a time; the tests hold them to the same law.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamsplit.encoders.blocks import ACTIVATIONS, ConvNorm

LANES = 4
"""Outputs are padded to a multiple: for 6 and 10 of them the matrix library chose another kernel for more than one window (AVX-512)."""

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class WindowConv(nn.Module):
    """A convolution with bias and activation, each window a matrix product of its own.

    Args:
        weight: [O, I, k, k].
        bias: [O].
        stride: rows, columns.
        activation: a key of `ACTIVATIONS`.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: tuple[int, int], activation: str) -> None:
        super().__init__()
        self.outputs, self.inputs, self.kernel = weight.shape[0], weight.shape[1], weight.shape[2]
        self.stride = stride
        self.activation = activation
        self.matrix: Tensor
        self.bias: Tensor
        matrix = weight.permute(2, 3, 1, 0).reshape(1, -1, self.outputs)
        missing = -self.outputs % LANES
        self.register_buffer("matrix", F.pad(matrix, (0, missing)).contiguous())
        self.register_buffer("bias", F.pad(bias, (0, missing)).clone())

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, H, W] to [B, O, H', W'], channels last in memory."""
        patches, rows, columns = self._patches(x.permute(0, 2, 3, 1))
        y = torch.baddbmm(self.bias, patches, self.matrix.expand(len(x), -1, -1))
        if y.shape[2] > self.outputs:
            y = y[..., : self.outputs].contiguous()
        return ACTIVATIONS[self.activation](y.view(len(x), rows, columns, self.outputs).permute(0, 3, 1, 2))

    def _patches(self, x: Tensor) -> tuple[Tensor, int, int]:
        """[B, H, W, I] to [B, H' * W', k * k * I], and H', W'."""
        if self.kernel == 1 and self.stride == (1, 1):
            return x.contiguous().flatten(1, 2), x.shape[1], x.shape[2]
        half = self.kernel // 2
        if half:
            x = F.pad(x, (0, 0, half, half, half, half))
        batch, height, width, channels = x.shape
        down, right = self.stride
        rows = (height - self.kernel) // down + 1
        columns = (width - self.kernel) // right + 1
        b, h, w, c = x.stride()
        shape = (batch, rows, columns, self.kernel, self.kernel, channels)
        patches = x.as_strided(shape, (b, h * down, w * right, h, w, c), x.storage_offset())
        return patches.reshape(batch, rows * columns, -1), rows, columns

    def plain(self) -> nn.Module:
        """The same as an ordinary layer, for exporters."""
        conv = nn.Conv2d(self.inputs, self.outputs, self.kernel, self.stride, self.kernel // 2)
        matrix = self.matrix[..., : self.outputs].view(self.kernel, self.kernel, self.inputs, self.outputs)
        bias = self.bias[: self.outputs]
        conv.load_state_dict({"weight": matrix.permute(3, 2, 0, 1).contiguous(), "bias": bias})
        return _PlainConv(conv, self.activation)


class WindowDepthwise(nn.Module):
    """A depthwise convolution with bias and activation.

    Args:
        weight: [C, 1, k, k].
        bias: [C].
        stride: rows, columns.
        activation: a key of `ACTIVATIONS`.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: tuple[int, int], activation: str) -> None:
        super().__init__()
        self.stride = stride
        self.activation = activation
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("weight", weight.clone(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C, H', W'], channels last in memory."""
        x = x.contiguous(memory_format=torch.channels_last)
        half = self.weight.shape[2] // 2
        y = F.conv2d(x, self.weight, self.bias, self.stride, half, groups=len(self.bias))
        return ACTIVATIONS[self.activation](y)


class WindowLinear(nn.Module):
    """A linear layer on one vector per window, each window a product of its own: [B, I] to [B, O].

    Args:
        weight: [O, I].
        bias: [O].
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.matrix: Tensor
        self.bias: Tensor
        self.register_buffer("matrix", weight.t().contiguous()[None])
        self.register_buffer("bias", bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """[B, I] to [B, O]."""
        return torch.baddbmm(self.bias, x[:, None], self.matrix.expand(len(x), -1, -1))[:, 0]

    def plain(self) -> nn.Module:
        """The same as an ordinary layer, for exporters."""
        linear = nn.Linear(self.matrix.shape[1], self.matrix.shape[2])
        linear.load_state_dict({"weight": self.matrix[0].t().contiguous(), "bias": self.bias})
        return linear


class _PlainConv(nn.Module):
    def __init__(self, conv: nn.Conv2d, activation: str) -> None:
        super().__init__()
        self.conv = conv
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.activation](self.conv(x))


def folded(module: ModuleT) -> ModuleT:
    """An inference copy: batch norms folded into their convolutions, every layer window by window, no gradients.

    Equal to `module` in evaluation mode up to rounding (1e-4 is tested). It cannot be trained.
    """
    twin = copy.deepcopy(module).eval().requires_grad_(False)
    return _replaced(twin, _window_layer).eval()


def plain(module: ModuleT) -> ModuleT:
    """A copy of a folded module made of ordinary layers: what exporters understand."""
    return _replaced(
        copy.deepcopy(module), lambda layer: layer.plain() if hasattr(layer, "plain") else None
    ).eval()


def fold(layer: ConvNorm) -> tuple[Tensor, Tensor]:
    """Convolution and batch norm as one: weight [O, I / groups, k, k] and bias [O], folded in float64."""
    norm, weight = layer.norm, layer.conv.weight.detach().double()
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("batch norm: expected running statistics, got none")
    scale = norm.weight.detach().double() / torch.sqrt(variance.double() + norm.eps)
    bias = norm.bias.detach().double() - mean.double() * scale
    return (weight * scale[:, None, None, None]).float(), bias.float()


def _window_layer(layer: nn.Module) -> nn.Module | None:
    """What replaces a layer in inference; None: look inside it."""
    if isinstance(layer, ConvNorm):
        weight, bias = fold(layer)
        stride = (layer.conv.stride[0], layer.conv.stride[1])
        kind: type[WindowConv | WindowDepthwise] = WindowConv if layer.conv.groups == 1 else WindowDepthwise
        return kind(weight, bias, stride, layer.activation)
    if isinstance(layer, nn.Conv2d):
        bias = torch.zeros(layer.out_channels) if layer.bias is None else layer.bias.detach()
        return WindowConv(layer.weight.detach(), bias, (layer.stride[0], layer.stride[1]), "linear")
    if isinstance(layer, nn.Linear):
        return WindowLinear(layer.weight.detach(), layer.bias.detach())
    return None


def _replaced(module: ModuleT, replace: Any) -> ModuleT:
    for name, child in module.named_children():
        other = replace(child)
        if other is None:
            _replaced(child, replace)
        else:
            setattr(module, name, other)
    return module
