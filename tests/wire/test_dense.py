"""Residuals and bits: both undone exactly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsplit.wire import dense

BITS = (8, 5, 4, 3)


@pytest.mark.parametrize("bits", BITS)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 7)),
)
def test_levels_come_back_through_residuals_and_bits(
    bits: int, seed: int, shape: tuple[int, int, int, int]
) -> None:
    levels = np.random.default_rng(seed).integers(0, 2**bits, shape, np.uint8)
    count = levels[0].size
    folded = [dense.residuals(window, bits) for window in levels]
    packed = [dense.pack_bits(window.ravel(), bits) for window in folded]
    assert {len(message) for message in packed} == {dense.dense_bytes(count, bits)}
    rows = np.frombuffer(b"".join(packed), np.uint8).reshape(len(levels), -1)
    back = dense.levels_of(dense.unpack_bits(rows, bits, count).reshape(shape), bits)
    np.testing.assert_array_equal(back, levels)


@pytest.mark.parametrize("bits", BITS)
def test_what_stands_still_leaves_only_zeros(bits: int) -> None:
    middle = np.full((2, 3, 5), 1 << (bits - 1), np.uint8)
    assert not dense.residuals(middle, bits).any()


def test_small_changes_make_small_numbers() -> None:
    levels = np.array([[[8, 9, 8, 8, 6]]], np.uint8)
    assert dense.residuals(levels, 4).tolist() == [[[0, 2, 1, 0, 3]]]
