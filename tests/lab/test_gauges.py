"""Small drawings keep the width they were given and never run off their scale."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.lab import gauges

series = st.lists(st.one_of(st.none(), st.floats(0, 1e12)), max_size=60)


@given(series, st.integers(1, 40), st.integers(1, 3), st.booleans())
def test_a_sparkline_is_as_wide_and_as_high_as_asked(
    values: list[float | None], width: int, rows: int, plain: bool
) -> None:
    lines = gauges.sparkline(values, width, rows, plain=plain)
    assert [line.cell_len for line in lines] == [width] * rows


def test_a_sparkline_shows_the_newest_on_the_right_and_holes_as_nothing() -> None:
    assert gauges.sparkline([9, 9, 0, None, 4, 8], 4)[0].plain == "▁ ▄█"


def test_a_sparkline_of_two_rows_fills_the_lower_before_the_upper() -> None:
    upper, lower = gauges.sparkline([4, 8], 2, rows=2)
    assert (upper.plain, lower.plain) == (" █", "██")


def test_a_fixed_top_is_kept_and_values_beyond_it_stop_there() -> None:
    assert gauges.sparkline([50, 100, 300], 3, top=100)[0].plain == "▄██"


@given(st.floats(-0.5, 1.5), st.integers(1, 60), st.booleans())
def test_a_bar_keeps_its_width(share: float, width: int, plain: bool) -> None:
    assert gauges.bar(share, width, "", plain).cell_len == width


@given(
    st.one_of(st.none(), st.floats(-200, 20)), st.one_of(st.none(), st.floats(-200, 20)), st.integers(1, 80)
)
def test_the_level_meter_keeps_its_width(level: float | None, peak: float | None, width: int) -> None:
    assert gauges.level_meter(level, peak, width).cell_len == width


def test_the_level_meter_is_full_at_full_scale_and_empty_in_silence() -> None:
    assert gauges.level_meter(0.0, None, 10).plain == gauges.FULL * 10
    assert gauges.FULL not in gauges.level_meter(-120.0, None, 10).plain


@given(st.integers(1, 12), st.integers(20, 120), st.data())
def test_the_split_bar_has_one_cut_except_at_the_ends(
    last_split: int, width: int, data: st.DataObject
) -> None:
    split = data.draw(st.integers(-1, last_split))
    drawn = gauges.split_bar(split, last_split, width)
    assert drawn.cell_len == width
    assert drawn.plain.count("┃") == (1 if 0 < split < last_split else 0)


def test_block_names_are_written_where_they_fit() -> None:
    assert "b0" in gauges.split_bar(1, 2, 40, ("b0", "a name much too long for its block")).plain
    assert "long" not in gauges.split_bar(1, 2, 40, ("b0", "a name much too long for its block")).plain


def test_plain_drawings_are_ascii() -> None:
    drawn = [
        gauges.level_meter(-20, -10, 30, plain=True),
        gauges.split_bar(2, 4, 30, plain=True),
        gauges.bar(0.4, 20, "", plain=True),
        *gauges.sparkline([1, 2, 3], 10, plain=True),
    ]
    assert all(text.plain.isascii() for text in drawn)


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999 B"), (1000, "1 kB"), (2.5e6, "2.5 MB"), (0.5, "0.5 B")]
)
def test_amounts_have_the_prefix_that_fits(value: float, text: str) -> None:
    assert gauges.amount(value, "B") == text
