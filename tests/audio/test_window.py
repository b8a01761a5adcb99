from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.audio.window import Block, Gap, Mark, Window, WindowAssembler

S = 8
LENGTHS = st.lists(st.integers(0, 3 * S), max_size=30)
MARKS = [None, Mark("a"), Mark("b", "dog")]


def ramp(first: int, length: int) -> np.ndarray:
    return np.arange(first, first + length, dtype=np.float32)


def assembled(items: list[Block | Gap]) -> tuple[WindowAssembler, list[Window | Gap]]:
    assembler, found = WindowAssembler("s", S), list[Window | Gap]()
    for item in items:
        found.extend([assembler.push_gap(item)] if isinstance(item, Gap) else assembler.push(item))
    found.extend(assembler.finish())
    return assembler, found


def cut(samples: np.ndarray, lengths: list[int]) -> list[Block | Gap]:
    return [Block(piece) for piece in np.split(samples, np.cumsum(lengths))]


@given(lengths=LENGTHS, total=st.integers(0, 200))
def test_how_blocks_are_cut_does_not_change_the_windows(lengths: list[int], total: int) -> None:
    samples = ramp(0, total)
    _, one = assembled(cut(samples, []))
    _, other = assembled(cut(samples, lengths))
    assert len(one) == len(other)
    for left, right in zip(one, other, strict=True):
        assert isinstance(left, Window)
        assert isinstance(right, Window)
        assert (left.sequence, left.start_sample) == (right.sequence, right.start_sample)
        np.testing.assert_array_equal(left.samples, right.samples)


@st.composite
def streams(draw: st.DrawFn) -> list[Block | Gap]:
    """Blocks of several recordings, gaps, and blocks with a NaN, in any order; every sample has its own value."""
    items: list[Block | Gap] = []
    first = 1
    for length in draw(LENGTHS):
        kind = draw(st.sampled_from(["block", "block", "block", "gap", "nan"]))
        if kind == "gap":
            items.append(Gap(length, "overrun"))
            continue
        samples = ramp(first, length)
        first += length
        if kind == "nan" and length:
            samples[draw(st.integers(0, length - 1))] = np.nan
        items.append(Block(samples, draw(st.sampled_from(MARKS))))
    return items


@given(streams())
def test_every_sample_is_in_a_window_or_in_a_gap_or_counted_as_skipped(items: list[Block | Gap]) -> None:
    assembler, found = assembled(items)
    pushed = sum(item.samples if isinstance(item, Gap) else len(item.samples) for item in items)
    windows = [item for item in found if isinstance(item, Window)]
    heard = sum(np.count_nonzero(window.samples) for window in windows)  # padding is zero, samples are not
    missed = sum(item.samples for item in found if isinstance(item, Gap))
    assert heard + missed + assembler.skipped_samples == pushed


@given(streams())
def test_windows_hold_consecutive_finite_samples_of_one_recording(items: list[Block | Gap]) -> None:
    source_of = {
        value: item.mark
        for item in items
        if isinstance(item, Block)
        for value in item.samples.tolist()
        if value == value
    }
    for window in assembled(items)[1]:
        if isinstance(window, Gap):
            continue
        held = window.samples[window.samples > 0]
        assert len(window.samples) == S
        assert len(held) > 0
        np.testing.assert_array_equal(held, ramp(int(held[0]), len(held)))
        np.testing.assert_array_equal(window.samples[len(held) :], 0)
        assert {source_of[value] for value in held.tolist()} == {window.mark}


@given(streams())
def test_sequence_has_no_holes_and_time_runs_forward_without_overlap(items: list[Block | Gap]) -> None:
    assembler, found = assembled(items)
    windows = [item for item in found if isinstance(item, Window)]
    assert [window.sequence for window in windows] == list(range(len(windows)))
    end = 0
    for item in found:
        assert item.start_sample >= end
        end = item.start_sample + (S if isinstance(item, Window) else item.samples)
    assert assembler.next_sample >= end


@given(blocks=st.lists(st.integers(0, 3 * S), min_size=1, max_size=10), lost=st.integers(1, 50))
def test_a_gap_moves_time_by_its_length_and_what_it_cut(blocks: list[int], lost: int) -> None:
    total = sum(blocks)
    before: list[Block | Gap] = [Block(ramp(0, length)) for length in blocks]
    _, found = assembled([*before, Gap(lost, "overrun"), Block(ramp(0, S))])
    gap, last = found[-2:]
    assert gap == Gap(lost + total % S, "overrun", total - total % S)
    assert last.start_sample == total + lost


def test_a_sample_that_is_not_finite_costs_its_block_and_what_was_waiting() -> None:
    spoilt = ramp(0, 6)
    spoilt[2] = np.inf
    _, found = assembled([Block(ramp(0, S + 3)), Block(spoilt), Block(ramp(0, S))])
    assert [type(item) for item in found] == [Window, Gap, Window]
    assert found[1] == Gap(9, "not finite", S)


def test_the_end_of_a_recording_is_padded_from_half_a_window_on_and_counted_below() -> None:
    long, short = Mark("long"), Mark("short")
    assembler, found = assembled([Block(ramp(1, S + S // 2), long), Block(ramp(1, S + S // 2 - 1), short)])
    assert [item.mark for item in found if isinstance(item, Window)] == [long, long, short]
    assert assembler.skipped_samples == S // 2 - 1


def test_a_recording_shorter_than_half_a_window_is_heard_all_the_same() -> None:
    assembler, found = assembled([Block(ramp(1, 2), Mark("click")), Block(ramp(1, S), Mark("b"))])
    assert len(found) == 2
    assert assembler.skipped_samples == 0


def test_the_level_of_silence_is_minus_120_and_of_full_scale_0() -> None:
    assert Window("s", 0, 0, np.zeros(S, np.float32)).level_dbfs == -120.0
    assert abs(Window("s", 0, 0, np.ones(S, np.float32)).level_dbfs) < 1e-6
