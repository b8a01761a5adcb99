"""Where some windows have labels: a small linear head that the server teaches and pushes, and what it makes a device unsure of.

    labelled windows, as their device embeds them -> LabelTeacher (server) -> LabelHead -> every device of the version
    a window's own embedding -> LabelHead -> entropy and margin of its class probabilities, and how likely offloading changes the class
                             -> ComponentClasses: what the head said of the windows each component of the memory explained -> entropy

Linear discriminant analysis, from sums: one pass, no labels kept, and a head is one 128 x 128 solution. On the single windows of ESC-50
(50 classes, 1,600 clips, a fold of four left out; weights of 24,000 pairs, seeds 1 and 2) it is right about 37.5 and 38.7 %, scikit-learn's
logistic regression about 38.1 and 38.4; AUROC of "the probe is wrong": its entropy 0.73 and 0.74, its margin 0.71 and 0.72, the entropy through
the memory's components 0.50 and 0.48, predicted 1 - cosine 0.63 and 0.64. Lite and dense embeddings need heads of their own: a regression
taught on dense ones is right about 23 % of lite ones.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from streamsplit.errors import PayloadError, StorageError
from streamsplit.learning.tensor_file import TensorFormat, finite, read_tensors

Array = npt.NDArray[np.float64]

FORMAT: Final = "streamsplit-labels"
FORMAT_VERSION: Final = 1
KIND: Final = TensorFormat(FORMAT, FORMAT_VERSION, "label teacher", "np")
MOST_TAUGHT: Final = 1024
"""Labels that a teacher keeps apart: one more takes the place of the rarest."""
MOST_CLASSES: Final = 64
"""Of a head: the most frequent ones. What is none of them is told as one of them."""
MOST_NAME: Final = 256
FEWEST: Final = 8
"""Windows of a class before the head knows it."""
SHRINKAGE: Final = 0.02
"""Share of the covariance within classes that is replaced by a sphere: 0.1 and 0.3 cost 1 and 3 points."""
HORIZON_WINDOWS: Final = 100_000
"""How far back the teacher remembers."""
EXPLAINED_WINDOWS: Final = 2000
"""How far back what a component stood for is remembered."""
_PRIOR_WINDOWS = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What a head says of windows.

    Attributes:
        probabilities: [B, C].
        entropy: [B] of them, over its greatest value: 0..1.
        margin: [B] by how much the likeliest class is likelier than the next, 0..1.
        change: [B] how likely the head of the dense embedding holds another class for the likeliest, 0..1; None where nobody knows.
    """

    probabilities: Array
    entropy: Array
    margin: Array
    change: Array | None


