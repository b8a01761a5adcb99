"""The last windows and a fair sample of all before them: for streams that do not come back to a sound for a long time.

    runs of 8 windows:  [ being written | the last ones ]  --oldest leaves-->  [ kept: each run that ever left, with equal chance ]

Where a stream stays with one kind of sound for longer than the ring holds, all that is drawn is of one kind: pairs find each other by
little things, and what was learned before is lost. Runs and not single windows, so that neighbours stay together.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from streamsplit.audio.features import FrontEndSettings
from streamsplit.errors import ConfigError
from streamsplit.learning.recent import Codes, RecentWindows

RUN = 8
"""Windows that come and go together."""


class KeptWindows(RecentWindows):
    """As `RecentWindows`; the last places in age are for runs kept by algorithm R (Vitter 1985).

    Args:
        front_end: of the windows.
        windows: in all, whole runs, at least 4.
        kept_share: of them for what is kept; above 0, below 1.
        seed: of what is kept; which follows from it and the run's number alone.

    Attributes:
        order: [runs used] the place of each run: the one being written, those before it newest first, then the kept ones.
    """

    def __init__(self, front_end: FrontEndSettings, windows: int, kept_share: float, seed: int) -> None:
        if windows % RUN or windows < 4 * RUN or not 0 < kept_share < 1:
            raise ConfigError(
                f"kept windows: expected 4 or more runs of {RUN} windows and a share between 0 and 1,"
                f" got {windows} windows and {kept_share}"
            )
        super().__init__(front_end, windows)
        runs = windows // RUN
        self.seed = seed
        self.kept = min(runs - 2, max(1, round(kept_share * runs)))
        self.last = runs - self.kept
        self.order = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return max(0, len(self.order) - 1) * RUN + self._written

    @property
    def nbytes(self) -> int:
        """Of all it holds."""
        return super().nbytes + 8 * (self.last + self.kept)

    @property
    def _written(self) -> int:
        """Windows of the run being written: 1..RUN once there is one."""
        return (self.heard - 1) % RUN + 1 if self.heard else 0

    def add(self, codes: Codes, start_s: float) -> None:
        """Takes one window [F, T]; where its run begins, another run gives way."""
        inside = self.heard % RUN
        if inside == 0:
            self._begin_run(self.heard // RUN)
        place = int(self.order[0]) * RUN + inside
        self.codes[place] = torch.from_numpy(codes)
        self.start_s[place] = start_s
        self.heard += 1

    def _begin_run(self, number: int) -> None:
        last, kept = self.order[: self.last], self.order[self.last :]
        if number < self.last + self.kept:
            place = number  # one leaves the last ones, and there is room for it
            self.order = torch.cat([torch.tensor([place]), last, kept])
            return
        place = int(last[-1])
        left = number - self.last + 1
        chosen = int(np.random.default_rng((self.seed, number, 8)).integers(left))
        if chosen < self.kept:
            place, kept[chosen] = int(kept[chosen]), place
        self.order = torch.cat([torch.tensor([place]), last[:-1], kept])

    def _places(self, ages: Tensor) -> Tensor:
        behind = ages - self._written
        first = behind < 0
        run = torch.where(first, 0, 1 + behind // RUN)
        inside = torch.where(first, self._written - 1 - ages, RUN - 1 - behind % RUN)
        return self.order[run] * RUN + inside
