"""The server's Hybrid Loss: embeddings spread over the sphere and smooth in time, from windows that arrive sparse and late.

    total = task + spread_weight * spread + smoothness_weight * smoothness

`spread` is the sliced 2-Wasserstein distance between the embeddings and the *exact* uniform distribution on the sphere: along one
direction a uniform point has density proportional to (1 - x^2)^((D - 3) / 2), whose quantiles are computed once. Comparing with freshly
sampled uniform points instead, as the published code does, adds their sampling noise to the loss. `smoothness` is the quadratic form
of a graph Laplacian over true time. All functions are pure, and gradients reach the embeddings: pass what the encoder just computed.

Source: StreamSplit (Quan and Pathirana, MobiSys 2026), eq. 1-6, 13, 14; sliced Wasserstein as in Bonneel et al. 2015.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamsplit.errors import ConfigError
from streamsplit.learning.sphere import sphere_quantile

STEPS = 80_000
"""Of the numerical mean over probabilities in `chance_spread`."""

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class HybridSettings:
    """Weights and reach of the Hybrid Loss.

    Attributes:
        spread_weight: lambda_1, of `spread`. Ours is D times the squared distance, so 0.1 is 12.8 on the raw one at D = 128.
        smoothness_weight: lambda_2, of `smoothness`.
        directions: M, drawn afresh for every loss.
        neighbours: k, how many nearest windows in time each window is tied to.
        fade_s: a tie's weight is exp(-gap / fade_s).
        break_s: no tie crosses a stretch longer than this without a window.

    Raises:
        ConfigError: a number out of range.
    """

    spread_weight: float = 0.1
    smoothness_weight: float = 0.01
    directions: int = 50
    neighbours: int = 5
    fade_s: float = 2.0
    break_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("spread_weight", "smoothness_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected a number from 0, got {getattr(self, name)}")
        for name in ("directions", "neighbours"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name in ("fade_s", "break_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected seconds above 0, got {getattr(self, name)}")


def hybrid_loss(
    task: Tensor,
    embeddings: Tensor,
    start_s: Tensor,
    stream: Tensor,
    generator: torch.Generator,
    settings: HybridSettings | None = None,
) -> dict[str, Tensor]:
    """The whole loss and each of its terms.

    Args:
        task: scalar; what the embeddings are for, e.g. `losses.info_nce` of neighbouring windows.
        embeddings: [N, D] unit norm, of windows of one or more devices in any order, from the encoder that is to learn.
        start_s: [N] float64, each window's time on its stream's clock.
        stream: [N] integers; windows with different ones are never tied.
        generator: draws the directions.
        settings: the defaults unless told.

    Returns:
        "total", "task", "spread" (0 even, 2 collapsed; see `sliced_spread`), "smoothness" (0..4; see `smoothness`): scalars, the
        last two unweighted.
    """
    chosen = settings or HybridSettings()
    directions = random_directions(embeddings.shape[-1], chosen.directions, generator).to(embeddings)
    spread = sliced_spread(embeddings, directions)
    ties, weights = temporal_ties(start_s, stream, chosen.neighbours, chosen.fade_s, chosen.break_s)
    smooth = smoothness(embeddings, ties, weights, chosen.neighbours)
    total = task + chosen.spread_weight * spread + chosen.smoothness_weight * smooth
    return {"total": total, "task": task, "spread": spread, "smoothness": smooth}


# Spread over the sphere.


def random_directions(dim: int, count: int, generator: torch.Generator) -> Tensor:
    """Unit vectors [D, count], each uniform on the sphere; every D of them are orthogonal.

    Orthogonal directions measure a collapsed batch more evenly than independent ones (Rowland et al. 2019).
    """
    blocks = []
    for begin in range(0, count, dim):
        block = torch.randn(dim, min(dim, count - begin), generator=generator, device=generator.device)
        basis, upper = torch.linalg.qr(block)
        blocks.append(basis * upper.diagonal().sign())  # without the signs the basis would not be uniform
    return torch.cat(blocks, dim=1)


def sliced_spread(embeddings: Tensor, directions: Tensor) -> Tensor:
    """D times the squared sliced 2-Wasserstein distance from the embeddings to the uniform distribution on the sphere.

    Along each direction the distance between N points and the continuous distribution is exact: the sorted points against the means
    of its N equal shares, plus the variance inside the shares.

    In a narrow cone its gradient is much the same for all points, and a long step moves the cone instead of opening it: from random
    weights, AdamW without warm-up first collapsed `compact`'s dense tail at 1e-3 and opened it at 1e-4 (1.6 to 0.04 in 100 steps);
    from trained weights it opened at either.

    Args:
        embeddings: [N, D] unit norm.
        directions: [D, M] unit norm.

    Returns:
        Scalar. In expectation over directions 2 where all embeddings are equal, `chance_spread` for N independent uniform ones,
        towards 0 the more evenly they lie.
    """
    if embeddings.ndim != 2 or directions.ndim != 2 or embeddings.shape[1] != directions.shape[0]:
        raise ValueError(
            f"spread: expected [N, D] and [D, M], got {list(embeddings.shape)} and {list(directions.shape)}"
        )
    count, dim = embeddings.shape
    if count < 1 or dim < 2:
        raise ValueError(f"spread: expected embeddings of 2 dimensions or more, got {list(embeddings.shape)}")
    means = torch.from_numpy(share_means(count, dim)).to(embeddings)
    within = 1.0 - dim * float(np.square(share_means(count, dim)).mean())
    projected = (embeddings @ directions).sort(dim=0).values
    return dim * (projected - means[:, None]).square().mean() + within


@lru_cache(maxsize=64)
def share_means(count: int, dim: int) -> _Array:
    """[count] ascending: the coordinate's mean within each of `count` shares of equal probability. Do not write to it."""
    ends = sphere_quantile(torch.arange(count + 1, dtype=torch.float64) / count, dim).numpy()
    # The integral of x p(x) from an end to 1, with p's normaliser from the Beta function.
    total = math.sqrt(math.pi) * math.exp(math.lgamma((dim - 1) / 2) - math.lgamma(dim / 2))
    beyond = np.clip(1.0 - ends**2, 0.0, None) ** ((dim - 1) / 2) / (dim - 1) / total
    means: _Array = count * (beyond[:-1] - beyond[1:])
    return means


