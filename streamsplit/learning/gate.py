"""Whether a new version may be published: never an encoder that has collapsed, or is worse than the one it would replace.

    quality(held-out embeddings) of candidate and serving version, per path -> judge -> Verdict, which says why

Collapse has three faces, and each has a gate: few directions are used (effective rank), points crowd together (uniformity), all sit in
a narrow cone (norm of the mean vector). None of them needs labels; nor does `neighbour_agreement`, whether windows of one recording
find each other, which falls when an encoder spreads its embeddings without regard to sound. Where labels are known, they are asked too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.errors import ConfigError
from streamsplit.learning.losses import effective_rank, uniformity
from streamsplit.learning.probe import nearest_neighbour_accuracy

NEIGHBOURS = 5
NOISE = 0.9
"""Of an effective rank: versions of equal quality had ranks this far apart on held-out windows."""


@dataclass(frozen=True, slots=True)
class Quality:
    """One path of one version on held-out windows.

    Attributes:
        windows: how many.
        effective_rank: 0..D.
        uniformity: 0 collapsed, about -3.9 uniform.
        mean_norm: length of the mean embedding, 0..1; 1 collapsed.
        agreement: share of nearest neighbours that are from the same recording, 0..1.
        accuracy: of nearest neighbours' labels or of a probe, 0..1; None without labels.
    """

    windows: int
    effective_rank: float
    uniformity: float
    mean_norm: float
    agreement: float
    accuracy: float | None = None

    @property
    def finite(self) -> bool:
        """Whether every figure is a number."""
        known = [self.effective_rank, self.uniformity, self.mean_norm, self.agreement, self.accuracy or 0.0]
        return all(math.isfinite(value) for value in known)


@dataclass(frozen=True, slots=True)
class GateSettings:
    """What is asked of a candidate. Floors hold whatever is served now; falls are against the serving version.

    Attributes:
        least_effective_rank: floor.
        least_while_better: floor where neighbours agree more than before by more than `agreement_fall` or chance, or points lie more
            evenly: learning from random weights, an encoder went from 98 directions of 128 to 22 and on to 30, better all the way.
        most_mean_norm: ceiling: embeddings of trained encoders sit in a cone of 0.88 to 0.97 in our measurements.
        rank_fall: share of the serving version's effective rank that may be lost, unless neighbours agree more or points lie more evenly.
        uniformity_gain: how much further from 0 uniformity must come for that.
        enough_rank: from here on a fall says nothing: on a few hundred windows of real sound random weights had 98, trained ones 25 to 35.
        uniformity_rise: how much nearer to 0 uniformity may come.
        mean_norm_rise: how much the mean vector may grow.
        agreement_fall: how much neighbours' agreement may fall; with few windows, what chance alone may move it: one standard error, were
            all of a window's neighbours alike.
        accuracy_fall: how much accuracy may fall.

    Raises:
        ConfigError: a number out of range.
    """

    least_effective_rank: float = 20.0
    least_while_better: float = 10.0
    most_mean_norm: float = 0.98
    rank_fall: float = 0.2
    enough_rank: float = 24.0
    uniformity_rise: float = 0.1
    uniformity_gain: float = 0.05
    mean_norm_rise: float = 0.05
    agreement_fall: float = 0.02
    accuracy_fall: float = 0.02

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}: expected a number from 0, got {getattr(self, name)}")


FLOORS_ALONE = GateSettings(
    rank_fall=1.0, uniformity_rise=4.0, mean_norm_rise=1.0, agreement_fall=1.0, accuracy_fall=1.0
)
"""Of what would replace random weights. They are no standard: on real sound they had more directions and, after ten steps of training,
neighbours that agreed more than those of what was learned."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to publish.

    Attributes:
        publish: True if nothing speaks against it.
        reasons: what does, one line each: path, figure, value, what was asked.
        candidate: path -> its quality.
        serving: path -> the serving version's; empty if none is served yet.
    """

    publish: bool
    reasons: tuple[str, ...]
    candidate: Mapping[str, Quality]
    serving: Mapping[str, Quality]

    def __str__(self) -> str:
        if self.publish:
            return "publish: " + "; ".join(f"{path}: {_said(one)}" for path, one in self.candidate.items())
        return "refused: " + "; ".join(self.reasons)


def quality(
    embeddings: Tensor,
    recordings: Sequence[str],
    labels: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> Quality:
    """Measures one path's embeddings of held-out windows.

    Args:
        embeddings: [N, D] unit norm, the same windows for both versions; a few hundred from many recordings.
        recordings: of each, the recording (or stretch of stream) it is from.
        labels: of each, where they are known.
        groups: of each, with labels: no group answers for itself; the recordings unless told.

    Returns:
        Figures that are NaN where embeddings are not finite; `judge` refuses them.

    Raises:
        ValueError: fewer than 3 windows, or lengths that differ.
    """
    if embeddings.ndim != 2 or len(embeddings) < 3 or len(recordings) != len(embeddings):
        raise ValueError(
            f"gate: expected 3 embeddings or more, with a recording each, got {list(embeddings.shape)} and {len(recordings)}"
        )
    z = embeddings.detach().float().cpu()
    if not bool(torch.isfinite(z).all()):
        return Quality(len(z), math.nan, math.nan, math.nan, math.nan, None if labels is None else math.nan)
    accuracy = None if labels is None else nearest_neighbour_accuracy(z, labels, groups or recordings)
    return Quality(
        windows=len(z),
        effective_rank=effective_rank(z),
        uniformity=float(uniformity(z)),
        mean_norm=float(z.mean(0).norm()),
        agreement=neighbour_agreement(z, recordings),
        accuracy=accuracy,
    )


def neighbour_agreement(embeddings: Tensor, recordings: Sequence[str], neighbours: int = NEIGHBOURS) -> float:
    """Share of windows' nearest neighbours that are from their own recording, of as many as there could be.

    Args:
        embeddings: [N, D]; compared by cosine after centring.
        recordings: of each; windows that are alone in theirs are neighbours but are not asked.
        neighbours: how many of each are looked at, fewer where its recording has fewer others.

    Returns:
        0..1; 0 if every window is alone.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(recordings))}
    own = torch.tensor([names[name] for name in recordings])
    same = (own[:, None] == own).fill_diagonal_(False)
    unit = F.normalize(embeddings.float() - embeddings.float().mean(0), dim=1)
    looked = min(neighbours, len(own) - 1)
    nearest = (unit @ unit.T).fill_diagonal_(-2.0).topk(looked, dim=1).indices
    possible = same.sum(1).clamp(max=looked)
    hits = same.gather(1, nearest) & (torch.arange(looked) < possible[:, None])
    return float(hits.sum() / possible.sum().clamp(min=1))


