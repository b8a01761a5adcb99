"""The uniform sphere's quantiles and von Mises-Fisher's constants, against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import special, stats

from streamsplit.learning.sphere import (
    _debye,
    draw_vmf,
    log_vmf_normaliser,
    sphere_cdf,
    sphere_quantile,
    vmf_concentration,
)


@pytest.mark.parametrize("dim", [2, 3, 16, 128, 512])
def test_quantiles_are_those_of_a_scaled_beta(dim: int) -> None:
    probability = np.concatenate([np.logspace(-12, -2, 40), np.linspace(0.01, 0.99, 197)])
    oracle = 2 * stats.beta((dim - 1) / 2, (dim - 1) / 2).ppf(probability) - 1
    assert sphere_quantile(torch.tensor(probability), dim).numpy() == pytest.approx(oracle, abs=2e-5)


@pytest.mark.parametrize("dim", [3, 128])
def test_the_cdf_is_the_inverse_of_the_quantile_and_both_are_odd(dim: int) -> None:
    probability = torch.linspace(0.001, 0.999, 501, dtype=torch.float64)
    coordinate = sphere_quantile(probability, dim)
    assert sphere_cdf(coordinate, dim).numpy() == pytest.approx(probability.numpy(), abs=1e-6)
    assert torch.equal(sphere_quantile(torch.tensor([0.5]), dim), torch.zeros(1))
    assert torch.allclose(coordinate, -coordinate.flip(0), atol=1e-12)


def test_probabilities_beyond_0_and_1_are_the_ends_of_the_sphere() -> None:
    ends = sphere_quantile(torch.tensor([-0.1, 0.0, 1.0, 1.1]), 128)
    assert torch.allclose(ends, torch.tensor([-1.0, -1.0, 1.0, 1.0]))


def test_a_sphere_needs_two_dimensions() -> None:
    with pytest.raises(ValueError, match="at least 2 dimensions, got 1"):
        sphere_quantile(torch.tensor([0.5]), 1)


@pytest.mark.parametrize(("dim", "within"), [(8, 1e-3), (64, 1e-6), (128, 1e-7)])
def test_the_normaliser_is_that_of_the_bessel_function(dim: int, within: float) -> None:
    kappa = np.array([1e-3, 0.1, 1.0, 10.0, 30.0, 100.0, 1000.0])
    order = dim / 2 - 1
    bessel = np.log(special.ive(order, np.maximum(kappa, 1.0))) + np.maximum(kappa, 1.0)
    oracle = order * np.log(kappa) - dim / 2 * math.log(2 * math.pi) - bessel
    ours = log_vmf_normaliser(torch.tensor(kappa), dim).numpy()
    seen = kappa >= 1.0  # below, the oracle's I_63 underflows: the limit is the sphere's area
    assert ours[seen] == pytest.approx(oracle[seen], abs=within)
    area = math.log(2) + dim / 2 * math.log(math.pi) - special.gammaln(dim / 2)
    assert ours[0] == pytest.approx(-area, abs=max(within, 1e-5))
    assert float(log_vmf_normaliser(torch.zeros((), dtype=torch.float64), dim)) == pytest.approx(
        -area, abs=within
    )


def test_gradients_of_the_normaliser_are_minus_the_mean_length() -> None:
    kappa = torch.tensor([0.0, 1.0, 30.0, 300.0], dtype=torch.float64, requires_grad=True)
    _debye.cache_clear()
    with torch.inference_mode():
        log_vmf_normaliser(kappa.detach(), 128)  # nothing of it may stay for those who want gradients
    assert torch.autograd.gradcheck(lambda at: log_vmf_normaliser(at, 128), (kappa[1:],))
    (slope,) = torch.autograd.grad(log_vmf_normaliser(kappa, 128).sum(), kappa)
    length = special.ive(64, kappa.detach().numpy()) / np.maximum(
        special.ive(63, kappa.detach().numpy()), 1e-300
    )
    assert -slope.numpy() == pytest.approx(length, abs=1e-6)


@pytest.mark.parametrize("kappa", [20.0, 200.0])
def test_drawn_points_have_the_mean_length_their_concentration_says(kappa: float) -> None:
    generator = torch.Generator().manual_seed(0)
    direction = F.normalize(torch.randn(1, 128, generator=generator), dim=1)
    drawn = draw_vmf(direction.expand(20_000, -1), torch.full((20_000,), kappa), generator)
    assert torch.allclose(drawn.norm(dim=1), torch.ones(20_000), atol=1e-5)
    mean = drawn.mean(0)
    exact = float(special.ive(64, kappa) / special.ive(63, kappa))
    assert float(mean @ direction[0]) == pytest.approx(exact, abs=3e-3)
    assert float(vmf_concentration(torch.tensor(exact), 128)) == pytest.approx(kappa, rel=0.01)
