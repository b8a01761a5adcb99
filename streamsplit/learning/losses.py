"""What training minimises and what reports say: pure functions of unit-norm embeddings, every term by name."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """Symmetric InfoNCE: each embedding must find its partner among all of the other view, both ways.

    Args:
        first, second: [B, D] unit norm; row i of one is the partner of row i of the other.
        temperature: above 0.

    Returns:
        Scalar in nats; log B where the embeddings tell nothing (van den Oord et al. 2018, eq. 4; symmetric as in CLIP).
    """
    if first.shape != second.shape or first.ndim != 2 or not temperature > 0:
        raise ValueError(
            f"info_nce: expected two [B, D] and a temperature above 0, got {list(first.shape)}, "
            f"{list(second.shape)} and {temperature}"
        )
    similarity = first @ second.T / temperature
    partner = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(similarity, partner) + F.cross_entropy(similarity.T, partner)) / 2


def joint_info_nce(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], temperature: float = 0.1
) -> dict[str, Tensor]:
    """InfoNCE within each path and between paths, which makes one embedding space of them.

    Args:
        first, second: path -> [B, D], the embeddings of two views (`SplitEncoder.embeddings`).
        temperature: above 0.

    Returns:
        "dense-dense", "dense-lite", "lite-lite" for `compact`; "full-full" for an encoder with one path. Scalars.
    """
    terms = {}
    for one, other in combinations_with_replacement(sorted(first), 2):
        loss = info_nce(first[one], second[other], temperature)
        if one != other:
            loss = (loss + info_nce(first[other], second[one], temperature)) / 2
        terms[f"{one}-{other}"] = loss
    return terms


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared distance of partners, 0..4; 0 is perfect (Wang and Isola 2020): [B, D] twice to a scalar."""
    return (first - second).square().sum(1).mean()


def uniformity(embeddings: Tensor, scale: float = 2.0) -> Tensor:
    """log of the mean of exp(-scale * squared distance) over all pairs (Wang and Isola 2020): [B, D] to a scalar.

    0 for total collapse; about -3.9 for the uniform distribution on the sphere in 128 dimensions at scale 2.
    """
    if len(embeddings) < 2:
        raise ValueError(f"uniformity: expected at least 2 embeddings, got {len(embeddings)}")
    return torch.pdist(embeddings).square().mul(-scale).exp().mean().log()


def effective_rank(embeddings: Tensor) -> float:
    """How many directions the embeddings use: exp of the entropy of their singular values' shares, after centring.

    Args:
        embeddings: [N, D].

    Returns:
        1..min(N, D) (Roy and Vetterli 2007); 0 if all embeddings are equal.
    """
    centred = (embeddings - embeddings.mean(0)).double()
    values = torch.linalg.svdvals(centred)
    if float(values.sum()) < 1e-6 * len(embeddings) ** 0.5:
        return 0.0
    share = values / values.sum()
    return float(torch.exp(-(share * torch.log(share.clamp(min=1e-12))).sum()))
