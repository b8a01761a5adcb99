"""The task: both libraries' checkers pass, decisions last as the pilot's do, and no constant choice is best."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env as gymnasium_check
from stable_baselines3.common.env_checker import check_env as sb3_check

from streamsplit.errors import ConfigError
from streamsplit.policy.decide import FixedSplit
from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.env import FleetEnv, SplitEnv
from streamsplit.policy.evaluate import fly, fly_fixed, fly_oracle
from streamsplit.policy.flight import LENGTH, Flight
from streamsplit.policy.pilot import Pilot
from streamsplit.policy.scenarios import make_worlds, shipped_scenarios
from streamsplit.policy.training_worlds import PolicySettings, training_worlds
from streamsplit.policy.worlds import Device, Timeline
from tests.policy.worlds import DEVICE, FEATURES, LOCAL, SECOND, simulator, slots, timeline

SMALL = PolicySettings(devices=8, worlds=8, episode_windows=40)


def made(seed: int, windows: int) -> tuple[Device, Timeline]:
    return DEVICE, timeline(windows, load=np.full(windows, (seed % 10) / 20))


@pytest.mark.parametrize("name", ["lte", "battery"])
def test_gymnasiums_checker_finds_nothing(name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*(infinity|-infinity).*")  # features have no sharp bounds
        gymnasium_check(SplitEnv(shipped_scenarios()[name], windows=60), skip_render_check=True)


def test_stable_baselines_checker_finds_nothing() -> None:
    sb3_check(SplitEnv(shipped_scenarios()["commute"], windows=60))


def test_the_end_of_the_timeline_truncates_and_an_empty_battery_terminates() -> None:
    env = SplitEnv(made, windows=25)
    env.reset(seed=0)
    ends = [
        env.step(np.int64(LOCAL))[2:4] for _ in range(4)
    ]  # one window till the first answer, ten, ten, four
    assert ends == [(False, False)] * 3 + [(False, True)]

    def draining(seed: int, windows: int) -> tuple[Device, Timeline]:
        return replace(DEVICE, battery_j=30.0), timeline(windows)

    env = SplitEnv(draining, windows=100)
    env.reset(seed=0)
    steps = [env.step(np.int64(LOCAL)) for _ in range(3)]
    assert [step[2:4] for step in steps] == [(False, False), (False, False), (True, False)]
    assert steps[2][4]["windows"] < 10


def test_an_impossible_option_embeds_on_the_device() -> None:
    env = SplitEnv(made, windows=40)
    env.reset(seed=0)
    assert env.action_masks().sum() == 4
    env.step(np.int64(LOCAL))  # until the first answer tells the link's round trip and the uncertainty
    told = [env.step(np.int64(slot))[4] for slot in (LOCAL, 11)]
    assert told[0]["quality"] == told[1]["quality"]
    assert told[0]["energy_mj"] == pytest.approx(told[1]["energy_mj"])


def test_a_leg_lasts_as_long_as_the_pilots_decision() -> None:
    up = np.ones(60, bool)
    up[12:40] = False
    load = np.zeros(60)
    load[45:52] = 0.5
    day = timeline(60, server_up=up, uplink_bps=np.where(np.arange(60) < 30, 1e6, 3e4), load=load)
    flight, legs = Flight(simulator(day)), []
    while not flight.simulator.ended[0]:
        legs.append(int(flight.fly(slots(FEATURES)).windows[0]))

    single, pilot = simulator(day), Pilot(FixedSplit(0), hop_s=0.96)
    asked = []
    for window in range(60):
        before = pilot.decisions
        choice = pilot.choose(single.seen().observation(0), DEVICE.ordered())
        if pilot.decisions > before:
            asked.append(window)
        single.apply(slots(choice.split))
    assert np.cumsum([0, *legs])[:-1].tolist() == asked
    assert min(legs) < 10
    assert {46, 53} <= set(asked), "the load comes and goes, seen a window later"


def test_the_fleet_gives_what_stable_baselines_bootstraps_truncations_with() -> None:
    fleet = FleetEnv(SMALL)
    infos: list[dict[str, object]] = []
    for _ in range(12):
        fleet.step_async(fleet.action_masks().argmax(axis=1))
        features, rewards, done, told = fleet.step_wait()
        assert features.shape == (8, LENGTH)
        assert np.isfinite(features).all()
        assert np.isfinite(rewards).all()
        infos += [info for info, ended in zip(told, done, strict=True) if ended]
    assert infos
    assert all(np.shape(info["terminal_observation"]) == (LENGTH,) for info in infos)
    assert {info["TimeLimit.truncated"] for info in infos} <= {True, False}


def test_equal_seeds_make_equal_fleets() -> None:
    fleets = [FleetEnv(replace(SMALL, seed=seed)) for seed in (1, 1, 2)]
    first, same, other = (fleet.reset() for fleet in fleets)
    assert (first == same).all()
    assert (first != other).any()


def test_training_keeps_off_the_seeds_of_evaluations() -> None:
    with pytest.raises(ConfigError, match="1000000 and more, got 5"):
        training_worlds(range(5, 6), 40, SMALL.goals)


# The task is worth learning.


def test_what_is_chosen_now_changes_what_the_same_choice_earns_later() -> None:
    cellular = make_worlds([shipped_scenarios()["umts"]], [0], 40)
    simulator_ = Simulator(cellular, np.zeros(2, np.int64))
    first = simulator_.apply(slots(0, 4))
    later = [simulator_.apply(slots(4, 4)).reward for _ in range(8)]
    assert first.reward[0] != first.reward[1]
    assert sum(reward[0] - reward[1] for reward in later) < -1.0, "the radio is still up"
    queued = simulator(timeline(uplink_bps=np.full(40, 2e4)), timeline(uplink_bps=np.full(40, 2e4)))
    for _ in range(4):
        queued.apply(slots(FEATURES, LOCAL))
    rewards = queued.apply(slots(SECOND, SECOND)).reward
    assert rewards[0] < rewards[1] - 1.0, "the link is still busy"


@pytest.mark.parametrize("name", ["outages", "battery", "cola-loaded"])
def test_fixed_splits_flown_at_once_fare_as_behind_their_pilots(name: str) -> None:
    drawn = make_worlds([shipped_scenarios()[name]], range(3), 200)
    for split in (0, 3):
        quick, slow = fly_fixed(split, drawn), fly(lambda _, k=split: FixedSplit(k), drawn)  # type: ignore[misc]
        assert quick.returns == pytest.approx(slow.returns)
        assert quick.splits == pytest.approx(slow.splits)


@pytest.mark.parametrize("name", ["umts", "laptop-lte", "cola-loaded", "lte-eager"])
def test_no_constant_choice_is_optimal(name: str) -> None:
    drawn = make_worlds([shipped_scenarios()[name]], range(4), 240)
    constants = {
        option.split: fly_fixed(option.split, drawn).returns for option in drawn.devices[0].ordered()
    }
    oracle = fly_oracle(drawn, every=10, beam=8).returns
    best = max(constants.values(), key=lambda returns: float(returns.mean()))
    assert oracle.mean() > best.mean() + 0.03
    assert (oracle > np.max(list(constants.values()), axis=0) - 0.02).all()
