"""Made-up soundscapes: minutes to hours of labelled sound that the same seed makes again, block by block.

The stream is made of chunks of ten seconds. Each is decided by the seed and its own number alone: background noise of some kind and
loudness, cross-faded into the next chunk's. Scenes (30 s to 3 minutes of one background) follow each other; about a third of the time
is quiet: a faint background and no events. Events fall at random into the other scenes and may overlap.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from streamsplit.audio.sounds import BACKGROUNDS, EVENTS, make_background, make_event
from streamsplit.errors import ConfigError, StorageError

Samples = npt.NDArray[np.float32]

EVENT_KINDS: tuple[str, ...] = tuple(EVENTS)
"""Names of the kinds of event, in the order of their definition."""

QUIET = "quiet"
"""Label of a stretch without events."""

_CHUNK_S = 10
_FADE_S = 0.5
_MANIFEST = "manifest.csv"

# What a random generator is for: the second number of its seed, so that no two uses share a sequence.
_PLAN, _CHUNK, _EVENT, _CLIP = range(4)


@dataclass(frozen=True, slots=True)
class SoundscapeSettings:
    """What a soundscape is made from.

    Attributes:
        seconds: its length, above 0.
        seed: everything random follows from it, 0 or more.
        sample_rate_hz: at least 8,000.
        events_per_minute: on average, outside quiet scenes; 0 or more.
        quiet_share: of the time after the first scene, about; 0..1.
        kinds: kinds of event to draw from.
    """

    seconds: float
    seed: int = 0
    sample_rate_hz: int = 16_000
    events_per_minute: float = 10.0
    quiet_share: float = 0.35
    kinds: tuple[str, ...] = EVENT_KINDS

    def __post_init__(self) -> None:
        for name, holds, legal in (
            ("seconds", 0 < self.seconds < math.inf, "above 0"),
            ("seed", self.seed >= 0, "0 or more"),
            ("sample_rate_hz", self.sample_rate_hz >= 8_000, "at least 8000"),
            ("events_per_minute", 0 <= self.events_per_minute <= 600, "0..600"),
            ("quiet_share", 0 <= self.quiet_share <= 1, "0..1"),
            (
                "kinds",
                bool(self.kinds) and set(self.kinds) <= set(EVENT_KINDS),
                f"some of {', '.join(EVENT_KINDS)}",
            ),
        ):
            if not holds:
                raise ConfigError(f"soundscape {name}: expected {legal}, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Event:
    """One labelled event.

    Attributes:
        kind: its label.
        onset_s, offset_s: from the beginning of the soundscape; exact to the sample.
        gain_db: its peak, relative to full scale.
    """

    kind: str
    onset_s: float
    offset_s: float
    gain_db: float


@dataclass(frozen=True, slots=True)
class _Scene:
    background: str
    level_db: float  # root mean square relative to full scale
    quiet: bool


class Soundscape:
    """A soundscape, planned when made and rendered when iterated; every iteration gives the same samples.

    >>> scape = Soundscape(SoundscapeSettings(seconds=3.5, seed=1))
    >>> sum(len(block) for block in scape.blocks(block_s=0.3)) == scape.samples == 56_000
    True
    """

    def __init__(self, settings: SoundscapeSettings) -> None:
        self.settings = settings
        self.samples = round(settings.seconds * settings.sample_rate_hz)
        rng = _rng(settings.seed, _PLAN)
        self._scenes = list(_scenes(settings, rng))
        self.events = sorted(self._planned(rng), key=lambda event: event.onset_s)

    def blocks(self, block_s: float = 1.0) -> Iterator[Samples]:
        """The sound in blocks of `block_s` seconds, the last one shorter; the size of blocks does not change a sample.

        Yields:
            [n] float32 mono in [-1, 1].
        """
        if not block_s > 0:
            raise ConfigError(f"block_s: expected more than 0 s, got {block_s}")
        size = max(1, round(block_s * self.settings.sample_rate_hz))
        waiting = np.zeros(0, np.float32)
        for chunk in self._chunks():
            waiting = np.concatenate([waiting, chunk])
            whole = len(waiting) // size * size
            yield from np.split(waiting[:whole], range(size, whole, size)) if whole else ()
            waiting = waiting[whole:]
        if len(waiting):
            yield waiting

    def label_at(self, start_s: float, end_s: float) -> str | None:
        """The label of the window from `start_s` to `end_s`.

        Returns:
            The kind of the event that puts most into the window (seconds in it times peak), `QUIET` if there is none, or None if
            the window reaches into an event by less than a tenth of its length: neither the one nor the other.
        """
        low, high = np.searchsorted(self._onsets_s, [start_s - self._longest_s, end_s])
        heard: dict[str, float] = {}
        most_s = 0.0
        for event in self.events[low:high]:
            overlap_s = min(end_s, event.offset_s) - max(start_s, event.onset_s)
            if overlap_s > 0:
                most_s = max(most_s, overlap_s)
                heard[event.kind] = heard.get(event.kind, 0.0) + overlap_s * 10 ** (event.gain_db / 20)
        if not heard:
            return QUIET
        return max(heard, key=lambda kind: heard[kind]) if most_s >= 0.1 * (end_s - start_s) else None

    def write(self, path_wav: Path, path_csv: Path) -> None:
        """Writes the sound (16-bit WAV) and its events (CSV: kind, onset_s, offset_s, gain_db).

        Raises:
            StorageError: a file cannot be written.
        """
        rate = self.settings.sample_rate_hz
        try:
            with soundfile.SoundFile(path_wav, "w", rate, 1, "PCM_16", format="WAV") as file:
                for block in self.blocks(_CHUNK_S):
                    file.write(block)
            with path_csv.open("w", newline="", encoding="utf-8") as lines:
                writer = csv.writer(lines, lineterminator="\n")
                writer.writerow(["kind", "onset_s", "offset_s", "gain_db"])
                writer.writerows(
                    [event.kind, f"{event.onset_s:.4f}", f"{event.offset_s:.4f}", f"{event.gain_db:.1f}"]
                    for event in self.events
                )
        except (OSError, soundfile.SoundFileError) as error:
            raise StorageError(f"{path_wav}: cannot write the soundscape: {error}") from error

    @cached_property
    def _onsets_s(self) -> npt.NDArray[np.float64]:
        return np.array([event.onset_s for event in self.events])

    @cached_property
    def _longest_s(self) -> float:
        return max((event.offset_s - event.onset_s for event in self.events), default=0.0)

    def _planned(self, rng: np.random.Generator) -> Iterator[Event]:
        """Events by chunk: a Poisson number in each that is not quiet, whole before the end of the soundscape."""
        settings, rate = self.settings, self.settings.sample_rate_hz
        for number, scene in enumerate(self._scenes):
            for _ in range(
                0 if scene.quiet else int(rng.poisson(settings.events_per_minute * _CHUNK_S / 60))
            ):
                kind = settings.kinds[int(rng.integers(len(settings.kinds)))]
                length = round(rng.uniform(EVENTS[kind].shortest_s, EVENTS[kind].longest_s) * rate)
                onset = round((number + rng.uniform()) * _CHUNK_S * rate)
                gain_db = round(float(rng.uniform(-26.0, -4.0)), 1)
                if onset + length <= self.samples:
                    yield Event(kind, onset / rate, (onset + length) / rate, gain_db)

    def _chunks(self) -> Iterator[Samples]:
        """The sound in whole chunks; holds one chunk, one fade and the events that sound now."""
        rate = self.settings.sample_rate_hz
        size, fade = _CHUNK_S * rate, round(_FADE_S * rate)
        fade_in = np.sin(np.linspace(0, np.pi / 2, fade, dtype=np.float32))
        tail, due = np.zeros(fade, np.float32), 0
        sounding: list[tuple[int, Samples]] = []
        for number, scene in enumerate(self._scenes):
            rng = _rng(self.settings.seed, _CHUNK, number)
            background = make_background(scene.background, rng, size + fade, rate) * np.float32(
                10 ** (scene.level_db / 20)
            )
            chunk = background[:size].copy()
            chunk[:fade] = chunk[:fade] * fade_in + tail * fade_in[::-1]
            tail = background[size:]
            start = number * size
            while due < len(self.events) and self.events[due].onset_s * rate < start + size:
                sounding.append((round(self.events[due].onset_s * rate), self._event(due)))
                due += 1
            for onset, sound in sounding:
                first, last = max(onset, start), min(onset + len(sound), start + size)
                chunk[first - start : last - start] += sound[first - onset : last - onset]
            sounding = [(onset, sound) for onset, sound in sounding if onset + len(sound) > start + size]
            yield np.clip(chunk, -1.0, 1.0)[: self.samples - start]

    def _event(self, number: int) -> Samples:
        event, rate = self.events[number], self.settings.sample_rate_hz
        length = round(event.offset_s * rate) - round(event.onset_s * rate)
        sound = make_event(event.kind, _rng(self.settings.seed, _EVENT, number), length, rate)
        return sound * np.float32(10 ** (event.gain_db / 20))


def make_clip(kind: str, seed: int, seconds: float = 5.0, sample_rate_hz: int = 16_000) -> Samples:
    """One clip: an event of the kind, again and again with pauses, 6 to 30 dB above a faint background.

    Returns:
        [seconds * sample_rate_hz] float32 in [-1, 1], the same for the same arguments.

    Raises:
        ConfigError: an unknown kind, or no length.
    """
    if kind not in EVENTS:
        raise ConfigError(f"kind of event: expected one of {', '.join(EVENT_KINDS)}, got {kind!r}")
    samples = round(seconds * sample_rate_hz)
    if samples < 1:
        raise ConfigError(f"clip: expected more than 0 s, got {seconds}")
    rng = _rng(seed, _CLIP, EVENT_KINDS.index(kind))
    style = int(rng.integers(2**32))  # repetitions within a clip sound alike
    clip, at = np.zeros(samples, np.float32), 0
    while at < samples:
        length = round(rng.uniform(EVENTS[kind].shortest_s, EVENTS[kind].longest_s) * sample_rate_hz)
        sound = make_event(kind, np.random.default_rng(style), length, sample_rate_hz)[: samples - at]
        clip[at : at + len(sound)] = sound
        at += length + round(rng.uniform(0.2, 1.0) * sample_rate_hz)
    loudness = 10 ** (rng.uniform(-24.0, -3.0) / 20)
    noise = make_background(
        list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))], rng, samples, sample_rate_hz
    )
    below = float(np.sqrt(np.mean(clip * clip))) * 10 ** (rng.uniform(-30.0, -6.0) / 20)
    return np.clip((clip + noise * np.float32(below)) * np.float32(loudness), -1.0, 1.0)


def write_clips(folder: Path, per_kind: int, seed: int, seconds: float = 5.0) -> Path:
    """Writes labelled clips and a manifest (path, label, fold 1..5, source_id) for `find_recordings`.

    Returns:
        The manifest.

    Raises:
        StorageError: the folder cannot be written.
    """
    if per_kind < 1:
        raise ConfigError(f"clips of each kind: expected at least 1, got {per_kind}")
    manifest = folder / _MANIFEST
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with manifest.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.writer(lines, lineterminator="\n")
            writer.writerow(["path", "label", "fold", "source_id"])
            for kind in EVENT_KINDS:
                (folder / kind).mkdir(exist_ok=True)
                for number in range(per_kind):
                    name = f"{kind}/{kind}_{number:04d}.wav"
                    soundfile.write(folder / name, make_clip(kind, seed + number, seconds), 16_000, "PCM_16")
                    writer.writerow([name, kind, number % 5 + 1, f"{kind}_{seed + number}"])
    except (OSError, soundfile.SoundFileError) as error:
        raise StorageError(f"{folder}: cannot write clips: {error}") from error
    return manifest


def _scenes(settings: SoundscapeSettings, rng: np.random.Generator) -> Iterator[_Scene]:
    """One scene per chunk; the same one for 3 to 18 chunks on end. The first is not quiet: a short soundscape has events."""
    chunks_in_all = math.ceil(settings.seconds / _CHUNK_S)
    left = chunks_in_all
    while left > 0:
        background = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
        quiet = bool(rng.random() < settings.quiet_share) and left < chunks_in_all
        level_db = float(rng.uniform(-78.0, -62.0) if quiet else rng.uniform(-56.0, -32.0))
        chunks = min(left, int(rng.integers(3, 19)))
        yield from [_Scene(background, level_db, quiet)] * chunks
        left -= chunks


def _rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)
