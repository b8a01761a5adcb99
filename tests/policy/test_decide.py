"""Deciders and the pilot: possible options only, stated reasons, the same again for the same."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.errors import ConfigError
from streamsplit.policy.conditions import MadeConditions
from streamsplit.policy.cost import predict_energy_mj, predict_latency_ms
from streamsplit.policy.decide import (
    Choice,
    Decider,
    FixedSplit,
    GreedyProfile,
    Heuristic,
    RandomShare,
    make_decider,
    mask,
)
from streamsplit.policy.observation import LOAD_JUMP, Observation, Option
from streamsplit.policy.pilot import Pilot
from tests.policy.device import OPTIONS, PROFILE, observed

LAST = 3
DECIDERS = ["fixed:2", "heuristic", "greedy-profile", "greedy-profile:energy"]

observations = st.builds(
    observed,
    cpu_percent=st.floats(0, 100),
    uplink_bps=st.none() | st.floats(1.0, 1e9),
    rtt_ms=st.none() | st.floats(0, 1e4),
    server_available=st.booleans(),
    throttled=st.booleans(),
    backlog_bytes=st.integers(0, 10**9),
)


class Recorder:
    """Chooses the first option and remembers what it was asked."""

    name = "recorder"

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def choose(self, observation: Observation, options: Sequence[Option]) -> Choice:
        self.asked.append([option.split for option in options])
        return Choice(options[0].split, options[0].codec, f"asked {len(self.asked)} times")


@pytest.mark.parametrize("name", DECIDERS)
@given(observation=observations)
def test_every_decider_takes_a_possible_option_and_says_why(name: str, observation: Observation) -> None:
    decider = make_decider(name, PROFILE, LAST)
    possible = mask(OPTIONS, observation, LAST)
    choice = decider.choose(observation, possible)
    assert (choice.split, choice.codec) in {(option.split, option.codec) for option in possible}
    assert choice.reason
    assert "\n" not in choice.reason
    assert choice.expected["payload_bytes"] == PROFILE.payload_bytes[(choice.split, choice.codec)]
    assert choice == decider.choose(observation, possible)


@pytest.mark.parametrize("name", DECIDERS)
def test_a_decider_is_made_by_its_own_name(name: str) -> None:
    assert make_decider(name, PROFILE, LAST).name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fixed", r"fixed:K with K -1 \(audio\), 0 \(features\) to 3"),
        ("fixed:", "fixed:K"),
        ("fixed:4", "0 .features. to 3"),
        ("fixed:-2", "fixed:K"),
        ("fixed:two", "fixed:K"),
        ("greedy", "expected fixed:K, heuristic, greedy-profile or greedy-profile:energy"),
        ("greedy-profile:bytes", "expected fixed:K, heuristic"),
        ("heuristic:2", "expected fixed:K, heuristic"),
        ("", "expected fixed:K, heuristic"),
    ],
)
def test_an_illegal_name_is_answered_with_the_legal_ones(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_decider(name, PROFILE, LAST)
    assert repr(name) in str(caught.value)


def test_greedy_profile_needs_a_profile() -> None:
    with pytest.raises(ConfigError, match="streamsplit profile"):
        make_decider("greedy-profile")
    with pytest.raises(ConfigError, match="splits to 4, got one of made-1 with splits to 3"):
        make_decider("greedy-profile", PROFILE, 4)


# What is possible.


def test_without_a_server_only_the_device_is_left() -> None:
    assert [option.split for option in mask(OPTIONS, observed(server_available=False), LAST)] == [LAST]


def test_payloads_the_link_cannot_carry_are_left_out() -> None:
    assert [option.split for option in mask(OPTIONS, observed(uplink_bps=400 * 8.0), LAST, hop_s=1.0)] == [
        3,
        2,
    ]
    assert [option.split for option in mask(OPTIONS, observed(uplink_bps=None), LAST)] == [3, 0, 1, 2]


def test_on_the_slowest_link_the_smallest_payload_is_left() -> None:
    assert [option.split for option in mask(OPTIONS, observed(uplink_bps=1.0), LAST)] == [LAST]


@given(observation=observations)
def test_something_is_always_possible_and_nothing_new(observation: Observation) -> None:
    possible = mask(OPTIONS, observation, LAST)
    assert possible
    assert [option for option in OPTIONS if option in possible] == possible


def test_a_device_that_cannot_embed_is_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"expected one with split 3, got \[0\]"):
        mask([OPTIONS[1]], observed(), LAST)


# The deciders.


def test_fixed_falls_back_to_the_device_and_says_so() -> None:
    lost = observed(server_available=False)
    choice = FixedSplit(2).choose(lost, mask(OPTIONS, lost, LAST))
    assert choice.split == LAST
    assert "not possible now (no server)" in choice.reason
    assert FixedSplit(2).choose(observed(), OPTIONS).split == 2


def test_the_heuristic_spans_all_options_from_server_to_device() -> None:
    decider = Heuristic()
    depths = [decider.choose(observed(cpu, bps), OPTIONS).split for cpu, bps in ((100, 1e8), (0, 1e4))]
    assert depths == [0, LAST]


@given(
    cpu=st.tuples(st.floats(0, 100), st.floats(0, 100)),
    bps=st.tuples(st.floats(1e3, 1e8), st.floats(1e3, 1e8)),
)
def test_more_free_cpu_or_less_bandwidth_never_makes_the_heuristic_shallower(
    cpu: tuple[float, float], bps: tuple[float, float]
) -> None:
    deep = Heuristic().choose(observed(min(cpu), min(bps)), OPTIONS)
    shallow = Heuristic().choose(observed(max(cpu), max(bps)), OPTIONS)
    assert shallow.split <= deep.split


def test_a_throttled_processor_counts_as_busy() -> None:
    free, throttled = (Heuristic().choose(observed(10.0, throttled=hot), OPTIONS) for hot in (False, True))
    assert throttled.split < free.split


@pytest.mark.parametrize("objective", ["latency", "energy"])
@given(observation=observations)
def test_greedy_takes_the_least_predicted_cost(objective: str, observation: Observation) -> None:
    predict = predict_latency_ms if objective == "latency" else predict_energy_mj
    choice = GreedyProfile(PROFILE, objective).choose(observation, OPTIONS)  # type: ignore[arg-type]
    costs = {option.split: predict(PROFILE, option, observation).total for option in OPTIONS}
    assert costs[choice.split] == min(costs.values())


def test_greedy_leaves_the_server_out_when_much_is_waiting() -> None:
    decider = GreedyProfile(PROFILE)
    assert decider.choose(observed(), OPTIONS).split == 0
    assert decider.choose(observed(uplink_bps=1e6), OPTIONS).split == 2
    assert decider.choose(observed(backlog_bytes=10**6), OPTIONS).split == LAST


# The pilot.


def test_a_choice_stays_in_force_for_ten_windows() -> None:
    decider = Recorder()
    pilot = Pilot(decider)
    choices = [pilot.choose(observed(cpu_percent=float(index)), OPTIONS) for index in range(25)]
    assert [choice.reason for choice in choices] == ["asked 1 times"] * 10 + ["asked 2 times"] * 10 + [
        "asked 3 times"
    ] * 5
    assert pilot.decisions == 3


@pytest.mark.parametrize(
    "change",
    [
        observed(server_available=False),
        observed(throttled=True),
        observed(uplink_bps=400 * 8.0),
        observed(cpu_percent=observed().cpu_percent + LOAD_JUMP),
        observed(uplink_bps=None),
        observed(rtt_ms=None),
        observed(uncertainty=0.3),
    ],
    ids=["server", "throttled", "options", "load", "rate", "round trip", "uncertainty"],
)
def test_a_change_is_answered_at_once_and_starts_a_new_period(change: Observation) -> None:
    decider = Recorder()
    pilot = Pilot(decider)
    for observation in [observed()] * 3 + [change] * 10:
        pilot.choose(observation, OPTIONS)
    assert len(decider.asked) == 2
    pilot.choose(change, OPTIONS)
    assert len(decider.asked) == 3


def test_for_as_long_as_work_piles_up_every_window_is_decided_on() -> None:
    decider = Recorder()
    pilot = Pilot(decider, hop_s=0.96)
    asked = []
    for lag_s in (0.1, 0.9, 1.2, 2.0, 1.1, 0.5, 0.1):
        pilot.choose(observed(lag_s=lag_s), OPTIONS)
        asked.append(len(decider.asked))
    assert asked == [1, 1, 2, 3, 4, 5, 5]


def test_chance_is_thrown_at_its_turn_whatever_the_load_does() -> None:
    pilot = Pilot(RandomShare(0.5, seed=1))
    loads = [float(50 * (window % 2)) for window in range(40)]
    choices = [pilot.choose(observed(cpu_percent=load, lag_s=load), OPTIONS) for load in loads]
    assert pilot.decisions == 4
    assert all(len({choice.split for choice in choices[at : at + 10]}) == 1 for at in range(0, 40, 10))


@given(observed_=st.lists(observations, max_size=40))
def test_the_pilot_never_flies_what_is_not_possible(observed_: list[Observation]) -> None:
    pilot = Pilot(Heuristic(), every=5)
    for observation in observed_:
        choice = pilot.choose(observation, OPTIONS)
        assert choice.split in [option.split for option in mask(OPTIONS, observation, LAST)]


@pytest.mark.parametrize("name", DECIDERS)
def test_one_seed_gives_one_flight(name: str) -> None:
    def flight(decider: Decider) -> list[Choice]:
        pilot, made = Pilot(decider), MadeConditions(7)
        conditions = [made.at(sequence) for sequence in range(300)]
        return [
            pilot.choose(observed(now.cpu_percent, now.uplink_bps, now.rtt_ms), OPTIONS) for now in conditions
        ]

    assert flight(make_decider(name, PROFILE)) == flight(make_decider(name, PROFILE))


def test_made_conditions_take_the_heuristic_to_every_split() -> None:
    pilot, made = Pilot(Heuristic()), MadeConditions(0)
    seen = {
        pilot.choose(observed(now.cpu_percent, now.uplink_bps), OPTIONS).split
        for now in (made.at(sequence) for sequence in range(3600))
    }
    assert seen == {0, 1, 2, 3}


def test_a_period_has_at_least_one_window() -> None:
    with pytest.raises(ValueError, match="got 0"):
        Pilot(Heuristic(), every=0)


def test_a_random_share_of_decisions_sends_and_the_seed_says_which() -> None:
    options = [option for option in OPTIONS if option.split >= 0]
    seen = observed()
    series = [make_decider("random:0.3:5", None, LAST) for _ in range(2)]
    chosen = [[decider.choose(seen, options).split for _ in range(1000)] for decider in series]
    assert chosen[0] == chosen[1]
    assert set(chosen[0]) == {0, LAST}
    assert 250 < chosen[0].count(0) < 350
    assert make_decider("random:0.3:5") == RandomShare(0.3, 5)


def test_decisions_of_one_run_go_the_same_way_and_the_share_stays() -> None:
    options = [option for option in OPTIONS if option.split >= 0]
    decider = make_decider("random:0.3:5:10", None, LAST)
    chosen = [decider.choose(observed(), options).split for _ in range(10_000)]
    runs = [chosen[at : at + 10] for at in range(0, len(chosen), 10)]
    assert all(len(set(run)) == 1 for run in runs)
    single = make_decider("random:0.3:5", None, LAST)
    assert [run[0] for run in runs] == [single.choose(observed(), options).split for _ in runs]
    assert (decider.name, single.name) == ("random:0.3:5:10", "random:0.3:5")


@pytest.mark.parametrize(
    "name",
    [
        "random:",
        "random:1.5",
        "random:a",
        "random:0.1:x",
        "random:0.1:1:0",
        "random:0.1:1:x",
        "random:0.1:1:2:3",
    ],
)
def test_a_share_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="random"):
        make_decider(name)
