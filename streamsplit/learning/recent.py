"""The last windows heard, as bytes: what the device draws its training pairs from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamsplit.audio.features import FrontEndSettings
from streamsplit.learning.pool import NEIGHBOUR_SHARE

Codes = npt.NDArray[np.uint8]
REACH = 3
"""Places before and behind a window in which its neighbours are sought: all within 1.5 s, were windows to overlap by half."""


def to_codes(mel: Tensor, front_end: FrontEndSettings) -> Codes:
    """Standardised log-mel [B, 1, F, T] as a learner hears it: [B, F, T] uint8 over the front end's feature range."""
    low, high = front_end.feature_low, front_end.feature_high
    scaled = (mel[:, 0] - low) * (255.0 / (high - low))
    codes: Codes = scaled.round_().clamp_(0, 255).byte().numpy()
    return codes


class RecentWindows:
    """A ring of the last windows: F x T + 8 bytes each, whatever went by.

    Attributes:
        heard: windows it ever took. The next one goes to place `heard % windows`.
        codes: [windows, F, T] uint8 over the front end's feature range.
        start_s: [windows] float64.
    """

    def __init__(self, front_end: FrontEndSettings, windows: int) -> None:
        _, bands, frames = front_end.spec.shape
        self.front_end = front_end
        self.codes = torch.zeros(windows, bands, frames, dtype=torch.uint8)
        self.start_s = torch.zeros(windows, dtype=torch.float64)
        self.heard = 0

    def __len__(self) -> int:
        return min(self.heard, len(self.codes))

    @property
    def nbytes(self) -> int:
        """Of all it holds."""
        return self.codes.nbytes + self.start_s.nbytes

    def add(self, codes: Codes, start_s: float) -> None:
        """Takes one window [F, T] in place of the oldest."""
        place = self.heard % len(self.codes)
        self.codes[place] = torch.from_numpy(codes)
        self.start_s[place] = start_s
        self.heard += 1

    def mel(self, ages: Tensor) -> Tensor:
        """Standardised log-mel of windows by age, 0 the last heard: [n] to [n, 1, F, T] float32."""
        low, high = self.front_end.feature_low, self.front_end.feature_high
        chosen = self.codes[self._places(ages)]
        return chosen.float().mul_((high - low) / 255.0).add_(low).unsqueeze_(1)

    def draw(self, count: int, apart_s: float, generator: torch.Generator) -> Tensor:
        """Different random windows, no two of them within `apart_s` while there are such: ages [min(count, len)].

        Windows of one sound as each other's negatives would teach that it is not itself.
        """
        order = torch.randperm(len(self), generator=generator)
        times = self.start_s[self._places(order)].tolist()
        chosen: list[int] = []
        near: list[int] = []
        taken: list[float] = []
        for place, at in enumerate(times):
            if len(chosen) == count:
                break
            if any(abs(at - other) <= apart_s for other in taken):
                near.append(place)
            else:
                chosen.append(place)
                taken.append(at)
        return order[chosen + near[: count - len(chosen)]]

    def partners(self, ages: Tensor, neighbour_s: float, generator: torch.Generator) -> Tensor:
        """A positive for each: mostly another window that begins at most `neighbour_s` away, else itself. Ages [n] to [n]."""
        steps = torch.tensor([step for step in range(-REACH, REACH + 1) if step])
        others = ages[:, None] + steps
        inside = (others >= 0) & (others < len(self))
        others = torch.where(inside, others, ages[:, None])
        apart = (self.start_s[self._places(others)] - self.start_s[self._places(ages)][:, None]).abs()
        near = inside & (apart <= neighbour_s)
        chance = torch.rand(others.shape, generator=generator)
        wanted = torch.rand(len(ages), generator=generator) < NEIGHBOUR_SHARE
        best = torch.where(near, chance, -1.0).argmax(1, keepdim=True)
        return torch.where(near.any(1) & wanted, others.gather(1, best)[:, 0], ages)

    def _places(self, ages: Tensor) -> Tensor:
        return (self.heard - 1 - ages) % len(self.codes)
