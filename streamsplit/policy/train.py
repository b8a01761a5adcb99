"""Training a policy: PPO or MaskablePPO of Stable-Baselines3 over simulated devices, rounds of improvement, exported for `learned`.

Everything random follows from the seed. Progress is saved beside the output every `save_every` decisions; a
killed training goes on from there (with fresh episodes, so not to the same bits). What is exported is the policy
that did best on validation worlds, which are neither trained on nor evaluated on.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from streamsplit.errors import ConfigError
from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.env import FleetEnv
from streamsplit.policy.flight import EVERY, Flight
from streamsplit.policy.improve import Improver, ImproveSettings
from streamsplit.policy.learned import load_weights
from streamsplit.policy.profile import Profile
from streamsplit.policy.scorer import G, K, Scorer
from streamsplit.policy.training_worlds import (
    FIRST_TRAINING_SEED,
    PolicySettings,
    training_worlds,
    validation_worlds,
)
from streamsplit.policy.worlds import MOST_OPTIONS, Worlds
from streamsplit.whole_file import whole, write_whole

logger = logging.getLogger(__name__)

IMPROVEMENT: Final = 5_000_000
"""Seeds of the worlds of improvement lie so far behind PPO's."""

Report = Callable[[int, int], None]


class _Scored:
    """Makes Stable-Baselines3's policy of `Scorer`: its scores are the logits."""

    def __init__(self, *args: Any, scorer: Callable[[], Scorer], **kwargs: Any) -> None:
        self._scorer = scorer
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = self._scorer()

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        self.action_net = nn.Identity()
        with torch.no_grad():
            self.mlp_extractor.out.weight.mul_(0.1)
        self.optimizer = self.optimizer_class(  # type: ignore[attr-defined]
            self.parameters(),  # type: ignore[attr-defined]
            lr=lr_schedule(1),
            **self.optimizer_kwargs,  # type: ignore[attr-defined]
        )


class ScoredPolicy(_Scored, ActorCriticPolicy):  # type: ignore[misc]
    """For PPO."""


class MaskedScoredPolicy(_Scored, MaskableActorCriticPolicy):  # type: ignore[misc]
    """For MaskablePPO."""


