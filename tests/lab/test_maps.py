"""Maps of embeddings keep neighbours together and repeat."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.lab.maps import place, principal_components
from streamsplit.lab.series import Numbers


def groups(per_group: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three tight groups on the unit sphere in 16 dimensions."""
    generator = np.random.default_rng(seed)
    vectors = np.repeat(np.eye(16)[:3], per_group, axis=0) + generator.normal(0, 0.02, (3 * per_group, 16))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit.astype(np.float32), np.repeat(np.arange(3), per_group)


def nearest(points: Numbers) -> np.ndarray:
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return distance.argmin(axis=1)


def test_neighbours_stay_neighbours_and_equal_seeds_give_equal_maps() -> None:
    vectors, group = groups()
    points, how = place(vectors, seed=0)
    assert how == "t-SNE"
    assert (group[nearest(points)] == group).all()
    assert np.array_equal(points, place(vectors, seed=0)[0])


@pytest.mark.parametrize("count", [3, 5, 9])
def test_few_embeddings_are_placed_by_their_principal_components(count: int) -> None:
    points, how = place(groups()[0][:count], seed=0)
    assert (points.shape, how) == ((count, 2), "PCA")


def test_principal_components_do_not_depend_on_the_sign_of_the_directions() -> None:
    vectors = groups()[0].astype(np.float64)
    points = principal_components(vectors)
    assert points[:, 0].std() == pytest.approx(1.0)
    assert points[:, 0].std() >= points[:, 1].std()
    assert np.allclose(principal_components(vectors[::-1])[::-1], points)


@pytest.mark.parametrize("vectors", [np.ones((4, 8)), np.arange(5.0)[:, None]])
def test_flat_and_narrow_embeddings_are_placed_too(vectors: Numbers) -> None:
    points = principal_components(vectors)
    assert points.shape == (len(vectors), 2)
    assert np.isfinite(points).all()
