"""Deciders: which of the possible options a device takes, and why.

    options --mask--> what is possible now --decider--> Choice, kept by `Pilot` for ten windows

A decider is stateless: the same observation and options give the same choice; but for `RandomShare`, and for a
`Learner`, whose choices follow what it was taught. 2 to 33 us each on a desktop core.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, get_args, runtime_checkable

from streamsplit.audio.window import SILENCE_DBFS
from streamsplit.errors import ConfigError
from streamsplit.policy.cost import predict_energy_mj, predict_latency_ms
from streamsplit.policy.observation import SKIP_SPLIT, Observation, Option
from streamsplit.policy.profile import Profile

Objective = Literal["latency", "energy"]


@dataclass(frozen=True, slots=True)
class Choice:
    """What to do with the next windows.

    Attributes:
        split, codec: of the option taken.
        reason: one line for the journal and for people.
        expected: what the decider counts on, by name with its unit ("payload_bytes", "latency_ms", ...).
    """

    split: int
    codec: str
    reason: str
    expected: dict[str, float] = field(default_factory=dict)


class Decider(Protocol):
    """Chooses among what is possible now."""

    @property
    def name(self) -> str:
        """As `make_decider` takes it."""

    def choose(self, observation: Observation, options: Sequence[Option]) -> Choice:
        """One of `options`, which are already masked and never empty."""


@runtime_checkable
class Learner(Protocol):
    """A decider that learns from what came of its choices."""

    def learn(self, choice: Choice, observation: Observation, reward: float) -> None:
        """Takes the mean reward (`cost.reward`) of the windows of a choice that was made at an observation."""


@dataclass(frozen=True, slots=True)
class FixedSplit:
    """Always the same split; on the device where that is impossible now."""

    split: int

    @property
    def name(self) -> str:
        """``fixed:K``."""
        return f"fixed:{self.split}"

    def choose(self, observation: Observation, options: Sequence[Option]) -> Choice:
        """The option of this split, else the deepest."""
        for option in options:
            if option.split == self.split:
                return _chosen(option, f"split {self.split} is fixed")
        why = "no server" if not observation.server_available else "the link or the settings rule it out"
        return _chosen(
            _deepest(options), f"split {self.split} is fixed but not possible now ({why}): deepest instead"
        )


@dataclass(slots=True)
class RandomShare:
    """By chance: so large a share of decisions sends the least processed option, the others embed on the device.

    A baseline for what comes of sparse updates, not a policy: it looks at nothing. With a `Pilot` it sends runs of as many windows as
    `run` decisions last. The only decider with chance: the same seed gives the same series of choices.

    Attributes:
        share: of decisions that send, 0..1.
        seed: of the chance.
        run: decisions in a row that are one throw of it, 1 or more.
    """

    share: float
    seed: int = 0
    run: int = 1
    _chance: random.Random = field(init=False, repr=False, compare=False)
    _left: int = field(init=False, repr=False, compare=False, default=0)
    _sends: bool = field(init=False, repr=False, compare=False, default=False)

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    @property
    def name(self) -> str:
        """``random:SHARE:SEED:RUN``, without RUN where it is 1."""
        return f"random:{self.share:g}:{self.seed}" + (f":{self.run}" if self.run > 1 else "")

    def choose(self, observation: Observation, options: Sequence[Option]) -> Choice:
        """The shallowest option or the deepest."""
        working = [option for option in options if option.split != SKIP_SPLIT]
        if not self._left:
            self._sends, self._left = self._chance.random() < self.share, self.run
        self._left -= 1
        if self._sends:
            return _chosen(min(working, key=_depth), f"by chance: {self.share:.0%} of decisions send")
        return _chosen(_deepest(options), f"by chance: {1 - self.share:.0%} of decisions embed on the device")


@dataclass(frozen=True, slots=True)
class Heuristic:
    """Depth = 0.6 x free CPU + 0.4 x (1 - bandwidth): an idle processor and a slow link keep work here.

    Free CPU is the idle share, 0 while the device is throttled. Bandwidth is the estimated uplink rate on a
    logarithmic scale from `slow_bps` (0) to `fast_bps` (1); unknown counts as 0.5. The possible options,
    ordered from all on the server to all on the device, share depths 0 to 1 in equal parts: five options and
    depth 0.5 give the third.
    """

    slow_bps: float = 100e3
    fast_bps: float = 10e6

    @property
    def name(self) -> str:
        """``heuristic``."""
        return "heuristic"

    def choose(self, observation: Observation, options: Sequence[Option]) -> Choice:
        """The option whose part of the depth scale the observation falls into."""
        free = 0.0 if observation.throttled else min(1.0, max(0.0, 1.0 - observation.cpu_percent / 100.0))
        bandwidth = self._bandwidth(observation.uplink_bps)
        depth = 0.6 * free + 0.4 * (1.0 - bandwidth)
        ordered = sorted((option for option in options if option.split != SKIP_SPLIT), key=_depth)
        option = ordered[min(int(depth * len(ordered)), len(ordered) - 1)]
        reason = (
            f"free CPU {free:.0%}, bandwidth {bandwidth:.0%}: depth {depth:.2f} of {len(ordered)} options"
        )
        return _chosen(option, reason, depth=round(depth, 4))

    def _bandwidth(self, uplink_bps: float | None) -> float:
        if uplink_bps is None:
            return 0.5
        share = math.log(max(uplink_bps, 1.0) / self.slow_bps) / math.log(self.fast_bps / self.slow_bps)
        return min(1.0, max(0.0, share))


@dataclass(frozen=True, slots=True)
class GreedyProfile:
    """The option with the least predicted latency or energy (Neurosurgeon, Kang et al., ASPLOS 2017).

    Blind to everything the next window suffers from, and to quality: the baseline an adaptive policy has to
    beat.
    """

    profile: Profile
    objective: Objective = "latency"

    @property
    def name(self) -> str:
        """``greedy-profile`` or ``greedy-profile:energy``."""
        return "greedy-profile" if self.objective == "latency" else f"greedy-profile:{self.objective}"

    def choose(self, observation: Observation, options: Sequence[Option]) -> Choice:
        """The cheapest option; the deeper of two equal ones."""
        best, least = options[0], math.inf
        for option in options:
            cost = self._cost(option, observation)
            if cost < least or (cost == least and option.split > best.split):
                best, least = option, cost
        latency_ms = predict_latency_ms(self.profile, best, observation).total
        energy_mj = predict_energy_mj(self.profile, best, observation).total
        unit = "ms" if self.objective == "latency" else "mJ (modelled)"
        return _chosen(
            best,
            f"least predicted {self.objective} of {len(options)} options: {least:.1f} {unit}",
            latency_ms=round(latency_ms, 3),
            energy_mj=round(energy_mj, 3),
        )

    def _cost(self, option: Option, observation: Observation) -> float:
        predict = predict_latency_ms if self.objective == "latency" else predict_energy_mj
        return predict(self.profile, option, observation).total


def mask(
    options: Sequence[Option], observation: Observation, last_split: int, hop_s: float = 0.96
) -> list[Option]:
    """What is possible now, in the order given, skipping first.

    Skipping is possible in silence only. Without a server only embedding on the device is. An option whose payload would keep the link busy longer
    than the time to the next window can never catch up, and is left out if the link's rate is known; if that
    leaves nothing, the smallest payload stays. Audio is among `options` only where the settings allow it to
    leave the device.

    Args:
        options: everything this device could ever do, the last split included.
        hop_s: seconds from one window to the next.

    Raises:
        ValueError: no option embeds on the device.
    """
    local = [option for option in options if option.split == last_split]
    if not local:
        raise ValueError(
            f"options: expected one with split {last_split}, got {[option.split for option in options]}"
        )
    silent, working = [], []
    for option in options:
        if option.split != SKIP_SPLIT:
            working.append(option)
        elif observation.level_dbfs <= SILENCE_DBFS:
            silent.append(option)
    if not observation.server_available:
        return silent + local
    if observation.uplink_bps is None:
        return silent + working
    budget_bytes = observation.uplink_bps * hop_s / 8.0
    possible = [option for option in working if option.payload_bytes <= budget_bytes]
    return silent + (possible or [min(working, key=_payload)])


def make_decider(
    name: str,
    profile: Profile | None = None,
    last_split: int | None = None,
    hold_windows: int = 0,
    predicts: bool = False,
) -> Decider:
    """A decider by the name a user gives it.

    Args:
        name: ``fixed:K``, ``random:SHARE[:SEED[:RUN]]``, ``heuristic``, ``greedy-profile``, ``greedy-profile:energy``, ``linucb``,
            ``learned`` (the policy that comes with the project) or ``learned:FILE``.
        profile: this device's, for greedy-profile and learned.
        last_split: L of the encoder, to check K.
        hold_windows, predicts: what the device does, for learned: see `worlds.Device`.

    Raises:
        ConfigError: an unknown name, a split the encoder does not have, no profile or another encoder's, a file
            that is no policy.
    """
    from streamsplit.policy.learned import SHIPPED_POLICY, load_policy
    from streamsplit.policy.linucb import LinUcb

    kind, _, argument = name.partition(":")
    if name == "heuristic":
        return Heuristic()
    if kind == "fixed":
        return FixedSplit(_split(name, argument, last_split))
    if kind == "random":
        return _random_share(name, argument)
    if name == "linucb":
        return LinUcb()
    if kind == "learned" and (argument or name == kind):
        path = Path(argument).expanduser() if argument else SHIPPED_POLICY
        own = _profiled(name, profile, last_split)
        return load_policy(path, own, name, hold_windows=hold_windows, predicts=predicts)
    if kind == "greedy-profile" and (argument in get_args(Objective) or name == kind):
        objective: Objective = "energy" if argument == "energy" else "latency"
        return GreedyProfile(_profiled(name, profile, last_split), objective)
    raise ConfigError(
        f"decider {name!r}: expected fixed:K, heuristic, greedy-profile or greedy-profile:energy, linucb, "
        "learned, learned:FILE or random:SHARE"
    )


def _profiled(name: str, profile: Profile | None, last_split: int | None) -> Profile:
    if profile is None:
        raise ConfigError(
            f"decider {name!r}: expected a profile of this device (`streamsplit profile`), got none"
        )
    if last_split is not None and profile.last_split != last_split:
        raise ConfigError(
            f"decider {name!r}: expected a profile of an encoder with splits to {last_split}, "
            f"got one of {profile.version} with splits to {profile.last_split}"
        )
    return profile


def _random_share(name: str, argument: str) -> RandomShare:
    share, _, rest = argument.partition(":")
    seed, _, run = rest.partition(":")
    try:
        decider = RandomShare(float(share), int(seed or 0), int(run or 1))
    except ValueError:
        raise ConfigError(
            f"decider {name!r}: expected random:SHARE, random:SHARE:SEED or random:SHARE:SEED:RUN"
        ) from None
    if not 0 <= decider.share <= 1:
        raise ConfigError(f"decider {name!r}: expected a share of 0 to 1, got {decider.share:g}")
    if decider.run < 1:
        raise ConfigError(f"decider {name!r}: expected a run of at least 1 decision, got {decider.run}")
    return decider


def _split(name: str, argument: str, last_split: int | None) -> int:
    legal = (
        "-1 (audio), 0 (features) or more"
        if last_split is None
        else f"-1 (audio), 0 (features) to {last_split} (on the device)"
    )
    try:
        split = int(argument)
    except ValueError:
        raise ConfigError(f"decider {name!r}: expected fixed:K with K {legal}") from None
    if split < -1 or (last_split is not None and split > last_split):
        raise ConfigError(f"decider {name!r}: expected fixed:K with K {legal}")
    return split


def _chosen(option: Option, reason: str, **expected: float) -> Choice:
    return Choice(
        option.split, option.codec, reason, {"payload_bytes": round(option.payload_bytes, 1), **expected}
    )


def _payload(option: Option) -> float:
    return option.payload_bytes


def _depth(option: Option) -> int:
    return option.split


def _deepest(options: Sequence[Option]) -> Option:
    return max(options, key=_depth)
