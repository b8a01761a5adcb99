"""What the device minimises: one interface for every objective, chosen by name.

    in-batch             InfoNCE among the windows just heard; nothing is stored
    reservoir            InfoNCE, micro-batches drawn from the last windows (the default)
    cached               InfoNCE over a whole optimiser step's windows, whatever the micro-batch (gradients cached, Gao et al. 2021)
    transport            attraction, and transport of the embeddings' distribution to uniform through the memory; no negatives
    expected             InfoNCE whose negatives are the memory's, in closed form
    published            InfoNCE with sampled, boundary-aware virtual negatives from the stream's memory (StreamSplit, eq. 10)
    transport+reservoir  both terms

All but `published` that look at a memory want a *fresh* one: embeddings at earlier weights teach the encoder to rotate away from its own
past (`published` is kept as it was published). With a momentum encoder the memory may be of the stream: its embeddings barely age.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.errors import ConfigError
from streamsplit.learning.hybrid import random_directions
from streamsplit.learning.losses import info_nce
from streamsplit.learning.memory import DistributionMemory

MemoryNeed = Literal["none", "fresh", "stream"]
Terms = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class ObjectiveSettings:
    """Which objective, and its numbers.

    Attributes:
        name: a key of `OBJECTIVES`.
        temperature: T of every InfoNCE.
        spread_weight: of `transport`'s spread beside the attraction (or beside InfoNCE).
        directions: drawn afresh for every micro-batch by `transport`.
        negatives: how many the expected mass stands for; a batch of 128 has 127.
        own_weight: 0..1, how much a component that holds the anchor counts among its expected negatives. At 0 total collapse would cost
            nothing: one component would hold everything.
        sampled: virtual negatives per anchor of `published`.
        fresh_windows: forward-only windows a fresh memory is made of, before every optimiser step.
        momentum: 0 for none; else partners come from a slow copy of the encoder that keeps this share of itself at every optimiser
            step, and the memory is of the stream.

    Raises:
        ConfigError: no such objective, or a number out of range.
    """

    name: str = "reservoir"
    temperature: float = 0.1
    spread_weight: float = 0.3
    directions: int = 50
    negatives: int = 127
    own_weight: float = 0.5
    sampled: int = 256
    fresh_windows: int = 128
    momentum: float = 0.0

    def __post_init__(self) -> None:
        for name, holds, legal in (
            ("name", self.name in OBJECTIVES, ", ".join(OBJECTIVES)),
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
            ("spread_weight", 0 <= self.spread_weight < math.inf, "0 or more"),
            ("directions", self.directions >= 1, "at least 1"),
            ("negatives", self.negatives >= 1, "at least 1"),
            ("own_weight", 0 <= self.own_weight <= 1, "0..1"),
            ("sampled", self.sampled >= 1, "at least 1"),
            ("fresh_windows", self.fresh_windows >= 8, "at least 8"),
            ("momentum", 0 <= self.momentum < 1, "0 to below 1"),
        ):
            if not holds:
                raise ConfigError(f"objective {name}: expected {legal}, got {getattr(self, name)!r}")
        if self.momentum and self.objective.whole_step:
            raise ConfigError(f"objective {self.name}: expected momentum 0, got {self.momentum}")

    @property
    def objective(self) -> Objective:
        """The one that was chosen."""
        return OBJECTIVES[self.name]

    @property
    def memory(self) -> MemoryNeed:
        """Which memory it looks at, the momentum considered."""
        need = self.objective.memory
        return "stream" if need == "fresh" and self.momentum else need


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an objective may look at besides the two views.

    Attributes:
        settings: its numbers.
        memory: of raw embeddings, if it wants one.
        generator: its chance, on the CPU.
    """

    settings: ObjectiveSettings
    memory: DistributionMemory | None
    generator: torch.Generator

    @property
    def needed_memory(self) -> DistributionMemory:
        """The memory.

        Raises:
            ValueError: there is none.
        """
        if self.memory is None:
            raise ValueError(f"objective {self.settings.name}: expected a memory, got none")
        return self.memory


@dataclass(frozen=True, slots=True)
class Objective:
    """One objective.

    Attributes:
        terms: (first [B, D], second [B, D], surroundings) -> scalars by name, "total" among them. Rows are partners; unit norm.
        memory: none; "fresh", made at the current weights; "stream", of everything trained on, as it went by.
        stores: whether it draws from stored windows; else each window is learned from once, in the order heard.
        least_batch: with fewer windows at a time it would learn nothing.
        whole_step: `terms` wants all pairs of an optimiser step at once, in micro-batches by cached gradients.
    """

    terms: Callable[[Tensor, Tensor, Surroundings], Terms]
    memory: MemoryNeed = "none"
    stores: bool = True
    least_batch: int = 1
    whole_step: bool = False


