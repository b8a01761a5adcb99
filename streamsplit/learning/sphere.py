"""The sphere that embeddings live on: quantiles of one coordinate of its uniform distribution, and von Mises-Fisher's constants.

Along any direction, a coordinate x of a uniform point of the unit sphere in R^D has density proportional to (1 - x^2)^((D - 3) / 2):
(x + 1) / 2 is Beta((D - 1) / 2, (D - 1) / 2). With x = sin(a) the density of the angle a is cos(a)^(D - 2), smooth at both ends.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

_ANGLES = 16_385
"""Steps of 1.9e-4 radians: quantiles are right to 1e-6 at D = 128, where the deviation of a coordinate is 0.088."""


def sphere_quantile(probability: Tensor, dim: int) -> Tensor:
    """Quantile function Q of one coordinate of the uniform distribution on the unit sphere in R^D.

    Args:
        probability: any shape, 0..1; beyond is taken as the nearest.
        dim: D, at least 2.

    Returns:
        Coordinates in [-1, 1], of the same shape; Q(1 - p) = -Q(p). No gradient.
    """
    angles, cumulated = _table(dim)
    wanted = probability.detach().double().clamp(0.0, 1.0)
    lower = torch.minimum(wanted, 1.0 - wanted)  # the lower half is the accurate one: 1 - 1e-20 is 1
    above = torch.searchsorted(cumulated, lower.contiguous()).clamp(1, len(cumulated) - 1)
    low, high = cumulated[above - 1], cumulated[above]
    share = ((lower - low) / (high - low).clamp(min=1e-300)).clamp(0.0, 1.0)
    angle = angles[above - 1] + share * (angles[above] - angles[above - 1])
    return (torch.sin(angle) * torch.where(wanted > 0.5, -1.0, 1.0)).to(probability.dtype)


def sphere_cdf(coordinate: Tensor, dim: int) -> Tensor:
    """The inverse of `sphere_quantile`: share of the uniform sphere whose coordinate is at most this; no gradient."""
    angles, cumulated = _table(dim)
    angle = torch.asin(coordinate.detach().double().clamp(-1.0, 1.0))
    lower = -angle.abs()
    place = ((lower + math.pi / 2) / (math.pi / 2) * (len(angles) - 1)).clamp(0, len(angles) - 1)
    before = place.floor().long().clamp(max=len(angles) - 2)
    share = place - before
    below = cumulated[before] + share * (cumulated[before + 1] - cumulated[before])
    return torch.where(angle > 0, 1.0 - below, below).to(coordinate.dtype)


def log_vmf_normaliser(concentration: Tensor, dim: int) -> Tensor:
    """log C_D(kappa) of the von Mises-Fisher density C_D(kappa) exp(kappa mu.x) on the unit sphere in R^D.

    log C = v log kappa - (D / 2) log 2 pi - log I_v(kappa) with v = D / 2 - 1. The Bessel function is its uniform expansion for large
    order (Abramowitz and Stegun 9.7.7), the logarithm of its series taken to two terms. In it kappa^v cancels, and all is a function of
    t = v / sqrt(kappa^2 + v^2), so kappa = 0 needs no special case: within 1e-7 at D = 128 and 1e-3 at D = 8.

    Args:
        concentration: kappa, at least 0, any shape.
        dim: D, at least 8.
    """
    v = dim / 2 - 1
    order, coefficients, constant = _debye(dim)
    root = torch.hypot(concentration.double(), order)
    t = order / root
    series = t.unsqueeze(-1).expand(*t.shape, len(coefficients)).cumprod(-1) @ coefficients
    logarithms = (v * torch.log1p(t)).sub_(torch.log(t), alpha=v + 0.5)
    return logarithms.sub_(root).sub_(series).add_(constant).to(concentration.dtype)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # kept for callers who want gradients, whoever calls first
def _debye(dim: int) -> tuple[Tensor, Tensor, float]:
    """v; factors of t, t^2, ... t^6 in (3 t - 5 t^3) / (24 v) + (t^2 - 6 t^4 + 5 t^6) / (16 v^2); and what is the same for every t."""
    v = dim / 2 - 1
    first, second = 1 / (24 * v), 1 / (16 * v**2)
    factors = [3 * first, second, -5 * first, -6 * second, 0.0, 5 * second]
    constant = (v + 0.5) * math.log(v) - (dim - 1) / 2 * math.log(2 * math.pi)
    return torch.tensor(v, dtype=torch.float64), torch.tensor(factors, dtype=torch.float64), constant


def vmf_concentration(resultant: Tensor, dim: int) -> Tensor:
    """kappa of the von Mises-Fisher distribution whose mean vector has this length (Banerjee et al. 2005, eq. 4.4).

    Args:
        resultant: 0..1, any shape; from 0.9999 on kappa rises with it alone, where the formula's goes to infinity.
        dim: D.
    """
    return resultant * vmf_stretch(resultant, dim)


def vmf_stretch(resultant: Tensor, dim: int) -> Tensor:
    """kappa over the length of the mean vector: what makes a mean vector the natural parameter kappa mu.

    Args:
        resultant: that length, 0..1, any shape; above 0.9999 as 0.9999.
        dim: D.
    """
    square = resultant.clamp(max=0.9999).square()
    return (dim - square) / (1 - square)


def draw_vmf(directions: Tensor, concentration: Tensor, generator: torch.Generator) -> Tensor:
    """One point from each of N von Mises-Fisher distributions.

    The coordinate along the direction is drawn by inverting its cumulated density, the rest is uniform around it.

    Args:
        directions: [N, D] unit norm.
        concentration: [N].
        generator: on the CPU.

    Returns:
        [N, D] unit norm.
    """
    n, dim = directions.shape
    kinds, kind = torch.unique(concentration, return_inverse=True)
    angles = torch.linspace(-math.pi / 2, math.pi / 2, 4097, dtype=torch.float64)
    log_density = kinds.double()[:, None] * torch.sin(angles) + (dim - 2) * torch.log(
        torch.cos(angles).clamp(min=1e-30)
    )
    density = torch.exp(log_density - log_density.amax(1, keepdim=True))
    cumulated = torch.cumsum(density, 1)
    cumulated = cumulated / cumulated[:, -1:]
    drawn = torch.rand(n, 1, dtype=torch.float64, generator=generator)
    place = torch.searchsorted(cumulated[kind], drawn).squeeze(1).clamp(max=len(angles) - 1)
    jitter = (torch.rand(n, dtype=torch.float64, generator=generator) - 0.5) * float(angles[1] - angles[0])
    along = torch.sin((angles[place] + jitter).clamp(-math.pi / 2, math.pi / 2)).to(directions.dtype)
    around = torch.randn(n, dim, generator=generator, dtype=directions.dtype)
    around = around - (around * directions).sum(1, keepdim=True) * directions
    around = torch.nn.functional.normalize(around, dim=1)
    return along[:, None] * directions + torch.sqrt((1 - along.square()).clamp(min=0.0))[:, None] * around


@lru_cache(maxsize=8)
def _table(dim: int) -> tuple[Tensor, Tensor]:
    """Angles from -pi/2 to 0 and the probability below each: Simpson's rule, exact to 1e-12; it ends at one half."""
    if dim < 2:
        raise ValueError(f"sphere: expected at least 2 dimensions, got {dim}")
    fine = torch.linspace(-math.pi / 2, 0.0, 2 * _ANGLES - 1, dtype=torch.float64)
    density = torch.cos(fine).clamp(min=0.0) ** (dim - 2)
    cells = density[:-2:2] + 4 * density[1:-1:2] + density[2::2]
    cumulated = torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumsum(cells, 0)])
    return fine[::2].contiguous(), cumulated * (0.5 / cumulated[-1])
