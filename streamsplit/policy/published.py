"""The published task, for comparison only: why a policy learned on it proves nothing.

As we read the paper's public code: the state (uncertainty, processor, bandwidth) is drawn anew at every step
whatever was done, the reward is linear in the split k = 0..L, with accuracy and savings that both rise towards
the device. So one split, embedding everything on the device, is best in every state: shown by trying all of them
in every state of a fine grid. The coefficients are ours (the paper prints none but alpha, beta, eta); the
conclusion holds for any with these signs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PublishedTask:
    """Splits 0..last_split; states are (uncertainty, processor, bandwidth), each 0..1.

    Attributes:
        alpha, beta, eta: as published.
        accuracy: least accuracy, and what full depth adds to it.
        latency: at depth 0 on no bandwidth, and what full depth saves of it.
        energy: at depth 0, and what full depth saves of it.
    """

    last_split: int = 8
    alpha: float = 10.0
    beta: float = 5.0
    eta: float = 3.0
    accuracy: tuple[float, float] = (0.8, 0.05)
    latency: tuple[float, float] = (1.0, 0.7)
    energy: tuple[float, float] = (1.0, 0.5)

    def reward(self, state: Array, split: int) -> Array:
        """Of states [..., 3]: linear in the split."""
        depth = split / self.last_split
        uncertainty, processor, bandwidth = np.moveaxis(state, -1, 0)
        accuracy = self.accuracy[0] + self.accuracy[1] * depth * (1.0 - 0.5 * uncertainty)
        latency = self.latency[0] - self.latency[1] * depth * (1.0 - 0.5 * bandwidth)
        energy = self.energy[0] - self.energy[1] * depth * (1.0 - 0.5 * processor)
        return np.asarray(self.alpha * accuracy - self.beta * latency - self.eta * energy)

    def next_state(self, generator: np.random.Generator) -> Array:
        """The state that follows any state and any split."""
        return generator.random(3)

    def best_splits(self, points: int = 21) -> npt.NDArray[np.int64]:
        """The best split in every state of a grid [points^3], by trying all.

        As the next state does not depend on the split, what is best for one step is best for ever.
        """
        axis = np.linspace(0.0, 1.0, points)
        states = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        rewards = np.stack([self.reward(states, split) for split in range(self.last_split + 1)])
        return np.asarray(rewards.argmax(axis=0), np.int64)
