"""Training an encoder before the stream begins: large-batch InfoNCE between two views of a window or of neighbours.

All paths of an encoder (`compact`: the dense and the lite tail) are trained together into one embedding space. This is also the
server-centric reference that learning on the stream is measured against.

Everything random in step n follows from (seed, n), so a training that was killed goes on to the same bits as one that was not.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from streamsplit.encoders.calibrate import calibrate, settle_norms
from streamsplit.encoders.catalogue import build
from streamsplit.encoders.checkpoint import round_to_half
from streamsplit.encoders.split import SplitEncoder
from streamsplit.encoders.version import Version, freeze
from streamsplit.errors import ConfigError
from streamsplit.learning.losses import effective_rank, joint_info_nce
from streamsplit.learning.pool import FEWEST_SEGMENTS, WindowPool
from streamsplit.learning.progress import (
    Progress,
    load_progress,
    optimiser_tensors,
    restore_optimiser,
    save_progress,
)
from streamsplit.learning.views import ViewSettings, view

CALIBRATION_WINDOWS = 480
JUDGED_WINDOWS = 2048
LEAST_RANK = 10.0
"""Effective rank below which an encoder has collapsed: published trainings that did had 1.0 to 1.8; healthy ones have above 20."""
CHUNK = 64

GENTLE_VIEWS = ViewSettings(
    shortest=0.75, narrowest=0.85, plain_share=0.5, gain_db=12.0, equaliser_db=4.0, noise_db=-6.0
)
"""For weights that should also know one recording from another of its kind. Against the usual views, after 200 steps on made sound:
clips of ESC-10 found again 10 dB quieter, half a window later and with noise 20 dB below: 68 % instead of 29 %; the linear probe of
their classes lost 0 to 3 points, and gained 2 with plain views among them."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How an encoder is trained.

    Attributes:
        encoder: registry name.
        steps: optimiser steps.
        batch: windows a step, each in two views; at most the pool's segments.
        learning_rate: at its highest, after the warm-up.
        weight_decay: AdamW's.
        warm_up: share of the steps in which the rate rises; then it falls as a cosine to nothing.
        temperature: of InfoNCE.
        clip: the gradient's largest norm.
        neighbour_s: how far apart the two sides of a pair may begin.
        seed: of the first weights, the draws and the views.
        views: how far views go.
        checkpoint_steps: steps between two savings of the progress.
    """

    encoder: str = "compact"
    steps: int = 800
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    warm_up: float = 0.05
    temperature: float = 0.1
    clip: float = 1.0
    neighbour_s: float = 1.5
    seed: int = 0
    views: ViewSettings = GENTLE_VIEWS
    checkpoint_steps: int = 50

    def __post_init__(self) -> None:
        for name, holds, legal in (
            ("steps", self.steps >= 1, "at least 1"),
            ("batch", self.batch >= FEWEST_SEGMENTS, f"at least {FEWEST_SEGMENTS}"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "above 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("warm_up", 0 <= self.warm_up <= 1, "0..1"),
            ("temperature", 0 < self.temperature < math.inf, "above 0"),
            ("clip", self.clip > 0, "above 0"),
            ("neighbour_s", 0 <= self.neighbour_s < math.inf, "0 or more"),
            ("seed", 0 <= self.seed < 2**31, "0 to 2^31 - 1"),
            ("checkpoint_steps", self.checkpoint_steps >= 1, "at least 1"),
        ):
            if not holds:
                raise ConfigError(f"train {name}: expected {legal}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training.

    Attributes:
        version: rounded to half precision, calibrated, ready to save.
        effective_rank: per path, of embeddings of up to JUDGED_WINDOWS windows.
        agreement: mean cosine of every path's embedding of a window with the first path's (dense); 1 for a lone path.
    """

    version: Version
    effective_rank: dict[str, float]
    agreement: float


