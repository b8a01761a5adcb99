"""The simulator: the cost model's arithmetic, queues that grow, a radio that stays up, heat, batteries, outages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.policy.cost import MESSAGE_BYTES, Goals, predict_energy_mj, predict_latency_ms
from streamsplit.policy.decide import mask
from streamsplit.policy.dynamics import MOST_WAIT_S, Simulator
from streamsplit.policy.observation import SKIP_SPLIT, Option
from streamsplit.policy.power import PI4_LTE
from streamsplit.policy.scenarios import shipped_scenarios
from streamsplit.policy.training_worlds import training_worlds
from tests.policy.device import PROFILE
from tests.policy.worlds import (
    DEVICE,
    FEATURES,
    FIRST,
    LOCAL,
    SECOND,
    simulator,
    slots,
    slow_device,
    timeline,
    worlds,
)

HOP_S = PROFILE.window_s


@pytest.mark.parametrize("slot", [FEATURES, FIRST, SECOND, LOCAL])
def test_on_a_steady_day_latency_is_what_the_cost_model_predicts(slot: int) -> None:
    made = simulator(timeline(load=np.full(40, 0.5)))
    for _ in range(3):
        made.apply(slots(slot))
    observation = made.seen().observation(0)
    predicted = predict_latency_ms(PROFILE, DEVICE.ordered()[slot], replace(observation, uplink_bps=1e6))
    assert made.apply(slots(slot)).latency_ms[0] == pytest.approx(predicted.total, rel=1e-6)


@pytest.mark.parametrize("slot", [FEATURES, FIRST, SECOND, LOCAL])
def test_on_a_steady_day_energy_is_what_the_cost_model_predicts(slot: int) -> None:
    made = simulator(timeline())
    option = DEVICE.ordered()[slot]
    for _ in range(3):
        done = made.apply(slots(slot))
    observation = replace(made.seen().observation(0), uplink_bps=1e6)
    assert done.energy_mj[0] == pytest.approx(predict_energy_mj(PROFILE, option, observation).total, rel=1e-6)
    assert done.uplink_bytes[0] == option.payload_bytes + MESSAGE_BYTES


def test_the_reward_is_that_of_the_goals() -> None:
    done = simulator(timeline(uncertainty=np.full(40, 0.25))).apply(slots(LOCAL))
    quality = 0.65
    late = done.latency_ms[0] / (1e3 * HOP_S)
    spent = done.energy_mj[0] / (1e3 * HOP_S * PROFILE.power.idle_w)
    assert done.quality[0] == pytest.approx(quality)
    assert done.reward[0] == pytest.approx(10.0 * quality - 5.0 * late - 3.0 * spent)


# Actions change the future.


def test_payloads_beyond_the_link_pile_up_and_delay_what_follows() -> None:
    rate = 8.0 * 2000 / HOP_S  # 2,000 bytes a hop: features (4,100) are too much, split 2 (400) is not
    made = simulator(timeline(uplink_bps=np.full(40, rate)), timeline(uplink_bps=np.full(40, rate)))
    for _ in range(5):
        made.apply(slots(FEATURES, SECOND))
    seen = made.seen()
    assert seen.backlog_bytes[0] == pytest.approx(5 * 2100, rel=0.01)
    assert seen.backlog_bytes[1] == 0
    assert seen.backlog_windows[0] >= 2
    after = made.apply(slots(SECOND, SECOND)).latency_ms
    assert after[0] > after[1] + 4000


def test_work_beyond_the_hop_piles_up_and_is_dropped_in_the_end() -> None:
    made = simulator(timeline(), timeline(), device=slow_device(50.0))  # locally 2 s a window
    latencies = [made.apply(slots(LOCAL, SECOND)).latency_ms for _ in range(10)]
    waits = np.diff([latency[0] for latency in latencies])
    assert (waits > 1000).all()
    assert made.seen().lag_s[0] > 5
    assert made.seen().backlog_bytes.max() <= 230, "the link is all but idle"
    assert latencies[9][1] == pytest.approx(latencies[0][1])
    lost = sum(made.apply(slots(LOCAL, SECOND)).lost for _ in range(20))
    assert lost[0] > 0
    assert lost[1] == 0
    assert made.apply(slots(LOCAL, LOCAL)).latency_ms[0] <= 1e3 * (MOST_WAIT_S + 3.0)


def test_held_embeddings_let_the_radio_sleep_and_one_send_wakes_it_for_long() -> None:
    lte = replace(DEVICE, profile=replace(PROFILE, power=PI4_LTE), hold_windows=100)
    made = simulator(timeline(), timeline(), device=lte)
    first = made.apply(slots(LOCAL, SECOND)).energy_mj
    later = [made.apply(slots(LOCAL, LOCAL)).energy_mj for _ in range(20)]
    assert first[1] > first[0] + 900
    up = [energy[1] - energy[0] > 500 for energy in later]
    assert up[:10] == [True] * 10, "the radio stays up after a send"
    assert not any(up[13:])
    assert made.seen().since_send_s[1] > 15
    assert np.isnan(made.seen().since_send_s[0])


def test_two_sends_together_cost_less_than_two_apart() -> None:
    lte = replace(DEVICE, profile=replace(PROFILE, power=PI4_LTE), hold_windows=100)
    made = simulator(timeline(), timeline(), device=lte)
    together, apart = [SECOND, SECOND] + [LOCAL] * 38, [LOCAL] * 40
    apart[0] = apart[20] = SECOND
    spent = sum(made.apply(slots(a, b)).energy_mj for a, b in zip(together, apart, strict=True))
    assert spent[1] > 1.5 * spent[0]


def test_held_embeddings_leave_with_the_next_payload_or_when_there_are_enough() -> None:
    device = replace(DEVICE, hold_windows=3)
    made = simulator(timeline(), timeline(), device=device)
    sent = [made.apply(slots(LOCAL, SECOND if index == 2 else LOCAL)).uplink_bytes for index in range(4)]
    assert [bytes_[0] for bytes_ in sent] == [0, 0, 0, 4 * 230]
    assert [bytes_[1] for bytes_ in sent] == [0, 0, 2 * 230 + 400, 0]


def test_heavy_work_heats_the_device_until_its_clock_is_lowered() -> None:
    hot = replace(slow_device(24.0), ambient_c=54.0, heat_c_per_w=12.0, heat_s=20.0)
    made = simulator(timeline(120, temperature_c=79.0), timeline(120, temperature_c=79.0), device=hot)
    for _ in range(60):
        made.apply(slots(LOCAL, SECOND))
    assert made.seen().throttled.tolist() == [1.0, 0.0]
    slowed = made.apply(slots(SECOND, SECOND)).latency_ms
    assert slowed[0] > slowed[1]


def test_a_battery_is_emptied_sooner_by_more_work_and_ends_the_world() -> None:
    lte = replace(DEVICE, profile=replace(PROFILE, power=PI4_LTE), hold_windows=100, battery_j=100.0)
    made = simulator(timeline(), timeline(), device=lte)
    lasted = np.zeros(2)
    for _ in range(40):
        alive = ~made.empty
        lasted += alive
        done = made.apply(slots(LOCAL, SECOND), alive)
        assert (done.reward[~alive] == 0).all()
    assert 5 < lasted[1] < lasted[0] < 40
    assert made.seen().battery[1] <= 0


def test_forks_go_their_own_ways_and_equal_choices_stay_equal() -> None:
    made = simulator(timeline(uplink_bps=np.full(40, 2e4)))
    made.apply(slots(FEATURES))
    forked = made.fork(np.array([0, 0]))
    forked.apply(slots(FEATURES, LOCAL))
    made.apply(slots(FEATURES))
    after, alone = forked.apply(slots(SECOND, SECOND)), made.apply(slots(SECOND))
    assert after.latency_ms[0] == alone.latency_ms[0]
    assert after.latency_ms[0] > after.latency_ms[1]


# What is seen.


def test_the_rate_is_learned_from_sends_alone() -> None:
    made = simulator(timeline(), timeline())
    assert np.isnan(made.seen().uplink_bps).all()
    made.apply(slots(FEATURES, LOCAL))
    assert made.seen().uplink_bps[0] == pytest.approx(1e6, rel=0.01)
    assert np.isnan(made.seen().uplink_bps[1])


def test_a_dead_server_shows_late_and_what_was_sent_arrives_when_it_is_back() -> None:
    up = np.ones(80, bool)
    up[10:50] = False
    made = simulator(timeline(80, server_up=up))
    seen, latencies = [], []
    for _ in range(60):
        seen.append(bool(made.seen().available[0]))
        latencies.append(float(made.apply(slots(SECOND if seen[-1] else LOCAL)).latency_ms[0]))
    assert all(seen[:20])
    assert not any(seen[26:50])
    assert all(seen[54:])
    assert latencies[12] == pytest.approx(1e3 * 38 * HOP_S, rel=0.1)
    assert latencies[30] < 100


def test_uncertainty_is_known_after_an_answer_or_by_the_devices_own_head() -> None:
    day = timeline(uncertainty=np.linspace(0.0, 0.4, 40), predicted=np.full(40, 0.7))
    alone = replace(DEVICE, predicts=False)
    made, blind = simulator(day, day), simulator(day, day, device=alone)
    assert np.isnan(made.seen().uncertainty).all()
    made.apply(slots(SECOND, LOCAL))
    made.apply(slots(SECOND, LOCAL))
    assert made.seen().uncertainty.tolist() == pytest.approx([0.4 / 39, 0.7])
    blind.apply(slots(SECOND, LOCAL))
    assert blind.seen().uncertainty[0] == 0.0
    assert np.isnan(blind.seen().uncertainty[1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(1_000_000, 1_010_000))
def test_possible_slots_are_those_the_mask_leaves(seed: int) -> None:
    drawn = training_worlds(range(seed, seed + 4), 60, Goals())
    made = Simulator(drawn, np.arange(4))
    generator = np.random.default_rng(seed)
    for _ in range(40):
        seen = made.seen()
        possible = made.possible(seen)
        for row, device in enumerate(drawn.devices):
            left = mask(
                device.ordered(),
                seen.observation(row),
                device.profile.last_split,
                device.profile.window_s,
            )
            expected = [option in left for option in device.ordered()]
            assert possible[row, : len(expected)].tolist() == expected
            assert not possible[row, len(expected) :].any()
        made.apply(np.where(possible, generator.random(possible.shape), -1.0).argmax(axis=1))


def test_silence_may_be_skipped_for_nothing_and_sound_may_not() -> None:
    device = replace(DEVICE, options=(Option(SKIP_SPLIT, "skip", 0.0), *DEVICE.options))
    level = np.where(np.arange(40) < 20, -120.0, -30.0)
    made = simulator(timeline(level_dbfs=level), device=device)
    assert made.possible(made.seen())[0, 0]
    done = made.apply(slots(0))
    assert (done.energy_mj[0], done.latency_ms[0], done.quality[0]) == (0.0, 0.0, 0.5)
    for _ in range(19):
        made.apply(slots(0))
    assert not made.possible(made.seen())[0, 0]


def test_every_shipped_scenario_is_finite_and_the_same_again() -> None:
    for name, scenario in shipped_scenarios().items():
        results = []
        for _ in range(2):
            device, day = scenario.world(3, 60)
            made = Simulator(worlds(day, device=device), np.zeros(1, np.int64))
            generator = np.random.default_rng(0)
            rewards = []
            for _ in range(60):
                possible = made.possible(made.seen())
                slot = np.where(possible, generator.random(possible.shape), -1.0).argmax(axis=1)
                rewards.append(made.apply(slot).reward[0])
            results.append(rewards)
        assert np.isfinite(results).all(), name
        assert results[0] == results[1], name
