"""Components that explain nothing are tried elsewhere: split and merge for a mixture that must not be fitted anew.

After Ueda et al. 2000 (SMEM), with a bounded sample to judge by: a change is taken only if the sample becomes likelier.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from streamsplit.learning.fitting import PRIOR_POINTS, Components, merge_costs, merge_pair, moments
from streamsplit.learning.mixture import Mixture

_NEIGHBOURS, _DEAD, _PAIRS, _ROUNDS, _FEWEST = 4, 8, 4, 3, 2.0
_GAIN = 0.5
"""Nats a point that a change must bring: for less, hundreds of refits of the same sounds wear the mixture down (4.5 nats in 100,000
windows), since a sample of eight points for each component always finds something to fit."""


def moved(
    these: Components,
    points: Tensor,
    mixture_of: Callable[[Components], Mixture],
    dead: float,
    generator: torch.Generator,
) -> Components | None:
    """Up to eight dead components, or else the second of each of the four cheapest pairs, moved to where the points are explained worst.

    Args:
        these: K components; not changed.
        points: [N, D] a sample of what was heard.
        mixture_of: makes their mixture.
        dead: a component of less weight is dead.
        generator: on the CPU.

    Returns:
        The better components, or None where the points did not become likelier by enough.
    """
    trial = deepcopy(these)
    before = float(_evidence(mixture_of(trial), points).mean())
    free = torch.nonzero(trial.weights < dead).flatten().tolist()[:_DEAD] or _merged(trial)
    if not free:
        return None
    joint = mixture_of(trial).log_joint(points)
    had = torch.softmax(joint, dim=1).sum(0)
    _seed(trial, free, points, torch.logsumexp(joint, dim=1), generator)
    for _ in range(_ROUNDS):
        shares = torch.softmax(mixture_of(trial).log_joint(points), dim=1)
        _reestimate(trial, free, shares[:, free], points)
    joint = mixture_of(trial).log_joint(points)
    if float(torch.logsumexp(joint, dim=1).mean()) < before + _GAIN:
        return None
    _pay(trial, free, had, torch.softmax(joint, dim=1).sum(0))
    return trial


def _pay(trial: Components, free: list[int], had: Tensor, have: Tensor) -> None:
    """Those who lost points lose weight as well; otherwise one that once held half the stream keeps its half for a horizon."""
    kept = ((have + 1) / (had + 1)).clamp(1e-6, 1.0)
    kept[free] = 1.0
    trial.weights = trial.weights * kept
    trial.weights /= trial.weights.sum()


def _merged(trial: Components) -> list[int]:
    """Makes the cheapest pairs one each; returns what that leaves free."""
    costs = merge_costs(trial.weights, trial.means, trial.variances)
    free = []
    for _ in range(min(_PAIRS, len(costs) // 2)):
        one, other = divmod(int(costs.argmin()), len(costs))
        merge_pair(one, other, trial)
        for taken in (one, other):
            costs[taken, :] = costs[:, taken] = math.inf
        free.append(other)
    return free


def _evidence(mixture: Mixture, points: Tensor) -> Tensor:
    return torch.logsumexp(mixture.log_joint(points), dim=1)


def _seed(
    trial: Components, free: list[int], points: Tensor, evidence: Tensor, generator: torch.Generator
) -> None:
    """Places components on small neighbourhoods, the worse explained the likelier: a lone outlier founds nothing."""
    members = (points @ points.T).topk(min(_NEIGHBOURS, len(points)), dim=1).indices
    lack = (evidence.median() - evidence)[members].mean(1).clamp(min=1e-6)
    pooled = trial.weights @ trial.variances
    for place in free:
        centre = int(torch.multinomial(lack, 1, generator=generator))
        trial.means[place] = points[members[centre]].mean(0)
        near = (points - trial.means[place]).square().sum(1)
        lack = (lack * near.clamp(max=1.0)).clamp(min=1e-12)  # the next one is elsewhere
        trial.variances[place] = pooled
        trial.weights[place] = members.shape[1] / len(points)
    trial.weights /= trial.weights.sum()


def _reestimate(trial: Components, free: list[int], shares: Tensor, points: Tensor) -> None:
    """The moved ones by the points they got, variances on their prior; one that got fewer than two points is given up."""
    count, means, spread = moments(shares, points)
    pooled, got = trial.weights @ trial.variances, count[:, None]
    trial.means[free] = torch.where(got > 0, means, trial.means[free])
    trial.variances[free] = (got * spread + PRIOR_POINTS * pooled) / (got + PRIOR_POINTS)
    trial.points[free] = count + PRIOR_POINTS
    trial.weights[free] = torch.where(count >= _FEWEST, count / len(points), 0.0)
    trial.weights /= trial.weights.sum()
