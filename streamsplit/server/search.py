"""Exact nearest neighbours among stored embeddings, by cosine.

Exact because it is quick enough: 100,000 embeddings of 128 numbers take about 10 ms a query on one core, and an index that may miss a
neighbour would need its own tests, files and repairs. Only embeddings of one encoder version compare, so a version is always named.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streamsplit.server.store import EmbeddingStore, Ids, StoredWindow, Vectors

CHUNK = 65536
"""Embeddings scored at once: 32 MiB at D = 128."""

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One stored window near a query.

    Attributes:
        id: the store's number.
        score: cosine, in [-1, 1].
        device, stream, sequence: its key.
        start_s: since its stream began.
        source, label: where the sound came from, if it is known.
    """

    id: int
    score: float
    device: str
    stream: str
    sequence: int
    start_s: float
    source: str | None
    label: str | None


@dataclass(frozen=True, slots=True)
class SourceMatch:
    """A recording (or a device's stream, where the recording is not known) near a clip.

    Attributes:
        source: the recording, or "device/stream".
        score: mean over the clip's windows of each one's best cosine with the source, in [-1, 1].
        windows: stored windows of the source.
        best: its window nearest to any window of the clip.
    """

    source: str
    score: float
    windows: int
    best: Neighbour


class ExactIndex:
    """The embeddings of one version in memory, unit length; `refresh` adds what came since.

    For one query `nearest` will do; a process that answers many keeps an index (0.5 KiB a window at D = 128).

    Args:
        store: where they are.
        version: encoder version.
        chunk: embeddings scored at once; bounds the memory of a search, whatever the store holds.
    """

    def __init__(self, store: EmbeddingStore, version: str, chunk: int = CHUNK) -> None:
        self._store = store
        self._chunk = chunk
        self.version = version
        self._ids: list[Ids] = []
        self._vectors: list[Vectors] = []
        self.refresh()

    def __len__(self) -> int:
        return sum(len(ids) for ids in self._ids)

    def refresh(self) -> int:
        """Adds the windows stored since; returns how many."""
        last = int(self._ids[-1][-1]) if self._ids else 0
        ids, vectors = self._store.vectors(self.version, after=last)
        if len(ids):
            self._ids.append(ids)
            self._vectors.append(_unit(vectors))
        return len(ids)

    def search(
        self, queries: Vectors, k: int, exclude_ids: Collection[int] = ()
    ) -> list[list[tuple[int, float]]]:
        """The k best (id, cosine) for each query, best first.

        Scores are right to 1e-6; windows closer together than that (copies of one sound) come in no particular order.

        Args:
            queries: [N, D], any length above 0.
            k: at least 1; fewer come back where there are fewer.
            exclude_ids: windows left out.

        Raises:
            ValueError: `k` is below 1, or the queries are not finite or not of this version's length.
        """
        if k < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        asked = self._checked(queries)
        excluded = np.fromiter(exclude_ids, np.int64, len(exclude_ids))
        best_ids = np.empty((len(asked), 0), np.int64)
        best_scores = np.empty((len(asked), 0), np.float32)
        for ids, vectors in self._chunks():
            scores = asked @ vectors.T
            if len(excluded):
                scores[:, np.isin(ids, excluded)] = -np.inf
            best_ids, best_scores = _best(best_ids, best_scores, ids, scores, k)
        return [
            [(int(id), float(score)) for id, score in zip(*row, strict=True) if np.isfinite(score)]
            for row in zip(best_ids, best_scores, strict=True)
        ]

    def best_per_group(
        self, queries: Vectors, groups: npt.NDArray[np.int64], count: int, exclude_ids: Collection[int] = ()
    ) -> tuple[Scores, Ids]:
        """For each query and group the best cosine, and for each group the id of its window nearest to any query.

        Args:
            queries: [N, D].
            groups: [M] group number, 0 <= group < count, of each window in order of arrival.
            count: how many groups.
            exclude_ids: windows left out.

        Returns:
            [N, count] float32, -inf where a group has no window left, and [count] int64.
        """
        asked = self._checked(queries)
        excluded = np.fromiter(exclude_ids, np.int64, len(exclude_ids))
        best = np.full((len(asked), count), -np.inf, np.float32)
        nearest = np.zeros(count, np.int64)
        nearest_score = np.full(count, -np.inf, np.float32)
        begin = 0
        for ids, vectors in self._chunks():
            members = groups[begin : begin + len(ids)]
            begin += len(ids)
            scores = asked @ vectors.T
            scores[:, np.isin(ids, excluded)] = -np.inf
            order = np.argsort(members, kind="stable")
            present, starts = np.unique(members[order], return_index=True)
            best[:, present] = np.maximum(
                best[:, present], np.maximum.reduceat(scores[:, order], starts, axis=1)
            )
            strongest = scores.max(axis=0)
            for group, begin_of, end_of in zip(present, starts, [*starts[1:], len(order)], strict=True):
                place = order[begin_of:end_of][np.argmax(strongest[order[begin_of:end_of]])]
                if strongest[place] > nearest_score[group]:
                    nearest_score[group], nearest[group] = strongest[place], ids[place]
        return best, nearest

    def _chunks(self) -> list[tuple[Ids, Vectors]]:
        return [
            (ids[begin : begin + self._chunk], vectors[begin : begin + self._chunk])
            for ids, vectors in zip(self._ids, self._vectors, strict=True)
            for begin in range(0, len(ids), self._chunk)
        ]

    def _checked(self, queries: Vectors) -> Vectors:
        asked = np.asarray(queries, np.float32)
        dim = self._vectors[0].shape[1] if self._vectors else asked.shape[-1]
        if asked.ndim != 2 or asked.shape[1] != dim or not np.isfinite(asked).all():
            raise ValueError(
                f"query: expected finite [N, {dim}] for version {self.version}, got shape {asked.shape}"
            )
        return _unit(asked)


