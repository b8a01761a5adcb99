"""How good embeddings are, asked of ones that stay as they are: linear probes, nearest neighbours and retrieval where labels are known.

One fold is judged by what the others hold, each fold in turn, so no original stands on both sides. The probe is scikit-learn's logistic
regression on standardised features (C = 0.1); scikit-learn comes with the extra `train` and is imported only when asked.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.errors import ConfigError

C = 0.1
MOST_STEPS = 500
ASKED_FIRST = 10


@dataclass(frozen=True, slots=True, eq=False)
class Probed:
    """What a linear probe said of items it had not learned from.

    Attributes:
        right: [N] bool.
        verdict: [N] the class it said.
        entropy: [N] of its class probabilities, in nats.
        margin: [N] 0..1, by how much the likeliest class is likelier than the next.
        loss: [N] minus the log of the true class's probability, in nats.
    """

    right: Tensor
    verdict: Tensor
    entropy: Tensor
    margin: Tensor
    loss: Tensor


def require_sklearn() -> None:
    """Raises ConfigError now if a probe could not be trained later."""
    _sklearn()


def linear_probe(features: Tensor, labels: Tensor, folds: Tensor, most_learned: int | None = None) -> Probed:
    """Leave one fold out: a logistic regression on the others judges each fold.

    Args:
        features: [N, P].
        labels: [N] class numbers.
        folds: [N]; 2 different ones at least.
        most_learned: each regression learns from at most so many items, evenly spaced; None: from all.
    """
    features, labels, folds = features.cpu(), labels.cpu(), folds.cpu()
    verdict = torch.zeros(len(labels), dtype=torch.long)
    entropy, margin, loss = torch.zeros(3, len(labels))
    for fold in torch.unique(folds):
        inside = folds == fold
        learned = torch.nonzero(~inside).flatten()
        if most_learned is not None and len(learned) > most_learned:
            learned = learned[torch.linspace(0, len(learned) - 1, most_learned).round().long()]
        mean, deviation = features[learned].mean(0), features[learned].std(0, correction=0)
        standard = ((features - mean) / deviation.clamp(min=1e-6)).numpy()
        model = _regression(standard[learned.numpy()], labels[learned].numpy())
        sure = torch.from_numpy(model.predict_log_proba(standard[inside.numpy()])).float()
        classes = torch.from_numpy(model.classes_)
        verdict[inside] = classes[sure.argmax(1)]
        first = sure.exp().topk(2, dim=1).values
        margin[inside] = first[:, 0] - first[:, 1]
        entropy[inside] = -(sure.exp() * sure.clamp(min=-100.0)).sum(1)
        # A class that no other fold has: as good as impossible to the probe.
        known = classes[None] == labels[inside][:, None]
        loss[inside] = -torch.where(known, sure, -100.0).amax(1)
    return Probed(verdict == labels, verdict, entropy, margin, loss)


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
    return float(nearest_neighbours_right(embeddings, label, group, neighbours).float().mean())


def nearest_neighbours_right(
    embeddings: Tensor, labels: Tensor, groups: Tensor, neighbours: int = 5
) -> Tensor:
    """Which items `nearest_neighbour_accuracy` counts: [N, D], class numbers [N] and groups [N] to [N] bool."""
    similarity = _similarity(embeddings, groups)
    nearest = similarity.topk(min(neighbours, len(labels) - 1), dim=1)
    votes = torch.zeros(len(labels), int(labels.max()) + 1)
    # A neighbour's vote is 1, and a little more the nearer it is: ties fall to the nearest.
    weight = torch.where(nearest.values > -2.0, 1.0 + 1e-3 * nearest.values, 0.0)
    votes.scatter_add_(1, labels[nearest.indices], weight)
    return votes.argmax(1) == labels


@dataclass(frozen=True, slots=True, eq=False)
class Retrieved:
    """What searching with each item among those of other groups finds.

    Attributes:
        precision: [N] share of the first ASKED_FIRST that are of its class; of all of its class, where there are fewer.
        average_precision: [N] mean over the items of its class of the precision down to each.
        asked: [N] bool; whether another group has its class at all. The others count nowhere.
    """

    precision: Tensor
    average_precision: Tensor
    asked: Tensor


def retrieve(embeddings: Tensor, labels: Tensor, groups: Tensor) -> Retrieved:
    """Searches with every item: [N, D], class numbers [N], groups [N]; cosine after centring."""
    similarity = _similarity(embeddings, groups)
    order = similarity.argsort(dim=1, descending=True, stable=True)
    other = torch.gather(groups[:, None] != groups, 1, order)
    relevant = (labels[order] == labels[:, None]) & other
    found = relevant.sum(1)
    ranks = torch.arange(1, len(labels) + 1)
    precision_at = relevant.cumsum(1) / ranks
    average = (precision_at * relevant).sum(1) / found.clamp(min=1)
    first = relevant[:, :ASKED_FIRST].sum(1) / found.clamp(1, ASKED_FIRST)
    return Retrieved(first, average, found > 0)


def _similarity(embeddings: Tensor, groups: Tensor) -> Tensor:
    """Cosine after centring, [N, N]; -2 within a group."""
    unit = F.normalize(embeddings.float() - embeddings.float().mean(0), dim=1)
    return (unit @ unit.T).masked_fill(groups[:, None] == groups, -2.0)


def _regression(features: Any, labels: Any) -> Any:
    LogisticRegression, ConvergenceWarning = _sklearn()
    with warnings.catch_warnings():
        # Not yet at the optimum after so many steps: the figure is of the probe as it then is.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=C, max_iter=MOST_STEPS).fit(
            np.ascontiguousarray(features, dtype=np.float64), labels
        )


def _sklearn() -> tuple[Any, Any]:
    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ConfigError("linear probes need scikit-learn: install streamsplit[train]") from error
    return LogisticRegression, ConvergenceWarning