@dataclass(frozen=True, slots=True, eq=False)
class LabelHead:
    """Class probabilities are the softmax of `embedding @ weights.T + bias`.

    Attributes:
        classes: C names.
        weights: [C, D] float32.
        bias: [C] float32.
        change: [D + 3] float32, of `change_inputs` and of 1; None where it is not known (see `HeadTeacher`).
    """

    classes: tuple[str, ...]
    weights: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    change: npt.NDArray[np.float32] | None = None

    def judge(self, embeddings: npt.ArrayLike) -> Judged:
        """Of windows' own embeddings, [B, D]."""
        scores = np.asarray(embeddings, np.float64) @ self.weights.T.astype(np.float64) + self.bias
        scores -= scores.max(axis=1, keepdims=True)
        likelihoods = np.exp(scores)
        probabilities: Array = likelihoods / likelihoods.sum(axis=1, keepdims=True)
        first = np.partition(probabilities, -2, axis=1)[:, -2:]
        judged = Judged(probabilities, entropy(probabilities), first[:, 1] - first[:, 0], None)
        if self.change is None:
            return judged
        likely = change_inputs(embeddings, judged) @ self.change[:-1] + self.change[-1]
        return replace(judged, change=np.clip(likely, 0.0, 1.0))

    def verdicts(self, judged: Judged) -> list[str]:
        """The likeliest class of each window that it has judged."""
        return [self.classes[place] for place in judged.probabilities.argmax(axis=1)]

    def pack(self) -> bytes:
        """The head as a safetensors file."""
        told = json.dumps({"format_version": FORMAT_VERSION, "classes": self.classes}, ensure_ascii=False)
        tensors: dict[str, npt.NDArray[np.generic]] = {"bias": self.bias, "weights": self.weights}
        tensors["settings"] = np.frombuffer(told.encode(), dtype=np.uint8)
        if self.change is not None:
            tensors["change"] = self.change
        return to_bytes(tensors)

    @classmethod
    def unpack(cls, content: bytes, dim: int) -> LabelHead:
        """The inverse of `pack`.

        Args:
            content: from a server.
            dim: D of the version that it is for.

        Raises:
            PayloadError: not a head, of another format or D, damaged, or of numbers that are not finite.
        """
        try:
            tensors = from_bytes(content)
        except SafetensorError as error:
            raise PayloadError(
                f"label head: expected safetensors, got {len(content)} other bytes: {error}"
            ) from None
        try:
            said = json.loads(tensors["settings"].tobytes())
            version, classes = said["format_version"], said["classes"]
            weights, bias, change = tensors["weights"], tensors["bias"], tensors.get("change")
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise PayloadError(f"label head: damaged: {error!r}") from None
        if version != FORMAT_VERSION:
            raise PayloadError(f"label head: expected format {FORMAT_VERSION}, got {version!r}")
        if (
            not isinstance(classes, list)
            or not 2 <= len(classes) <= MOST_CLASSES
            or not all(isinstance(name, str) and len(name) <= MOST_NAME for name in classes)
        ):
            raise PayloadError(
                f"label head: expected 2 to {MOST_CLASSES} names of at most {MOST_NAME} characters"
            )
        for name, tensor, shape in (
            ("weights", weights, (len(classes), dim)),
            ("bias", bias, (len(classes),)),
            ("change", change, (dim + 3,)),
        ):
            if tensor is None:
                continue  # an older server's, or one that has not seen both embeddings yet
            if tensor.shape != shape or tensor.dtype != np.float32 or not np.isfinite(tensor).all():
                raise PayloadError(
                    f"label head {name}: expected finite float32 {shape}, got {tensor.dtype} {tensor.shape}"
                )
        return cls(tuple(classes), weights, bias, change)


def most_bytes(dim: int) -> int:
    """Of a packed head of D dimensions, at most."""
    return MOST_CLASSES * (4 * (dim + 1) + 6 * MOST_NAME) + 4 * (dim + 3) + 4096


def change_inputs(embeddings: npt.ArrayLike, judged: Judged) -> Array:
    """What a change of the verdict is predicted from: windows' own embeddings, margins and entropies, [B, D + 2]."""
    return np.column_stack([np.asarray(embeddings, np.float64), judged.margin, judged.entropy])


def entropy(probabilities: npt.ArrayLike) -> Array:
    """Of each row, [B, C], over the greatest there can be: 0..1."""
    shares = np.asarray(probabilities, np.float64)
    told: Array = -(shares * np.log(np.maximum(shares, 1e-12))).sum(axis=1) / np.log(shares.shape[1])
    return np.clip(told, 0.0, 1.0)


