"""Recordings: any file libsndfile reads, as mono float32 blocks at the rate asked for, and lists of them."""

from __future__ import annotations

import csv
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from streamsplit.audio.resample import StreamResampler
from streamsplit.errors import ConfigError, RecordingError

Samples = npt.NDArray[np.float32]

EXTENSIONS = (
    *(
        ".wav",
        ".wave",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
    ),
    *(".w64", ".rf64"),
)
"""What a folder is searched for. A single file and a manifest's files may be called anything."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One file to listen to.

    Attributes:
        path: where it is; it need not exist.
        source: its name for people and journals: relative to the folder or manifest that lists it.
        label: what is heard in it, if known.
        fold: part of a cross-validation, if any.
        source_id: the original it was cut from: clips of one original never stand on both sides of a test.
    """

    path: Path
    source: str
    label: str | None = None
    fold: int | None = None
    source_id: str | None = None


def read_blocks(path: Path, sample_rate_hz: int, block_s: float = 1.0) -> Iterator[Samples]:
    """Reads a recording of any length in blocks of about `block_s` seconds: channels averaged, resampled without seams.

    Samples that are not finite are passed on as NaN; the resampler does not spread them further than its few taps.

    Yields:
        [n] float32, n > 0.

    Raises:
        RecordingError: missing, unreadable, not audio, 0 seconds; or, after all the sound there is, broken or cut short.
        ConfigError: `block_s` or `sample_rate_hz` is not above 0.
    """
    if not block_s > 0:
        raise ConfigError(f"block_s: expected more than 0 s, got {block_s}")
    _check_file(path)
    try:
        file = _FrontToBack(path)
    except (soundfile.SoundFileError, OSError) as error:
        raise RecordingError(f"{path}: not a recording: {_reason(error)}") from error
    with file:
        resampler = StreamResampler(file.samplerate, sample_rate_hz)
        heard = 0
        for block in _file_blocks(path, file, max(1, round(block_s * file.samplerate))):
            heard += len(block)
            ready = resampler.push(block)
            if len(ready):
                yield ready
        if heard == 0:
            raise RecordingError(f"{path}: expected sound, got 0 seconds")
        last = resampler.finish()
        if len(last):
            yield last
        _check_whole(path, file, heard)


def read(path: Path, sample_rate_hz: int) -> Samples:
    """A whole recording, [n] float32 mono; for clips. Raises as `read_blocks` does, also for one that is cut short."""
    return np.concatenate(list(read_blocks(path, sample_rate_hz, block_s=10.0)))


def find_recordings(source: Path) -> list[Recording]:
    """Lists the recordings of a file, a folder (recursively, sorted) or a manifest.

    A manifest is a .csv with a column `path` (relative to the manifest) and, if wanted, `label`, `fold` (a whole number) and
    `source_id`; other columns are ignored. Files it names that are missing are listed: reading them fails, and is recorded.

    Raises:
        ConfigError: there is no such file or folder, nothing in it, or the manifest is wrong at a line and column.
    """
    if source.is_dir():
        paths = sorted(
            path for path in source.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file()
        )
        if not paths:
            raise ConfigError(f"{source}: expected recordings ({', '.join(EXTENSIONS)}), found none")
        return [Recording(path, path.relative_to(source).as_posix()) for path in paths]
    if not source.exists():
        raise ConfigError(f"{source}: no such file or folder")
    if source.suffix.lower() == ".csv":
        return list(_manifest(source))
    return [Recording(source, source.name)]


def shuffled(recordings: Sequence[Recording], seed: int) -> list[Recording]:
    """The recordings in an order that only the seed decides."""
    order = list(recordings)
    random.Random(seed).shuffle(order)
    return order


class _FrontToBack(soundfile.SoundFile):  # type: ignore[misc]
    """A file read in order only.

    After each read of a seekable file soundfile seeks to where it is already. For MP3 that drops the decoder's bit reservoir, and up
    to a third of a tone read in blocks of 0.3 s came out as silence.
    """

    def seekable(self) -> bool:
        return False


