"""What ``streamsplit search`` asks of a store: the windows nearest to a clip, or to a stored window."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from streamsplit.audio.features import LogMel
from streamsplit.audio.files import read
from streamsplit.audio.window import Block, Window, WindowAssembler
from streamsplit.encoders.registry import resolve
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError
from streamsplit.server.search import Neighbour, SourceMatch, nearest, nearest_sources
from streamsplit.server.store import EmbeddingStore, Vectors

PHASES = 4
"""Where a query's windows are cut, in shares of a window: stored windows were cut where they were, up to half a window away."""

MOST_DIGITS = 19
"""Numbers of windows have fewer."""

FIGURES = ("score", "id", "windows", "at")
"""Columns of the answer's table that are as wide as what stands in them."""


@dataclass(frozen=True, slots=True)
class Query:
    """One search.

    Attributes:
        subject: a recording's path, or the number of a stored window.
        encoder, weights: what embeds the recording.
        version: search among this version's embeddings; None: the recording's or window's own.
        neighbours: how many to find.
        same_stream: for a stored window: also look into its own stream.
    """

    subject: str
    encoder: str = "compact"
    weights: str | None = None
    version: str | None = None
    neighbours: int = 10
    same_stream: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """An answer: windows for a stored window, recordings (or streams) for a clip; best first."""

    subject: str
    version: str
    windows: tuple[Neighbour, ...] = ()
    sources: tuple[SourceMatch, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def table(self) -> Table:
        """For a terminal; long names are folded, figures never cut."""
        title = f"nearest to {self.subject} among embeddings of {self.version}"
        if self.sources:
            table = _drawn(title, "score", "sound", "label", "windows", "best at")
            for match in self.sources:
                best = match.best
                where = f"{best.device}/{best.stream} {best.start_s:.1f} s"
                table.add_row(f"{match.score:.3f}", match.source, best.label or "", str(match.windows), where)
            return table
        table = _drawn(title, "score", "id", "sound", "label", "device/stream", "at")
        for each in self.windows:
            where = f"{each.device}/{each.stream}"
            table.add_row(
                f"{each.score:.3f}",
                str(each.id),
                each.source or "",
                each.label or "",
                where,
                f"{each.start_s:.1f} s",
            )
        return table


def _drawn(title: str, *headings: str) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading, no_wrap=heading in FIGURES, overflow="fold")
    return table


def search_store(path: Path, query: Query) -> Found:
    """Answers a query from a store's file; a server may be writing to it meanwhile.

    Raises:
        ConfigError: no such window, or nothing stored of that version.
        StorageError: the store cannot be read.
        RecordingError: the recording cannot be read.
    """
    with EmbeddingStore(path, read_only=True) as store:
        if query.subject.isdecimal() and (
            len(query.subject) >= MOST_DIGITS or not Path(query.subject).exists()
        ):
            return _near_window(store, query)
        return _near_clip(store, query)


def _near_window(store: EmbeddingStore, query: Query) -> Found:
    known = len(query.subject) < MOST_DIGITS
    window = store.get(int(query.subject)) if known else None
    if window is None:
        raise ConfigError(f"window {query.subject}: {store.path} holds no such number")
    version = query.version or window.version
    own = None if query.same_stream else (window.device, window.stream)
    found = nearest(store, window.embedding, version, query.neighbours, own, [window.id])
    return Found(f"window {window.id} ({window.source or window.stream})", version, windows=tuple(found))


def _near_clip(store: EmbeddingStore, query: Query) -> Found:
    encoder = resolve(query.encoder, query.weights)
    version = query.version or encoder.id
    stored = store.versions()
    if version not in stored:
        held = ", ".join(f"{name} ({count})" for name, count in stored.items()) or "nothing"
        raise ConfigError(f"{store.path} holds no embeddings of {version}; it holds {held}")
    clip = embed_recording(encoder, Path(query.subject))
    found = nearest_sources(store, clip, version, query.neighbours)
    return Found(query.subject, version, sources=tuple(found))


def embed_recording(version: Version, path: Path) -> Vectors:
    """Every window of a recording at each of `PHASES` places, embedded undivided: [N, PHASES, D].

    Raises:
        RecordingError: it cannot be read, or holds no sound.
    """
    samples = read(path, version.front_end.sample_rate_hz)
    size = version.front_end.window_samples
    assembler = WindowAssembler("clip", size)
    parts = [*assembler.push(Block(samples)), *assembler.finish()]
    starts = [part.start_sample for part in parts if isinstance(part, Window)]
    if not starts:
        raise ConfigError(f"{path}: expected finite sound, got none")
    padded = np.pad(samples, (0, 2 * size))
    log_mel = LogMel(version.front_end)
    rows = []
    with torch.inference_mode():
        for start in starts:
            places = range(start, start + size, size // PHASES)
            phases = np.stack([padded[place : place + size] for place in places][:PHASES])
            rows.append(version.encoder(log_mel(torch.from_numpy(phases))).numpy())
    return np.stack(rows)
