"""Costs: every part follows the observation the way it should."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.policy.cost import (
    MESSAGE_BYTES,
    MOST_SLOWDOWN,
    predict_energy_mj,
    predict_latency_ms,
    slowdown,
)
from streamsplit.policy.observation import Option
from tests.policy.device import OPTIONS, PROFILE, observed

LOCAL, FEATURES, FIRST, SECOND = OPTIONS
AUDIO = Option(-1, "opus", 1300.0)

options = st.sampled_from([*OPTIONS, AUDIO])
loads = st.floats(0, 100)
rates = st.floats(1e3, 1e8)


def test_every_part_of_an_offloaded_window_is_counted() -> None:
    latency = predict_latency_ms(PROFILE, SECOND, observed(cpu_percent=50.0, backlog_bytes=1000))
    assert (latency.features, latency.head, latency.server) == (2.0, 12.0, 1.0)
    assert latency.pack == pytest.approx(
        2 * (0.1 + 0.5)
    )  # its own payload and the features kept for re-sending
    assert latency.backlog == pytest.approx(1.0)
    assert latency.wire == pytest.approx((300 + MESSAGE_BYTES) * 1e-3 + 10.0)
    assert latency.total == pytest.approx(
        latency.features + latency.head + latency.pack + latency.backlog + latency.wire + latency.server
    )


@given(uplink_bps=rates, backlog=st.integers(0, 10**9))
def test_an_embedding_made_here_waits_for_no_link(uplink_bps: float, backlog: int) -> None:
    here = predict_latency_ms(PROFILE, LOCAL, observed(uplink_bps=uplink_bps, backlog_bytes=backlog))
    assert here == predict_latency_ms(PROFILE, LOCAL, observed())
    assert here.total == pytest.approx(1.0 + 40.0 + 0.5)


def test_audio_needs_neither_features_nor_head() -> None:
    latency = predict_latency_ms(PROFILE, AUDIO, observed())
    assert (latency.features, latency.head, latency.pack, latency.server) == (0.0, 0.0, 30.0, 3.0)


@given(option=options, low=loads, high=loads, uplink_bps=rates)
def test_a_busier_device_is_never_faster(option: Option, low: float, high: float, uplink_bps: float) -> None:
    low, high = sorted((low, high))
    idle, busy = (
        predict_latency_ms(PROFILE, option, observed(load, uplink_bps)).total for load in (low, high)
    )
    assert idle <= busy


@given(option=options, slow=rates, fast=rates, backlog=st.integers(0, 10**6))
def test_a_faster_link_is_never_slower_or_dearer(
    option: Option, slow: float, fast: float, backlog: int
) -> None:
    slow, fast = sorted((slow, fast))
    on_slow, on_fast = (observed(uplink_bps=rate, backlog_bytes=backlog) for rate in (slow, fast))
    assert (
        predict_latency_ms(PROFILE, option, on_fast).total
        <= predict_latency_ms(PROFILE, option, on_slow).total
    )
    sent_fast, sent_slow = (predict_energy_mj(PROFILE, option, seen).send for seen in (on_fast, on_slow))
    assert sent_fast <= sent_slow


def test_load_stretches_work_as_in_a_shared_queue() -> None:
    assert slowdown(observed(0.0)) == 1.0
    assert slowdown(observed(75.0)) == pytest.approx(4.0)
    assert slowdown(observed(100.0)) == pytest.approx(MOST_SLOWDOWN)
    assert slowdown(observed(75.0, throttled=True)) > slowdown(observed(75.0))


def test_energy_follows_the_power_model() -> None:
    energy = predict_energy_mj(PROFILE, SECOND, observed())
    seconds = (300 + MESSAGE_BYTES) * 8 / 8e6
    assert energy.compute == pytest.approx(1.0 * (1.0 + 6.0 + 0.1 + 0.5))
    assert energy.send == pytest.approx(1e3 * (1e-6 * (300 + MESSAGE_BYTES) + 0.5 * seconds))
    assert energy.tail == pytest.approx(1e3 * 0.25 * 0.1)
    assert energy.total == energy.compute + energy.send + energy.tail


def test_the_radio_cannot_stay_up_longer_than_to_the_next_window() -> None:
    energy = predict_energy_mj(PROFILE, FEATURES, observed(uplink_bps=(4000 + MESSAGE_BYTES) * 8 / 0.9))
    assert energy.tail == pytest.approx(1e3 * 0.25 * 0.06)


def test_without_an_estimate_the_stated_assumptions_hold() -> None:
    unknown = predict_latency_ms(PROFILE, FIRST, observed(uplink_bps=None, rtt_ms=None))
    assert unknown == predict_latency_ms(PROFILE, FIRST, observed(uplink_bps=1e6, rtt_ms=50.0))


def test_an_option_the_profile_has_not_measured_is_named() -> None:
    for predict in (predict_latency_ms, predict_energy_mj):
        with pytest.raises(ValueError, match=r"expected one of -1/opus, 0/int8, .*, got 2/fp32"):
            predict(PROFILE, Option(2, "fp32", 1.0), observed())
