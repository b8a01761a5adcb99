"""Training gives way: to load, heat, an empty battery, and to its own share of a core."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace

import pytest

from streamsplit.errors import ConfigError
from streamsplit.learning.pacing import BudgetSettings, Pace, learn, may_train
from streamsplit.policy.observation import Observation

CALM = Observation(
    cpu_percent=20.0, memory_percent=40.0, level_dbfs=-30.0, server_available=True, temperature_c=50.0
)
LIMITS = BudgetSettings()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"cpu_percent": 85.0}, "load"),
        ({"temperature_c": 75.0}, "temperature"),
        ({"temperature_c": None}, None),
        ({"throttled": True}, "throttled"),
        ({"on_mains": False, "battery_percent": 30.0}, "battery"),
        ({"on_mains": False, "battery_percent": 56.0}, None),
        ({"on_mains": False, "battery_percent": None}, None),
        ({"on_mains": True, "battery_percent": 10.0}, None),
        ({"on_mains": None, "battery_percent": 10.0}, None),
    ],
)
def test_what_stops_training(change: dict[str, object], reason: str | None) -> None:
    assert may_train(replace(CALM, **change), LIMITS) == reason  # type: ignore[arg-type]


def test_what_has_paused_goes_on_only_well_on_the_good_side() -> None:
    for change in (
        {"cpu_percent": 77.0},
        {"temperature_c": 72.0},
        {"on_mains": False, "battery_percent": 52.0},
    ):
        edgy = replace(CALM, **change)  # type: ignore[arg-type]
        assert may_train(edgy, LIMITS, was_training=True) is None
        assert may_train(edgy, LIMITS, was_training=False) is not None


def test_on_mains_only_means_only() -> None:
    only = BudgetSettings(battery_percent=100.0)
    assert may_train(replace(CALM, on_mains=False, battery_percent=100.0), only) == "battery"
    assert may_train(replace(CALM, on_mains=True, battery_percent=3.0), only) is None


@dataclass
class Hands:
    """A clock that is moved by hand, and by every step of the learner it belongs to."""

    now_s: float = 0.0
    step_s: float = 0.05
    stop_at_s: float = 100.0
    stop: threading.Event = field(default_factory=threading.Event)
    worked_s: list[float] = field(default_factory=list)
    conditions: Observation = CALM
    has_work: bool = True

    def clock(self) -> float:
        return self.now_s

    def step(self) -> object | None:
        if not self.has_work:
            return None
        self.worked_s.append(self.now_s)
        self.now_s += self.step_s
        return self


class Waiting(threading.Event):
    """An event whose waiting moves the clock instead of taking time."""

    def __init__(self, hands: Hands) -> None:
        super().__init__()
        self.hands = hands

    def wait(self, timeout: float | None = None) -> bool:
        self.hands.now_s += timeout or 0.0
        return self.is_set()

    def is_set(self) -> bool:
        return self.hands.now_s >= self.hands.stop_at_s


def run(hands: Hands, settings: BudgetSettings) -> list[str | None]:
    reasons: list[str | None] = []
    learn(hands, settings, lambda: hands.conditions, Waiting(hands), hands.clock, reasons.append)
    return reasons


@pytest.mark.parametrize("share", [0.05, 0.25, 1.0])
def test_the_share_of_a_core_is_kept(share: float) -> None:
    hands = Hands()
    run(hands, BudgetSettings(core_share=share, burst_s=0.5))
    spent_s = len(hands.worked_s) * hands.step_s
    assert share * 100 - hands.step_s <= spent_s <= share * 100 + 0.5 + hands.step_s


def test_a_long_step_is_paid_back_before_the_next() -> None:
    hands = Hands(step_s=10.0)
    run(hands, BudgetSettings(core_share=0.25, burst_s=2.0))
    gaps = [after - before for before, after in zip(hands.worked_s, hands.worked_s[1:], strict=False)]
    assert gaps
    assert (
        min(gaps) >= 32.0
    )  # 8 s beyond the burst, at a quarter, from its end on: then 10 s of which 2.5 filled


def test_nothing_is_done_while_it_may_not_or_there_is_nothing() -> None:
    hot = Hands(conditions=replace(CALM, temperature_c=90.0))
    assert set(run(hot, LIMITS)) == {"temperature"}
    assert not hot.worked_s
    idle = Hands(has_work=False)
    assert len(run(idle, LIMITS)) <= 101  # looks once a second, not in a circle
    assert idle.now_s >= idle.stop_at_s


def test_time_not_used_is_saved_up_to_the_burst_only() -> None:
    hands = Hands()
    pace = Pace(BudgetSettings(core_share=0.1, burst_s=1.0), hands.clock)
    hands.now_s = 1000.0
    pace.spend(1.0)
    assert pace.wait_s() == 0.0
    pace.spend(0.1)
    assert pace.wait_s() == pytest.approx(1.0)
    assert pace.spent_s == pytest.approx(1.1)


def test_wrong_budgets_are_named() -> None:
    with pytest.raises(ConfigError, match="budget core_share: expected above 0, at most 1, got 2"):
        BudgetSettings(core_share=2)
    with pytest.raises(ConfigError, match="budget margin"):
        BudgetSettings(margin=-1)
