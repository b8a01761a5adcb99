"""What the device would lose by embedding a window itself, predicted from its own embedding.

    lite embedding -> DisagreementHead -> expected 1 - cos(lite, dense)
                          ^ acknowledgements of offloaded windows carry the true value and the lite embedding (`Acknowledgement.own_embedding`)

Label-free. Our measurement on ESC-50 with the shipped `compact` (14,400 windows, folds left out in turn): taught on 200, 1,000 and 4,000
windows of other clips the head ranks "among the 20 % worst" with AUROC 0.89, 0.92 and 0.93; taught on the dense embeddings of these
windows, 0.85, 0.80 and 0.56. The entropy of mixture posteriors, which the paper uses, reached 0.39 to 0.58 for its own target.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import save as to_bytes

from streamsplit.errors import ConfigError, StorageError
from streamsplit.learning.tensor_file import TensorFormat, finite, read_tensors

Array = npt.NDArray[np.float64]

FORMAT: Final = "streamsplit-disagreement"
FORMAT_VERSION: Final = 1
KIND: Final = TensorFormat(FORMAT, FORMAT_VERSION, "disagreement head", "np")
MOST: Final = 2.0
"""1 - cosine is in 0..2."""


@dataclass(frozen=True, slots=True)
class HeadSettings:
    """How the head learns.

    Attributes:
        horizon_windows: how far back it remembers: a window's weight falls to 1/e after so many later ones.
        ridge: strength of the pull of its weights to 0, in windows of unit norm.
        refit_every: windows between solutions of its normal equations (0.4 ms each).
        fewest: windows it must have learned before it predicts.

    Raises:
        ConfigError: a number out of range.
    """

    horizon_windows: int = 5000
    ridge: float = 0.1
    refit_every: int = 16
    fewest: int = 32

    def __post_init__(self) -> None:
        for name in ("horizon_windows", "refit_every", "fewest"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if not 0 < self.ridge < np.inf:
            raise ConfigError(f"ridge: expected a number above 0, got {self.ridge}")


class DisagreementHead:
    """Ridge regression with forgetting, from decayed sufficient statistics.

    Sums and not the usual recursive inverse: that forgets its ridge with its data and blows up on a stream that stays in one place.
    Least squares with a free mean is calibrated by itself (expected calibration error 0.003 after 200 windows, truth 0.17 +- 0.05); a
    line through its past predictions and the truth, tried as a correction, made it worse on streams in order: it corrects mistakes
    that newer weights no longer make. State: 8 (D + 1)^2 bytes, 133 KB at D = 128, whatever it has seen.

    Args:
        dim: D of what it predicts from: the lite embedding, or any fixed features of a window of about unit norm.
        settings: the defaults unless told.
    """

    def __init__(self, dim: int, settings: HeadSettings | None = None) -> None:
        if dim < 1:
            raise ConfigError(f"head: expected 1 dimension or more, got {dim}")
        self.dim = dim
        self.settings = settings or HeadSettings()
        self.learned = 0
        self._since_fit = 0
        self._gram = np.zeros((dim + 1, dim + 1))
        self._cross = np.zeros(dim + 1)
        self._weights = np.zeros(dim + 1)
        # Of windows predicted before they were learned: weight, sums of squared error, truth, squared truth.
        self._checked = np.zeros(4)

    @property
    def ready(self) -> bool:
        """Whether it predicts."""
        return self.learned >= self.settings.fewest

    @property
    def skill(self) -> float | None:
        """Share of the disagreement's variance it predicted beforehand: 1 perfect, 0 no better than the mean; None before it can."""
        weight, missed, truth, squared = self._checked
        if weight < 2 or squared - truth * truth / weight <= 1e-12:
            return None
        return float(1.0 - missed / (squared - truth * truth / weight))

    def predict(self, embeddings: npt.ArrayLike) -> Array | None:
        """Expected disagreement of windows: [B, D] to [B] in 0..2, or None before `fewest` windows were learned."""
        if not self.ready:
            return None
        predicted: Array = np.clip(self._inputs(embeddings) @ self._weights, 0.0, MOST)
        return predicted

    def learn(self, embeddings: npt.ArrayLike, disagreements: npt.ArrayLike) -> None:
        """Takes what the server found out about windows this device had embedded.

        Args:
            embeddings: [B, D] the device's own embeddings, in the order the answers came.
            disagreements: [B] in 0..2.

        Raises:
            ValueError: wrong shapes, numbers that are not finite or out of range; nothing was learned.
        """
        inputs, truths = self._inputs(embeddings), np.asarray(disagreements, dtype=np.float64)
        if truths.shape != (len(inputs),) or not ((truths >= 0) & (truths <= MOST)).all():
            raise ValueError(
                f"disagreement: expected {len(inputs)} numbers in 0..2, got shape {truths.shape} within "
                f"{truths.min(initial=np.inf)}..{truths.max(initial=-np.inf)}"
            )
        for one, truth in zip(inputs, truths, strict=True):
            self._learn(one, float(truth))

    def solution(self) -> Array:
        """Weights [D + 1] of everything learned, the last one of a constant: what `predict` multiplies by."""
        if self._since_fit:
            self._fit()
        return self._weights.copy()

    def discount(self, keep: float) -> None:
        """Believes what was learned only to a share `keep` in 0..1: for new encoder weights, whose embeddings differ a little."""
        if not 0 <= keep <= 1:
            raise ValueError(f"discount: expected a share in 0..1, got {keep}")
        self._gram *= keep
        self._cross *= keep
        self._checked *= keep

    def save(self) -> bytes:
        """All of it as a safetensors file: restored, it goes on to the bit."""
        # One entry: safetensors writes several in random order, and equal heads are to be equal files.
        said = json.dumps(
            {"format_version": FORMAT_VERSION, "settings": asdict(self.settings)}, sort_keys=True
        )
        return to_bytes(
            {
                "gram": self._gram,
                "cross": self._cross,
                "weights": self._weights,
                "checked": self._checked,
                "counts": np.array([self.learned, self._since_fit], dtype=np.int64),
            },
            {FORMAT: said},
        )

    @classmethod
    def restore(cls, path: Path) -> DisagreementHead:
        """The head whose `save` is in this file.

        Raises:
            ConfigError: another kind of file, or of another format.
            StorageError: missing, damaged or not finite.
        """
        said, arrays = read_tensors(path, KIND)
        try:
            settings = HeadSettings(**said["settings"])
            head = cls(len(arrays["cross"]) - 1, settings)
            head.learned, head._since_fit = (int(count) for count in arrays["counts"])
            for name in ("gram", "cross", "weights", "checked"):
                own = getattr(head, f"_{name}")
                own[...] = finite(path, arrays, name, own.shape)
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{path}: damaged: {error}") from error
        return head

    def _learn(self, one: Array, truth: float) -> None:
        decay = 1.0 - 1.0 / self.settings.horizon_windows
        if self.ready:
            missed = float(np.clip(one @ self._weights, 0.0, MOST)) - truth
            self._checked *= decay
            self._checked += (1.0, missed * missed, truth, truth * truth)
        self._gram *= decay
        self._gram += one[:, None] * one
        self._cross *= decay
        self._cross += one * truth
        self.learned += 1
        self._since_fit += 1
        if self.learned == self.settings.fewest or self._since_fit >= self.settings.refit_every:
            self._fit()

    def _fit(self) -> None:
        pull = np.full(self.dim + 1, self.settings.ridge)
        pull[-1] = 1e-6  # the mean is not pulled to 0
        # torch keeps to the threads a device is given; numpy's solver starts one per core, which spin: 18 ms instead of 0.4.
        gram = torch.from_numpy(self._gram + np.diag(pull))
        self._weights[:] = torch.linalg.solve(gram, torch.from_numpy(self._cross)).numpy()
        self._since_fit = 0

    def _inputs(self, embeddings: npt.ArrayLike) -> Array:
        given = np.asarray(embeddings, dtype=np.float64)
        if given.ndim != 2 or given.shape[1] != self.dim or not np.isfinite(given).all():
            raise ValueError(f"embeddings: expected finite [B, {self.dim}], got shape {given.shape}")
        return np.concatenate([given, np.ones((len(given), 1))], axis=1)


