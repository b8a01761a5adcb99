"""The Hybrid Loss against POT, against dense matrices, and at its extremes: even, chance, collapsed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import numpy.typing as npt
import ot
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from streamsplit.errors import ConfigError
from streamsplit.learning.hybrid import (
    HybridSettings,
    chance_spread,
    hybrid_loss,
    random_directions,
    share_means,
    sliced_spread,
    smoothness,
    temporal_ties,
)

HOP_S = 0.96
Array = npt.NDArray[np.float64]


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit(n: int, dim: int = 128, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(n, dim, generator=chance(seed)), dim=1)


def spread(z: Tensor, directions: int = 50, seed: int = 1) -> float:
    return float(sliced_spread(z, random_directions(z.shape[1], directions, chance(seed))))


def in_a_row(n: int) -> tuple[Tensor, Tensor]:
    return torch.arange(n, dtype=torch.float64) * HOP_S, torch.zeros(n, dtype=torch.int64)


# Spread.


def quantiles(probabilities: Array, dim: int) -> Array:
    """Of one coordinate of a uniform point on the sphere, from SciPy."""
    return np.asarray(2 * stats.beta.ppf(probabilities, (dim - 1) / 2, (dim - 1) / 2) - 1)


@pytest.mark.parametrize(("count", "dim"), [(1, 8), (7, 3), (100, 128)])
def test_share_means_are_the_means_of_quantiles_within_each_share(count: int, dim: int) -> None:
    fine = quantiles((np.arange(count * 2000) + 0.5) / (count * 2000), dim)
    assert share_means(count, dim) == pytest.approx(fine.reshape(count, 2000).mean(1), abs=2e-5)


@pytest.mark.parametrize(("count", "dim"), [(1, 4), (13, 3), (100, 128)])
def test_spread_is_pots_wasserstein_distance_to_a_fine_uniform_sample(count: int, dim: int) -> None:
    z, directions = unit(count, dim), random_directions(dim, 5, chance(3))
    fine = quantiles((np.arange(50_000) + 0.5) / 50_000, dim)
    expected = [ot.wasserstein_1d((z @ theta).double().numpy(), fine, p=2) for theta in directions.T]
    assert float(sliced_spread(z, directions)) == pytest.approx(dim * float(np.mean(expected)), rel=1e-3)


def test_spread_is_the_best_of_all_ways_to_match_points_and_shares() -> None:
    z, directions = unit(6, 5), random_directions(5, 3, chance())
    means = share_means(6, 5)
    best = [
        min(float(np.square(np.array(order) - means).mean()) for order in itertools.permutations(x.tolist()))
        for x in (z @ directions).T
    ]
    within = 1 / 5 - float(np.square(means).mean())
    assert float(sliced_spread(z, directions)) == pytest.approx(5 * (float(np.mean(best)) + within), abs=1e-5)


def test_spread_orders_batches_as_pots_spherical_distance_does() -> None:
    """POT slices by great circles, so values differ; what is more even must be more even for both."""
    cone = torch.zeros(16)
    cone[0] = 1
    batches = [F.normalize(unit(200, 16, seed=5) + pull * cone, dim=1) for pull in (0.0, 0.4, 0.8, 1.6, 4.0)]
    ours = [spread(z, 128) for z in batches]
    pots = [
        float(ot.sliced.sliced_wasserstein_sphere_unif(z.double().numpy(), n_projections=200, seed=0))
        for z in batches
    ]
    assert ours == sorted(ours)
    assert pots == sorted(pots)


def test_total_collapse_scores_two_and_chance_almost_nothing() -> None:
    """In squared distance the published loss had its noise floor at a fortieth of collapse; ours is a sixty-eighth, and known."""
    collapsed = [spread(unit(1, seed=seed).expand(100, -1), seed=seed) for seed in range(200)]
    uniform = [spread(unit(100, seed=seed), seed=seed) for seed in range(200)]
    assert np.mean(collapsed) == pytest.approx(2.0, abs=0.05)
    assert np.mean(uniform) == pytest.approx(chance_spread(100, 128), abs=1e-3)
    assert chance_spread(100, 128) < 0.03
    assert np.std(uniform) < 0.004
    assert min(collapsed) > 40 * max(uniform)


def test_all_orthogonal_directions_measure_collapse_without_error() -> None:
    assert spread(unit(1).expand(10, -1), directions=128) == pytest.approx(2.0, abs=1e-4)


@pytest.mark.parametrize(("count", "dim"), [(1, 3), (5, 3), (40, 16)])
def test_chance_spread_is_the_mean_over_uniform_samples(count: int, dim: int) -> None:
    measured = [spread(unit(count, dim, seed), 4 * dim, seed) for seed in range(1500)]
    assert float(np.mean(measured)) == pytest.approx(chance_spread(count, dim), rel=0.05)


def test_spread_does_not_depend_on_the_order_of_windows() -> None:
    z = unit(30)
    assert spread(z) == pytest.approx(spread(z[torch.randperm(30, generator=chance())]), abs=1e-6)


def test_directions_are_unit_orthogonal_within_a_block_and_repeat_with_their_seed() -> None:
    directions = random_directions(16, 40, chance(7))
    assert directions.shape == (16, 40)
    assert torch.allclose(directions[:, :16].T @ directions[:, :16], torch.eye(16), atol=1e-5)
    assert torch.allclose(directions.norm(dim=0), torch.ones(40), atol=1e-5)
    assert torch.equal(directions, random_directions(16, 40, chance(7)))
    assert not torch.equal(directions, random_directions(16, 40, chance(8)))


def test_directions_have_no_preferred_orientation() -> None:
    first = torch.stack([random_directions(3, 1, chance(seed))[:, 0] for seed in range(3000)])
    assert first.mean(0).abs().max() < 0.05
    assert (first.T @ first / 3000 - torch.eye(3) / 3).abs().max() < 0.03


def test_descending_the_spread_opens_a_collapsed_batch() -> None:
    raw = (torch.ones(100, 128) + 0.01 * torch.randn(100, 128, generator=chance())).requires_grad_()
    optimiser, generator = torch.optim.Adam([raw], lr=0.05), chance(1)
    for _ in range(200):
        optimiser.zero_grad()
        sliced_spread(F.normalize(raw, dim=1), random_directions(128, 50, generator)).backward()
        optimiser.step()
    assert spread(F.normalize(raw.detach(), dim=1)) < 0.2


# Smoothness.


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2)), min_size=1, max_size=40),
    st.integers(1, 6),
)
def test_smoothness_is_the_trace_of_the_laplacian_form(items: list[tuple[int, int]], neighbours: int) -> None:
    start_s = torch.tensor([half / 2 for half, _ in items], dtype=torch.float64)
    stream = torch.tensor([number for _, number in items])
    z = unit(len(items), 6)
    ties, weights = temporal_ties(start_s, stream, neighbours)
    adjacency = torch.zeros(len(items), len(items))
    adjacency[ties[0], ties[1]] = weights
    adjacency = adjacency + adjacency.T
    laplacian = torch.diag(adjacency.sum(1)) - adjacency
    expected = float(torch.trace(z.T @ laplacian @ z)) / (len(items) * neighbours)
    assert float(smoothness(z, ties, weights, neighbours)) == pytest.approx(expected, abs=1e-5)
    assert 0 <= expected <= 4


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 2)), min_size=1, max_size=30, unique=True),
    st.integers(1, 6),
)
def test_ties_join_each_window_with_its_nearest_of_the_same_run(
    items: list[tuple[int, int]], neighbours: int
) -> None:
    start_s = torch.tensor([half / 2 for half, _ in items], dtype=torch.float64)
    stream = torch.tensor([number for _, number in items])
    ties, weights = temporal_ties(start_s, stream, neighbours, fade_s=2.0, break_s=5.0)
    tied = {tuple(pair) for pair in ties.T.tolist()}
    assert len(tied) == ties.shape[1]
    for (one, other), weight in zip(ties.T.tolist(), weights.tolist(), strict=True):
        assert one < other
        assert stream[one] == stream[other]
        assert weight == pytest.approx(math.exp(-abs(float(start_s[one] - start_s[other])) / 2.0), rel=1e-5)
    for one, (half, number) in enumerate(items):
        run = _run([h / 2 for h, n in items if n == number], half / 2, 5.0)
        gaps = sorted(abs(other - half / 2) for other in run if other != half / 2)
        mine = sorted(abs(float(start_s[a] - start_s[b])) for a, b in tied if one in (a, b))
        assert mine[: len(gaps[:neighbours])] == pytest.approx(gaps[:neighbours])


def _run(times: list[float], at: float, break_s: float) -> list[float]:
    """The stretch around `at` in which no two consecutive times are farther apart than `break_s`."""
    runs: list[list[float]] = []
    for time in sorted(times):
        if runs and time - runs[-1][-1] <= break_s:
            runs[-1].append(time)
        else:
            runs.append([time])
    return next(run for run in runs if at in run)


def test_no_tie_crosses_a_stream_border_or_a_long_silence() -> None:
    start_s = torch.tensor([0.0, 1.0, 2.0, 30.0, 31.0, 0.5], dtype=torch.float64)
    stream = torch.tensor([0, 0, 0, 0, 0, 1])
    ties, _ = temporal_ties(start_s, stream, 5, break_s=10.0)
    assert {tuple(pair) for pair in ties.T.tolist()} == {(0, 1), (0, 2), (1, 2), (3, 4)}


def test_order_of_arrival_does_not_change_smoothness() -> None:
    start_s, stream = in_a_row(40)
    z, shuffled = unit(40), torch.randperm(40, generator=chance())
    in_order = smoothness(z, *temporal_ties(start_s, stream))
    late = smoothness(z[shuffled], *temporal_ties(start_s[shuffled], stream[shuffled]))
    assert float(in_order) == pytest.approx(float(late), abs=1e-6)


def test_a_sparse_stream_is_smoothed_less_than_a_dense_one() -> None:
    start_s, stream = in_a_row(50)
    z = unit(50)
    dense, sparse = (float(smoothness(z, *temporal_ties(start_s * pace, stream))) for pace in (1.0, 4.0))
    assert 0 < sparse < dense / 3


def test_a_slow_walk_is_smoother_than_the_same_points_in_random_order() -> None:
    start_s, stream = in_a_row(100)
    angle = torch.linspace(0, math.pi, 100)
    walk = torch.stack([angle.cos(), angle.sin()], dim=1)
    shuffled = walk[torch.randperm(100, generator=chance())]
    ties = temporal_ties(start_s, stream)
    assert float(smoothness(walk, *ties)) < float(smoothness(shuffled, *ties)) / 50


def test_windows_without_neighbours_have_no_ties_and_no_roughness() -> None:
    ties, weights = temporal_ties(torch.tensor([0.0, 100.0]), torch.tensor([0, 0]))
    assert ties.shape == (2, 0)
    assert float(smoothness(unit(2), ties, weights)) == 0
    ties, weights = temporal_ties(torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert ties.shape == (2, 0)


# The whole.


def test_total_is_the_weighted_sum_of_the_named_terms() -> None:
    start_s, stream = in_a_row(30)
    settings = HybridSettings(spread_weight=0.3, smoothness_weight=0.2)
    terms = hybrid_loss(torch.tensor(1.5), unit(30), start_s, stream, chance(), settings)
    assert set(terms) == {"total", "task", "spread", "smoothness"}
    expected = 1.5 + 0.3 * terms["spread"] + 0.2 * terms["smoothness"]
    assert float(terms["total"]) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("term", ["spread", "smoothness", "total"])
def test_gradients_of_every_term_reach_every_embedding_and_are_right(term: str) -> None:
    start_s, stream = in_a_row(12)

    def loss(raw: Tensor) -> Tensor:
        return hybrid_loss(raw.sum() * 0, F.normalize(raw, dim=1), start_s, stream, chance(2))[term]

    raw = unit(12, 4).double().requires_grad_()
    loss(raw).backward()
    assert raw.grad is not None
    assert bool((raw.grad.norm(dim=1) > 0).all())
    assert torch.autograd.gradcheck(loss, (raw,), atol=1e-6)


def test_the_same_generator_state_gives_the_same_loss() -> None:
    start_s, stream = in_a_row(20)
    one, again = (hybrid_loss(torch.tensor(0.0), unit(20), start_s, stream, chance(4)) for _ in range(2))
    assert all(torch.equal(one[name], again[name]) for name in one)


@pytest.mark.parametrize(
    "wrong",
    [{"spread_weight": -1}, {"directions": 0}, {"neighbours": 0}, {"fade_s": 0}, {"break_s": math.inf}],
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        HybridSettings(**wrong)  # type: ignore[arg-type]


def test_wrong_shapes_and_times_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[N, D\] and \[D, M\], got \[4, 128\] and \[3, 50\]"):
        sliced_spread(unit(4), torch.zeros(3, 50))
    with pytest.raises(ValueError, match="expected finite times"):
        temporal_ties(torch.tensor([math.nan]), torch.tensor([0]))
    with pytest.raises(ValueError, match="two vectors of one length"):
        temporal_ties(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="ties and"):
        smoothness(unit(3), torch.zeros(2, 4, dtype=torch.int64), torch.zeros(3))
    with pytest.raises(ValueError, match="2 dimensions or more"):
        sliced_spread(unit(4, 1), torch.ones(1, 1))
