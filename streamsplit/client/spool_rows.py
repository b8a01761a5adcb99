"""The spool's tables, and steps as their rows."""

from __future__ import annotations

import json
from typing import Any

from streamsplit.audio.window import Mark
from streamsplit.client.step import Step
from streamsplit.wire.codec import Codec

ROW_OVERHEAD_BYTES = 192
"""What a window costs on disk beside its payload, features and decision: numbers, names, index entry (measured: 160-190)."""

SCHEMA_VERSION = 1
SCHEMA = """
CREATE TABLE windows(
    id INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    start_sample INTEGER NOT NULL,
    split INTEGER NOT NULL,
    codec TEXT NOT NULL,
    version TEXT NOT NULL,
    source TEXT,
    label TEXT,
    level_dbfs REAL NOT NULL,
    captured_s REAL NOT NULL,
    opening INTEGER NOT NULL,
    details TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    payload BLOB NOT NULL,
    features BLOB NOT NULL,
    UNIQUE(stream, sequence)
);
CREATE TABLE streams(
    stream TEXT PRIMARY KEY,
    started_unix_ms INTEGER NOT NULL,
    sample_rate_hz INTEGER NOT NULL,
    next_sequence INTEGER,
    next_sample INTEGER,
    extra TEXT
) WITHOUT ROWID;
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('dropped', 0), ('openings', 0)
"""
COLUMNS = (
    "id, stream, sequence, start_sample, split, codec, version, source, label, level_dbfs, captured_s, opening, details, payload, "
    "features"
)
INSERT = """
INSERT INTO windows(id, stream, sequence, start_sample, split, codec, version, source, label, level_dbfs, captured_s, opening, details,
                    bytes, payload, features)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
FORGET_STREAMS = """
DELETE FROM streams WHERE stream NOT IN (SELECT stream FROM windows)
                      AND stream NOT IN (SELECT stream FROM streams ORDER BY started_unix_ms DESC LIMIT ?)
"""
REPLACE = INSERT.replace("INSERT", "REPLACE")


def row_of(step: Step, opening: int) -> tuple[tuple[object, ...], int]:
    """The step as `INSERT` takes it after its number, and the bytes it counts for.

    Args:
        step: to be kept.
        opening: number of this opening of the spool, by which its clock reading is recognised.
    """
    told = {"device_ms": step.device_ms, "decision": step.decision, "front_end": step.front_end}
    details = json.dumps(told, separators=(",", ":"))
    size = len(step.payload) + len(step.features) + len(details) + ROW_OVERHEAD_BYTES
    source, label = (step.mark.source, step.mark.label) if step.mark is not None else (None, None)
    return (
        step.stream,
        step.sequence,
        step.start_sample,
        step.split,
        str(step.codec),
        step.version,
        source,
        label,
        step.level_dbfs,
        step.captured_s,
        opening,
        details,
        size,
        step.payload,
        step.features,
    ), size


def step_of(row: tuple[Any, ...], opening: int) -> Step:
    """A row of `COLUMNS`; its clock reading counts only within the opening it was made in."""
    (
        _,
        stream,
        sequence,
        start,
        split,
        codec,
        version,
        source,
        label,
        level,
        captured,
        made_in,
        details,
        payload,
        features,
    ) = row
    more = json.loads(details)
    return Step(
        stream=stream,
        sequence=sequence,
        start_sample=start,
        split=split,
        codec=Codec(codec),
        version=version,
        payload=payload,
        features=features,
        front_end=more["front_end"],
        mark=None if source is None else Mark(source, label),
        level_dbfs=level,
        captured_s=captured if made_in == opening else 0.0,
        device_ms=more["device_ms"],
        decision=more["decision"],
    )
