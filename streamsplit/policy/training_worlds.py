"""The worlds a policy is trained in: devices, links, loads and sounds drawn anew for every episode.

Half are the shipped scenarios at seeds kept for training, half are drawn from wide ranges (processors 1 to 20
times slower than the profiles' core, three encoders, any quality table between flat and steep, links of 100
kbit/s to 30 Mbit/s), so that one policy serves devices it has never met.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Literal, get_args

import numpy as np

from streamsplit.errors import ConfigError
from streamsplit.policy.cost import Goals
from streamsplit.policy.flight import EVERY
from streamsplit.policy.observation import SKIP_SPLIT
from streamsplit.policy.power import LAPTOP_LTE, LAPTOP_WIFI, PI4_3G, PI4_LTE, PI4_WIFI
from streamsplit.policy.profile import Profile
from streamsplit.policy.quality import DEVICE, SERVER, SKIP, Quality, flat
from streamsplit.policy.scenarios import (
    Link,
    Load,
    Outages,
    Scenario,
    Sound,
    made_device,
    make_worlds,
    options_of,
    scaled,
    shipped_scenarios,
)
from streamsplit.policy.worlds import QUALITY_KNOTS, Device, Timeline, Worlds, stack

FIRST_TRAINING_SEED: Final = 1_000_000
"""Seeds from here on are for training; evaluations use those below it."""

VALIDATION_SEEDS: Final = range(900_000, 900_006)
"""Of each shipped scenario; see `validation_worlds`."""

VALIDATION_DRAWN: Final = 72
"""Drawn worlds that a policy of one kind of device is chosen on: as many as the shipped scenarios' ones."""

Fleet = Literal["any", "pi", "laptop"]
Algorithm = Literal["ppo", "maskable-ppo"]


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """How a policy is trained.

    Attributes:
        algorithm: "maskable-ppo" or "ppo".
        steps: decisions, over all simulated devices.
        seed: everything random follows from it.
        devices: simulated side by side.
        episode_windows: length of an episode.
        worlds: episodes' worlds kept at a time; each is met about `devices` times before all are made anew.
        rollout: decisions per device between updates.
        learning_rate: falls linearly to a tenth.
        gamma: per decision, i.e. ten windows.
        hidden, middle: width of the scorer's layers.
        save_every, validate_every: decisions.
        fleet: kinds of devices.
        goals: the reward.
        rounds: of improvement after PPO, see `improve`.
        round_worlds: that each asks its moments in.
    """

    algorithm: Algorithm = "maskable-ppo"
    steps: int = 400_000
    seed: int = 0
    devices: int = 256
    episode_windows: int = 600
    worlds: int = 512
    rollout: int = 32
    learning_rate: float = 6e-4
    gamma: float = 0.92
    hidden: int = 48
    middle: int = 24
    save_every: int = 200_000
    validate_every: int = 100_000
    fleet: Fleet = "any"
    goals: Goals = field(default_factory=Goals)
    rounds: int = 8
    round_worlds: int = 700

    @property
    def decisions(self) -> int:
        """Of PPO, and of the rounds after it."""
        return self.steps + self.rounds * self.round_worlds * self.episode_windows // EVERY

    def __post_init__(self) -> None:
        if self.algorithm not in get_args(Algorithm):
            raise ConfigError(f"algorithm {self.algorithm!r}: expected {' or '.join(get_args(Algorithm))}")
        if self.rounds < 0:
            raise ConfigError(f"rounds: expected 0 or more, got {self.rounds}")
        for name in (
            "steps", "devices", "episode_windows", "worlds", "rollout", "hidden", "middle", "round_worlds",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.episode_windows < 2 * EVERY:
            raise ConfigError(f"episode_windows: expected {2 * EVERY} or more, got {self.episode_windows}")


def training_worlds(
    seeds: range, windows: int, goals: Goals, fleet: Fleet = "any", profiles: tuple[Profile, ...] = ()
) -> Worlds:
    """One world per seed.

    Args:
        seeds: all at least `FIRST_TRAINING_SEED`.
        windows: length of each.
        goals: of the reward.
        fleet: "pi" or "laptop" leaves the other kind of device out.
        profiles: devices to train for in particular, as `streamsplit profile` wrote them; in every fourth world.

    Raises:
        ConfigError: no such fleet, or a seed kept for evaluation.
    """
    if fleet not in get_args(Fleet):
        raise ConfigError(f"devices {fleet!r}: expected {', '.join(get_args(Fleet))}")
    if seeds.start < FIRST_TRAINING_SEED:
        raise ConfigError(f"seeds: expected {FIRST_TRAINING_SEED} and more, got {seeds.start}")
    pairs = [_world(seed, windows, fleet, profiles) for seed in seeds]
    return stack([device for device, _ in pairs], [timeline for _, timeline in pairs], goals)


def validation_worlds(settings: PolicySettings, profiles: tuple[Profile, ...] = ()) -> Worlds:
    """Worlds that a training chooses its policy on: neither trained on nor evaluated on.

    The shipped scenarios', if it trains for any device; else drawn ones of its kind only, so that a policy trained for laptops has not
    even been chosen by what it does on a Pi.
    """
    windows, goals = settings.episode_windows, settings.goals
    if settings.fleet == "any" and not profiles:
        return make_worlds(list(shipped_scenarios().values()), VALIDATION_SEEDS, windows, goals)
    seeds = range(VALIDATION_SEEDS.start, VALIDATION_SEEDS.start + VALIDATION_DRAWN)
    pairs = [_world(seed, windows, settings.fleet, profiles) for seed in seeds]
    return stack([device for device, _ in pairs], [timeline for _, timeline in pairs], goals)


def _world(seed: int, windows: int, fleet: Fleet, profiles: tuple[Profile, ...]) -> tuple[Device, Timeline]:
    generator = np.random.default_rng([seed, 77])
    if fleet == "any" and not profiles and generator.random() < 0.5:
        shipped = list(shipped_scenarios().values())
        return shipped[int(generator.integers(len(shipped)))].world(seed, windows)
    return _drawn(generator, fleet, profiles).world(seed, windows)


def _drawn(generator: np.random.Generator, fleet: Fleet, profiles: tuple[Profile, ...]) -> Scenario:
    """A scenario from wide ranges."""
    uniform = generator.uniform

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(uniform(np.log(low), np.log(high))))

    sound = Sound(
        quiet_s=log_uniform(20.0, 200.0),
        lively_s=log_uniform(20.0, 120.0),
        event_s=log_uniform(4.0, 40.0),
        median=log_uniform(0.06, 0.3),
        log_spread=float(uniform(0.3, 0.9)),
        quiet=log_uniform(0.01, 0.08),
        silent=float(uniform(0.0, 0.6)),
        predicted_error=float(uniform(0.0, 0.08)),
    )
    link = Link(
        log_uniform(1e5, 3e7),
        float(uniform(0.2, 1.2)),
        float(uniform(0.6, 0.97)),
        log_uniform(1.0, 60.0),
        log_uniform(3.0, 20.0),
        log_uniform(4.0, 200.0),
    )
    load = Load(
        float(uniform(0.03, 0.7)),
        float(uniform(0.02, 0.2)),
        log_uniform(1.0, 60.0),
        log_uniform(10.0, 60.0),
        float(uniform(0.7, 0.97)),
    )
    outages = Outages(log_uniform(2.0, 30.0) if generator.random() < 0.3 else 0.0, log_uniform(10.0, 120.0))
    device = _device(generator, fleet, profiles)
    battery = (0.008, 0.02) if device.battery_j is not None else (1.0, 1.0)
    return Scenario("drawn", lambda _: device, link, load, outages, sound, battery)