# How good a prediction is.


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Predictions against the truth, in bins of equal size from the lowest prediction to the highest.

    Attributes:
        predicted, actual: [bins] means.
        windows: [bins] how many.
        error: mean over windows of the distance between their bin's two means (expected calibration error).
    """

    predicted: Array
    actual: Array
    windows: npt.NDArray[np.int64]
    error: float


def reliability(predicted: npt.ArrayLike, actual: npt.ArrayLike, bins: int = 10) -> Reliability:
    """How far predictions can be taken at their word.

    Raises:
        ValueError: not two vectors of one length of at least `bins`.
    """
    guess, truth = _both(predicted, actual)
    if not 1 <= bins <= len(guess):
        raise ValueError(f"reliability: expected 1..{len(guess)} bins, got {bins}")
    parts = np.array_split(np.argsort(guess, kind="stable"), bins)
    means: Array = np.array([guess[part].mean() for part in parts])
    truths: Array = np.array([truth[part].mean() for part in parts])
    windows: npt.NDArray[np.int64] = np.array([len(part) for part in parts])
    apart = float((np.abs(means - truths) * windows).sum() / len(guess))
    return Reliability(means, truths, windows, apart)


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Probability that a positive scores higher than a negative, ties counting half: 1 perfect, 0.5 chance.

    Raises:
        ValueError: not two vectors of one length, or all of one kind.
    """
    score, truth = _both(scores, positive)
    is_positive = truth > 0.5
    many = int(is_positive.sum())
    if many in (0, len(score)):
        raise ValueError(f"auroc: expected positives and negatives, got {many} positives of {len(score)}")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    return float((ranks[is_positive].sum() - many * (many + 1) / 2) / (many * (len(score) - many)))


