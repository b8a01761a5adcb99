"""What the streaming system plays: every clip as sound on disk, at two phases, and passes over them, as `learning.streams` does with features."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from streamsplit.audio.features import FrontEndSettings
from streamsplit.audio.sounds import BACKGROUNDS, make_background
from streamsplit.errors import StreamSplitError
from streamsplit.learning.pool import HOP_SHARE
from streamsplit.learning.sources import Track
from streamsplit.learning.streams import QUIET_WINDOWS, arranged
from streamsplit.policy.observation import SILENCE_DBFS

PHASES = round(1 / HOP_SHARE)
BACKGROUND_LEVEL = 0.02
PIECES = 8
"""Of each background."""


@dataclass(frozen=True, slots=True)
class Sound:
    """One clip at one phase, as a file.

    Attributes:
        path: WAV: whole windows, then a silent one, which keeps neighbours of two clips further apart than neighbours may be.
        windows: of it, the silent one left out.
        audible: of these, how many are above the level at which a device learns.
    """

    path: Path
    windows: int
    audible: int


def make_sounds(
    tracks: Sequence[Track], folder: Path, sample_rate_hz: int, window_samples: int
) -> list[list[Sound]]:
    """Each clip at each phase, as WAV files that are made once; a clip too short for a phase has fewer."""
    index = folder / "index.json"
    if index.exists():
        known = json.loads(index.read_text())
        return [[Sound(folder / name, *counts) for name, *counts in clip] for clip in known]
    folder.mkdir(parents=True, exist_ok=True)
    clips: list[list[Sound]] = []
    for number, track in enumerate(tracks):
        heard = np.concatenate(list(track.listen()))
        clips.append([])
        for phase in range(PHASES):
            cut = heard[phase * window_samples // PHASES :]
            count = len(cut) // window_samples
            if not count:
                continue
            whole = cut[: count * window_samples].reshape(count, window_samples)
            level_db = 10 * np.log10(np.square(whole, dtype=np.float64).mean(1) + 1e-12)
            path = folder / f"{number:05d}-{phase}.wav"
            padded = np.concatenate([whole.reshape(-1), np.zeros(window_samples, np.float32)])
            soundfile.write(path, padded, sample_rate_hz, subtype="PCM_16")
            clips[-1].append(Sound(path, count, int((level_db >= SILENCE_DBFS).sum())))
    said = [[(sound.path.name, sound.windows, sound.audible) for sound in clip] for clip in clips]
    index.write_text(json.dumps(said))
    return clips


def backgrounds(front_end: FrontEndSettings) -> list[Track]:
    """Pieces of every kind of made background, as long as `learning.streams` hears them: QUIET_WINDOWS more than one, in the mean."""

    def made(kind: str, number: int) -> Iterator[Any]:
        rng = np.random.default_rng((number, 13, list(BACKGROUNDS).index(kind)))
        samples = (1 + int(rng.geometric(1 / QUIET_WINDOWS))) * front_end.window_samples
        yield BACKGROUND_LEVEL * make_background(kind, rng, samples, front_end.sample_rate_hz)

    return [
        Track(f"{kind} {number}", partial(made, kind, number), "background", kind)
        for kind in BACKGROUNDS
        for number in range(PIECES)
    ]


def write_manifest(
    clips: Sequence[Sequence[Sound]],
    labels: Sequence[str | None],
    path: Path,
    pairs: int,
    seed: int,
    order: str = "shuffled",
    quiet: Sequence[Sequence[Sound]] = (),
) -> tuple[int, int]:
    """A manifest of passes over all clips, each arranged anew and at another phase, until `pairs` audible windows are in it.

    Args:
        clips: each at every phase.
        labels: each clip's class.
        path: of the manifest.
        pairs: audible windows, backgrounds' included.
        seed: of order and phases.
        order: one of `learning.streams.ORDERS`.
        quiet: backgrounds, one of them heard after every clip by "composed".

    Returns:
        Windows the stream has, pauses included, and the audible ones of them.
    """
    windows = audible = number = 0
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path"])
        while audible < pairs:
            before = audible
            rng = np.random.default_rng((seed, number, 7))
            for place in arranged(order, labels, rng):
                heard = [clips[place]] if clips[place] else []
                if order == "composed":
                    heard.append(quiet[rng.integers(len(quiet))])
                for phases in heard if audible < pairs else []:
                    sound = phases[rng.integers(len(phases))]
                    rows.writerow([os.path.abspath(sound.path)])
                    windows += sound.windows + 1
                    audible += sound.audible
            if audible == before:
                raise StreamSplitError("streaming: expected sound, the recordings are silent")
            number += 1
    return windows, audible