def _device(generator: np.random.Generator, fleet: Fleet, profiles: tuple[Profile, ...]) -> Device:
    pi = fleet == "pi" or (fleet == "any" and generator.random() < 0.7)
    encoder = str(generator.choice(["compact", "cola", "resnet18"], p=[0.4, 0.3, 0.3]))
    low, high = (5.0, 20.0) if pi else (0.7, 3.0)
    factor = float(np.exp(generator.uniform(np.log(low), np.log(high))))
    power = (PI4_WIFI, PI4_LTE, PI4_3G)[int(generator.integers(3))]
    if not pi:
        power = (LAPTOP_WIFI, LAPTOP_LTE)[int(generator.integers(2))]
    power = replace(power, radio_tail_s=power.radio_tail_s * float(generator.uniform(0.4, 1.2)))
    holds = power.radio_tail_s > 1.0 and generator.random() < 0.7
    device = made_device(
        "drawn",
        encoder,
        factor,
        power,
        quality=_quality(generator, encoder),
        audio=bool(generator.random() < 0.3),
        skip=bool(generator.random() < 0.3),
        cores=4 if pi else 8,
        ambient_c=float(generator.uniform(15.0, 40.0)),
        thermometer=pi or generator.random() < 0.3,
        battery_j=133e3 if generator.random() < 0.15 else None,
        hold_windows=int(generator.integers(10, 120)) if holds else 0,
        predicts=bool(generator.random() < 0.7),
    )
    if not profiles or generator.random() >= 0.25:
        return device
    profile = scaled(profiles[int(generator.integers(len(profiles)))], 1.0, device.profile.power)
    skip = any(option.split == SKIP_SPLIT for option in device.options)
    return replace(device, profile=profile, options=options_of(profile, skip=skip))


def _quality(generator: np.random.Generator, encoder: str) -> Quality:
    """Any table from flat to steep; of one set of weights always flat."""
    server = float(generator.uniform(0.7, 0.95))
    if encoder != "compact" or generator.random() < 0.3:
        return flat(server, "drawn")
    slope, least = float(generator.uniform(0.2, 2.0)), float(generator.uniform(0.2, 0.5))
    device = tuple(np.clip(server - slope * QUALITY_KNOTS, least, 1.0).tolist())
    knots = len(QUALITY_KNOTS)
    return Quality(
        "drawn",
        False,
        tuple(QUALITY_KNOTS.tolist()),
        {
            SERVER: (server,) * knots,
            DEVICE: device,
            SKIP: (server - float(generator.uniform(0.0, 0.3)),) * knots,
            **{str(split): (server - float(generator.uniform(0.0, 0.02)),) * knots for split in (1, 2, 3)},
        },
    )
