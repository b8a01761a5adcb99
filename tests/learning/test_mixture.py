"""Closed forms against scikit-learn, SciPy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from streamsplit.learning.mixture import GaussianMixture, Mixture, VmfMixture, cdf, tempered_posterior

D = 32


def gaussians(seed: int = 0) -> GaussianMixture:
    generator = torch.Generator().manual_seed(seed)
    means = 0.8 * F.normalize(torch.randn(5, D, generator=generator), dim=1)
    variances = 0.002 + 0.01 * torch.rand(5, D, generator=generator)
    return GaussianMixture(torch.tensor([0.1, 0.3, 0.2, 0.35, 0.05]), means, variances)


def vmfs() -> VmfMixture:
    made = gaussians()
    return VmfMixture(made.weights, 0.7 * F.normalize(made.means, dim=1))


def points(n: int, seed: int = 1) -> Tensor:
    return F.normalize(torch.randn(n, D, generator=torch.Generator().manual_seed(seed)), dim=1)


def drawn(mixture: Mixture, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    component = torch.multinomial(mixture.weights, n, replacement=True, generator=generator)
    return mixture.draw(component, generator)


@pytest.mark.parametrize("n", [1, 8, 9, 100])
def test_gaussian_densities_are_scipys_for_any_number_of_points(n: int) -> None:
    mixture, z = gaussians(), points(n)
    oracle = np.stack(
        [
            np.log(float(weight)) + stats.norm(mean.numpy(), variance.sqrt().numpy()).logpdf(z.numpy()).sum(1)
            for weight, mean, variance in zip(mixture.weights, mixture.means, mixture.variances, strict=True)
        ],
        axis=1,
    )
    assert mixture.log_joint(z).numpy() == pytest.approx(oracle, rel=1e-4, abs=1e-2)


def test_vmf_densities_are_scipys() -> None:
    mixture, z = vmfs(), points(20)
    directions = F.normalize(mixture.means.double(), dim=1).numpy()
    oracle = np.stack(
        [
            np.log(float(weight))
            + stats.vonmises_fisher(mu, float(kappa)).logpdf(F.normalize(z.double(), dim=1).numpy())
            for weight, mu, kappa in zip(mixture.weights, directions, mixture.concentrations, strict=True)
        ],
        axis=1,
    )
    assert mixture.log_joint(z).numpy() == pytest.approx(oracle, abs=2e-3)


@pytest.mark.parametrize("mixture", [gaussians(), vmfs()], ids=["gaussian", "vmf"])
def test_the_cdf_along_a_direction_is_the_share_of_drawn_points_below(mixture: Mixture) -> None:
    directions = points(7, seed=5)
    projection = torch.linspace(-0.6, 0.6, 9)[:, None].expand(-1, 7)
    below = (drawn(mixture, 40_000) @ directions.T)[:, None] <= projection
    share = below.float().mean(0)
    assert cdf(mixture, projection, directions).numpy() == pytest.approx(share.numpy(), abs=0.012)


@pytest.mark.parametrize("mixture", [gaussians(), vmfs()], ids=["gaussian", "vmf"])
@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_the_expected_exponential_is_the_mean_over_drawn_points(mixture: Mixture, temperature: float) -> None:
    z = points(6)
    generator = torch.Generator().manual_seed(4)
    for component in range(5):
        sample = mixture.draw(torch.full((40_000,), component), generator)
        mean = torch.exp(z @ sample.T / temperature).mean(1)
        closed = torch.exp(mixture.log_exponential(z, temperature))[:, component]
        assert closed.numpy() == pytest.approx(mean.numpy(), rel=0.03)


def test_a_tempered_posterior_is_bayes_rule_at_1_and_the_weights_when_hot() -> None:
    mixture, z = gaussians(), points(10)
    bayes = torch.softmax(mixture.log_joint(z), 1)
    assert torch.allclose(tempered_posterior(mixture, z, 1.0), bayes, atol=1e-5)
    hot = tempered_posterior(mixture, z, 1e9)
    assert torch.allclose(hot, mixture.weights.expand(10, -1), atol=1e-4)


def test_gradients_reach_points_and_parameters_even_beside_a_component_without_weight() -> None:
    made = gaussians()
    means = made.means.clone().requires_grad_()
    weights = torch.tensor([0.0, 0.4, 0.2, 0.35, 0.05])
    mixture = GaussianMixture(weights, means, made.variances)
    z = points(4).requires_grad_()
    (torch.logsumexp(mixture.log_joint(z), 1).sum() + mixture.log_exponential(z, 0.1).sum()).backward()
    for gradient in (z.grad, means.grad):
        assert gradient is not None
        assert bool(torch.isfinite(gradient).all())
        assert float(gradient.abs().sum()) > 0
