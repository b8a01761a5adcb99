"""Embeddings on a plane: neighbours on the sphere stay neighbours in the picture."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamsplit.lab.series import Numbers

FEW = 10


def place(embeddings: npt.NDArray[np.float32], seed: int) -> tuple[Numbers, str]:
    """Two coordinates per embedding: t-SNE where scikit-learn is installed and there are enough, else principal components.

    Args:
        embeddings: [N, D], N at least 3.
        seed: equal seeds and embeddings give equal maps.

    Returns:
        [N, 2], and the method's name.
    """
    vectors = np.asarray(embeddings, np.float64)
    if len(vectors) < FEW:
        return principal_components(vectors), "PCA"
    try:
        from sklearn.manifold import TSNE
    except ImportError:
        return principal_components(vectors), "PCA"
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    method = TSNE(
        perplexity=perplexity, metric="cosine", init=principal_components(vectors) * 1e-4, random_state=seed
    )
    return np.asarray(method.fit_transform(vectors), np.float64), "t-SNE"


def principal_components(vectors: Numbers) -> Numbers:
    """[N, D] to the two directions of largest variance, [N, 2], scaled to unit deviation on the first; signs are fixed."""
    centred = vectors - vectors.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    chosen = np.zeros((2, vectors.shape[1]))
    chosen[: min(2, len(directions))] = directions[:2]
    largest = np.take_along_axis(chosen, np.abs(chosen).argmax(axis=1)[:, None], axis=1)
    points = centred @ (chosen * np.where(largest < 0, -1.0, 1.0)).T
    spread = float(points[:, 0].std())
    return np.asarray(points / spread if spread > 0 else points)