class PolicyTrainer:
    """One training, from the beginning or from where it was killed.

    Args:
        settings: see there.
        out: the policy file; what is unfinished is kept in a folder beside it.
        profiles: devices to train for in particular.
        tensorboard: folder of events.
        resume: go on from what is beside `out`, if anything is.

    Raises:
        ConfigError: what is there was trained with other settings.
    """

    def __init__(
        self,
        settings: PolicySettings,
        out: Path,
        profiles: tuple[Profile, ...] = (),
        tensorboard: Path | None = None,
        resume: bool = False,
    ) -> None:
        self.settings, self.out, self.profiles = settings, out, profiles
        self.folder = out.with_name(f"{out.name}.unfinished")
        self.best = -np.inf
        self.history: list[dict[str, float]] = []
        self.lost: list[float] = []
        progress = self.folder / "progress.json"
        kind = MaskablePPO if settings.algorithm == "maskable-ppo" else PPO
        if resume and progress.is_file():
            record = json.loads(progress.read_text())
            if record["settings"] != json.loads(json.dumps(asdict(settings))):
                raise ConfigError(f"{self.folder}: expected the settings it began with, got others")
            self.best, self.history = record["best"], record["history"]
            env = FleetEnv(settings, profiles, skip=record["done"])
            self.model = kind.load(self.folder / "model.zip", env=env, tensorboard_log=_text(tensorboard))
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
            policy = MaskedScoredPolicy if settings.algorithm == "maskable-ppo" else ScoredPolicy
            moments = _moments(settings, profiles)
            self.model = kind(
                policy,
                FleetEnv(settings, profiles),
                learning_rate=_Falling(settings.learning_rate),
                n_steps=settings.rollout,
                batch_size=min(2048, settings.devices * settings.rollout),
                n_epochs=4,
                gamma=settings.gamma,
                gae_lambda=0.95,
                ent_coef=0.001,
                policy_kwargs={"scorer": partial(Scorer, settings.hidden, settings.middle, moments)},
                tensorboard_log=_text(tensorboard),
                seed=settings.seed,
                device="cpu",
            )
        self.validation = validation_worlds(settings, profiles)

    @property
    def done(self) -> int:
        """Decisions so far."""
        return int(self.model.num_timesteps)

    def run(self, report: Report, note: str) -> dict[str, Any]:
        """Trains to the end and writes the policy.

        Args:
            report: told of decisions done and in all.
            note: goes into the file: the command that makes it again.

        Returns:
            What is worth writing down: validation returns over time, the best of them.
        """
        settings = self.settings
        left = settings.steps - self.done
        if left > 0:
            self.model.learn(left, callback=_Watch(self, report), reset_num_timesteps=False)
        self.validate()
        self.save()
        self._improve(report)
        weights = load_weights(self.folder / "best.safetensors")
        type(weights)(weights.tensors, weights.goals, note).save(self.out)
        shutil.rmtree(self.folder)
        return {
            "decisions": self.done,
            "rounds": settings.rounds,
            "validation_return": self.best,
            "validation": self.history,
            "lost_before_each_round": self.lost,
        }

    def _improve(self, report: Report) -> None:
        """The rounds after PPO, in worlds of their own; a killed training begins them anew."""
        settings = self.settings
        done, begin = settings.steps, FIRST_TRAINING_SEED + IMPROVEMENT + settings.seed * 10_000_000
        chance = np.random.default_rng([settings.seed, 6])
        improver = Improver(self.model.policy.mlp_extractor, ImproveSettings(), chance)
        for number in range(settings.rounds):
            report(done, settings.decisions)
            seeds = range(
                begin + number * settings.round_worlds, begin + (number + 1) * settings.round_worlds
            )
            worlds = training_worlds(
                seeds, settings.episode_windows, settings.goals, settings.fleet, self.profiles
            )
            self.lost.append(round(improver.round(worlds), 4))
            done += settings.round_worlds * settings.episode_windows // EVERY
            mean = self.validate(done)
            logger.debug("round %d: validation return %.4f, best %.4f", number + 1, mean, self.best)
        report(settings.decisions, settings.decisions)

    def validate(self, done: int | None = None) -> float:
        """Mean reward per window of the present policy on validation worlds; the best policy is kept.

        Args:
            done: decisions so far, for the history; None: of PPO.
        """
        scorer = self.model.policy.mlp_extractor
        mean = float(np.mean(flown(scorer, self.validation)))
        self.history.append({"decisions": done or self.done, "return": round(mean, 5)})
        if mean > self.best:
            self.best = mean
            self.folder.mkdir(parents=True, exist_ok=True)
            scorer.export(self.settings.goals, "unfinished").save(self.folder / "best.safetensors")
        return mean

    def save(self) -> None:
        """Progress; what `resume` goes on from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole(self.folder / "model.zip") as partial_path:
            self.model.save(partial_path)
        record = {
            "settings": asdict(self.settings),
            "done": self.done,
            "best": self.best,
            "history": self.history,
        }
        write_whole(self.folder / "progress.json", json.dumps(record).encode())


class _Watch(BaseCallback):  # type: ignore[misc]
    """Progress, validation and saving during a training."""

    def __init__(self, trainer: PolicyTrainer, report: Report) -> None:
        super().__init__()
        self._trainer, self._report = trainer, report
        self._saved = self._validated = trainer.done

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        trainer, done = self._trainer, self.num_timesteps
        settings = trainer.settings
        self._report(min(done, settings.steps), settings.decisions)
        if done - self._validated >= settings.validate_every:
            self._validated = done
            mean = trainer.validate()
            self.logger.record("validation/return", mean)
            logger.debug("%d decisions: validation return %.4f, best %.4f", done, mean, trainer.best)
        if done - self._saved >= settings.save_every:
            self._saved = done
            if trainer.best == -np.inf:
                trainer.validate()
            trainer.save()


class _Falling:
    """A learning rate that falls linearly to a tenth."""

    def __init__(self, highest: float) -> None:
        self._highest = highest

    def __call__(self, left: float) -> float:
        return self._highest * (0.1 + 0.9 * left)


@torch.no_grad()
def flown(scorer: Scorer, worlds: Worlds) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[P] mean reward per window of each world's whole timeline; after an empty battery nothing comes."""
    flight = Flight(Simulator(worlds, np.arange(len(worlds))))
    total = np.zeros(len(worlds))
    while not (flight.simulator.ended | flight.simulator.empty).all():
        scores = scorer.forward_actor(torch.from_numpy(flight.features()))
        total += flight.fly(scores.argmax(dim=1).numpy()).reward
    return total * 10.0 / worlds.windows


def _moments(settings: PolicySettings, profiles: tuple[Profile, ...]) -> tuple[Tensor, Tensor]:
    """Mean and scale of features under random choices: of the moment [2, G], of possible options [2, K]."""
    seeds = range(FIRST_TRAINING_SEED, FIRST_TRAINING_SEED + 256)
    worlds = training_worlds(seeds, settings.episode_windows, settings.goals, settings.fleet, profiles)
    flight = Flight(Simulator(worlds, np.arange(len(worlds))))
    generator = np.random.default_rng([settings.seed, 3])
    moments, options = [], []
    for _ in range(30):
        features = flight.features()
        moments.append(features[:, :G])
        described = features[:, G : G + MOST_OPTIONS * K].reshape(-1, MOST_OPTIONS, K)
        options.append(described[flight.possible])
        wishes = np.where(flight.possible, generator.random(flight.possible.shape), -1.0)
        flight.fly(wishes.argmax(axis=1))
    return _mean_and_scale(np.concatenate(moments)), _mean_and_scale(np.concatenate(options))


def _mean_and_scale(values: Any) -> Tensor:
    deviation = values.std(axis=0)
    return torch.from_numpy(
        np.stack([values.mean(axis=0), np.where(deviation > 1e-3, deviation, 1.0)])
    ).float()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
