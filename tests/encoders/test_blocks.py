"""The building blocks' shapes and the few things they must not do."""

from __future__ import annotations

import pytest
import torch

from streamsplit.encoders.blocks import (
    ConvNorm,
    EmbeddingBlock,
    InvertedResidual,
    Residual,
    SqueezeExcitation,
)


@pytest.mark.parametrize(
    ("stride", "shape"), [(1, (8, 6, 10)), (2, (8, 3, 5)), ((2, 1), (8, 3, 10)), ((1, 2), (8, 6, 5))]
)
def test_a_convolution_keeps_the_border_and_follows_its_stride(
    stride: int | tuple[int, int], shape: tuple[int, ...]
) -> None:
    assert ConvNorm(4, 8, 3, stride)(torch.zeros(2, 4, 6, 10)).shape == (2, *shape)


def test_a_residual_projects_its_shortcut_only_where_the_shape_changes() -> None:
    assert Residual(4, 4)(torch.zeros(2, 4, 6, 6)).shape == (2, 4, 6, 6)
    assert isinstance(Residual(4, 4).shortcut, torch.nn.Identity)
    assert isinstance(Residual(4, 4, 2).shortcut, ConvNorm)
    assert Residual(4, 8, 2)(torch.zeros(2, 4, 6, 6)).shape == (2, 8, 3, 3)


def test_squeeze_excitation_only_scales_channels_down() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8, 5, 7)
    ratio = SqueezeExcitation(8, 2)(x) / x
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    assert ((ratio >= 0) & (ratio <= 1)).all()


@pytest.mark.parametrize("squeezed", [0, 4])
def test_an_inverted_residual_adds_its_input_where_it_fits(squeezed: int) -> None:
    x = torch.randn(2, 8, 6, 6)
    same = InvertedResidual(8, 16, 8, 3, 1, "relu", squeezed)
    for parameter in same.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(same.eval()(x), x)
    assert InvertedResidual(8, 8, 12, 5, 2, "silu", squeezed)(x).shape == (2, 12, 3, 3)


def test_an_embedding_block_sees_a_short_peak_only_with_the_maximum() -> None:
    quiet, peak = torch.zeros(1, 2, 100, 100), torch.zeros(1, 2, 100, 100)
    peak[0, 0, 3, 4] = 1.0
    mean = EmbeddingBlock(torch.nn.Identity(), 2, 4, with_max=False)
    both = EmbeddingBlock(torch.nn.Identity(), 2, 4, with_max=True)
    assert (mean.pooled(peak) - mean.pooled(quiet)).abs().max() < 1e-3
    assert (both.pooled(peak) - both.pooled(quiet)).abs().max() == 1.0
    assert both.pooled(peak).shape == (1, 4)