class LabelTeacher:
    """Discriminant analysis from sums that forget: 8 (D^2 + C (D + 1)) bytes, whatever it has seen.

    Args:
        dim: D.

    Attributes:
        learned: windows.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.learned = 0
        self._places: dict[str, int] = {}
        self._gram = np.zeros((dim, dim))
        self._sums = np.zeros((0, dim))
        self._counts = np.zeros(0)

    def learn(self, embeddings: npt.ArrayLike, labels: Sequence[str]) -> None:
        """Takes windows, [B, D] as their device embeds them, and their labels.

        Raises:
            ValueError: wrong shapes, or numbers that are not finite; nothing was learned.
        """
        rows = np.asarray(embeddings, np.float64)
        if rows.shape != (len(labels), self.dim) or not np.isfinite(rows).all():
            raise ValueError(
                f"labels: expected {len(labels)} finite rows of {self.dim}, got shape {rows.shape}"
            )
        keep = (1.0 - 1.0 / HORIZON_WINDOWS) ** len(rows)
        for kept in (self._gram, self._sums, self._counts):
            kept *= keep
        self._gram += rows.T @ rows
        for row, label in zip(rows, labels, strict=True):
            place = self._place(label)
            self._sums[place] += row
            self._counts[place] += 1.0
        self.learned += len(rows)

    def head(self) -> LabelHead | None:
        """What it has come to; None while fewer than two classes are known."""
        known = np.flatnonzero(self._counts >= FEWEST)
        known = np.sort(known[np.argsort(-self._counts[known], kind="stable")[:MOST_CLASSES]])
        if len(known) < 2:
            return None
        counts = np.maximum(self._counts, 1e-9)
        within = (self._gram - (self._sums.T / counts) @ self._sums) / self._counts.sum()
        sphere = np.eye(self.dim) * max(float(np.trace(within)) / self.dim, 1e-9)
        means = self._sums[known] / counts[known, None]
        weights = np.linalg.solve((1.0 - SHRINKAGE) * within + SHRINKAGE * sphere, means.T).T
        share = counts[known] / counts[known].sum()
        bias = np.log(share) - 0.5 * (weights * means).sum(axis=1)
        names = list(self._places)
        classes = tuple(names[place] for place in known)
        # Row by row: safetensors writes an array as it lies in memory, whatever its strides say.
        return LabelHead(classes, np.ascontiguousarray(weights, np.float32), bias.astype(np.float32))

    def save(self) -> bytes:
        """All of it as a safetensors file."""
        said = json.dumps({"format_version": FORMAT_VERSION, "classes": list(self._places)})
        tensors = {"gram": self._gram, "sums": self._sums, "counts": self._counts}
        return to_bytes(tensors | {"learned": np.array([self.learned])}, {FORMAT: said})

    @classmethod
    def restore(cls, path: Path) -> LabelTeacher:
        """The teacher whose `save` is in this file.

        Raises:
            ConfigError: another kind of file, or of another format.
            StorageError: missing, damaged or not finite.
        """
        said, arrays = read_tensors(path, KIND)
        try:
            classes, gram = [str(name) for name in said["classes"]], arrays["gram"]
            teacher = cls(len(gram))
            teacher._places = {name: place for place, name in enumerate(classes)}
            teacher.learned = int(arrays["learned"][0])
            teacher._gram = finite(path, arrays, "gram", (teacher.dim, teacher.dim))
            teacher._sums = finite(path, arrays, "sums", (len(classes), teacher.dim))
            teacher._counts = finite(path, arrays, "counts", (len(classes),))
        except (KeyError, TypeError, IndexError) as error:
            raise StorageError(f"{path}: damaged: {error}") from error
        return teacher

    def _place(self, label: str) -> int:
        """The label's row; that of the rarest label where there are too many."""
        label = label[:MOST_NAME]
        place = self._places.get(label)
        if place is not None:
            return place
        if len(self._places) == MOST_TAUGHT:
            place = int(self._counts.argmin())
            names = list(self._places)
            names[place] = label
            self._places = {name: row for row, name in enumerate(names)}
            self._sums[place], self._counts[place] = 0.0, 0.0
            return place
        self._places[label] = len(self._places)
        self._sums = np.vstack([self._sums, np.zeros((1, self.dim))])
        self._counts = np.append(self._counts, 0.0)
        return self._places[label]


class ComponentClasses:
    """What each component of the memory stands for: the running mean of what the head said of the windows it explained.

    Args:
        components: K.
        classes: C.
    """

    def __init__(self, components: int, classes: int) -> None:
        self._said = np.full((components, classes), _PRIOR_WINDOWS / classes)

    def learn(self, posteriors: npt.ArrayLike, probabilities: npt.ArrayLike) -> None:
        """Takes windows: the components given each, [B, K], and the head's class probabilities, [B, C]."""
        shares = np.asarray(posteriors, np.float64)
        self._said *= (1.0 - 1.0 / EXPLAINED_WINDOWS) ** len(shares)
        self._said += shares.T @ np.asarray(probabilities, np.float64) + 1e-9

    def entropy(self, posteriors: npt.ArrayLike) -> Array:
        """[B] of the classes that the components given each window stand for: 0..1."""
        stands_for = self._said / self._said.sum(axis=1, keepdims=True)
        return entropy(np.asarray(posteriors, np.float64) @ stands_for)