def recovered(scores: npt.ArrayLike, gains: npt.ArrayLike, share: float = 0.2) -> float:
    """Of all that offloading every window would gain, the part that offloading the highest-scored `share` of them gains.

    Raises:
        ValueError: not two vectors of one length, a share outside 0..1, or nothing to gain.
    """
    score, gain = _both(scores, gains)
    if not 0 <= share <= 1 or not gain.sum() > 0:
        raise ValueError(
            f"recovered: expected a share in 0..1 and a gain above 0, got {share} and {gain.sum()}"
        )
    chosen = np.argsort(-score, kind="stable")[: round(share * len(score))]
    return float(gain[chosen].sum() / gain.sum())


def recovered_by_chance(gains: npt.ArrayLike, share: float = 0.2) -> tuple[float, float]:
    """Mean and standard deviation of what offloading a `share` of the windows by chance recovers: what a signal has to beat.

    Exact, for samples without replacement: no draws are made.

    Raises:
        ValueError: fewer than two windows, else as `recovered`.
    """
    gain, _ = _both(gains, gains)
    if not 0 <= share <= 1 or not gain.sum() > 0 or len(gain) < 2:
        raise ValueError(
            f"recovered: expected a share in 0..1 and a gain above 0 of 2 windows or more, got {share}, {gain.sum()} and {len(gain)}"
        )
    drawn = round(share * len(gain))
    spread = np.sqrt(drawn * (1.0 - drawn / len(gain)) * gain.var(ddof=1))
    return drawn / len(gain), float(spread / gain.sum())


def _both(one: npt.ArrayLike, other: npt.ArrayLike) -> tuple[Array, Array]:
    first, second = np.asarray(one, dtype=np.float64), np.asarray(other, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape or len(first) == 0:
        raise ValueError(f"expected two vectors of one length, got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("expected finite numbers, got some that are not")
    return first, second