def _manifest(path: Path) -> Iterator[Recording]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.DictReader(lines, strict=True)
            columns = rows.fieldnames or []
            if "path" not in columns:
                raise ConfigError(
                    f"{path}, line 1: expected a column 'path', got {', '.join(columns) or 'nothing'}"
                )
            found = [_manifest_row(path, rows.line_num, row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: not a readable manifest: {error}") from error
    if not found:
        raise ConfigError(f"{path}: expected at least one recording, got only the heading")
    yield from found


def _manifest_row(manifest: Path, line: int, row: dict[str, str]) -> Recording:
    if None in row:
        raise ConfigError(f"{manifest}, line {line}: more values than columns")
    name = (row["path"] or "").strip()
    if not name:
        raise ConfigError(f"{manifest}, line {line}, column path: expected a file's path, got nothing")
    fold = (row.get("fold") or "").strip()
    if fold and not re.fullmatch(r"-?\d+", fold):
        raise ConfigError(f"{manifest}, line {line}, column fold: expected a whole number, got {fold!r}")
    label, source_id = ((row.get(column) or "").strip() or None for column in ("label", "source_id"))
    return Recording(manifest.parent / name, name, label, int(fold) if fold else None, source_id)


def _file_blocks(path: Path, file: soundfile.SoundFile, frames: int) -> Iterator[Samples]:
    """The file's own blocks, [n] float32 mono at its own rate."""
    while True:
        try:
            block = file.read(frames, dtype="float32", always_2d=True)
        except soundfile.SoundFileError as error:
            raise RecordingError(
                f"{path}: broken after {file.tell() / file.samplerate:.1f} s: {_reason(error)}"
            ) from error
        if not len(block):
            return
        yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


def _check_file(path: Path) -> None:
    """Says plainly what libsndfile calls 'System error'."""
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise RecordingError(f"{path}: {(error.strerror or str(error)).lower()}") from error
    if empty:
        raise RecordingError(f"{path}: expected a recording, got an empty file")
    if path.suffix.lower() == ".raw":
        raise RecordingError(f"{path}: headerless audio has no rate; expected a format such as WAV or FLAC")


def _check_whole(path: Path, file: soundfile.SoundFile, heard: int) -> None:
    """Finds recordings that end early, which libsndfile passes over in silence for most formats."""
    seconds = heard / file.samplerate
    # A WAV or AIFF says how many bytes it has; sizes near 2 and 4 GiB stand for "unknown" (a recorder that could not seek).
    for said, found in re.findall(r": (\d+) \(should be (\d+)\)", file.extra_info):
        if int(found) < int(said) < 0x7FFF_0000:
            raise RecordingError(f"{path}: cut short: expected {said} bytes, got {found} ({seconds:.1f} s)")
    # MP3 without an index only estimates its length: a tenth may be missing.
    if heard < 0.9 * file.frames:
        raise RecordingError(
            f"{path}: cut short: expected {file.frames / file.samplerate:.1f} s, got {seconds:.1f} s"
        )
    if file.format == "OGG":
        with path.open("rb") as raw:
            if not _ends_ogg(raw):
                raise RecordingError(f"{path}: cut short: no end-of-stream page after {seconds:.1f} s")


def _ends_ogg(raw: BinaryIO) -> bool:
    """Whether an Ogg file's last page carries the end-of-stream flag (RFC 3533, section 6)."""
    raw.seek(0, 2)
    raw.seek(max(0, raw.tell() - 65_307))  # no page is longer
    tail = raw.read()
    last = tail.rfind(b"OggS")
    return last >= 0 and len(tail) > last + 5 and bool(tail[last + 5] & 4)


def _reason(error: Exception) -> str:
    """libsndfile's reason without the path it repeats."""
    text = getattr(error, "error_string", None) or str(error)
    return str(text).strip().rstrip(".")
