"""Passage: what has passed and when is one function and its inverse, through outages and beyond the end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.policy.passage import Traces

rates = st.lists(st.sampled_from([0.0, 1e3, 1e5, 3e6]), min_size=3, max_size=12)


def traces(*worlds: list[float]) -> Traces:
    bits = [np.concatenate([[0.0], np.cumsum(np.array(rate) * 0.5)]) for rate in worlds]
    return Traces(np.stack(bits), np.full(len(worlds), 0.5))


@settings(deadline=None)
@given(rate=rates, share=st.floats(0.0, 1.5))
def test_when_so_much_has_passed_so_much_has_passed(rate: list[float], share: float) -> None:
    made = traces([1e4] * len(rate), rate)
    mark = np.array([share * 0.5 * sum(rate)])
    at_s = made.passed_s(np.array([1]), mark)
    assert made.carried(np.array([1]), at_s)[0] == pytest.approx(mark[0], rel=1e-6, abs=0.1)


def test_nothing_passes_in_an_outage_and_the_rest_after_it() -> None:
    made, world = traces([1000.0, 0.0, 0.0, 1000.0]), np.zeros(1, np.int64)
    assert made.carried(world, np.array([0.5])) == made.carried(world, np.array([1.5])) == 500.0
    assert made.passed_s(world, np.array([500.0]))[0] == pytest.approx(0.5)
    assert made.passed_s(world, np.array([600.0]))[0] == pytest.approx(1.6)


def test_beyond_its_end_a_trace_goes_on_at_its_mean() -> None:
    made, world = traces([2e6, 0.0]), np.zeros(1, np.int64)
    assert made.passed_s(world, np.array([2e6]))[0] == pytest.approx(2.0)
    assert made.carried(world, np.array([2.0]))[0] == pytest.approx(2e6)
    assert made.passed_s(world, np.array([1e6]))[0] == pytest.approx(0.5)
