"""The estimator against a simulated link: a queue of known rate and delay, in simulated time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.client.link_estimator import LinkEstimator

OVERHEAD = 60  # bytes beside the payload, as a message has them


class Link:
    """An uplink that serves one window after another, and a server that answers each.

    Args:
        rate_bps, rtt_s: of the uplink; the whole round trip of an empty message.
        jitter_s: each answer is late by up to so much.
        pause_s: a third of the answers is late by up to so much more: a busy processor.
        server_s: mean time at the server; varies by half of it.
    """

    def __init__(
        self,
        rate_bps: float,
        rtt_s: float,
        jitter_s: float = 0.0,
        server_s: float = 0.004,
        pause_s: float = 0.0,
    ) -> None:
        self.rate_bps = rate_bps
        self.rtt_s = rtt_s
        self._jitter_s = jitter_s
        self._server_s = server_s
        self._pause_s = pause_s
        self._random = random.Random(7)
        self._free_s = 0.0
        self._events: list[tuple[float, int, int, float]] = []
        self._sent = 0

    def send(self, at_s: float, payload_bytes: int) -> None:
        self._free_s = max(self._free_s, at_s) + 8 * (payload_bytes + OVERHEAD) / self.rate_bps
        server_s = self._server_s * self._random.uniform(0.5, 1.5)
        answered_s = self._free_s + self.rtt_s + server_s + self._random.uniform(0, self._jitter_s)
        if self._random.random() < 1 / 3:
            answered_s += self._random.uniform(0, self._pause_s)
        self._events.append((at_s, 0, self._sent, payload_bytes))
        self._events.append((answered_s, 1, self._sent, server_s))
        self._sent += 1

    def hold_s(self, until_s: float) -> None:
        """A black hole: what is sent from now on waits until then."""
        self._free_s = until_s

    def play(self, estimator: LinkEstimator, until_s: float = float("inf"), begin_s: float = 0.0) -> None:
        for at_s, answer, number, value in sorted(self._events):
            if at_s > until_s:
                break
            key = begin_s, number
            if answer:
                estimator.acknowledged(key, begin_s + at_s, 1e3 * value)
            else:
                estimator.sent(key, int(value), begin_s + at_s)


def steady(link: Link, sizes: list[int], every_s: float, count: int = 200, begin_s: float = 0.0) -> None:
    for number, size in zip(range(count), cycle(sizes), strict=False):
        link.send(begin_s + number * every_s, size)


def bursts(link: Link, size: int, windows: int, every_s: float, count: int = 10) -> None:
    for burst in range(count):
        for number in range(windows):
            link.send(burst * every_s + number * 1e-4, size)


RATES = [50e3, 200e3, 1e6, 5e6]
ROUND_TRIPS = [0.002, 0.03, 0.15]


@pytest.mark.parametrize("rate_bps", RATES)
@pytest.mark.parametrize("rtt_s", ROUND_TRIPS)
@pytest.mark.parametrize("jitter_s", [0.0, 0.002])
def test_windows_of_mixed_sizes_tell_rate_and_round_trip(
    rate_bps: float, rtt_s: float, jitter_s: float
) -> None:
    link, estimator = Link(rate_bps, rtt_s, jitter_s), LinkEstimator()
    steady(link, [330, 6150, 130], every_s=0.96)
    link.play(estimator)
    assert estimator.uplink_bps == pytest.approx(rate_bps, rel=0.25)
    assert estimator.rtt_ms == pytest.approx(1e3 * rtt_s, abs=3.0)


@pytest.mark.parametrize("rate_bps", RATES)
@pytest.mark.parametrize("rtt_s", ROUND_TRIPS)
def test_a_backlog_of_equal_windows_tells_the_rate(rate_bps: float, rtt_s: float) -> None:
    link, estimator = Link(rate_bps, rtt_s, jitter_s=0.001), LinkEstimator()
    bursts(link, size=4000, windows=20, every_s=20.0)
    link.play(estimator)
    assert estimator.uplink_bps == pytest.approx(rate_bps, rel=0.25)


@pytest.mark.parametrize("rtt_s", ROUND_TRIPS)
def test_windows_that_overlap_on_a_long_round_trip_are_not_taken_for_a_slow_link(rtt_s: float) -> None:
    link, estimator = Link(2e6, rtt_s), LinkEstimator()
    steady(link, [330, 6150], every_s=0.05)
    link.play(estimator)
    assert estimator.uplink_bps == pytest.approx(2e6, rel=0.25)


def test_an_overloaded_link_tells_its_rate_while_the_queue_grows() -> None:
    link, estimator = Link(100e3, 0.02), LinkEstimator()
    steady(link, [6150], every_s=0.3)  # half a second each
    link.play(estimator)
    assert estimator.uplink_bps == pytest.approx(100e3, rel=0.1)


@pytest.mark.parametrize("after_bps", [100e3, 4e6])
def test_a_change_of_rate_is_followed_within_a_few_half_lives(after_bps: float) -> None:
    estimator = LinkEstimator(half_life_s=10.0)
    link = Link(1e6, 0.02)
    steady(link, [330, 6150], every_s=0.96, count=60)
    link.rate_bps = after_bps
    steady(link, [330, 6150], every_s=0.96, count=80, begin_s=60.0)
    link.play(estimator)
    assert estimator.uplink_bps == pytest.approx(after_bps, rel=0.25)


def test_lone_windows_of_one_size_tell_no_rate_and_none_is_invented() -> None:
    link, estimator = Link(1e6, 0.03), LinkEstimator()
    steady(link, [330], every_s=0.96)
    link.play(estimator)
    assert estimator.uplink_bps is None
    assert estimator.rtt_ms == pytest.approx(30 + 8 * 390 / 1e3, abs=0.1)


@pytest.mark.parametrize("rate_bps", [1e6, 4e6, 12e6])
@pytest.mark.parametrize("size", [130, 260, 1200])
def test_a_busy_processor_is_not_taken_for_a_slow_link(rate_bps: float, size: int) -> None:
    link, estimator = Link(rate_bps, 0.06, jitter_s=0.01, pause_s=0.1), LinkEstimator()
    steady(link, [size], every_s=0.96)
    link.play(estimator)
    assert estimator.uplink_bps is None
    assert estimator.rtt_ms == pytest.approx(60, abs=15)


def test_a_few_small_windows_together_are_no_measure_of_a_fast_link() -> None:
    link, estimator = Link(12e6, 0.06, jitter_s=0.002, pause_s=0.1), LinkEstimator()
    bursts(link, size=130, windows=10, every_s=10.0)
    link.play(estimator)
    assert estimator.uplink_bps is None


@pytest.mark.parametrize("rate_bps", [200e3, 1e6])
def test_pauses_do_not_hide_a_rate_that_large_windows_show(rate_bps: float) -> None:
    link, estimator = Link(rate_bps, 0.06, jitter_s=0.01, pause_s=0.1), LinkEstimator()
    steady(link, [130] * 10 + [12_000] * 10, every_s=0.96)
    link.play(estimator)
    assert estimator.uplink_bps == pytest.approx(rate_bps, rel=0.35)
    assert estimator.rtt_ms == pytest.approx(60, abs=15)


def test_a_slow_spell_is_not_held_against_what_single_windows_show_later() -> None:
    link, estimator = Link(300e3, 0.06, jitter_s=0.005), LinkEstimator()
    steady(link, [30_720], every_s=0.5, count=20)  # 0.8 s each: they queue
    link.rate_bps = 12e6
    steady(link, [30_720], every_s=0.96, count=60, begin_s=20.0)
    link.play(estimator, until_s=20.0)
    assert estimator.uplink_bps == pytest.approx(300e3, rel=0.1)
    link.play(estimator)
    quickest_s = 0.06 + 8 * 30_780 / 12e6
    assert estimator.uplink_bps is not None
    assert 0.9 * 8 * 30_780 / quickest_s < estimator.uplink_bps < 1.25 * 12e6
    assert estimator.rtt_ms is not None
    assert 55 < estimator.rtt_ms < 1e3 * quickest_s + 5


def test_an_outage_that_is_over_is_forgotten() -> None:
    link, estimator = Link(1e6, 0.06, jitter_s=0.005), LinkEstimator()
    steady(link, [330, 6150], every_s=0.96, count=60)
    link.hold_s(75.0)
    steady(link, [330, 6150], every_s=0.96, count=30, begin_s=60.0)
    link.play(estimator)
    assert estimator.uplink_bps == pytest.approx(1e6, rel=0.25)
    assert estimator.rtt_ms == pytest.approx(60, abs=5)


@pytest.mark.parametrize(("before_bps", "after_bps"), [(8e6, 60e3), (20e6, 100e3)])
def test_a_rate_that_falls_shows_in_lone_windows_of_one_size_for_as_long_as_it_lasts(
    before_bps: float, after_bps: float
) -> None:
    link, estimator = Link(before_bps, 0.04, jitter_s=0.005), LinkEstimator()
    steady(link, [4000], every_s=0.96, count=30)
    link.play(estimator)
    assert estimator.uplink_bps is None
    link.rate_bps = after_bps
    link._events.clear()
    steady(link, [4000], every_s=0.96, count=20, begin_s=29.0)
    link.play(estimator)
    assert estimator.uplink_bps == pytest.approx(after_bps, rel=0.25)
    link.rate_bps = before_bps
    link._events.clear()
    steady(link, [4000], every_s=0.96, count=10, begin_s=49.0)
    link.play(estimator)
    assert estimator.uplink_bps is None


@pytest.mark.parametrize("jitter_s", [0.001, 0.005, 0.02])
def test_where_jitter_hides_the_rate_nothing_is_told_or_too_little(jitter_s: float) -> None:
    link, estimator = Link(20e6, 0.03, jitter_s), LinkEstimator()
    steady(link, [330, 30_720, 130], every_s=0.96)
    link.play(estimator)
    if jitter_s < 0.005:
        assert estimator.uplink_bps == pytest.approx(20e6, rel=0.25)
    else:
        assert estimator.uplink_bps is None or 8e6 < estimator.uplink_bps < 22e6


def test_a_slow_server_is_not_taken_for_a_slow_link() -> None:
    link, estimator = Link(1e6, 0.01, server_s=0.4), LinkEstimator()
    steady(link, [330, 6150], every_s=0.96)
    link.play(estimator)
    assert estimator.uplink_bps == pytest.approx(1e6, rel=0.25)
    assert estimator.rtt_ms == pytest.approx(10.0, abs=3.0)


def test_an_outage_lowers_the_estimate_before_it_ends() -> None:
    link, estimator = Link(1e6, 0.02), LinkEstimator()
    steady(link, [330, 6150], every_s=0.96, count=40)
    link.play(estimator)
    estimator.sent("stuck", 6150, 100.0)
    estimator.sent("later", 330, 110.0)
    assert estimator.uplink_bps is not None
    assert estimator.uplink_bps < 8 * 6300 / 9.9
    estimator.lost("stuck")
    estimator.lost("later")
    assert estimator.uplink_bps == pytest.approx(1e6, rel=0.25)


def test_the_greeting_tells_the_round_trip_until_a_window_does() -> None:
    link, estimator = Link(1e6, 0.02), LinkEstimator()
    estimator.greeted(0.3)
    assert (estimator.rtt_ms, estimator.uplink_bps) == (300.0, None)
    link.send(0.0, 100)
    link.play(estimator)
    assert estimator.rtt_ms == pytest.approx(20 + 8 * 160 / 1e3, abs=1.0)


def test_a_reset_forgets_everything() -> None:
    link, estimator = Link(1e6, 0.02), LinkEstimator()
    estimator.greeted(0.02)
    steady(link, [330, 6150], every_s=0.96)
    link.play(estimator, until_s=100.0)
    estimator.reset()
    assert estimator.uplink_bps is None
    assert estimator.rtt_ms is None
    estimator.acknowledged(3, 101.0, 0.0)
    assert estimator.rtt_ms is None


def events() -> st.SearchStrategy[list[tuple[str, int, float, float]]]:
    return st.lists(
        st.tuples(
            st.sampled_from(["sent", "acknowledged", "lost"]),
            st.integers(0, 5),
            st.floats(0, 2),
            st.floats(0, 5000),
        ),
        max_size=60,
    )


@settings(max_examples=200, deadline=None)
@given(events())
def test_no_order_of_events_makes_an_estimate_that_is_no_rate(
    told: list[tuple[str, int, float, float]],
) -> None:
    estimator = LinkEstimator()
    for now_s, (what, key, _, value) in zip(_times(told), told, strict=True):
        if what == "sent":
            estimator.sent(key, int(value), now_s)
        elif what == "acknowledged":
            estimator.acknowledged(key, now_s, value)
        else:
            estimator.lost(key)
        assert estimator.uplink_bps is None or 0 < estimator.uplink_bps < float("inf")
        assert estimator.rtt_ms is None or 0 <= estimator.rtt_ms < float("inf")


def _times(told: list[tuple[str, int, float, float]]) -> Iterator[float]:
    now_s = 0.0
    for _, _, step_s, _ in told:
        now_s += step_s
        yield now_s


def test_while_others_keep_the_processor_busy_an_estimate_is_raised_only() -> None:
    fast, starved = Link(5e6, 0.03), Link(40e3, 0.03)  # as a link seems whose ends get a tenth of a processor
    bursts(fast, size=4000, windows=20, every_s=20.0, count=2)
    bursts(starved, size=130, windows=60, every_s=20.0, count=2)
    warned, unwarned = LinkEstimator(), LinkEstimator()
    for estimator in (warned, unwarned):
        fast.play(estimator)
        estimator.loaded = estimator is warned
        starved.play(estimator, begin_s=60.0)
    assert warned.uplink_bps == pytest.approx(5e6, rel=0.25)
    assert unwarned.uplink_bps is not None
    assert unwarned.uplink_bps < 0.1 * 5e6
    slow = Link(5e4, 0.03)
    bursts(slow, size=4000, windows=20, every_s=20.0)
    warned.loaded = False
    slow.play(warned, begin_s=200.0)
    assert warned.uplink_bps == pytest.approx(5e4, rel=0.25)
