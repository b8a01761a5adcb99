"""Which windows a micro-batch pairs, and their views: chance that follows from (seed, optimiser step, piece) alone."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

from streamsplit.audio.features import FrontEndSettings
from streamsplit.learning.edge_settings import EdgeCounters, EdgeSettings
from streamsplit.learning.kept import KeptWindows
from streamsplit.learning.recent import REACH, RecentWindows
from streamsplit.learning.views import view


class Use(IntEnum):
    """What chance is for: each use has its own."""

    DRAW = 0
    VIEW = 1
    OBJECTIVE = 2
    LISTEN = 3


def stored_windows(settings: EdgeSettings, front_end: FrontEndSettings) -> RecentWindows:
    """An empty store for what these settings draw from; what is learned from once needs only the last few."""
    if not settings.objective.objective.stores:
        return RecentWindows(front_end, 2 * settings.batch + REACH)
    if settings.kept_share:
        return KeptWindows(front_end, settings.windows, settings.kept_share, settings.seed)
    return RecentWindows(front_end, settings.windows)


class Pairs:
    """Draws pairs from the windows stored, or takes each window once, in the order heard.

    Args:
        settings: how.
        recent: from where.
        counters: the place in the stream and in the training; `used` moves here.
    """

    def __init__(self, settings: EdgeSettings, recent: RecentWindows, counters: EdgeCounters) -> None:
        self.settings, self.recent, self.counters = settings, recent, counters
        self.drawn: dict[str, Tensor] = {}

    def views(self, number: int) -> Tensor:
        """Views of the pairs of micro-batch `number` of this optimiser step: [2 batch, 1, F, T], first all anchors, then their partners.

        An objective of the whole step gets the same again when it asks again, in random order: see `in_order`.
        """
        objective = self.settings.objective.objective
        if objective.whole_step:
            rows = slice(2 * number * self.settings.batch, 2 * (number + 1) * self.settings.batch)
            return self.viewed(self._whole()[rows], self.chance(number, Use.VIEW))
        if objective.stores:
            chance = self.chance(number, Use.DRAW)
            ages = self.recent.draw(self.settings.batch, self.settings.apart_s, chance)
            partners = self.recent.partners(ages, self.settings.neighbour_s, chance)
        else:
            oldest = self.recent.heard - self.counters.used - 1
            ages = torch.arange(oldest, oldest - self.settings.batch, -1)
            partners = ages  # a neighbour would be another pair's negative
            self.counters.used += self.settings.batch
        return self.viewed(torch.cat([ages, partners]), self.chance(number, Use.VIEW))

    def in_order(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """All of a whole step's embeddings, as its micro-batches made them, as pairs: [2 N, D] to [N, D] twice."""
        paired = torch.empty_like(z).index_copy(0, self.drawn["order"], z)
        return paired[: len(z) // 2], paired[len(z) // 2 :]

    def single_views(self, count: int, piece: int) -> Tensor:
        """One view each of random windows: [min(count, stored), 1, F, T]."""
        chance = self.chance(piece, Use.LISTEN)
        return self.viewed(self.recent.draw(count, 0.0, chance), chance)

    def viewed(self, ages: Tensor, chance: torch.Generator) -> Tensor:
        """A view of each window, other recent sound mixed in: [n] ages to [n, 1, F, T]."""
        others = torch.randint(len(self.recent), (len(ages),), generator=chance)
        mel, mixed = self.recent.mel(ages), self.recent.mel(others)
        return view(mel, mixed, self.recent.front_end, self.settings.views, chance)

    def chance(self, piece: int, use: Use) -> torch.Generator:
        """A generator of its own for this use of this piece of work."""
        entropy = np.random.SeedSequence((self.settings.seed, self.counters.cycle, piece, int(use)))
        return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))

    def _whole(self) -> Tensor:
        """One draw for the whole step, anchors and partners in random order: ages [2 batch accumulate].

        Where too few windows are stored, some come twice. In random order, because a batch norm leaves its mark on all of a
        micro-batch: partners in one of their own were known by it. ESC-10, one seed: 74.4 / 80.0 with them together.
        """
        if not self.drawn:
            chance = self.chance(0, Use.DRAW)
            wanted = self.settings.batch * self.settings.accumulate
            ages = self.recent.draw(wanted, self.settings.apart_s, chance)
            ages = ages.repeat(-(-wanted // len(ages)))[:wanted]
            partners = self.recent.partners(ages, self.settings.neighbour_s, chance)
            order = torch.randperm(2 * wanted, generator=chance)
            self.drawn = {"ages": torch.cat([ages, partners])[order], "order": order}
        return self.drawn["ages"]
