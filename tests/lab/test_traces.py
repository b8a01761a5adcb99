"""A trace's two directions of counting must agree, and published formats must keep every packet."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.errors import ConfigError
from streamsplit.lab.traces import PACKET_BITS, Trace

RECORDED = Path("../shared/data/traces")
rates = st.lists(st.one_of(st.just(0.0), st.floats(1.0, 1e7)), min_size=1, max_size=8)


def made(pieces: list[float], repeats: bool) -> Trace:
    period_s = float(len(pieces)) if repeats else None
    return Trace.steps([(float(index), rate) for index, rate in enumerate(pieces)], period_s)


@given(rates, st.booleans(), st.floats(0, 30), st.floats(1, 1e8))
def test_exactly_the_bits_asked_for_pass_until_the_finish(
    pieces: list[float], repeats: bool, start_s: float, bits: float
) -> None:
    trace = made(pieces, repeats)
    finish_s = trace.finish_s(start_s, bits)
    if math.isinf(finish_s):
        assert pieces[-1] == 0 if not repeats else sum(pieces) == 0
    else:
        assert finish_s >= start_s
        assert trace.bits_between(start_s, finish_s) == pytest.approx(bits, rel=1e-6, abs=1e-2)


@given(rates, st.booleans(), st.floats(0, 30), st.floats(0, 10), st.floats(0, 10))
def test_bits_of_adjacent_intervals_add_up(
    pieces: list[float], repeats: bool, start_s: float, first_s: float, second_s: float
) -> None:
    trace = made(pieces, repeats)
    middle_s, end_s = start_s + first_s, start_s + first_s + second_s
    parts = trace.bits_between(start_s, middle_s) + trace.bits_between(middle_s, end_s)
    assert parts == pytest.approx(trace.bits_between(start_s, end_s), rel=1e-6, abs=1e-2)


def test_a_repeating_trace_has_the_same_rate_one_period_later() -> None:
    trace = Trace.walk(3, 20.0, 1e5, 2e6)
    assert trace.period_s == 20.0
    assert [trace.rate_at(t + 0.5) for t in range(20)] == [trace.rate_at(t + 20.5) for t in range(20)]


def test_a_trace_that_does_not_repeat_holds_its_last_rate() -> None:
    trace = Trace.steps([(0, 1e6), (2, 5e5)])
    assert trace.rate_at(1e6) == trace.mean_bps == 5e5


def test_a_walk_stays_within_its_bounds_and_equal_seeds_make_equal_walks() -> None:
    walk = Trace.walk(1, 500.0, 1e5, 2e6)
    assert walk == Trace.walk(1, 500.0, 1e5, 2e6) != Trace.walk(2, 500.0, 1e5, 2e6)
    assert min(walk.rates_bps) >= 1e5 * 0.999
    assert max(walk.rates_bps) <= 2e6 * 1.001


def test_a_mahimahi_trace_keeps_every_packet_and_repeats_from_its_last(tmp_path: Path) -> None:
    path = tmp_path / "link.up"
    path.write_text("0\n71\n71\n250\n1030\n")
    trace = Trace.read(path)
    assert trace.period_s == 1.03
    assert trace.bits_between(0, 1.03) == pytest.approx(5 * PACKET_BITS)
    assert trace.bits_between(0, 0.1) == pytest.approx(3 * PACKET_BITS)
    assert trace.rate_at(0.5) == 0.0
    assert trace.bits_between(0, 10.3) == pytest.approx(50 * PACKET_BITS)


def test_seconds_and_megabits_hold_until_the_next_sample(tmp_path: Path) -> None:
    path = tmp_path / "norway"
    path.write_text("0.0 4.0\n1.0 2.0\n3.0 1.0\n")
    trace = Trace.read(path)
    assert [trace.rate_at(t) for t in (0.5, 2.9, 3.1)] == [4e6, 2e6, 1e6]
    assert trace.period_s == 4.5


def test_comma_separated_values_are_read_in_bits_per_second(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("seconds,bits_per_second\n0,64000\n10,32000\n")
    assert [Trace.read(path).rate_at(t) for t in (0, 12)] == [64_000, 32_000]


@pytest.mark.parametrize(
    ("text", "at_s", "rate_bps"),
    [
        ("2M", 9, 2e6),
        ("300k", 0, 3e5),
        ("64000", 0, 64e3),
        ("0:2M,5:200k", 4.9, 2e6),
        ("0:2M,5:200k", 5, 2e5),
    ],
)
def test_the_command_lines_forms_are_understood(text: str, at_s: float, rate_bps: float) -> None:
    assert Trace.parse(text).rate_at(at_s) == rate_bps


@pytest.mark.parametrize(
    "text", ["", "fast", "1:2M", "0:2M,0:1M", "-5", "inf", "walk:1:10", "walk:1:10:0:1M"]
)
def test_what_is_no_trace_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Trace.parse(text)


@pytest.mark.parametrize(
    "content", ["", "x\n", "1 2\n3\n", "0\n", "-4\n5\n", "seconds,bits_per_second\n0,nan\n"]
)
def test_a_broken_trace_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken"
    path.write_text(content)
    with pytest.raises(ConfigError, match="expected"):
        Trace.read(path)


@pytest.mark.data
@pytest.mark.skipif(not RECORDED.exists(), reason="the development traces are not beside the checkout")
def test_recorded_traces_keep_all_their_packets() -> None:
    for path in sorted((RECORDED / "mahimahi").iterdir()):
        trace = Trace.read(path)
        packets = len(path.read_text().split())
        assert trace.period_s is not None
        assert trace.bits_between(0, trace.period_s) == pytest.approx(packets * PACKET_BITS), path.name