def path_pairs(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    pair: Callable[[Tensor, Tensor], Terms],
) -> Terms:
    """An objective within each path and between paths, which makes one space of them.

    Args:
        first, second: path -> [B, D].
        pair: the objective of two views.

    Returns:
        Terms by name; with more than one path "total" is the mean over pairs of paths, the others are "dense-lite/TERM".
    """
    if len(first) == 1:
        (only,) = first
        return pair(first[only], second[only])
    said: Terms = {}
    for one in sorted(first):
        for other in sorted(second):
            said |= {f"{one}-{other}/{name}": term for name, term in pair(first[one], second[other]).items()}
    totals = [term for name, term in said.items() if name.endswith("/total")]
    return {**said, "total": torch.stack(totals).mean()}


def _contrast(first: Tensor, second: Tensor, around: Surroundings) -> Terms:
    loss = info_nce(first, second, around.settings.temperature)
    return {"contrast": loss, "total": loss}


def _transport(first: Tensor, second: Tensor, around: Surroundings) -> Terms:
    pull = (2.0 - 2.0 * (first * second).sum(1)).mean()
    spread = _spread(first, second, around)
    return {"pull": pull, "spread": spread, "total": pull + around.settings.spread_weight * spread}


def _transport_and_contrast(first: Tensor, second: Tensor, around: Surroundings) -> Terms:
    contrast = info_nce(first, second, around.settings.temperature)
    spread = _spread(first, second, around)
    return {
        "contrast": contrast,
        "spread": spread,
        "total": contrast + around.settings.spread_weight * spread,
    }


def _spread(first: Tensor, second: Tensor, around: Surroundings) -> Tensor:
    """D times the mean squared way from each projection to where it would lie on a uniform sphere; about 2 for a collapsed memory.

    A projection knows its own quantile from the memory's closed-form distribution, so a batch of one does: sliced Wasserstein
    (Bonneel et al. 2015) with the memory in the place of the batch.
    """
    z = torch.cat([first, second])
    directions = random_directions(z.shape[1], around.settings.directions, around.generator).T.contiguous()
    projection = z @ directions.T
    target = around.needed_memory.quantile(projection.detach(), directions)
    return z.shape[1] * (projection - target).square().mean()


def _expected(first: Tensor, second: Tensor, around: Surroundings) -> Terms:
    loss = (_expected_from(first, second, around) + _expected_from(second, first, around)) / 2
    return {"contrast": loss, "total": loss}


def _expected_from(anchor: Tensor, partner: Tensor, around: Surroundings) -> Tensor:
    """InfoNCE of each anchor alone against the memory: works at a batch of one, gradients reach anchor and partner."""
    settings = around.settings
    mass = around.needed_memory.expected_negative_mass(anchor, settings.temperature, settings.own_weight)
    positive = (anchor * partner).sum(1) / settings.temperature
    return F.softplus(torch.log(settings.negatives * mass.clamp(min=1e-12)) - positive).mean()


def _published(first: Tensor, second: Tensor, around: Surroundings) -> Terms:
    """The batch's negatives and `sampled` virtual ones, which carry no gradient, from a memory that ages."""
    settings = around.settings
    drawn = around.needed_memory.sample_negatives(
        first, settings.sampled, around.generator, boundary_aware=True, temperature=settings.temperature
    )
    virtual = torch.einsum("bd,bnd->bn", first, drawn)
    logits = torch.cat([first @ second.T, virtual], dim=1) / settings.temperature
    loss = F.cross_entropy(logits, torch.arange(len(first)))
    return {"contrast": loss, "total": loss}


OBJECTIVES: Final[Mapping[str, Objective]] = {
    "in-batch": Objective(_contrast, stores=False, least_batch=2),
    "reservoir": Objective(_contrast, least_batch=2),
    "cached": Objective(_contrast, whole_step=True),
    "transport": Objective(_transport, memory="fresh"),
    "expected": Objective(_expected, memory="fresh"),
    "published": Objective(_published, memory="stream"),
    "transport+reservoir": Objective(_transport_and_contrast, memory="fresh", least_batch=2),
}
