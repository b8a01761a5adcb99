"""One memory out of several devices' memories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.learning.fitting import Components, reduce
from streamsplit.learning.memory import DistributionMemory, MemorySettings

MOST_SHARE: Final = 0.5
"""Of one device in what several have heard: a month of one kitchen must not drown a day of another."""


def shares_by_windows(counts: Sequence[float]) -> list[float]:
    """Each one's part of all the windows, but none above `MOST_SHARE` where two or more have heard anything; the parts sum to 1.

    Who has heard little counts for more than that then. Beside 3,000 windows of 30 made sounds, 8 to 300 windows of 5 others cost the
    former 1 to 2 nats of density (of 273) and gain 5 to 20 nats for their own, compared with parts by windows.

    >>> shares_by_windows([60, 30, 10]), shares_by_windows([30, 20]), shares_by_windows([7, 0])
    ([0.5, 0.375, 0.125], [0.5, 0.5], [1.0, 0.0])
    """
    total = sum(counts)
    most = max(range(len(counts)), key=lambda place: counts[place])
    others = total - counts[most]
    if others <= 0 or counts[most] <= MOST_SHARE * total:
        return [count / total for count in counts]
    left = (1.0 - MOST_SHARE) / others
    return [MOST_SHARE if place == most else count * left for place, count in enumerate(counts)]


@torch.no_grad()
def merge(
    memories: Sequence[DistributionMemory],
    shares: Sequence[float] | None = None,
    settings: MemorySettings | None = None,
) -> DistributionMemory:
    """One memory of what several have heard: their components together, the cheapest pairs merged until K are left.

    The whole keeps its mean and second moment, whatever is merged. Memories of centred embeddings are moved to the common centre, which
    is exact but for the renormalisation.

    A memory stands for the windows it has heard, but for no more than the outcome's horizon: older ones it has forgotten. So counts that
    hold other devices' windows, too, as they do where a device goes on from a merged memory, cannot outgrow what is heard now.

    Args:
        memories: at least one, of one kind, dimension and centring, and of one encoder version. Not changed.
        shares: how much each counts, 0 or more; unless told, by the windows it stands for (`shares_by_windows`).
        settings: of the outcome; the first one's unless told.

    Returns:
        The whole; its count is the sum of what they stand for.
    """
    if not memories:
        raise ValueError("merge: expected at least one memory, got none")
    merged = DistributionMemory(settings or memories[0].settings)
    stands_for = [min(int(memory.count), merged.settings.horizon_windows) for memory in memories]
    counted = [float(count) for count in stands_for] if shares is None else list(shares)
    sorts = {(some.settings.kind, some.settings.dim, some.settings.centred) for some in (merged, *memories)}
    if len(sorts) > 1:
        raise ValueError(f"merge: expected memories of one kind, dimension and centring, got {sorted(sorts)}")
    if len(memories) != len(counted) or min(counted) < 0 or not sum(counted) > 0:
        raise ValueError(f"merge: expected a share >= 0 for each of {len(memories)} memories, got {counted}")
    part = torch.tensor(shares_by_windows(counted) if shares is None else counted)
    part = part / part.sum()
    for name in ("centre", "radius", "correlation"):
        every = torch.stack([getattr(memory, name) for memory in memories])
        getattr(merged, name).copy_(torch.tensordot(part, every, dims=1))
    merged.count.fill_(sum(stands_for))
    merged.take(reduce(_together(memories, part, merged), merged.settings.components))
    merged.reservoir.take_shares([memory.reservoir for memory in memories], part.tolist())
    return merged


def _together(memories: Sequence[DistributionMemory], part: Tensor, merged: DistributionMemory) -> Components:
    every = [_as_seen_from(merged, memory) for memory in memories]
    return Components(
        torch.cat([share * these.weights for share, these in zip(part, every, strict=True)]),
        torch.cat([these.points for these in every]),
        torch.cat([these.means for these in every]),
        torch.cat([these.variances for these in every]),
    )


def _as_seen_from(merged: DistributionMemory, memory: DistributionMemory) -> Components:
    """A memory's components in the merged one's coordinates: z = centre + radius * w."""
    these = memory.components()
    if memory.settings.centred:
        scale = memory.radius / merged.radius
        these.means = (memory.centre - merged.centre) / merged.radius + scale * these.means
        these.variances = scale.square() * these.variances
        if (
            memory.settings.kind == "vmf"
        ):  # the direction turns; renormalised points keep their spread around it
            length = memory.means.norm(dim=1, keepdim=True)
            these.means = F.normalize(these.means, dim=1) * length
    return these
