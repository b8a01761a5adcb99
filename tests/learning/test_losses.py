"""Losses against definitions written out by hand, and what they must be at their extremes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.learning.losses import alignment, effective_rank, info_nce, joint_info_nce, uniformity


def unit(n: int, dim: int = 16, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def written_out(first: Tensor, second: Tensor, temperature: float) -> float:
    """InfoNCE term by term, in Python's own floats."""
    total = 0.0
    for one, other in ((first, second), (second, first)):
        for i in range(len(one)):
            scores = [math.fsum((one[i] * other[j]).tolist()) / temperature for j in range(len(other))]
            total -= scores[i] - math.log(math.fsum(math.exp(score) for score in scores))
    return total / (2 * len(first))


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_info_nce_is_its_definition(temperature: float) -> None:
    first, second = unit(9, seed=1), unit(9, seed=2)
    loss = float(info_nce(first, second, temperature))
    assert loss == pytest.approx(written_out(first, second, temperature), abs=1e-5)
    assert loss == pytest.approx(float(info_nce(second, first, temperature)), abs=1e-5)


def test_info_nce_of_a_collapsed_encoder_is_the_logarithm_of_the_batch() -> None:
    same = unit(1).expand(32, -1)
    assert float(info_nce(same, same)) == pytest.approx(math.log(32), abs=1e-5)


def test_info_nce_of_told_apart_sounds_is_nearly_nothing() -> None:
    assert float(info_nce(torch.eye(32), torch.eye(32), 0.05)) < 1e-6


def test_joint_terms_are_named_and_symmetric() -> None:
    first = {"dense": unit(6, seed=1), "lite": unit(6, seed=2)}
    second = {"dense": unit(6, seed=3), "lite": unit(6, seed=4)}
    terms = joint_info_nce(first, second)
    assert set(terms) == {"dense-dense", "dense-lite", "lite-lite"}
    across = (info_nce(first["dense"], second["lite"]) + info_nce(first["lite"], second["dense"])) / 2
    assert torch.equal(terms["dense-lite"], across)
    swapped = joint_info_nce(second, first)
    assert all(float(swapped[name]) == pytest.approx(float(term), abs=1e-6) for name, term in terms.items())
    assert set(joint_info_nce({"full": unit(4)}, {"full": unit(4)})) == {"full-full"}


def test_alignment_is_between_0_and_4() -> None:
    z = unit(8)
    assert float(alignment(z, z)) == 0.0
    assert float(alignment(z, -z)) == pytest.approx(4.0, abs=1e-5)


def test_uniformity_is_its_definition_and_worst_when_collapsed() -> None:
    z = unit(7)
    pairs = [math.exp(-2 * float((z[i] - z[j]).square().sum())) for i in range(7) for j in range(i)]
    assert float(uniformity(z)) == pytest.approx(math.log(math.fsum(pairs) / len(pairs)), abs=1e-5)
    assert float(uniformity(unit(1).expand(5, -1))) == pytest.approx(0.0, abs=1e-5)
    assert float(uniformity(unit(500, 128))) == pytest.approx(-3.9, abs=0.1)
    with pytest.raises(ValueError, match="at least 2"):
        uniformity(z[:1])


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_counts_equal_directions(rank: int) -> None:
    axes = torch.eye(16)[:rank]
    assert effective_rank(torch.cat([axes, -axes])) == pytest.approx(rank, abs=1e-6)


def test_effective_rank_of_collapse_is_0_and_never_beyond_the_dimension() -> None:
    assert effective_rank(unit(1).expand(20, -1)) == 0.0
    assert 14 < effective_rank(unit(2_000)) <= 16


def test_gradients_reach_both_sides() -> None:
    first, second = unit(5, seed=1).requires_grad_(), unit(5, seed=2).requires_grad_()
    info_nce(first, second).backward()
    assert first.grad is not None
    assert second.grad is not None
    assert float(first.grad.abs().sum()) > 0
    assert float(second.grad.abs().sum()) > 0


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected two \[B, D\]"):
        info_nce(unit(3), unit(4))
