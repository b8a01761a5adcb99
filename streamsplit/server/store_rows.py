"""The store's tables, and windows as their rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE streams(
    id INTEGER PRIMARY KEY,
    device TEXT NOT NULL,
    stream TEXT NOT NULL,
    sample_rate_hz INTEGER NOT NULL,
    started_unix_ms INTEGER NOT NULL,
    UNIQUE(device, stream)
);
CREATE TABLE embeddings(
    id INTEGER PRIMARY KEY,
    stream_id INTEGER NOT NULL REFERENCES streams(id),
    sequence INTEGER NOT NULL,
    start_sample INTEGER NOT NULL,
    received_unix_ms INTEGER NOT NULL,
    version TEXT NOT NULL,
    split INTEGER NOT NULL,
    codec TEXT NOT NULL,
    computed_on TEXT NOT NULL CHECK(computed_on IN ('device', 'server')),
    uncertainty REAL,
    level_dbfs REAL NOT NULL,
    source TEXT,
    label TEXT,
    payload_bytes INTEGER NOT NULL,
    embedding BLOB NOT NULL,
    UNIQUE(stream_id, sequence)
);
CREATE VIEW windows AS
    SELECT e.id, s.device, s.stream, e.sequence, e.start_sample, s.sample_rate_hz, s.started_unix_ms,
           1.0 * e.start_sample / s.sample_rate_hz AS start_s, e.received_unix_ms, e.version, e.split, e.codec, e.computed_on,
           e.uncertainty, e.level_dbfs, e.source, e.label, e.payload_bytes, e.embedding
    FROM embeddings e JOIN streams s ON s.id = e.stream_id
"""
COLUMNS = (
    "id, device, stream, sequence, start_sample, sample_rate_hz, started_unix_ms, received_unix_ms, version, split, codec, "
    "computed_on, uncertainty, level_dbfs, source, label, payload_bytes, embedding"
)
INSERT = """
INSERT INTO embeddings(stream_id, sequence, start_sample, received_unix_ms, version, split, codec, computed_on, uncertainty,
                       level_dbfs, source, label, payload_bytes, embedding)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(stream_id, sequence) DO NOTHING
"""


@dataclass(frozen=True, slots=True, eq=False)
class StoredWindow:
    """One window as the store keeps it.

    Attributes:
        device, stream, sequence: its key; stored once.
        start_sample: first sample on the stream's clock.
        sample_rate_hz, started_unix_ms: of the stream; what its first window said stays.
        version: encoder version of the embedding.
        split: -1 audio, 0 features, k activation after block k, L embedding.
        codec: of the payload.
        computed_on: "device" or "server": where the embedding was made.
        embedding: [D] float32, finite.
        received_unix_ms: the server's wall clock.
        uncertainty: in [0, 2], None where the encoder has none.
        level_dbfs: loudness.
        source, label: where the sound came from, if it is known; for people and evaluation.
        payload_bytes: what the window cost on the wire.
        id: the store's number, increasing in order of arrival; 0 before it is stored.
    """

    device: str
    stream: str
    sequence: int
    start_sample: int
    sample_rate_hz: int
    started_unix_ms: int
    version: str
    split: int
    codec: str
    computed_on: str
    embedding: Vectors
    received_unix_ms: int
    payload_bytes: int
    level_dbfs: float = -120.0
    uncertainty: float | None = None
    source: str | None = None
    label: str | None = None
    id: int = 0

    @property
    def start_s(self) -> float:
        """Seconds since the stream began."""
        return self.start_sample / self.sample_rate_hz


def row_values(row: StoredWindow) -> tuple[object, ...]:
    """The row as `INSERT` takes it, after its stream's number.

    Raises:
        ValueError: the embedding is not a finite vector.
    """
    embedding = np.ascontiguousarray(row.embedding, "<f4")
    if embedding.ndim != 1 or embedding.size == 0 or not np.isfinite(embedding).all():
        raise ValueError(
            f"window {row.device}/{row.stream}/{row.sequence}: expected a finite embedding [D], got shape {embedding.shape}"
            + ("" if np.isfinite(embedding).all() else " with NaN or infinity")
        )
    return (
        row.sequence,
        row.start_sample,
        row.received_unix_ms,
        row.version,
        row.split,
        str(row.codec),
        row.computed_on,
        row.uncertainty,
        row.level_dbfs,
        row.source,
        row.label,
        row.payload_bytes,
        embedding.tobytes(),
    )


def window_of(row: tuple[Any, ...]) -> StoredWindow:
    """A row of `COLUMNS` of the view `windows`."""
    (
        id,
        device,
        stream,
        sequence,
        start_sample,
        rate,
        started,
        received,
        version,
        split,
        codec,
        computed_on,
        *rest,
    ) = row
    uncertainty, level_dbfs, source, label, payload_bytes, blob = rest
    return StoredWindow(
        device=device,
        stream=stream,
        sequence=sequence,
        start_sample=start_sample,
        sample_rate_hz=rate,
        started_unix_ms=started,
        version=version,
        split=split,
        codec=codec,
        computed_on=computed_on,
        embedding=np.frombuffer(blob, "<f4").astype(np.float32, copy=False),
        received_unix_ms=received,
        payload_bytes=payload_bytes,
        level_dbfs=level_dbfs,
        uncertainty=uncertainty,
        source=source,
        label=label,
        id=id,
    )
