from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from streamsplit.server.search import ExactIndex, nearest, nearest_many, nearest_sources
from streamsplit.server.store import EmbeddingStore, StoredWindow, Vectors
from tests.server.test_store import window

D = 8


def at(sequence: int, embedding: Vectors, source: str | None = None, stream: str = "s") -> StoredWindow:
    return replace(window(sequence, stream=stream), embedding=embedding, source=source, label=None)


def basis(*axes: int) -> Vectors:
    vector = np.zeros(D, np.float32)
    vector[list(axes)] = 1.0
    return vector / np.sqrt(np.float32(len(axes)))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EmbeddingStore]:
    with EmbeddingStore(tmp_path / "store.db") as opened:
        yield opened


@pytest.fixture
def crowd(store: EmbeddingStore) -> tuple[EmbeddingStore, Vectors]:
    vectors = np.random.default_rng(0).normal(size=(300, D)).astype(np.float32)
    store.insert([at(n, vectors[n], source=f"{n // 10}.wav") for n in range(300)])
    return store, vectors


def test_neighbours_are_those_an_independent_library_finds(
    crowd: tuple[EmbeddingStore, Vectors],
) -> None:
    store, vectors = crowd
    queries = np.random.default_rng(1).normal(size=(20, D)).astype(np.float32)
    distances, places = (
        NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute").fit(vectors).kneighbors(queries)
    )
    found = nearest_many(store, queries, "v1", k=7)
    assert [[neighbour.id - 1 for neighbour in row] for row in found] == places.tolist()
    np.testing.assert_allclose([[n.score for n in row] for row in found], 1 - distances, atol=1e-6)


@pytest.mark.parametrize("refreshes", [1, 3, 10])
def test_an_index_refreshed_in_pieces_answers_like_one_read_at_once(
    store: EmbeddingStore, refreshes: int
) -> None:
    vectors = np.random.default_rng(0).normal(size=(100, D)).astype(np.float32)
    index = ExactIndex(store, "v1")
    for part in np.array_split(np.arange(100), refreshes):
        store.insert([at(int(n), vectors[n]) for n in part])
        assert index.refresh() == len(part)
    assert index.refresh() == 0
    assert len(index) == 100
    queries = vectors[:9] + np.float32(0.3)
    pieces, whole = index.search(queries, 5), ExactIndex(store, "v1").search(queries, 5)
    assert [[id for id, _ in row] for row in pieces] == [[id for id, _ in row] for row in whole]


def test_a_stored_window_is_its_own_nearest_neighbour_at_one(crowd: tuple[EmbeddingStore, Vectors]) -> None:
    store, vectors = crowd
    (best, second) = nearest(store, vectors[42] * 5, "v1", k=2)
    assert (best.id, best.sequence, best.source, best.start_s) == (43, 42, "4.wav", 42 * 0.96)
    assert best.score == pytest.approx(1.0, abs=1e-6)
    assert second.score < best.score


def test_what_is_excluded_does_not_come_back(crowd: tuple[EmbeddingStore, Vectors]) -> None:
    store, vectors = crowd
    store.insert([at(0, vectors[42], stream="other")])
    everything = nearest(store, vectors[42], "v1", k=3)
    assert {neighbour.id for neighbour in everything[:2]} == {43, 301}
    assert [n.id for n in nearest(store, vectors[42], "v1", k=2, exclude_ids=[43])] == [301, everything[2].id]
    assert [n.id for n in nearest(store, vectors[42], "v1", k=9, exclude_stream=("pi", "s"))] == [301]


def test_only_embeddings_of_the_version_named_are_compared(store: EmbeddingStore) -> None:
    store.insert([at(0, basis(0)), replace(at(1, basis(1)), version="v2")])
    assert [neighbour.sequence for neighbour in nearest(store, basis(1), "v1", k=5)] == [0]
    assert [neighbour.sequence for neighbour in nearest(store, basis(1), "v2", k=5)] == [1]
    assert nearest(store, basis(1), "v3") == []


