"""LinUCB: learns on the device from what came of each choice (Li et al., WWW 2010, algorithm 1, disjoint arms).

Per split a ridge regression of reward on the moment's features x; the split with the highest

    theta.x + width sqrt(x' A^-1 x)

is taken: what it expects, plus what it may be wrong by. Old rewards fade, so that it follows a device that
changes. State is bounded: one [d, d] inverse and one [d] sum a split, for at most `MOST_OPTIONS` splits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from streamsplit.errors import ConfigError
from streamsplit.policy.decide import Choice
from streamsplit.policy.observation import Observation, Option
from streamsplit.policy.worlds import MOST_OPTIONS
from streamsplit.whole_file import write_whole

Vector = npt.NDArray[np.float64]

FORMAT: Final = "streamsplit-linucb"
FORMAT_VERSION: Final = 1
DIM: Final = 10
"""d: 1, load, throttled, rate, its absence, round trip, waiting, uncertainty, its absence, radio down."""


@dataclass(frozen=True, slots=True)
class LinUcbSettings:
    """How it learns.

    Attributes:
        width: of the confidence, in rewards per deviation: how eagerly it tries.
        ridge: pull of its weights to 0.
        fade: of what was learned, at each reward of the same split.
        centre: subtracted from rewards, so that an untried split counts as average and not as 0.
    """

    width: float = 0.5
    ridge: float = 1.0
    fade: float = 0.999
    centre: float = 7.0

    def __post_init__(self) -> None:
        if self.width < 0 or self.ridge <= 0 or not 0.9 <= self.fade <= 1.0:
            raise ConfigError(f"linucb: expected width >= 0, ridge > 0 and fade in 0.9..1, got {self}")


class LinUcb:
    """A decider with a memory; `learn` feeds it.

    Args:
        settings: the defaults unless told.

    Attributes:
        learned: rewards so far.
    """

    name = "linucb"

    def __init__(self, settings: LinUcbSettings | None = None) -> None:
        self.settings = settings or LinUcbSettings()
        self.learned = 0
        self._gram: dict[int, Vector] = {}
        self._inverse: dict[int, Vector] = {}
        self._sum: dict[int, Vector] = {}

    def choose(self, observation: Observation, options: Sequence[Option]) -> Choice:
        """The option with the highest upper bound; of equal ones, as all are at first, the deepest."""
        x = context(observation)
        bounds = [self._bound(option.split, x) for option in options]
        best = max(
            range(len(options)), key=lambda index: (round(sum(bounds[index]), 9), options[index].split)
        )
        option, (mean, margin) = options[best], bounds[best]
        return Choice(
            option.split,
            option.codec,
            f"expects a reward of {mean + self.settings.centre:.2f} +- {margin:.2f} after {self.learned} lessons",
            {
                "payload_bytes": round(option.payload_bytes, 1),
                "reward": round(mean + self.settings.centre, 4),
            },
        )

    def learn(self, choice: Choice, observation: Observation, reward: float) -> None:
        """What came of a choice made at an observation: the mean reward of its windows.

        Raises:
            ValueError: a reward that is not finite, or more splits than any encoder has; nothing was learned.
        """
        split = choice.split
        if not math.isfinite(reward):
            raise ValueError(f"reward: expected a finite number, got {reward}")
        if split not in self._gram:
            if len(self._gram) >= MOST_OPTIONS:
                raise ValueError(f"split {split}: expected at most {MOST_OPTIONS} different ones")
            self._gram[split] = np.zeros((DIM, DIM))
            self._sum[split] = np.zeros(DIM)
        x, fade = context(observation), self.settings.fade
        self._gram[split] = fade * self._gram[split] + np.outer(x, x)
        self._sum[split] = fade * self._sum[split] + (reward - self.settings.centre) * x
        self._inverse[split] = self._inverted(self._gram[split])
        self.learned += 1

    def save(self, path: Path) -> None:
        """Writes all it knows.

        Raises:
            StorageError: it cannot be written there.
        """
        tensors = {f"gram/{split}": gram for split, gram in self._gram.items()}
        tensors |= {f"sum/{split}": total for split, total in self._sum.items()}
        tensors["learned"] = np.array([self.learned])
        header = json.dumps({"format_version": FORMAT_VERSION, "dim": DIM})
        write_whole(path, to_bytes(tensors, {FORMAT: header}))

    @classmethod
    def load(cls, path: Path, settings: LinUcbSettings | None = None) -> LinUcb:
        """Goes on from what `save` wrote.

        Raises:
            ConfigError: no such file, or not one of ours.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {}).get(FORMAT, "null"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, ValueError) as error:
            raise ConfigError(f"linucb {path}: cannot be read: {error}") from error
        if header != {"format_version": FORMAT_VERSION, "dim": DIM} or "learned" not in tensors:
            raise ConfigError(
                f"linucb {path}: expected {FORMAT} {FORMAT_VERSION} of {DIM} features, got {header}"
            )
        learner = cls(settings)
        learner.learned = int(tensors.pop("learned")[0])
        for name, tensor in tensors.items():
            kind, _, split = name.partition("/")
            shape = (DIM, DIM) if kind == "gram" else (DIM,)
            if tensor.shape != shape or not np.isfinite(tensor).all():
                raise ConfigError(
                    f"linucb {path}: {name}: expected {shape} finite numbers, got {tensor.shape}"
                )
            (learner._gram if kind == "gram" else learner._sum)[int(split)] = tensor
        learner._inverse = {split: learner._inverted(gram) for split, gram in learner._gram.items()}
        return learner

    def _bound(self, split: int, x: Vector) -> tuple[float, float]:
        """(expected reward beyond the centre, confidence)."""
        inverse = self._inverse.get(split)
        if inverse is None:
            return 0.0, self.settings.width * math.sqrt(float(x @ x) / self.settings.ridge)
        turned = inverse @ x
        spread = math.sqrt(max(float(x @ turned), 0.0))
        return float(self._sum[split] @ turned), self.settings.width * spread

    def _inverted(self, gram: Vector) -> Vector:
        return np.asarray(np.linalg.inv(gram + self.settings.ridge * np.eye(DIM)), np.float64)


def context(observation: Observation) -> Vector:
    """What it looks at, [d], each about 0 to 1."""
    rate, rtt_ms, uncertainty = observation.uplink_bps, observation.rtt_ms, observation.uncertainty
    since_s = observation.since_send_s
    waiting_s = 8.0 * observation.backlog_bytes / max(rate or 1e6, 1e3)
    return np.array(
        [
            1.0,
            min(max(observation.cpu_percent / 100.0, 0.0), 1.0),
            float(observation.throttled),
            0.0 if rate is None else math.log10(max(rate, 1e3)) / 3.0 - 2.0,
            float(rate is None),
            min((50.0 if rtt_ms is None else rtt_ms) / 200.0, 2.0),
            min(waiting_s, 4.0) / 4.0,
            4.0 * min(0.1 if uncertainty is None else uncertainty, 0.5),
            float(uncertainty is None),
            1.0 if since_s is None else min(since_s / 10.0, 1.0),
        ]
    )
