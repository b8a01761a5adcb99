"""A bounded sample: all of it at first, a fair part later, the recent in the end."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from streamsplit.errors import PayloadError
from streamsplit.learning.reservoir import Reservoir


def numbered(first: int, many: int) -> torch.Tensor:
    """Rows that tell their number: its angle in the first two dimensions."""
    angle = torch.arange(first, first + many).double() / 20_000 * 3.0
    return torch.stack([torch.cos(angle), torch.sin(angle), *[torch.zeros_like(angle)] * 6], 1).float()


def numbers(reservoir: Reservoir) -> torch.Tensor:
    rows = reservoir.embeddings()
    return torch.atan2(rows[:, 1], rows[:, 0]) / 3.0 * 20_000


def test_it_holds_everything_until_it_is_full_to_within_its_rounding() -> None:
    z = F.normalize(torch.randn(100, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    reservoir = Reservoir(100, 128, 1000, 0)
    for start in range(0, 100, 7):
        reservoir.offer(z[start : start + 7], start)
    assert reservoir.kept == 100
    assert float((reservoir.embeddings() - z).abs().max()) < float(z.abs().max()) / 127
    assert reservoir.nbytes == 100 * 130


def test_every_window_has_the_same_chance_within_the_horizon() -> None:
    reservoir = Reservoir(500, 8, 10**6, 0)
    reservoir.offer(numbered(0, 10_000), 0)
    kept = numbers(reservoir)
    assert float(kept.mean()) == pytest.approx(5000, abs=500)
    assert float(kept.std()) == pytest.approx(10_000 / 12**0.5, rel=0.1)


def test_beyond_the_horizon_old_windows_fade() -> None:
    reservoir = Reservoir(500, 8, 1000, 0)
    reservoir.offer(numbered(0, 10_000), 0)
    age = 10_000 - numbers(reservoir)
    assert float(age.mean()) == pytest.approx(1000, rel=0.2)


def test_chance_is_of_seed_and_number_only() -> None:
    whole, parts, other = (Reservoir(50, 8, 1000, seed) for seed in (1, 1, 2))
    whole.offer(numbered(0, 900), 0)
    other.offer(numbered(0, 900), 0)
    for start in range(0, 900, 11):
        parts.offer(numbered(start, min(11, 900 - start)), start)
    assert torch.equal(whole.codes, parts.codes)
    assert not torch.equal(whole.codes, other.codes)


def test_shares_of_others_fill_it() -> None:
    first, second, merged = (Reservoir(100, 8, 1000, 0) for _ in range(3))
    first.offer(numbered(0, 300), 0)
    second.offer(numbered(10_000, 300), 0)
    merged.take_shares([first, second], [0.75, 0.25])
    assert merged.kept == 100
    assert int((numbers(merged) < 5000).sum()) == 75


def test_rows_that_do_not_fit_are_refused() -> None:
    reservoir = Reservoir(4, 8, 1000, 0)
    codes, scales = torch.zeros(3, 8, dtype=torch.int8), torch.zeros(3, dtype=torch.float16)
    reservoir.restore(codes, scales)
    assert reservoir.kept == 3
    for wrong in (
        (None, scales),
        (codes, None),
        (codes.float(), scales),
        (codes[:, :7], scales),
        (codes, scales[:2]),
    ):
        with pytest.raises(PayloadError, match="reservoir: expected up to 4 rows of 8"):
            reservoir.restore(*wrong)
    with pytest.raises(PayloadError, match="up to 4"):
        reservoir.restore(codes.repeat(2, 1), scales.repeat(2))
