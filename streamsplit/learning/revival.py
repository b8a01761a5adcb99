"""Components that explain nothing are tried elsewhere: split and merge for a mixture that must not be fitted anew.

After Ueda et al. 2000 (SMEM), with a bounded sample to judge by: a change is taken only if the sample becomes likelier.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from streamsplit.learning.fitting import PRIOR_POINTS, Components, merge_costs, merge_pair, moments
from streamsplit.learning.mixture import Mixture

_NEIGHBOURS, _TRIED, _ROUNDS, _FEWEST = 4, 4, 3, 2.0


def moved(
    these: Components,
    points: Tensor,
    mixture_of: Callable[[Components], Mixture],
    dead: float,
    generator: torch.Generator,
) -> Components | None:
    """Up to four dead components, or else the cheapest pair's second, moved to where the points are explained worst.

    Args:
        these: K components; not changed.
        points: [N, D] a sample of what was heard.
        mixture_of: makes their mixture.
        dead: a component of less weight is dead.
        generator: on the CPU.

    Returns:
        The better components, or None where the points did not become likelier.
    """
    trial = deepcopy(these)
    before = float(_evidence(mixture_of(trial), points).mean())
    free = torch.nonzero(trial.weights < dead).flatten().tolist()[:_TRIED]
    if not free:
        one, other = divmod(
            int(merge_costs(trial.weights, trial.means, trial.variances).argmin()), len(trial.weights)
        )
        merge_pair(one, other, trial)
        free = [other]
    _seed(trial, free, points, _evidence(mixture_of(trial), points), generator)
    for _ in range(_ROUNDS):
        shares = torch.softmax(mixture_of(trial).log_joint(points), dim=1)
        _reestimate(trial, free, shares[:, free], points)
    return trial if float(_evidence(mixture_of(trial), points).mean()) > before else None


def _evidence(mixture: Mixture, points: Tensor) -> Tensor:
    return torch.logsumexp(mixture.log_joint(points), dim=1)


def _seed(
    trial: Components, free: list[int], points: Tensor, evidence: Tensor, generator: torch.Generator
) -> None:
    """Places components on small neighbourhoods, the worse explained the likelier: a lone outlier founds nothing."""
    members = (points @ points.T).topk(min(_NEIGHBOURS, len(points)), dim=1).indices
    lack = (evidence.median() - evidence)[members].mean(1).clamp(min=1e-6)
    chosen = torch.multinomial(lack, len(free), generator=generator)
    pooled = trial.weights @ trial.variances
    for place, centre in zip(free, chosen.tolist(), strict=True):
        trial.means[place] = points[members[centre]].mean(0)
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
