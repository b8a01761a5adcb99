"""Labelled recordings as a user has them, and folds where they have none."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from streamsplit.audio.files import Recording, find_recordings, read_blocks
from streamsplit.errors import ConfigError
from streamsplit.learning.sources import Track


def find_clips(source: Path, where: str | None = None) -> tuple[list[Recording], list[int] | None]:
    """The labelled recordings of a manifest, or of a folder with one folder per class; and their folds, if they have any.

    Args:
        source: as in `find_recordings`.
        where: only rows of the manifest with this in a column, as "esc10=1".

    Raises:
        ConfigError: nothing there, a condition that a manifest does not know or no row meets, or folds for some only.
    """
    recordings = find_recordings(source)
    if where is not None:
        recordings = _meeting(recordings, source, where)
    if source.is_dir():
        recordings = [_labelled_by_folder(each, source) for each in recordings]
    folds = [each.fold for each in recordings if each.fold is not None]
    if folds and len(folds) < len(recordings):
        missing = next(each for each in recordings if each.fold is None)
        raise ConfigError(
            f"{missing.source}: expected a fold, as {len(folds)} others of {source} have, got none"
        )
    return recordings, folds or None


def track_of(recording: Recording, sample_rate_hz: int) -> Track:
    """A recording as a track whose group is the original it was cut from."""
    return Track(
        recording.source,
        lambda: read_blocks(recording.path, sample_rate_hz, 4.0),
        recording.label,
        recording.source_id or recording.source,
    )


def grouped_folds(groups: Sequence[str], labels: Sequence[str], folds: int) -> list[int]:
    """A fold 1..folds for each item: items of one group together, each class spread as evenly as its groups allow.

    Largest groups first, each into the fold that has least of its class, then least of all; the same input gives the same folds.
    """
    members: dict[str, list[int]] = {}
    for item, group in enumerate(groups):
        members.setdefault(group, []).append(item)
    of_class: dict[tuple[int, str], int] = {}
    of_all = dict.fromkeys(range(1, folds + 1), 0)
    fold_of = [0] * len(groups)
    for _, items in sorted(members.items(), key=lambda pair: (-len(pair[1]), pair[0])):
        label = labels[items[0]]
        fold = min(of_all, key=lambda fold: (of_class.get((fold, label), 0), of_all[fold], fold))
        for item in items:
            fold_of[item] = fold
            of_class[fold, labels[item]] = of_class.get((fold, labels[item]), 0) + 1
        of_all[fold] += len(items)
    return fold_of


def _meeting(recordings: list[Recording], source: Path, where: str) -> list[Recording]:
    column, equals, value = where.partition("=")
    if not equals or source.suffix.lower() != ".csv":
        raise ConfigError(f"--where {where!r}: expected COLUMN=VALUE and a manifest")
    with source.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines, strict=True)
        if column not in (rows.fieldnames or []):
            raise ConfigError(
                f"--where {where!r}: {source} has no column {column}, it has {', '.join(rows.fieldnames or [])}"
            )
        met = [(row[column] or "").strip() == value for row in rows]
    chosen = [each for each, meets in zip(recordings, met, strict=True) if meets]
    if not chosen:
        raise ConfigError(f"--where {where!r}: no row of {source} meets it")
    return chosen


def _labelled_by_folder(recording: Recording, folder: Path) -> Recording:
    parts = recording.path.relative_to(folder).parts
    return replace(recording, label=parts[0]) if len(parts) > 1 else recording