def judge(
    candidate: Mapping[str, Quality], serving: Mapping[str, Quality], settings: GateSettings | None = None
) -> Verdict:
    """Compares a candidate with what is served now, path by path.

    Args:
        candidate: path -> quality on held-out windows.
        serving: the same windows through the serving version; empty if there is none. The floors are not asked of a figure in
            which the serving version is below them itself: refusing what is better would keep the worse one for ever.
        settings: the defaults unless told.

    Raises:
        ValueError: no path, paths that differ, or figures of different windows.
    """
    asked = settings or GateSettings()
    if not candidate or (serving and serving.keys() != candidate.keys()):
        raise ValueError(f"gate: expected the same paths, got {sorted(candidate)} and {sorted(serving)}")
    reasons: list[str] = []
    for path, new in candidate.items():
        old = serving.get(path)
        if old is not None and old.windows != new.windows:
            raise ValueError(f"gate: {path}: expected the same windows, got {new.windows} and {old.windows}")
        if not new.finite:
            reasons.append(f"{path}: embeddings are not finite")
            continue
        trusted = old if old is not None and old.finite else None
        reasons += [f"{path}: {reason}" for reason in _floors(new, trusted, asked)]
        if trusted is not None:
            reasons += [f"{path}: {reason}" for reason in _falls(new, trusted, asked)]
    return Verdict(not reasons, tuple(reasons), dict(candidate), dict(serving))


def _floors(new: Quality, old: Quality | None, asked: GateSettings) -> list[str]:
    least, most = asked.least_effective_rank, asked.most_mean_norm
    if old is not None:
        collapsed = asked.least_while_better
        if _better(new, old, asked):
            least = min(collapsed, old.effective_rank)
        elif old.effective_rank < least:
            # One that is below the floor may be followed by its like: ranks of a few hundred windows differ by some per cent.
            least = max(NOISE * old.effective_rank, min(collapsed, old.effective_rank))
        most = max(most, old.mean_norm)
    reasons = []
    if new.effective_rank < least:
        reasons.append(f"effective rank {new.effective_rank:.1f}, expected {least:.1f} or more")
    if new.mean_norm > most:
        reasons.append(f"mean vector {new.mean_norm:.3f}, expected {most:.3f} or less")
    return reasons


def _better(new: Quality, old: Quality, asked: GateSettings) -> bool:
    """Whether fewer directions come of learning and not of collapse, which brings points together."""
    more_even = new.uniformity < old.uniformity - asked.uniformity_gain
    return more_even or new.agreement > old.agreement + _chance(old, asked)


def _chance(old: Quality, asked: GateSettings) -> float:
    """How far apart two agreements may be and be called equal: `agreement_fall`, or a standard error if that is more."""
    return max(asked.agreement_fall, math.sqrt(old.agreement * (1 - old.agreement) / old.windows))


def _falls(new: Quality, old: Quality, asked: GateSettings) -> list[str]:
    reasons = []
    enough = min(asked.enough_rank, (1 - asked.rank_fall) * old.effective_rank)
    if new.effective_rank < enough and not _better(new, old, asked):
        reasons.append(f"effective rank fell from {old.effective_rank:.1f} to {new.effective_rank:.1f}")
    if new.uniformity > old.uniformity + asked.uniformity_rise:
        reasons.append(f"uniformity rose from {old.uniformity:.2f} to {new.uniformity:.2f}")
    if new.mean_norm > old.mean_norm + asked.mean_norm_rise:
        reasons.append(f"mean vector grew from {old.mean_norm:.3f} to {new.mean_norm:.3f}")
    if new.agreement < old.agreement - _chance(old, asked):
        reasons.append(f"neighbours' agreement fell from {old.agreement:.3f} to {new.agreement:.3f}")
    if (
        old.accuracy is not None
        and new.accuracy is not None
        and new.accuracy < old.accuracy - asked.accuracy_fall
    ):
        reasons.append(f"accuracy fell from {old.accuracy:.3f} to {new.accuracy:.3f}")
    return reasons


def _said(one: Quality) -> str:
    known = "" if one.accuracy is None else f", accuracy {one.accuracy:.3f}"
    return (
        f"rank {one.effective_rank:.1f}, uniformity {one.uniformity:.2f}, mean vector {one.mean_norm:.3f}, "
        f"agreement {one.agreement:.3f}{known}"
    )
