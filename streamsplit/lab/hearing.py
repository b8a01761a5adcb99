"""What there is to hear in a scenario, and what is known of it beforehand: windows, labels, and what each path makes of them.

The sound goes through the encoder once per path before anything is measured, at full speed, uncoded. That gives each window's
true uncertainty (1 - cosine of the device's and the server's embedding), which no system is told; and, from other sound with
labels, a probe: a logistic regression that has learned from embeddings of both paths. A system's accuracy is measured with it on
the embeddings that its server really stored.
"""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from streamsplit.audio.features import LogMel
from streamsplit.audio.files import Recording, find_recordings, shuffled
from streamsplit.audio.synth import QUIET, Soundscape, SoundscapeSettings
from streamsplit.audio.window import Block, Gap, Window, WindowAssembler
from streamsplit.client.recording import RecordingSource
from streamsplit.encoders.registry import Version
from streamsplit.errors import ConfigError, StorageError
from streamsplit.lab.processes import make_folder
from streamsplit.lab.scenario import SoundPart

Vectors = npt.NDArray[np.float32]

PROBE_SEED = 1_000_003
"""Added to the sound's seed: the probe learns from another soundscape of the same kind."""

MOST_PROBE_WINDOWS = 6000
BATCH = 64
C = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """A sound, window by window: N of them, D numbers in an embedding.

    Attributes:
        start_s: [N] on the stream's clock.
        level_dbfs: [N].
        labels: what is heard in each; None where nobody knows.
        device, server: [N, D] embeddings of the two paths; equal where an encoder has one.
        uncertainty: [N] 1 - cosine of the two.
    """

    start_s: npt.NDArray[np.float64]
    level_dbfs: npt.NDArray[np.float64]
    labels: list[str | None]
    device: Vectors
    server: Vectors
    uncertainty: npt.NDArray[np.float64]


def prepare(sound: SoundPart, seed: int, folder: Path, sample_rate_hz: int) -> tuple[Path, Soundscape | None]:
    """Makes the sound, or the list of its recordings; returns the manifest, and the soundscape if it is one.

    Raises:
        ConfigError: no recordings.
        StorageError: the folder cannot be written.
    """
    make_folder(folder)
    if sound.kind == "made":
        scape = _soundscape(sound, sound.seed + seed, sound.seconds, sample_rate_hz)
        scape.write(folder / "sound.wav", folder / "sound.csv")
        return _write_manifest([Recording(folder / "sound.wav", "sound.wav")], folder / "manifest.csv"), scape
    if sound.path is None:
        raise ConfigError("sound: expected a path")
    recordings = find_recordings(sound.path)
    played = [each for each in recordings if sound.fold is None or each.fold == sound.fold]
    if not played:
        raise ConfigError(f"{sound.path}: expected recordings of fold {sound.fold}, found none")
    return _write_manifest(
        _at_most(shuffled(played, sound.seed + seed), sound.seconds), folder / "manifest.csv"
    ), None


def hear(manifest: Path, scape: Soundscape | None, version: Version) -> Heard:
    """Runs a manifest's sound through both paths, in the windows that a client will cut.

    Raises:
        ConfigError: it holds nothing to hear.
    """
    rate_hz, window_samples = version.front_end.sample_rate_hz, version.front_end.window_samples
    windows = asyncio.run(_windows(find_recordings(manifest), rate_hz, window_samples))
    if not windows:
        raise ConfigError(f"{manifest}: expected something to hear")
    length_s = window_samples / rate_hz
    labels = [_label(window, scape, rate_hz, length_s) for window in windows]
    device, server = _both(windows, version)
    starts = np.array([window.start_sample / rate_hz for window in windows])
    levels = np.array([window.level_dbfs for window in windows])
    cosine = (device.astype(np.float64) * server).sum(axis=1)
    return Heard(starts, levels, labels, device, server, np.clip(1.0 - cosine, 0.0, 2.0))


