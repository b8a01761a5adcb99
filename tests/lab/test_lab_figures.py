"""Arithmetic of the lab: rows from journals, figures from rows, conclusions from figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streamsplit.lab.agreement import Comparison
from streamsplit.lab.conclusions import against, best_fixed, conclude
from streamsplit.lab.figures import difference, figures, interval, ratio_interval
from streamsplit.lab.hearing import Heard
from streamsplit.lab.modelled import streamed
from streamsplit.lab.results import Seed
from streamsplit.lab.rows import Row, Run, make_rows
from streamsplit.lab.scenario import parse
from streamsplit.lab.schedule import make_schedule
from streamsplit.policy.cost import MESSAGE_BYTES, device_ms
from streamsplit.policy.observation import Option
from streamsplit.policy.power import PI4_LTE
from streamsplit.policy.quality import Quality
from streamsplit.policy.scenarios import scaled, shipped_profile

WINDOW_S = 0.96
QUALITY = Quality(
    "a test", False, (0.0, 1.0), {"device": (0.9, 0.5), "server": (0.9, 0.9), "skip": (0.0, 0.0)}
)


def make_run(windows: int = 4, speed: float = 1.0, slowdown: float = 1.0, **said: Any) -> Run:
    described = {
        "name": "t",
        "title": "t",
        "speed": speed,
        "link": {"made": "1M"},
        "device": {"slowdown": slowdown, "source": "a test", "power": "pi4-lte"},
    }
    scenario = parse(described, "here")
    vectors = np.eye(2, dtype=np.float32)[np.zeros(windows, int)]
    heard = Heard(
        start_s=WINDOW_S * np.arange(windows),
        level_dbfs=np.full(windows, -30.0),
        labels=["bell"] * windows,
        device=vectors,
        server=vectors,
        uncertainty=np.full(windows, 0.25),
    )
    defaults: dict[str, Any] = {"right": {}, "client_cpu_s": None, "uplink_bytes": None}
    return Run(
        scenario, make_schedule(scenario, 0, None), heard, QUALITY, 4, WINDOW_S, **{**defaults, **said}
    )


def record(sequence: int, split: int = 2, **measured: float) -> dict[str, Any]:
    parts = {"features_ms": 1.0, "head_ms": 2.0, "pack_ms": 1.0, "wait_ms": 0.0}
    return {
        "kind": "window", "sequence": sequence, "state": "acknowledged", "split": split, "codec": "int4",
        "payload_bytes": 300, "measured": {**parts, **measured}, "decision": {"reason": "told", "observation": {}},
    }  # fmt: skip


def test_a_window_sent_counts_link_time_by_speed_and_own_time_by_slowness() -> None:
    run = make_run(1, speed=4.0, slowdown=10.0)
    row = make_rows(run, [record(0, wire_ms=20.0, queue_ms=3.0, tail_ms=3.0)])[0]
    assert (row.own_ms, row.link_ms, row.server_ms) == (16.0, 92.0, 3.0)
    assert row.latency_ms == pytest.approx(111.0)
    assert row.quality == pytest.approx(0.9)


def test_software_between_the_sockets_is_not_hastened_with_the_link() -> None:
    parts = {"wire_ms": 20.0, "queue_ms": 3.0}
    fast, slow, real = (
        make_run(1, speed=speed, slowdown=slowdown, software_ms=5.0)
        for speed, slowdown in ((4.0, 1.0), (4.0, 10.0), (1.0, 1.0))
    )
    assert make_rows(fast, [record(0, **parts)])[0].link_ms == 4.0 * 18.0 + 5.0
    assert make_rows(slow, [record(0, **parts)])[0].link_ms == 4.0 * 23.0
    assert make_rows(real, [record(0, **parts)])[0].link_ms == 23.0
    assert make_rows(fast, [record(0, wire_ms=2.0)])[0].link_ms == 2.0  # never less than nothing


def test_a_window_embedded_here_is_usable_before_it_is_sent() -> None:
    row = make_rows(make_run(1), [record(0, split=4, spool_ms=5.0, wire_ms=70.0)])[0]
    assert row.latency_ms == pytest.approx(4.0)
    assert row.quality == pytest.approx(0.8)


def test_a_fixed_system_that_had_to_give_way_says_for_how_many_windows() -> None:
    rows = make_rows(
        make_run(4), [record(index, split=4 if index else -1, wire_ms=6.0) for index in range(4)]
    )
    about = {
        "window_s": WINDOW_S,
        "last_split": 4,
        "title": "t",
        "encoder": "compact",
        "version": "v",
        "trained": True,
    }
    systems = conclude({"t": {0: Seed(about, {"server_pcm": rows, "edge_only": rows[1:]})}})["scenarios"][
        "t"
    ]["systems"]
    assert systems["server_pcm"]["notes"] == ["75% of windows on the device instead"]
    assert systems["edge_only"]["notes"] == []


def test_a_window_that_never_came_costs_the_bound_and_is_counted() -> None:
    run = make_run(3)
    rows = make_rows(run, [record(0), {"kind": "window", "sequence": 1, "state": "dropped"}])
    assert [row.state for row in rows] == ["acknowledged", "dropped", "missing"]
    assert rows[2].reward == pytest.approx(-5.0 * 4.0)
    found = figures({0: rows}, WINDOW_S, None, None)
    assert found["lost"] == 2
    assert found["latency_ms"]["p95"] is None  # never


def test_sound_that_could_not_be_taken_in_time_is_late() -> None:
    rows = make_rows(
        make_run(3, speed=4.0), [record(index, late_ms=late) for index, late in enumerate((0.4, 0.0, 500.0))]
    )
    assert [row.late_ms for row in rows] == [0.0, 0.0, 2000.0]  # a timer's jitter is not the device's
    assert rows[2].latency_ms == pytest.approx(2000.0 + (rows[0].latency_ms or 0.0))


def test_energy_is_processor_time_of_the_slow_device_and_bytes_and_the_radio_between_sends() -> None:
    run = make_run(2, slowdown=10.0, speed=10.0, client_cpu_s=0.02, uplink_bytes=1000.0)
    rows = make_rows(run, [record(index, wire_ms=6.0) for index in range(2)])
    power = run.scenario.device.power_model
    assert sum(row.compute_mj for row in rows) == pytest.approx(1e3 * power.core_w * 0.02 * 10.0)
    assert sum(row.uplink_bytes for row in rows) == pytest.approx(1000.0)
    sending_s = 8.0 * 500.0 / 1e6
    radio = 1e3 * (500.0 * power.radio_j_per_byte + power.radio_active_w * sending_s)
    radio += 1e3 * power.radio_tail_w * (WINDOW_S - sending_s)
    assert [row.radio_mj for row in rows] == pytest.approx([radio, radio])


def test_the_cost_model_is_held_against_what_came() -> None:
    profile = scaled(shipped_profile("compact"), 1.0, PI4_LTE)
    seen = {"cpu_percent": 0.0, "memory_percent": 0.0, "level_dbfs": -30.0, "server_available": True,
            "uplink_bps": 1e6, "rtt_ms": 60.0}  # fmt: skip
    features, head, pack = device_ms(profile, Option(2, "int4", 0.0))
    wire_ms = 60.0 + 8e3 * (300.0 + MESSAGE_BYTES) / 1e6
    decision = {"reason": "told", "observation": seen, "expected": {"payload_bytes": 300.0}}
    parts = {"features_ms": features, "head_ms": head, "pack_ms": pack, "wire_ms": wire_ms}
    tails_ms = [factor * profile.tail_ms[2] for factor in (1.0, 1.0, 50.0)]
    records = [record(index, **parts, tail_ms=tail_ms) for index, tail_ms in enumerate(tails_ms)]
    records = [{**each, "decision": decision} for each in records]
    run = make_run(4, profile=profile, uplink_bytes=3 * (300.0 + MESSAGE_BYTES) / 0.8)
    rows = make_rows(run, records)
    assert rows[0].predicted_ms == pytest.approx(rows[0].latency_ms)
    assert rows[3].predicted_ms is None  # never came
    found = figures({0: rows}, WINDOW_S, None, None)["prediction"]
    assert (found["windows"], found["latency_error"]) == (3, pytest.approx(0.0, abs=1e-6))
    assert found["bytes_error"] == pytest.approx(0.2)
    assert figures({0: make_rows(make_run(1), [record(0)])}, WINDOW_S, None, None)["prediction"] is None


def test_embeddings_that_wait_for_each_other_wake_the_radio_once() -> None:
    waits_ms = [1e3 * WINDOW_S * (5 - index) for index in range(6)]
    records = [
        record(index, split=4, wire_ms=6.0, queue_ms=wait_ms) for index, wait_ms in enumerate(waits_ms)
    ]
    run = make_run(6)
    device = run.scenario.device.model_copy(update={"hold_windows": 5})
    held = make_rows(replace(run, scenario=run.scenario.model_copy(update={"device": device})), records)
    eager = make_rows(make_run(6), [record(index, split=4, wire_ms=6.0) for index in range(6)])
    power = run.scenario.device.power_model
    tail_mj = 1e3 * power.radio_tail_w * min(power.radio_tail_s, 6 * WINDOW_S)
    assert (
        tail_mj < sum(row.radio_mj for row in held) < 1.1 * tail_mj
    )  # once, and all of it: no end of the run cuts it short
    assert sum(row.radio_mj for row in eager) > 0.9 * tail_mj
    assert [row.latency_ms for row in held] == [row.latency_ms for row in eager]


def test_work_too_short_for_a_quota_counts_what_the_profile_says() -> None:
    profile = scaled(shipped_profile("compact"), 10.0, PI4_LTE)
    run = make_run(1, speed=2.0, slowdown=10.0, profile=profile)
    expected = sum(device_ms(profile, Option(2, "int4", 0.0)))
    quick = {"features_ms": 0.1, "head_ms": 0.1, "pack_ms": 0.1}
    assert make_rows(run, [record(0, **quick)])[0].own_ms == pytest.approx(expected)
    slow = {"features_ms": 40.0, "head_ms": 40.0, "pack_ms": 40.0}
    assert make_rows(run, [record(0, **slow)])[0].own_ms == pytest.approx(240.0)


def test_streamed_sound_saves_what_passed_during_the_capture_but_not_the_way_there_and_back() -> None:
    run = make_run(1)
    sent = row(0, payload_bytes=30_720, link_bps=1e6, link_ms=300.0, latency_ms=310.0)
    after = streamed([sent], run)[0]
    passed_ms = 8.0 * (30_720 + MESSAGE_BYTES) / 1e3 * (1.0 - 0.02 / WINDOW_S)
    assert sent.link_ms - after.link_ms == pytest.approx(passed_ms)
    assert after.latency_ms == pytest.approx(310.0 - passed_ms)
    fading = streamed([replace(sent, link_bps=0.0)], run)[0]
    assert after.reward > fading.reward
    assert fading.link_ms == sent.link_ms  # a link that stands still passes nothing during the capture either


def row(sequence: int, **said: Any) -> Row:
    made = make_rows(make_run(sequence + 1), [record(sequence, wire_ms=6.0)])[sequence]
    return replace(made, **said)


def test_two_systems_are_compared_window_by_window_on_the_same_sound() -> None:
    noise = np.random.default_rng(0).normal(0.0, 5.0, 40)
    ours = {0: [row(index, reward=float(noise[index]) + 1.0) for index in range(40)]}
    theirs = {0: [row(index, reward=float(noise[index])) for index in range(40)]}
    gap = difference(ours, theirs, lambda each: each.reward)
    assert gap["mean"] == pytest.approx(1.0)
    assert gap["interval"] == pytest.approx([1.0, 1.0])


def test_ratios_and_percentages_against_a_reference() -> None:
    slow = {
        0: [row(i, latency_ms=100.0 + i, uplink_bytes=1000.0, energy_mj=50.0, right=True) for i in range(20)]
    }
    fast = {
        0: [
            row(i, latency_ms=20.0 + i / 5, uplink_bytes=100.0, energy_mj=25.0, right=i > 0)
            for i in range(20)
        ]
    }
    found = against(fast, slow)
    assert found["latency_times_lower"] == pytest.approx(5.0)
    assert found["latency_interval"] == pytest.approx([5.0, 5.0])
    assert (found["bytes_percent"], found["energy_percent"]) == (-90.0, -50.0)
    assert found["accuracy_points"] == pytest.approx(-5.0)


def test_intervals_hold_the_statistic_and_shrink_with_more_windows() -> None:
    generator = np.random.default_rng(1)
    few, many = generator.normal(3.0, 1.0, 50), generator.normal(3.0, 1.0, 5000)
    (low, high), (lower, higher) = (np.array(interval([values], np.mean), float) for values in (few, many))
    assert low < few.mean() < high
    assert higher - lower < (high - low) / 3
    assert ratio_interval([few], [2.0 * few], np.mean) == pytest.approx([0.5, 0.5])


def test_the_best_fixed_split_is_of_fixed_splits_only() -> None:
    returns = {"server_pcm": 9.0, "split_1": 5.0, "split_2": 7.0, "learned": 8.0, "edge_only": 6.0}
    systems = {name: {"return": {"mean": value}} for name, value in returns.items()}
    assert best_fixed(systems, 4) == "split_2"
    assert best_fixed({}, 4) is None


def test_speeds_agree_within_what_is_allowed_only() -> None:
    assert Comparison("a", "b", 100.0, 119.0, 20.0).agrees
    assert not Comparison("a", "b", 100.0, 121.0, 20.0).agrees