def test_a_source_is_ranked_by_the_mean_of_the_best_matches_not_by_its_length(store: EmbeddingStore) -> None:
    store.insert([at(n, basis(0), source="one note, long.wav") for n in range(20)])
    store.insert([at(20, basis(0), source="both notes.wav"), at(21, basis(1), source="both notes.wav")])
    store.insert([at(22, basis(0, 2), source="half.wav"), at(23, basis(5), source=None)])
    found = nearest_sources(store, np.stack([basis(0), basis(1)])[:, None], "v1", k=9)
    assert [match.source for match in found] == ["both notes.wav", "one note, long.wav", "half.wav", "pi/s"]
    assert [match.score for match in found] == pytest.approx([1.0, 0.5, 0.5 / 2**0.5, 0.0], abs=1e-6)
    assert [match.windows for match in found] == [2, 20, 1, 1]
    assert found[2].best.sequence == 22
    assert found[2].best.score == pytest.approx(0.5**0.5)


def test_sources_agree_with_a_plain_loop_over_everything(crowd: tuple[EmbeddingStore, Vectors]) -> None:
    store, vectors = crowd
    clip = np.random.default_rng(2).normal(size=(4, D)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = clip / np.linalg.norm(clip, axis=1, keepdims=True) @ unit.T
    expected = {f"{n}.wav": float(scores[:, 10 * n : 10 * n + 10].max(axis=1).mean()) for n in range(30)}
    found = nearest_sources(store, clip[:, None], "v1", k=30)
    assert {match.source: match.score for match in found} == pytest.approx(expected, abs=1e-6)
    assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)
    assert all(10 * int(m.source[:-4]) <= m.best.sequence < 10 * int(m.source[:-4]) + 10 for m in found)


def test_each_window_is_looked_for_in_the_phase_that_suits_it_best(store: EmbeddingStore) -> None:
    store.insert([at(0, basis(0), source="a.wav"), at(1, basis(2), source="a.wav")])
    clip = np.stack([np.stack([basis(0), basis(4)]), np.stack([basis(5), basis(2)])])
    (found,) = nearest_sources(store, clip, "v1")
    assert found.score == pytest.approx(1.0)


def test_an_excluded_source_is_not_ranked(store: EmbeddingStore) -> None:
    store.insert([at(0, basis(0), source="a.wav"), at(1, basis(1), source="b.wav")])
    found = nearest_sources(store, basis(0)[None, None], "v1", exclude_ids=[1])
    assert [match.source for match in found] == ["b.wav"]


def test_an_empty_store_or_clip_has_no_neighbours(store: EmbeddingStore) -> None:
    assert nearest(store, basis(0), "v1") == []
    assert nearest_sources(store, basis(0)[None, None], "v1") == []
    store.insert([at(0, basis(0))])
    assert nearest_sources(store, np.empty((0, 1, D), np.float32), "v1") == []


@pytest.mark.parametrize("query", [np.zeros((D + 1,), np.float32), np.full(D, np.inf, np.float32)])
def test_a_query_that_is_none_is_refused(store: EmbeddingStore, query: Vectors) -> None:
    store.insert([at(0, basis(0))])
    with pytest.raises(ValueError, match=r"query: expected finite \[N, 8\]"):
        nearest(store, query, "v1")
    with pytest.raises(ValueError, match=r"query: expected \[D\]"):
        nearest(store, basis(0)[None], "v1")
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        nearest(store, basis(0), "v1", k=0)


@pytest.mark.parametrize("chunk", [1, 7, 299, 300])
def test_chunks_of_any_size_find_the_same(crowd: tuple[EmbeddingStore, Vectors], chunk: int) -> None:
    store, vectors = crowd
    queries = vectors[:5] + np.float32(0.2)
    groups = np.arange(300) // 10
    whole, chunked = ExactIndex(store, "v1"), ExactIndex(store, "v1", chunk)
    expected, found = whole.search(queries, 6, exclude_ids=[1]), chunked.search(queries, 6, exclude_ids=[1])
    assert [[id for id, _ in row] for row in found] == [[id for id, _ in row] for row in expected]
    best, nearest_ids = whole.best_per_group(queries, groups, 30, exclude_ids=[1])
    best_chunked, nearest_chunked = chunked.best_per_group(queries, groups, 30, exclude_ids=[1])
    np.testing.assert_allclose(best_chunked, best, atol=1e-6)
    np.testing.assert_array_equal(nearest_chunked, nearest_ids)