class Probe:
    """Tells labels from embeddings; standardised, logistic regression.

    Args:
        heard: labelled sound to learn from, both paths of it.

    Raises:
        ConfigError: scikit-learn is not installed.
    """

    def __init__(self, heard: Heard) -> None:
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError:
            raise ConfigError("the accuracy probe wants scikit-learn: install streamsplit[train]") from None
        known = [index for index, label in enumerate(heard.labels) if label is not None][:MOST_PROBE_WINDOWS]
        vectors = np.concatenate([heard.server[known], heard.device[known]]).astype(np.float64)
        self._mean, self._scale = vectors.mean(axis=0), np.maximum(vectors.std(axis=0), 1e-6)
        self.windows = len(known)
        self._model: Any = LogisticRegression(C=C, max_iter=300)
        self._model.fit((vectors - self._mean) / self._scale, [heard.labels[index] for index in known] * 2)

    def right(self, vectors: Vectors, labels: Sequence[str | None]) -> list[bool | None]:
        """Of each embedding [N, D] whether its label is told; None where it has none."""
        if not len(vectors):
            return []
        said = self._model.predict((vectors.astype(np.float64) - self._mean) / self._scale)
        return [
            None if label is None else bool(label == word) for label, word in zip(labels, said, strict=True)
        ]


def make_probe(sound: SoundPart, version: Version, folder: Path) -> Probe | None:
    """Learns from other sound of the same kind; None where there is no labelled other sound, or one kind of it only."""
    rate_hz = version.front_end.sample_rate_hz
    if sound.kind == "made":
        if sound.probe_seconds == 0:
            return None
        other = sound.model_copy(update={"seed": sound.seed + PROBE_SEED, "seconds": sound.probe_seconds})
        manifest, scape = prepare(other, 0, folder, rate_hz)
    else:
        learned = [] if sound.path is None or sound.fold is None else find_recordings(sound.path)
        learned = [each for each in learned if each.fold != sound.fold and each.label]
        if not learned:
            return None
        make_folder(folder)
        manifest, scape = _write_manifest(shuffled(learned, sound.seed), folder / "manifest.csv"), None
    heard = hear(manifest, scape, version)
    return Probe(heard) if len({label for label in heard.labels if label is not None}) > 1 else None


def _soundscape(sound: SoundPart, seed: int, seconds: float, sample_rate_hz: int) -> Soundscape:
    return Soundscape(
        SoundscapeSettings(
            seconds=seconds,
            seed=seed,
            sample_rate_hz=sample_rate_hz,
            events_per_minute=sound.events_per_minute,
            quiet_share=sound.quiet_share,
        )
    )


def _at_most(recordings: Sequence[Recording], seconds: float) -> list[Recording]:
    """As many as fill the time; at least one."""
    import soundfile

    taken, total_s = [], 0.0
    for recording in recordings:
        if total_s >= seconds:
            break
        try:
            info = soundfile.info(str(recording.path))
        except (soundfile.SoundFileError, OSError):
            continue
        taken.append(recording)
        total_s += info.frames / info.samplerate
    return taken or list(recordings[:1])


def _write_manifest(recordings: Sequence[Recording], path: Path) -> Path:
    try:
        with path.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.writer(lines, lineterminator="\n")
            writer.writerow(["path", "label", "fold", "source_id"])
            for each in recordings:
                fold = "" if each.fold is None else each.fold
                writer.writerow([each.path.resolve(), each.label or "", fold, each.source_id or ""])
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
    return path


async def _windows(recordings: Sequence[Recording], rate_hz: int, window_samples: int) -> list[Window]:
    """As the daemon cuts them."""
    assembler, windows = WindowAssembler("lab", window_samples), list[Window]()
    async with RecordingSource(recordings, rate_hz, "max") as source:
        async for item in source.items():
            if isinstance(item, Gap):
                assembler.push_gap(item)
            elif isinstance(item, Block):
                windows += [part for part in assembler.push(item) if isinstance(part, Window)]
    windows += list(assembler.finish())
    return [replace(window, samples=window.samples.copy()) for window in windows]


def _label(window: Window, scape: Soundscape | None, rate_hz: int, length_s: float) -> str | None:
    if scape is None:
        return window.mark.label if window.mark else None
    start_s = window.start_sample / rate_hz
    return scape.label_at(start_s, start_s + length_s) or QUIET


@torch.inference_mode()
def _both(windows: Sequence[Window], version: Version) -> tuple[Vectors, Vectors]:
    """[N, D] of the device's path and of the server's."""
    log_mel, encoder, device, server = LogMel(version.front_end), version.encoder, [], []
    for first in range(0, len(windows), BATCH):
        samples = np.stack([window.samples for window in windows[first : first + BATCH]])
        mel = log_mel(torch.from_numpy(samples))
        device.append(encoder.head(mel, encoder.last_split).numpy())
        server.append(encoder.tail(mel, 0).numpy())
    return np.concatenate(device).astype(np.float32), np.concatenate(server).astype(np.float32)