@lru_cache(maxsize=64)
def chance_spread(count: int, dim: int) -> float:
    """What `sliced_spread` is on average for `count` independent uniform points: the level below which a loss is only luck."""
    middles = (np.arange(STEPS) + 0.5) / STEPS
    log_odds = [
        math.lgamma(count + 1) - math.lgamma(rank + 1) - math.lgamma(count - rank) for rank in range(count)
    ]
    quantiles = sphere_quantile(torch.from_numpy(middles), dim).numpy()
    together = 0.0
    # The mean of the rank-th of `count` sorted points, by its density over probabilities: a Beta(rank + 1, count - rank).
    for rank, mean in enumerate(share_means(count, dim)):
        density = np.exp(log_odds[rank] + rank * np.log(middles) + (count - 1 - rank) * np.log1p(-middles))
        together += float(mean) * float((quantiles * density).mean())
    return 2.0 - 2.0 * dim * together / count


# Smoothness in time.


def temporal_ties(
    start_s: Tensor, stream: Tensor, neighbours: int = 5, fade_s: float = 2.0, break_s: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Which windows are tied and how strongly: each with its nearest ones in time, the tie weaker the longer the gap.

    Args:
        start_s: [N] seconds on each stream's own clock, any order.
        stream: [N] integers, one per stream.
        neighbours: k. Two windows are tied if either is among the other's k nearest.
        fade_s: weight exp(-gap / fade_s): 0.62 for consecutive windows of 0.96 s at 2.
        break_s: a stretch without any window that is longer breaks the chain: nothing is known about what was between.

    Returns:
        [2, E] pairs, each once, smaller index first; [E] weights in 0..1, float32, both on the device of `start_s`.
    """
    if start_s.ndim != 1 or start_s.shape != stream.shape:
        raise ValueError(
            f"ties: expected two vectors of one length, got {list(start_s.shape)}, {list(stream.shape)}"
        )
    if not bool(torch.isfinite(start_s).all()):
        raise ValueError("ties: expected finite times, got some that are not")
    at = start_s.detach().to("cpu", torch.float64)
    by_time = torch.argsort(at, stable=True)
    order = by_time[torch.argsort(stream.detach().cpu()[by_time], stable=True)]
    at, belongs = at[order], stream.detach().cpu()[order]
    broken = (belongs[1:] != belongs[:-1]) | (at[1:] - at[:-1] > break_s)
    run = torch.cat([torch.zeros(min(1, len(at)), dtype=torch.int64), broken.cumsum(0)])
    steps = [
        sign * step for step in range(1, neighbours + 1) for sign in (-1, 1)
    ]  # ties in gap: earlier first
    other = torch.arange(len(at))[:, None] + torch.tensor(steps)
    inside = (other >= 0) & (other < len(at))
    other = other.clamp(0, max(0, len(at) - 1))
    gap = torch.where(inside & (run[other] == run[:, None]), (at[other] - at[:, None]).abs(), math.inf)
    nearest = gap.argsort(dim=1, stable=True)[:, :neighbours]
    gap, other = gap.gather(1, nearest), other.gather(1, nearest)
    here, place = torch.isfinite(gap).nonzero(as_tuple=True)
    one, another = order[here], order[other[here, place]]
    pairs = torch.minimum(one, another) * len(at) + torch.maximum(one, another)
    ties, inverse = torch.unique(pairs, return_inverse=True)
    gaps = torch.zeros(len(ties), dtype=torch.float64).scatter_(0, inverse, gap[here, place])
    weights = torch.exp(-gaps / fade_s).float()
    ties = torch.stack([ties // max(1, len(at)), ties % max(1, len(at))])
    return ties.to(start_s.device), weights.to(start_s.device)


def smoothness(embeddings: Tensor, ties: Tensor, weights: Tensor, neighbours: int = 5) -> Tensor:
    """tr(Z' L Z) / (N k): the weighted squared distance between tied windows, per window and neighbour it could have.

    Dividing by N k and not by the weights' sum keeps sparse streams from being smoothed as hard as dense ones: windows far apart in
    time have little to do with each other, and windows without neighbours add nothing.

    Args:
        embeddings: [N, D] unit norm.
        ties: [2, E] pairs of `temporal_ties`.
        weights: [E]; L is their Laplacian, degree minus adjacency.
        neighbours: k.

    Returns:
        Scalar in 0..4; 0 without ties.
    """
    if ties.ndim != 2 or ties.shape[0] != 2 or weights.shape != ties.shape[1:]:
        raise ValueError(
            f"smoothness: expected [2, E] ties and [E] weights, got {list(ties.shape)}, {list(weights.shape)}"
        )
    apart = (embeddings[ties[0]] - embeddings[ties[1]]).square().sum(1)
    return (weights.to(embeddings) * apart).sum() / max(1, len(embeddings) * neighbours)