def nearest(
    store: EmbeddingStore,
    query: Vectors,
    version: str,
    k: int = 10,
    exclude_stream: tuple[str, str] | None = None,
    exclude_ids: Collection[int] = (),
) -> list[Neighbour]:
    """The stored windows nearest to one embedding, best first.

    Args:
        store: where to look.
        query: [D].
        version: encoder version of the query.
        k: how many at most.
        exclude_stream: (device, stream) left out, e.g. the query's own.
        exclude_ids: windows left out, e.g. the query itself.

    Raises:
        ValueError: the query is no finite [D] of that version.
        StorageError: the store cannot be read.
    """
    if np.ndim(query) != 1:
        raise ValueError(f"query: expected [D], got shape {np.shape(query)}; nearest_many takes [N, D]")
    return nearest_many(store, np.asarray(query)[None], version, k, exclude_stream, exclude_ids)[0]


def nearest_many(
    store: EmbeddingStore,
    queries: Vectors,
    version: str,
    k: int = 10,
    exclude_stream: tuple[str, str] | None = None,
    exclude_ids: Collection[int] = (),
) -> list[list[Neighbour]]:
    """`nearest` for each of [N, D] embeddings, reading the store once."""
    index = ExactIndex(store, version)
    found = index.search(queries, k, _excluded(store, exclude_stream, exclude_ids))
    return [_neighbours(store, hits) for hits in found]


def nearest_sources(
    store: EmbeddingStore,
    clip: Vectors,
    version: str,
    k: int = 10,
    exclude_stream: tuple[str, str] | None = None,
    exclude_ids: Collection[int] = (),
) -> list[SourceMatch]:
    """The recordings nearest to a clip, best first.

    Every window of the clip looks for its best match in each source, in the phase that suits it best; a source's score is the mean of
    these. So a long recording gains
    nothing by its length alone, and a source that matches the whole clip comes before one that matches one window of it.

    Args:
        store: where to look.
        clip: [N, P, D], the clip's windows, each cut at P places.
        version: encoder version of the clip's embeddings.
        k: how many sources at most.
        exclude_stream, exclude_ids: left out.

    Raises:
        ValueError: the clip is no finite [N, P, D] of that version.
        StorageError: the store cannot be read.
    """
    index = ExactIndex(store, version)
    ids, origins = store.origins(version)
    ids, origins = ids[: len(index)], origins[: len(index)]  # windows may have come in between
    if not origins or not len(clip):
        return []
    names, groups = np.unique(np.array(origins, object).astype(str), return_inverse=True)
    best, closest = index.best_per_group(
        clip.reshape(-1, clip.shape[-1]),
        groups.astype(np.int64),
        len(names),
        _excluded(store, exclude_stream, exclude_ids),
    )
    best = best.reshape(*clip.shape[:2], -1).max(axis=1)
    scores = best.mean(axis=0)
    sizes = np.bincount(groups, minlength=len(names))
    ranked = [place for place in np.argsort(-scores, kind="stable")[:k] if np.isfinite(scores[place])]
    closest_windows = _neighbours(
        store, [(int(closest[place]), float(best[:, place].max())) for place in ranked]
    )
    return [
        SourceMatch(str(names[place]), float(scores[place]), int(sizes[place]), neighbour)
        for place, neighbour in zip(ranked, closest_windows, strict=True)
    ]


def _best(ids_before: Ids, scores_before: Scores, ids: Ids, scores: Scores, k: int) -> tuple[Ids, Scores]:
    """The k best of those before and of a chunk, per query: [N, k] each, best first."""
    if scores.shape[1] > k:
        threshold = np.partition(scores, scores.shape[1] - k, axis=1)[:, -k]
        kept = np.flatnonzero((scores >= threshold[:, None]).any(axis=0))
        ids, scores = ids[kept], scores[:, kept]
    all_ids = np.concatenate([ids_before, np.broadcast_to(ids, scores.shape)], axis=1)
    all_scores = np.concatenate([scores_before, scores], axis=1)
    order = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(all_ids, order, axis=1), np.take_along_axis(all_scores, order, axis=1)


def _neighbours(store: EmbeddingStore, hits: list[tuple[int, float]]) -> list[Neighbour]:
    windows = ((store.get(id), score) for id, score in hits)
    return [_neighbour(window, score) for window, score in windows if window is not None]


def _neighbour(window: StoredWindow, score: float) -> Neighbour:
    return Neighbour(
        id=window.id,
        score=min(1.0, max(-1.0, score)),
        device=window.device,
        stream=window.stream,
        sequence=window.sequence,
        start_s=window.start_s,
        source=window.source,
        label=window.label,
    )


def _excluded(store: EmbeddingStore, stream: tuple[str, str] | None, ids: Collection[int]) -> Collection[int]:
    if stream is None:
        return ids
    return {*ids, *map(int, store.ids(*stream))}


def _unit(vectors: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)
