"""How a device learns: the edge learner's settings and its counters."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from streamsplit.errors import ConfigError
from streamsplit.learning.objectives import ObjectiveSettings
from streamsplit.learning.shadow import Norms, Paths
from streamsplit.learning.views import ViewSettings

STEP_PAIRS = 128
"""Of an optimiser step, whatever the micro-batch: at a fixed rate, shorter steps are noisier ones."""


@dataclass(frozen=True, slots=True)
class EdgeSettings:
    """How a device learns.

    Attributes:
        objective: what it minimises.
        batch: windows of a micro-batch, each in two views.
        accumulate: micro-batches of an optimiser step.
        windows: so many are stored to draw from, F x T bytes each: the last ones, but for `kept_share`.
        kept_share: of these, for a fair sample of all that was heard before the last ones (`KeptWindows`); 0 for none.
        fewest_windows: before so many were heard nothing is learned.
        queue_windows: heard and not yet taken in; when it is full, new windows are left out, counted.
        learning_rate: at its highest, after the warm-up.
        weight_decay: AdamW's.
        warm_up_steps: optimiser steps in which the rate rises, at the start and after each rebase.
        horizon_steps: optimiser steps at whose end the rate has fallen to nothing, as a cosine; None for an endless stream: constant.
        clip: the gradient's largest norm.
        neighbour_s: how far apart the two sides of a pair may begin.
        apart_s: anchors of a micro-batch begin further apart than this, while there are such.
        paths: "device" trains the lite path only; "all" the dense tail with it.
        train_front: whether the blocks before the tail are trained too.
        norms: "batch" normalises by each micro-batch's statistics; "stored" by those of forward-only passes just before each optimiser
            step, the same for all its micro-batches: nothing in an embedding then tells which micro-batch it is of, and a batch of
            one is no special case.
        seed: of draws and views.
        views: how far views go.
    """

    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    batch: int = 8
    accumulate: int = STEP_PAIRS // 8
    windows: int = 512
    kept_share: float = 0.5
    fewest_windows: int = 64
    queue_windows: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warm_up_steps: int = 10
    horizon_steps: int | None = None
    clip: float = 1.0
    neighbour_s: float = 1.5
    apart_s: float = 5.0
    paths: Paths = "device"
    train_front: bool = True
    norms: Norms = "batch"
    seed: int = 0
    views: ViewSettings = field(default_factory=ViewSettings)

    @classmethod
    def of_batch(cls, objective: str, batch: int, seed: int, front: bool = True) -> EdgeSettings:
        """What a device trains with, told only these: STEP_PAIRS in a step, whatever the batch."""
        return cls(
            ObjectiveSettings(objective),
            batch=batch,
            accumulate=max(1, STEP_PAIRS // batch),
            train_front=front,
            seed=seed,
        )

    def __post_init__(self) -> None:
        least = self.objective.objective.least_batch
        horizon = self.horizon_steps
        for name, holds, legal in (
            ("batch", self.batch >= least, f"at least {least} for objective {self.objective.name}"),
            ("accumulate", self.accumulate >= 1, "at least 1"),
            ("windows", self.windows >= 2 * self.batch, "at least two batches"),
            ("kept_share", 0 <= self.kept_share < 1, "0 to below 1"),
            ("fewest_windows", self.batch <= self.fewest_windows <= self.windows, "batch..windows"),
            ("queue_windows", self.queue_windows >= self.batch, "at least a batch"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("warm_up_steps", self.warm_up_steps >= 0, "0 or more"),
            ("horizon_steps", horizon is None or horizon > self.warm_up_steps, "above warm_up_steps"),
            ("clip", self.clip > 0, "above 0"),
            ("neighbour_s", 0 <= self.neighbour_s < math.inf, "0 or more"),
            ("apart_s", 0 <= self.apart_s < math.inf, "0 or more"),
            ("paths", self.paths in ("device", "all"), "device or all"),
            ("norms", self.norms in ("batch", "stored"), "batch or stored"),
            ("seed", 0 <= self.seed < 2**31, "0 to 2^31 - 1"),
        ):
            if not holds:
                raise ConfigError(f"edge {name}: expected {legal}, got {getattr(self, name)}")

    def rate(self, step: int) -> float:
        """The learning rate of an optimiser step, counted from the start or the last rebase."""
        if step < self.warm_up_steps:
            return self.learning_rate * (step + 1) / self.warm_up_steps
        if self.horizon_steps is None:
            return self.learning_rate
        along = (step - self.warm_up_steps) / (self.horizon_steps - self.warm_up_steps)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * min(1.0, along)))


@dataclass(slots=True)
class EdgeCounters:
    """What a learner has seen and done; all that it needs, with its seed, to know its place.

    Attributes:
        heard: windows offered, those of the next two included.
        silent: gated: they are counted and their time passes, but they are not learned from: all alike, they would only be false
            negatives of each other.
        overflowed: left out because the inbox was full.
        updates: optimiser steps done.
        skipped: optimiser steps not done, because a gradient was not finite.
        cycle: optimiser steps begun before this one, those thrown away included.
        piece: pieces of work done of this one.
        used: windows learned from, where each is learned from once.
        since_rebase: optimiser steps done since the start or the last rebase.
    """

    heard: int = 0
    silent: int = 0
    overflowed: int = 0
    updates: int = 0
    skipped: int = 0
    cycle: int = 0
    piece: int = 0
    used: int = 0
    since_rebase: int = 0
