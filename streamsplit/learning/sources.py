"""What to learn from: recordings as a user names them, and made sound, as tracks that are heard once from beginning to end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamsplit.audio.files import Recording, find_recordings, read_blocks
from streamsplit.audio.synth import EVENT_KINDS, Soundscape, SoundscapeSettings, make_clip
from streamsplit.audio.timbres import make_timbre
from streamsplit.errors import ConfigError

Samples = npt.NDArray[np.float32]

MADE = "synth:"
TIMBRE_S, CLIP_S, SCAPE_S = 4.8, 4.8, 60.0
TIMBRE_SHARE, CLIP_SHARE = 0.7, 0.15
"""Of made time; the rest is soundscapes. Timbres carry the variety; the twelve named kinds alone transfer poorly to real sound."""
TRAINING_SEEDS = 1_000_000
"""Made training sound begins at this seed, far from those of demonstrations and tests: nothing shown there was trained on."""


@dataclass(frozen=True, slots=True)
class Track:
    """One recording to learn from.

    Attributes:
        source: its name.
        listen: opens it: blocks of [n] float32 mono at the rate asked for, in order. Raises RecordingError.
        label: what is heard in it, if known; only reports look at it.
        group: tracks of one group never stand on both sides of a test: a fold, or the original they were cut from.
    """

    source: str
    listen: Callable[[], Iterator[Samples]]
    label: str | None = None
    group: str = ""


def find_tracks(sources: Sequence[str], sample_rate_hz: int, seed: int = 0) -> list[Track]:
    """Everything the sources name.

    Args:
        sources: each a recording, a folder, a manifest, or "synth:HOURS" for made sound.
        sample_rate_hz: rate to listen at.
        seed: of made sound.

    Raises:
        ConfigError: a source that is not there, or wrong hours.
    """
    tracks = []
    for number, source in enumerate(sources):
        if source.startswith(MADE):
            tracks += made_tracks(
                _hours(source), sample_rate_hz, TRAINING_SEEDS * (seed + 1) + 100_000 * number
            )
        else:
            tracks += [
                _of_recording(recording, sample_rate_hz)
                for recording in find_recordings(Path(source).expanduser())
            ]
    return tracks


def made_tracks(hours: float, sample_rate_hz: int, seed: int) -> list[Track]:
    """So many hours of made sound: timbres, labelled clips of the named kinds, and soundscapes."""
    seconds = 3600.0 * hours
    timbres = math.ceil(TIMBRE_SHARE * seconds / TIMBRE_S)
    clips = math.ceil(CLIP_SHARE * seconds / CLIP_S)
    scapes = math.ceil((1 - TIMBRE_SHARE - CLIP_SHARE) * seconds / SCAPE_S)
    return [
        *(
            Track(
                f"timbre {seed + n}", partial(_timbre, seed + n, sample_rate_hz), group=f"timbre {seed + n}"
            )
            for n in range(timbres)
        ),
        *(_made_clip(seed + n, sample_rate_hz) for n in range(clips)),
        *(
            Track(
                f"soundscape {seed + n}",
                partial(_scape, seed + n, sample_rate_hz),
                group=f"soundscape {seed + n}",
            )
            for n in range(scapes)
        ),
    ]


def _of_recording(recording: Recording, sample_rate_hz: int) -> Track:
    group = (
        f"fold {recording.fold}" if recording.fold is not None else recording.source_id or recording.source
    )
    return Track(
        recording.source, partial(read_blocks, recording.path, sample_rate_hz, 4.0), recording.label, group
    )


def _made_clip(seed: int, rate_hz: int) -> Track:
    kind = EVENT_KINDS[seed % len(EVENT_KINDS)]

    def listen() -> Iterator[Samples]:
        yield make_clip(kind, seed, CLIP_S, rate_hz)

    return Track(f"{kind} {seed}", listen, kind, f"{kind} {seed}")


def _timbre(seed: int, rate_hz: int) -> Iterator[Samples]:
    yield make_timbre(seed, round(TIMBRE_S * rate_hz), rate_hz)


def _scape(seed: int, rate_hz: int) -> Iterator[Samples]:
    settings = SoundscapeSettings(SCAPE_S, seed, rate_hz, events_per_minute=25.0, quiet_share=0.1)
    return Soundscape(settings).blocks(10.0)


def _hours(source: str) -> float:
    try:
        hours = float(source.removeprefix(MADE))
    except ValueError:
        hours = math.nan
    if not 0 < hours <= 1000:
        raise ConfigError(f"source {source!r}: expected synth:HOURS with hours above 0 and at most 1000")
    return hours
