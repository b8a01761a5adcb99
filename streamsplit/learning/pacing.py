"""When a device may train, and how much of its time: training gives way to capture, heat and an empty battery.

`may_train` is a pure function of the device's state; `Pace` holds training to its share of one core from measured step times; `learn`
is the loop of the one thread that owns a learner.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from streamsplit.errors import ConfigError

IDLE_S = 1.0
"""How long the loop waits before it looks again, where it may not train or has nothing to learn from."""

SHORTEST_WAIT_S = 1e-3


class Conditions(Protocol):
    """What is looked at; `policy.observation.Observation` is one."""

    @property
    def cpu_percent(self) -> float:
        """Load of the whole machine but for this client, 0..100."""

    @property
    def temperature_c(self) -> float | None:
        """Hottest processor sensor; None: not known."""

    @property
    def throttled(self) -> bool | None:
        """The processor is slowed down for heat or under-voltage."""

    @property
    def battery_percent(self) -> float | None:
        """0..100; None without a battery, or not known."""

    @property
    def on_mains(self) -> bool | None:
        """Charging or without a battery; None: not known."""


class Learns(Protocol):
    """What the loop runs; `EdgeLearner` is one."""

    def step(self) -> object | None:
        """One small piece of work; None if there is nothing to learn from yet."""


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """How much training may take.

    Attributes:
        core_share: of one core's time, above 0 to 1.
        burst_s: time it may spend at once that it did not use before.
        cpu_percent: load of the machine, this client's own not counted, from which on it pauses.
        temperature_c: likewise.
        battery_percent: below this it pauses on battery; 100 trains on mains only.
        margin: it goes on only this far on the good side, in the units of each limit: no pausing and going on every second.

    Raises:
        ConfigError: a number out of range.
    """

    core_share: float = 0.25
    burst_s: float = 2.0
    cpu_percent: float = 80.0
    temperature_c: float = 75.0
    battery_percent: float = 50.0
    margin: float = 5.0

    def __post_init__(self) -> None:
        for name, holds, legal in (
            ("core_share", 0 < self.core_share <= 1, "above 0, at most 1"),
            ("burst_s", 0 < self.burst_s < math.inf, "above 0"),
            ("cpu_percent", 0 < self.cpu_percent <= 100, "above 0, at most 100"),
            ("temperature_c", 0 < self.temperature_c < 150, "between 0 and 150"),
            ("battery_percent", 0 <= self.battery_percent <= 100, "0..100"),
            ("margin", 0 <= self.margin < 50, "0 to below 50"),
        ):
            if not holds:
                raise ConfigError(f"budget {name}: expected {legal}, got {getattr(self, name)}")


def may_train(now: Conditions, settings: BudgetSettings, was_training: bool = True) -> str | None:
    """Why training must pause; None if it may go on.

    Args:
        now: the device's state. What is not known does not stop it.
        settings: the limits.
        was_training: False keeps the margin.
    """
    margin = 0.0 if was_training else settings.margin
    if now.throttled:
        return "throttled"
    if now.temperature_c is not None and now.temperature_c >= settings.temperature_c - margin:
        return "temperature"
    if now.cpu_percent >= settings.cpu_percent - margin:
        return "load"
    if now.on_mains is False and settings.battery_percent >= 100:
        return "battery"
    if now.on_mains is False and now.battery_percent is not None:
        wanted = min(100.0, settings.battery_percent + margin)
        return "battery" if now.battery_percent < wanted else None
    return None


class Pace:
    """Holds the time spent to its share: a bucket that fills at `core_share` seconds a second and holds `burst_s` at most.

    Args:
        settings: the share.
        clock: monotonic seconds.
    """

    def __init__(self, settings: BudgetSettings, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._clock = clock
        self._at_s = clock()
        self._left_s = settings.burst_s
        self.spent_s = 0.0

    def wait_s(self) -> float:
        """Seconds until the next piece of work may begin; 0: now, or so soon that waiting is not worth it."""
        self._fill()
        wait_s = -self._left_s / self._settings.core_share
        return wait_s if wait_s > SHORTEST_WAIT_S else 0.0

    def spend(self, seconds: float) -> None:
        """Accounts for a piece of work; a long one is paid back before the next."""
        self._fill()
        self._left_s -= seconds
        self.spent_s += seconds

    def _fill(self) -> None:
        now_s = self._clock()
        gained = (now_s - self._at_s) * self._settings.core_share
        self._at_s = now_s
        self._left_s = min(self._settings.burst_s, self._left_s + gained)


def learn(
    learner: Learns,
    settings: BudgetSettings,
    conditions: Callable[[], Conditions],
    stop: threading.Event,
    clock: Callable[[], float],
    between: Callable[[str | None], None] = lambda reason: None,
) -> None:
    """Trains until told to stop: the whole life of the one thread that owns the learner.

    Args:
        learner: touched by this thread only, but for its `hear`.
        settings: limits and share.
        conditions: the device's state now.
        stop: ends it after the piece of work at hand, within `IDLE_S`.
        clock: monotonic seconds.
        between: called between pieces with the reason for a pause or None: where the owner saves, sends, rebases.
    """
    pace = Pace(settings, clock)
    training = False
    while not stop.is_set():
        reason = may_train(conditions(), settings, training)
        training = reason is None
        wait_s = pace.wait_s()
        if training and wait_s <= 0:
            began_s = clock()
            worked = learner.step() is not None
            pace.spend(clock() - began_s)
            wait_s = 0.0 if worked else IDLE_S
        elif not training:
            wait_s = IDLE_S
        between(reason)
        if wait_s > 0:
            stop.wait(min(wait_s, IDLE_S))
