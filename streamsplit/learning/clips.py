"""Labelled clips to judge representations on: every window's log-mel as bytes, each clip's class and fold.

Nothing is left out for being silent: a clip that falls silent must be known all the same (leaving silent windows out of the clips'
means cost a prototype 2.5 points).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamsplit.audio.features import FrontEndSettings, LogMel
from streamsplit.errors import ConfigError, RecordingError
from streamsplit.learning.labelled import grouped_folds
from streamsplit.learning.sources import Track

logger = logging.getLogger(__name__)

HOP_S = 0.5
LONGEST_S = 60.0
"""Only this much of a recording is judged: a clip is a sound, not a day."""
MADE_FOLDS = 4

Bytes = npt.NDArray[np.uint8]
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Clips:
    """Windows of labelled clips.

    Attributes:
        front_end: how they were made.
        features: [N, F, T] uint8 over the front end's feature range, in the order of the clips and of time.
        clip: [N] number of each window's clip.
        sources, labels, folds: of each clip.
        made_folds: the folds are ours, because the recordings had none: clips of one original are in one fold.
        unreadable: recordings that could not be read, or not to their end; what was heard of them is judged.
    """

    front_end: FrontEndSettings
    features: Bytes
    clip: Tensor
    sources: tuple[str, ...]
    labels: tuple[str, ...]
    folds: tuple[int, ...]
    made_folds: bool
    unreadable: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels there are, sorted."""
        return tuple(sorted(set(self.labels)))

    @property
    def label_numbers(self) -> Tensor:
        """Each clip's place in `classes`, [clips]."""
        places = {name: place for place, name in enumerate(self.classes)}
        return torch.tensor([places[label] for label in self.labels])

    @property
    def fold_numbers(self) -> Tensor:
        """Each clip's fold, [clips]."""
        return torch.tensor(self.folds)

    @property
    def chance(self) -> float:
        """Share of clips of the commonest class: what always saying it would score."""
        return max(self.labels.count(name) for name in self.classes) / len(self)

    def mel(self, windows: slice | Tensor) -> Tensor:
        """Standardised log-mel of windows: [n, 1, F, T] float32."""
        low, high = self.front_end.feature_low, self.front_end.feature_high
        chosen = torch.from_numpy(self.features)[windows]
        return chosen.float().mul_((high - low) / 255.0).add_(low).unsqueeze_(1)

    def mean(self, values: Tensor) -> Tensor:
        """Clip means of something that every window has: [N, P] to [clips, P]."""
        sums = torch.zeros(len(self), values.shape[1]).index_add_(0, self.clip, values)
        return sums / torch.bincount(self.clip, minlength=len(self))[:, None]

    def mean_and_deviation(self, values: Tensor) -> Tensor:
        """Clip means and standard deviations joined: [N, P] to [clips, 2 P]."""
        mean = self.mean(values)
        square = self.mean((values - mean[self.clip]).square())
        return torch.cat([mean, square.sqrt()], dim=1)

    def neighbours(self) -> tuple[Tensor, Tensor]:
        """Pairs of windows of one clip that begin HOP_S apart: numbers [pairs] twice."""
        first = torch.nonzero(self.clip[:-1] == self.clip[1:]).flatten()
        return first, first + 1


def gather_clips(
    tracks: Sequence[Track],
    front_end: FrontEndSettings,
    folds: Sequence[int] | None = None,
    report: Report | None = None,
) -> Clips:
    """Listens to labelled tracks, windows at HOP_S; shorter than a window: completed with zeros.

    Args:
        tracks: each with a label; those of one group stay in one fold.
        front_end: how to make log-mel of it.
        folds: of each track; None: made from the groups.
        report: called with (tracks done, tracks in all).

    Raises:
        ConfigError: no label somewhere, one class only, one fold only, or a class that is in one fold only and so never learned.
    """
    unlabelled = [track.source for track in tracks if track.label is None]
    if unlabelled:
        raise ConfigError(
            f"{unlabelled[0]}: expected a label, got none ({len(unlabelled)} of {len(tracks)} recordings have none): give a"
            " manifest with a column `label`, or a folder with one folder per class"
        )
    labels = [str(track.label) for track in tracks]
    chosen = (
        grouped_folds([track.group for track in tracks], labels, MADE_FOLDS) if folds is None else list(folds)
    )
    heard: list[Bytes] = []
    clip: list[int] = []
    kept: list[int] = []
    unreadable = 0
    log_mel = LogMel(front_end)
    for number, track in enumerate(tracks):
        samples, whole = _first(track, front_end.sample_rate_hz)
        unreadable += not whole
        if len(samples):
            heard.append(_features(samples, front_end, log_mel))
            clip += [len(kept)] * len(heard[-1])
            kept.append(number)
        if report:
            report(number + 1, len(tracks))
    _check([labels[n] for n in kept], [chosen[n] for n in kept])
    return Clips(
        front_end,
        np.concatenate(heard),
        torch.tensor(clip),
        tuple(tracks[n].source for n in kept),
        tuple(labels[n] for n in kept),
        tuple(chosen[n] for n in kept),
        folds is None,
        unreadable,
    )


def _first(track: Track, rate_hz: int) -> tuple[npt.NDArray[np.float32], bool]:
    """Up to LONGEST_S of a track, and whether nothing was wrong with it."""
    most, blocks, heard = round(LONGEST_S * rate_hz), [np.zeros(0, np.float32)], 0
    try:
        for block in track.listen():
            blocks.append(np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0))
            heard += len(block)
            if heard >= most:
                break
    except RecordingError as error:
        logger.warning("%s", error)
        return np.concatenate(blocks)[:most], False
    return np.concatenate(blocks)[:most], True


def _features(samples: npt.NDArray[np.float32], front_end: FrontEndSettings, log_mel: LogMel) -> Bytes:
    size, hop = front_end.window_samples, round(HOP_S * front_end.sample_rate_hz)
    padded = np.pad(samples, (0, max(0, size - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::hop]
    mel = log_mel(torch.from_numpy(np.array(windows)))[:, 0]
    low, high = front_end.feature_low, front_end.feature_high
    bytes_: Bytes = ((mel - low) * (255.0 / (high - low))).round_().clamp_(0, 255).byte().numpy()
    return bytes_


def _check(labels: Sequence[str], folds: Sequence[int]) -> None:
    classes = sorted(set(labels))
    if len(classes) < 2:
        raise ConfigError(f"labels: expected 2 classes at least, got {', '.join(classes) or 'no clip'}")
    if len(set(folds)) < 2:
        raise ConfigError(
            f"folds: expected 2 at least, got {len(set(folds))}: one is judged by what was learned from the others"
        )
    for name in classes:
        if len({fold for fold, label in zip(folds, labels, strict=True) if label == name}) < 2:
            raise ConfigError(
                f"class {name}: expected clips in 2 folds at least, got 1: it could never be learned from another fold"
            )
