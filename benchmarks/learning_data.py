"""What the comparison of learning systems hears and is judged on, made once per set of recordings and kept as bytes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamsplit.audio.features import COMPACT_FRONT_END as FRONT_END
from streamsplit.audio.synth import EVENT_KINDS, make_clip
from streamsplit.errors import ConfigError
from streamsplit.learning.clips import Clips, gather_clips
from streamsplit.learning.labelled import find_clips, track_of
from streamsplit.learning.pool import WindowPool, gather
from streamsplit.learning.sources import Track

MOST_WINDOWS = 65_536
MADE_CLIPS, MADE_FOLDS, MADE_S = 24, 4, 4.8
ESC10 = "esc10"

Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """One set.

    Attributes:
        name: of the set.
        fingerprint: of what is in it.
        pool: what systems learn from, without labels.
        clips: what they are judged on: the same recordings, with labels and folds.
        tracks: the recordings.
    """

    name: str
    fingerprint: str
    pool: WindowPool
    clips: Clips
    tracks: list[Track]


def conditions(data: Path | None, quick: bool) -> dict[str, str | None]:
    """The sets there are: name -> condition on the manifest's rows. A manifest with a column `esc10` has two."""
    if data is None:
        return {"made": None}
    if data.suffix.lower() != ".csv":
        return {data.name: None}
    try:
        with data.open(newline="", encoding="utf-8-sig") as lines:
            columns = csv.DictReader(lines).fieldnames or []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--data {data}: not a readable manifest: {error}") from error
    if ESC10 not in columns:
        return {data.stem: None}
    return {ESC10: f"{ESC10}=1"} | ({} if quick else {"esc50": None})


def hear(
    name: str, data: Path | None, where: str | None, quick: bool, cache: Path, report: Report | None = None
) -> Heard:
    """A set, from `cache` where it was made before.

    Args:
        name: of the set.
        data: a manifest, or a folder with one folder per class; None: made sound, of every kind the same number of clips.
        where: see `find_clips`.
        quick: a quarter of the made sound.
        cache: folder.
        report: called with (recordings done, recordings in all), twice over.
    """
    tracks, folds = _made(quick) if data is None else _found(data, where)
    said = json.dumps([[track.source, track.label, track.group] for track in tracks] + [folds])
    fingerprint = hashlib.sha256((said + FRONT_END.fingerprint).encode()).hexdigest()[:12]
    path = cache / f"{name}-{fingerprint}.npz"
    if not path.exists():
        pool = gather(tracks, FRONT_END, MOST_WINDOWS, 0, report)
        clips = gather_clips(tracks, FRONT_END, folds, report)
        _save(path, pool, clips)
    pool, clips = _load(path)
    return Heard(name, fingerprint, pool, clips, tracks)


def _found(data: Path, where: str | None) -> tuple[list[Track], list[int] | None]:
    recordings, folds = find_clips(data, where)
    return [track_of(recording, FRONT_END.sample_rate_hz) for recording in recordings], folds


def _made(quick: bool) -> tuple[list[Track], list[int]]:
    count = MADE_CLIPS // 4 if quick else MADE_CLIPS
    seeds = [(kind, 5000 + n) for n in range(count) for kind in EVENT_KINDS]
    tracks = [
        Track(f"{kind} {seed}", partial(_clip, kind, seed), kind, f"{kind} {seed}") for kind, seed in seeds
    ]
    return tracks, [seed % MADE_FOLDS + 1 for _, seed in seeds]


def _clip(kind: str, seed: int) -> Any:
    yield make_clip(kind, seed, MADE_S, FRONT_END.sample_rate_hz)


def _save(path: Path, pool: WindowPool, clips: Clips) -> None:
    """Whole or not at all."""
    said = {
        "pool": {
            "labels": pool.labels,
            "groups": pool.groups,
            "heard": pool.heard,
            "silent": pool.silent,
            "unreadable": pool.unreadable,
        },
        "clips": {
            "sources": clips.sources,
            "labels": clips.labels,
            "folds": clips.folds,
            "made_folds": clips.made_folds,
            "unreadable": clips.unreadable,
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".partial.npz")
    np.savez(
        partial_path,
        said=np.array(json.dumps(said)),
        pool_features=pool.features,
        clip_features=clips.features,
        clip=clips.clip.numpy(),
        **{name: getattr(pool, name).numpy() for name in ("first", "count", "at_hop", "track")},
    )
    os.replace(partial_path, path)


def _load(path: Path) -> tuple[WindowPool, Clips]:
    with np.load(path) as file:
        said = json.loads(str(file["said"]))
        numbers = {name: torch.from_numpy(file[name]) for name in ("first", "count", "at_hop", "track")}
        own = said["pool"]
        pool = WindowPool(
            front_end=FRONT_END,
            features=file["pool_features"],
            **numbers,
            **{**own, "labels": tuple(own["labels"]), "groups": tuple(own["groups"])},
        )
        own = said["clips"]
        clips = Clips(
            front_end=FRONT_END,
            features=file["clip_features"],
            clip=torch.from_numpy(file["clip"]),
            **{**own, **{name: tuple(own[name]) for name in ("sources", "labels", "folds")}},
        )
    return pool, clips