class Trainer:
    """A training, step by step.

    Args:
        pool: the windows.
        settings: how.
        device: "cpu" or "cuda"; results repeat to the bit on one kind of device with one number of threads.
        encoder: trainable weights to go on from, instead of random ones.
    """

    def __init__(
        self,
        pool: WindowPool,
        settings: TrainSettings,
        device: str = "cpu",
        encoder: SplitEncoder | None = None,
    ) -> None:
        self.pool, self.settings = pool, settings
        self.device = torch.device(device)
        self.batch = min(settings.batch, pool.segments)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.encoder = build(settings.encoder) if encoder is None else encoder
        if self.encoder.front_end != pool.front_end:
            raise ConfigError(
                f"{settings.encoder}: the windows were made with another front end than its own"
            )
        # Channels last: a step takes 0.84 s instead of 1.06 on one core.
        self.encoder.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.AdamW(
            self.encoder.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.losses: dict[str, list[float]] = {}
        self.done = 0

    def run(
        self,
        report: Callable[[int, int, dict[str, float]], None] | None = None,
        progress_file: Path | None = None,
    ) -> None:
        """Trains to the end.

        Args:
            report: called after each step with (steps done, steps in all, losses by term).
            progress_file: where progress is kept, every `checkpoint_steps` and at the end; for `resume`.
        """
        while self.done < self.settings.steps:
            terms = self.step()
            if progress_file and (
                self.done % self.settings.checkpoint_steps == 0 or self.done == self.settings.steps
            ):
                save_progress(self.progress(), progress_file)
            if report:
                report(self.done, self.settings.steps, terms)

    def step(self) -> dict[str, float]:
        """One optimiser step; returns the losses by term, and "total", their mean."""
        settings = self.settings
        first, second = self._views()
        self.encoder.train()
        embeddings = self.encoder.embeddings(torch.cat([first, second]))
        half = len(first)
        terms = joint_info_nce(
            {path: z[:half] for path, z in embeddings.items()},
            {path: z[half:] for path, z in embeddings.items()},
            settings.temperature,
        )
        total = torch.stack(list(terms.values())).mean()
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate(self.done)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), settings.clip)
        self.optimiser.step()
        self.done += 1
        said = {
            **{name: float(term.detach()) for name, term in terms.items()},
            "total": float(total.detach()),
        }
        for name, value in said.items():
            self.losses.setdefault(name, []).append(value)
        return said

    def rate(self, step: int) -> float:
        """The learning rate of a step: a straight line up, a cosine down."""
        warm = max(1, round(self.settings.warm_up * self.settings.steps))
        if step < warm:
            return self.settings.learning_rate * (step + 1) / warm
        along = (step - warm) / max(1, self.settings.steps - warm)
        return self.settings.learning_rate * 0.5 * (1.0 + math.cos(math.pi * along))

    def progress(self) -> Progress:
        """Where it stands."""
        return Progress(
            step=self.done,
            settings=self._said(),
            pool=self.pool.fingerprint,
            weights=self.encoder.state_dict(),
            optimiser=optimiser_tensors(self.encoder, self.optimiser),
            losses={name: torch.tensor(values, dtype=torch.float64) for name, values in self.losses.items()},
        )

    def resume(self, path: Path) -> None:
        """Goes on from saved progress.

        Raises:
            ConfigError: it is of other settings or other sounds.
            StorageError: missing or damaged.
        """
        saved = load_progress(path)
        if saved.settings != self._said():
            other = sorted(key for key, value in self._said().items() if saved.settings.get(key) != value)
            raise ConfigError(
                f"{path}: was trained with other settings ({', '.join(other)}): finish it with those, or start anew"
            )
        if saved.pool != self.pool.fingerprint:
            raise ConfigError(
                f"{path}: was trained on other sounds (windows {saved.pool}, got {self.pool.fingerprint})"
            )
        self.encoder.load_state_dict(dict(saved.weights))
        restore_optimiser(self.encoder, self.optimiser, saved.optimiser)
        self.losses = {name: values.tolist() for name, values in saved.losses.items()}
        self.done = saved.step

    def finish(self, note: str = "") -> Trained:
        """Settles the batch norms on the pool's windows, rounds the weights to half precision, calibrates, and judges.

        Training can go on afterwards.

        Raises:
            ConfigError: the encoder has collapsed: no file should be made of it.
        """
        encoder = copy.deepcopy(self.encoder).cpu().eval()
        encoder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        calm = self.pool.mel(self.pool.sample(CALIBRATION_WINDOWS))
        # Views are louder, noisier and masked, and after few steps the running statistics are still on their way: statistics of plain
        # windows found 0 to 8 points more clips again, and 5-NN gained 1 to 5.
        settle_norms(encoder, calm)
        round_to_half(encoder)
        embeddings = embed(encoder, self.pool, self.pool.sample(JUDGED_WINDOWS))
        rank = {path: effective_rank(z) for path, z in embeddings.items()}
        for path, value in rank.items():
            if value < LEAST_RANK:
                raise ConfigError(
                    f"{encoder.name}: collapsed: effective rank of {path} embeddings: expected at least {LEAST_RANK:g},"
                    f" got {value:.1f}: train on more or more varied sound, or for more steps"
                )
        best = embeddings[encoder.paths[0]]
        agreement = min(float((z * best).sum(1).mean()) for z in embeddings.values())
        ranges, expected_bytes = calibrate(encoder, calm, packed=len(calm))
        return Trained(freeze(encoder, ranges, expected_bytes, trained=True, note=note), rank, agreement)

    def _views(self) -> tuple[Tensor, Tensor]:
        """Two views of each of a batch of pairs: [batch, 1, F, T] twice."""
        drawing = torch.Generator().manual_seed(_seed(self.settings.seed, self.done, 0))
        anchors, partners = self.pool.draw(self.batch, self.settings.neighbour_s, drawing)
        others = torch.randint(len(self.pool), (2 * self.batch,), generator=drawing)
        changing = torch.Generator(self.device).manual_seed(_seed(self.settings.seed, self.done, 1))
        both = view(
            self.pool.mel(torch.cat([anchors, partners])).to(self.device),
            self.pool.mel(others).to(self.device),
            self.pool.front_end,
            self.settings.views,
            changing,
        )
        both = both.contiguous(memory_format=torch.channels_last)
        return both[: self.batch], both[self.batch :]

    def _said(self) -> dict[str, object]:
        said: dict[str, object] = json.loads(json.dumps(asdict(self.settings)))
        del said["checkpoint_steps"]  # how often progress is kept changes nothing
        return said


@torch.no_grad()
def embed(encoder: SplitEncoder, pool: WindowPool, windows: Tensor) -> dict[str, Tensor]:
    """Embeddings of a pool's windows [n] by an encoder in evaluation mode on the CPU: path -> [n, D]."""
    parts = [encoder.embeddings(pool.mel(part)) for part in torch.split(windows, CHUNK)]
    return {path: torch.cat([part[path] for part in parts]) for path in parts[0]}


def _seed(seed: int, step: int, use: int) -> int:
    return (seed * 1_000_003 + step) * 2 + use
