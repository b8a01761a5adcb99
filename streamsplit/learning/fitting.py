"""Mixtures from many points at once, and fewer components out of many: the batch work of the distribution memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from streamsplit.learning.mixture import GaussianMixture

PRIOR_POINTS = 4.0
"""A component's variance begins with the weight of so many points of the pooled variance: two points in 128 dimensions say little."""
_LLOYD, _EM, _TRIALS, _SEEDING = 3, 5, 4, 2048


@dataclass(slots=True, eq=False)
class Components:
    """N components as moments, whatever their kind: what fitting, moving and merging work on.

    Attributes:
        weights: [N], sum 1.
        points: [N] how many points each rests on, `PRIOR_POINTS` included.
        means, variances: [N, D].
    """

    weights: Tensor
    points: Tensor
    means: Tensor
    variances: Tensor


def moments(shares: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each component's part of the points: how many [K], their means and variances around those means [K, D].

    Args:
        shares: [N, K], each row a posterior.
        points: [N, D].

    Returns:
        [K], [K, D] and [K, D] (or [1, D]: nothing varies around one point).
    """
    if len(points) == 1:
        return shares[0], points.expand(shares.shape[1], -1), torch.zeros_like(points)
    count = shares.sum(0)
    normal = shares.T / count.clamp(min=1e-12)[:, None]
    means = normal @ points
    return count, means, (normal @ points.square() - means.square()).clamp(min=0.0)


def fit(
    points: Tensor, components: int, broad: float, floor: float, generator: torch.Generator
) -> Components:
    """Expectation-maximisation from a k-means++ beginning.

    Args:
        points: [N, D].
        components: at most so many; at least four points for each.
        broad: variance per dimension assumed before anything is known.
        floor: smallest variance, as a share of the mean one.
        generator: on the CPU.

    Returns:
        At most `components`, none of them empty.
    """
    many = max(1, min(components, len(points) // 4))
    means = _seeds(points, many, generator)
    for _ in range(_LLOYD):
        shares = torch.nn.functional.one_hot(torch.cdist(points, means).argmin(1), len(means)).float()
        count, means, spread = moments(shares, points)
        means, spread, count = means[count > 0], spread[count > 0], count[count > 0]
    fitted = _with_prior(count, means, spread, broad, floor)
    for _ in range(_EM):
        mixture = GaussianMixture(fitted.weights, fitted.means, fitted.variances)
        count, means, spread = moments(torch.softmax(mixture.log_joint(points), 1), points)
        kept = count > 1e-3
        fitted = _with_prior(count[kept], means[kept], spread[kept], broad, floor)
    return fitted


def _with_prior(count: Tensor, means: Tensor, spread: Tensor, broad: float, floor: float) -> Components:
    """Variances drawn towards the pooled one by `PRIOR_POINTS`; the pooled one towards `broad` by as many."""
    total = float(count.sum())
    inside = (count @ spread) * (total / max(1.0, total - len(count)))  # each mean has used up a point
    pooled = (inside + PRIOR_POINTS * broad) / (total + PRIOR_POINTS)
    pooled = pooled.clamp(min=floor * float(pooled.mean()))
    variances = (count[:, None] * spread + PRIOR_POINTS * pooled) / (count + PRIOR_POINTS)[:, None]
    return Components(count / total, count + PRIOR_POINTS, means, variances)


def _seeds(points: Tensor, many: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): points far from those chosen, the best of four draws each."""
    if len(points) > _SEEDING:
        points = points[torch.randperm(len(points), generator=generator)[:_SEEDING]]
    apart = torch.cdist(points, points).square()
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    nearest = apart[chosen[0]]
    while len(chosen) < many and float(nearest.sum()) > 0:
        drawn = torch.multinomial(nearest, _TRIALS, replacement=True, generator=generator)
        left = torch.minimum(apart[drawn], nearest)
        best = int(left.sum(1).argmin())
        chosen.append(int(drawn[best]))
        nearest = left[best]
    return points[chosen]


def merge_costs(weights: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """What merging each pair would cost in likelihood, at most: nats a point, [N, N], infinite on the diagonal.

    (w_i + w_j) / 2 log det S_ij - w_i / 2 log det S_i - w_j / 2 log det S_j (Runnalls 2007, eq. 21), diagonal Gaussians.
    """
    logs = torch.log(variances).sum(1)
    rows = [_costs_of(one, weights, means, variances, logs) for one in range(len(weights))]
    return torch.stack(rows).fill_diagonal_(math.inf)


def merge_pair(one: int, other: int, these: Components) -> None:
    """Puts both into the first, moments kept; the second is left with weight 0."""
    share = these.weights[one] / (these.weights[one] + these.weights[other])
    apart = these.means[one] - these.means[other]
    these.variances[one] = (
        share * these.variances[one]
        + (1 - share) * these.variances[other]
        + share * (1 - share) * apart.square()
    )
    these.means[one] = these.means[other] + share * apart
    these.points[one] += these.points[other]
    these.weights[one] += these.weights[other]
    these.weights[other] = 0.0


def reduce(many: Components, components: int) -> Components:
    """Merges the cheapest pairs until `components` are left; mean and second moment of the whole stay what they were."""
    alive = many.weights > 0
    these = Components(
        many.weights[alive].clone(),
        many.points[alive].clone(),
        many.means[alive].clone(),
        many.variances[alive].clone(),
    )
    costs = merge_costs(these.weights, these.means, these.variances)
    logs = torch.log(these.variances).sum(1)
    for _ in range(len(these.weights) - components):
        one, other = divmod(int(costs.argmin()), len(costs))
        merge_pair(one, other, these)
        logs[one] = torch.log(these.variances[one]).sum()
        again = _costs_of(one, these.weights, these.means, these.variances, logs)
        again = again.where(these.weights > 0, math.inf)
        costs[one, :] = costs[:, one] = again
        costs[other, :] = costs[:, other] = math.inf
        costs[one, one] = math.inf
    kept = these.weights > 0
    return Components(these.weights[kept], these.points[kept], these.means[kept], these.variances[kept])


def _costs_of(one: int, weights: Tensor, means: Tensor, variances: Tensor, logs: Tensor) -> Tensor:
    total = weights[one] + weights
    share = (weights[one] / total.clamp(min=1e-30))[:, None]
    joint = (
        share * variances[one] + (1 - share) * variances + share * (1 - share) * (means[one] - means).square()
    )
    return (total * torch.log(joint).sum(1) - weights[one] * logs[one] - weights * logs) / 2
