"""Made streams of embeddings, and the ways of learning them that do not work."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

D = 128


@dataclass(frozen=True, slots=True)
class Stream:
    """z [N, D] unit norm, the sound of each [N], and the sounds' centres [sounds, D]."""

    z: Tensor
    sound: Tensor
    centres: Tensor


def stream(
    sounds: int, windows: int, *, stay: float = 0.0, deviation: float = 0.03, seed: int = 0, cone: float = 0.0
) -> Stream:
    """Windows of so many sounds; each lasts 1 / (1 - stay) windows. `cone` adds a common direction, as real encoders do."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(sounds, D, generator=generator), dim=1)
    if cone:
        common = F.normalize(torch.randn(1, D, generator=generator), dim=1)
        centres = F.normalize(centres + cone * common, dim=1)
    fresh = torch.randint(sounds, (windows,), generator=generator)
    stays = torch.rand(windows, generator=generator) < stay
    sound, current = torch.empty_like(fresh), int(fresh[0])
    for place in range(windows):
        current = current if stays[place] else int(fresh[place])
        sound[place] = current
    z = F.normalize(centres[sound] + deviation * torch.randn(windows, D, generator=generator), dim=1)
    return Stream(z, sound, centres)


def found(means: Tensor, weights: Tensor, centres: Tensor) -> int:
    """How many centres have a component in use within a cosine of 0.95."""
    used = F.normalize(means[weights > 0.1 / len(weights)], dim=1)
    return int(((F.normalize(centres, dim=1) @ used.T).amax(1) > 0.95).sum())


class NaiveMemory:
    """Online EM as it is often written: each mean and variance of the one sample there is, moved by one step size.

    Args:
        initial_variance: of every dimension.
        around_mean: True takes the variance around the old mean (right), False around the new one, which the sample is.
        shared: True moves every component by the step, as a batch of one's M-step does (responsibilities cancel);
            False by step times responsibility.
    """

    def __init__(self, initial_variance: float, around_mean: bool, shared: bool, step: float = 0.05) -> None:
        generator = torch.Generator().manual_seed(0)
        self.means = F.normalize(torch.randn(64, D, generator=generator), dim=1)
        self.variances = torch.full((64, D), initial_variance)
        self.weights = torch.full((64,), 1 / 64)
        self.around_mean, self.shared, self.step = around_mean, shared, step

    def posterior(self, z: Tensor) -> Tensor:
        distance = (z - self.means).square() / self.variances + self.variances.log()
        return torch.softmax(self.weights.log() - distance.sum(1) / 2, 0)

    def update(self, z: Tensor) -> None:
        share = self.posterior(z)
        pace = (torch.full_like(share, self.step) if self.shared else self.step * share)[:, None]
        old = z - self.means
        sample_mean = z  # share * z / share: responsibilities cancel
        self.means = self.means + pace * (sample_mean - self.means)
        around = old if self.around_mean else z - sample_mean
        self.variances = (self.variances + pace * (around.square() - self.variances)).clamp(min=1e-6)
        self.weights = (self.weights + self.step * (share - self.weights)).clamp(min=1e-8)
