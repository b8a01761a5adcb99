"""How good embeddings are, asked without training: nearest neighbours where labels are known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def nearest_neighbour_accuracy(
    embeddings: Tensor, labels: Sequence[str], groups: Sequence[str], neighbours: int = 5
) -> float:
    """Share of items whose label the majority of their nearest neighbours from other groups has (ties: the nearest).

    Args:
        embeddings: [N, D]; compared by cosine after centring (raw embeddings sit in a cone).
        labels: of each.
        groups: of each: an item's own group is not asked, so no original stands on both sides.
        neighbours: how many vote.

    Returns:
        0..1.

    Raises:
        ValueError: the three do not have one length, or an item has no other group.
    """
    if not len(embeddings) == len(labels) == len(groups) or len(set(groups)) < 2:
        raise ValueError(
            f"nearest neighbours: expected as many embeddings, labels and groups, and two groups at least, got {len(embeddings)},"
            f" {len(labels)}, {len(groups)}, and {len(set(groups))} groups"
        )
    names, group_names = sorted(set(labels)), sorted(set(groups))
    label = torch.tensor([names.index(name) for name in labels])
    group = torch.tensor([group_names.index(name) for name in groups])
    unit = F.normalize(embeddings.float() - embeddings.float().mean(0), dim=1)
    similarity = (unit @ unit.T).masked_fill(group[:, None] == group, -2.0)
    nearest = similarity.topk(min(neighbours, len(labels) - 1), dim=1)
    votes = torch.zeros(len(labels), len(names))
    # A neighbour's vote is 1, and a little more the nearer it is: ties fall to the nearest.
    weight = torch.where(nearest.values > -2.0, 1.0 + 1e-3 * nearest.values, 0.0)
    votes.scatter_add_(1, label[nearest.indices], weight)
    return float((votes.argmax(1) == label).float().mean())
