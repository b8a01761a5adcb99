"""Mixtures of diagonal Gaussians or von Mises-Fisher distributions: what can be asked of one, in closed form.

A mixture is plain tensors; gradients reach whatever the caller has asked them for (points, or the parameters themselves).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.learning.sphere import draw_vmf, log_vmf_normaliser, vmf_concentration, vmf_stretch

_NO_WEIGHT = 1e-30
"""Stands for a weight of 0, whose logarithm would spoil gradients."""
_FEW = 8
"""Up to so many points differences are taken directly; beyond, by a matrix product: twenty times faster, and right to 1e-3 nats."""


class Mixture(Protocol):
    """K weighted components over R^D."""

    @property
    def weights(self) -> Tensor:
        """[K], sum 1."""

    @property
    def means(self) -> Tensor:
        """[K, D]."""

    def log_joint(self, points: Tensor) -> Tensor:
        """log of weight times density: [B, D] to [B, K] nats."""

    def projected(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of every component along directions [M, D]: [K, M] twice."""

    def log_exponential(self, points: Tensor, temperature: float) -> Tensor:
        """log E exp(z.x / T) for x from each component: [B, D] to [B, K]."""

    def draw(self, component: Tensor, generator: torch.Generator) -> Tensor:
        """One point from each of the components named: [N] to [N, D], not brought to unit norm."""


@dataclass(frozen=True, slots=True, eq=False)
class GaussianMixture:
    """Diagonal Gaussians.

    Attributes:
        weights: [K], sum 1.
        means: [K, D].
        variances: [K, D], above 0.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    def log_joint(self, points: Tensor) -> Tensor:
        """log of weight times density: [B, D] to [B, K] nats."""
        if len(points) <= _FEW:
            distance = ((points.unsqueeze(1) - self.means).square() / self.variances).sum(2)
        else:
            precision = self.variances.reciprocal()
            weighted = self.means * precision
            distance = (
                points.square() @ precision.T - 2 * points @ weighted.T + (self.means * weighted).sum(1)
            ).clamp(min=0.0)
        volume = torch.log(self.variances).sum(1) + points.shape[1] * math.log(2 * math.pi)
        weight = torch.log(self.weights.clamp(min=_NO_WEIGHT))
        return torch.sub(weight, distance + volume, alpha=0.5)

    def projected(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of every component along directions [M, D]: [K, M] twice."""
        return self.means @ directions.T, self.variances @ directions.T.square()

    def log_exponential(self, points: Tensor, temperature: float) -> Tensor:
        """z.mu / T + z' diag(s) z / (2 T^2): the log of a Gaussian's moment generating function at z / T, [B, K]."""
        linear = points @ self.means.T / temperature
        return linear + points.square() @ self.variances.T / (2 * temperature**2)

    def draw(self, component: Tensor, generator: torch.Generator) -> Tensor:
        """One point from each of the components named: [N] to [N, D], not brought to unit norm."""
        noise = torch.randn(len(component), self.means.shape[1], generator=generator)
        return self.means[component] + noise * self.variances[component].sqrt()


@dataclass(frozen=True, slots=True, eq=False)
class VmfMixture:
    """Von Mises-Fisher distributions on the unit sphere.

    Attributes:
        weights: [K], sum 1.
        means: [K, D] mean vectors: direction mu, and the length in 0..1 decides the concentration kappa.
    """

    weights: Tensor
    means: Tensor

    @property
    def concentrations(self) -> Tensor:
        """kappa [K]."""
        return vmf_concentration(torch.linalg.vector_norm(self.means, dim=1), self.means.shape[1])

    def log_joint(self, points: Tensor) -> Tensor:
        """log of weight times density: [B, D] to [B, K] nats."""
        length, dim = torch.linalg.vector_norm(self.means, dim=1), points.shape[1]
        stretch = vmf_stretch(length, dim)
        constant = log_vmf_normaliser(length * stretch, dim) + torch.log(self.weights.clamp(min=_NO_WEIGHT))
        return torch.addcmul(constant, points @ self.means.T, stretch)

    def projected(self, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of every component along directions [M, D]: [K, M] twice.

        With mean length r, the covariance is r / kappa around mu and 1 - r^2 - (D - 1) r / kappa along it.
        """
        length = torch.linalg.vector_norm(self.means, dim=1, keepdim=True)
        dim = self.means.shape[1]
        around = (1 - length.square()) / (dim - length.square())  # r / kappa, kappa by Banerjee's formula
        along = (1 - length.square() - (dim - 1) * around).clamp(min=0.0)
        cosine = F.normalize(self.means, dim=1) @ directions.T
        return length * cosine, around * (1 - cosine.square()) + along * cosine.square()

    def log_exponential(self, points: Tensor, temperature: float) -> Tensor:
        """log C(kappa) - log C(|kappa mu + z / T|): exact, [B, K]."""
        dim, kappa = points.shape[1], self.concentrations
        natural = F.normalize(self.means, dim=1) * kappa[:, None]
        tilted = (
            kappa.square()
            + 2 * points @ natural.T / temperature
            + points.square().sum(1, keepdim=True) / temperature**2
        )
        tilted = torch.sqrt(tilted.clamp(min=1e-12))
        return log_vmf_normaliser(kappa, dim) - log_vmf_normaliser(tilted, dim)

    def draw(self, component: Tensor, generator: torch.Generator) -> Tensor:
        """One point from each of the components named: [N] to [N, D], unit norm."""
        return draw_vmf(F.normalize(self.means, dim=1)[component], self.concentrations[component], generator)


def tempered_posterior(mixture: Mixture, points: Tensor, temperature: float) -> Tensor:
    """Shares of the components in each point, the densities flattened: weight * density^(1 / T), [B, D] to [B, K], rows sum to 1.

    In 128 dimensions log densities differ by tens of nats, so the plain posterior (T = 1) is nearly always 0 or 1.
    """
    prior = torch.log(mixture.weights.clamp(min=_NO_WEIGHT))
    density = mixture.log_joint(points) - prior
    return torch.softmax(prior + density / temperature, dim=1)


def cdf(mixture: Mixture, projection: Tensor, directions: Tensor) -> Tensor:
    """Share of the mixture below each projection: F(x) = sum_c pi_c Phi((x - mean_c) / deviation_c).

    Exact for Gaussians; von Mises-Fisher components are taken as Gaussians of their exact mean and variance along the direction.

    Args:
        mixture: K components.
        projection: [B, M], x = z.theta.
        directions: [M, D] unit norm.

    Returns:
        [B, M] in 0..1.
    """
    mean, variance = mixture.projected(directions)
    standard = (projection.unsqueeze(1) - mean) / variance.clamp(min=1e-12).sqrt()
    return torch.einsum("k,bkm->bm", mixture.weights, torch.special.ndtr(standard))
