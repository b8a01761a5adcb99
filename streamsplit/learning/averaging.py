"""What several devices learned, as one difference: a weighted mean that no single device can carry away.

Federated averaging (McMahan et al. 2017) with each device's difference clipped in norm first, as is usual against outliers (Sun et al.
2019). Only parameters are averaged: statistics of batch norms belong to one device's sound, and whoever merges settles them anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamsplit.errors import ConfigError
from streamsplit.learning.differences import RUNNING

MOST_WEIGHT = 10.0
"""A device counts at most this many times as much as the one that counts least: an hour's sound is not worth an hour's votes."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceDifference:
    """What one device learned.

    Attributes:
        device: who.
        base: id of the version it is relative to.
        windows: how many it learned from, at least 1: its weight in the mean.
        tensors: name -> difference, float32.
    """

    device: str
    base: str
    windows: int
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """One difference out of several.

    Attributes:
        tensors: name -> difference; names that no device sent are missing.
        norms: device -> its difference's norm as a share of the weights' norm, before clipping.
        refused: device -> why it was left out.
    """

    tensors: dict[str, Tensor]
    norms: dict[str, float]
    refused: dict[str, str]


def merge_differences(
    differences: Sequence[DeviceDifference], base: Mapping[str, Tensor], most_share: float = 0.2
) -> Merged:
    """The weighted mean of devices' differences.

    Every device is clipped so that what it changes is at most `most_share` of the norm of the weights it changes. A tensor that only
    some devices sent moves by their share of all devices' weight: silence is a vote for staying.

    Args:
        differences: of one base version or of several near ones; a device may come more than once.
        base: the weights they are of, by name.
        most_share: above 0.

    Raises:
        ConfigError: `most_share` out of range.
    """
    if not 0 < most_share < math.inf:
        raise ConfigError(f"most_share: expected a number above 0, got {most_share}")
    norms: dict[str, float] = {}
    refused: dict[str, str] = {}
    taken: list[tuple[DeviceDifference, dict[str, Tensor], float]] = []
    for one in differences:
        parameters = {name: part.float() for name, part in one.tensors.items() if not name.endswith(RUNNING)}
        problem = _problem(one, parameters, base)
        if problem is not None:
            refused[one.device] = problem
            continue
        share = _norm(parameters.values()) / max(1e-12, _norm(base[name] for name in parameters))
        norms[one.device] = share
        taken.append((one, parameters, min(1.0, most_share / max(share, 1e-12))))
    if not taken:
        return Merged({}, norms, refused)
    least = min(one.windows for one, _, _ in taken)
    weights = [min(float(one.windows), MOST_WEIGHT * least) for one, _, _ in taken]
    tensors: dict[str, Tensor] = {}
    for (_, parameters, clipped), weight in zip(taken, weights, strict=True):
        for name, part in parameters.items():
            step = part * (clipped * weight / sum(weights))
            tensors[name] = tensors[name] + step if name in tensors else step
    return Merged(tensors, norms, refused)


def _problem(
    one: DeviceDifference, parameters: Mapping[str, Tensor], base: Mapping[str, Tensor]
) -> str | None:
    if one.windows < 1:
        return f"expected at least 1 window, got {one.windows}"
    if not parameters:
        return "expected parameters, got none"
    for name, part in parameters.items():
        if name not in base or base[name].shape != part.shape:
            return f"{name}: not a tensor of these weights"
        if not bool(torch.isfinite(part).all()):
            return f"{name}: expected finite numbers, got others"
    return None


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(part.double().square().sum()) for part in tensors))
