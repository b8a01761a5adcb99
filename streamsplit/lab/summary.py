"""What a run came to: one dictionary, from the journal's records and what else is known of the run; and its digest.

Two runs with equal digests made the same embeddings, bit for bit, of the same windows, cut at the same splits, however their times, loads
and the order of their acknowledgements differed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from streamsplit.whole_file import make_folder, write_whole

Record = Mapping[str, Any]
Key = tuple[str, int]

SUMMARY_FILE = "summary.json"
DONE = ("acknowledged", "local")
"""States of a window whose embedding exists: the server has committed it, or there is no server and it was made here."""


@dataclass(frozen=True, slots=True)
class Run:
    """What the journal does not say of a run.

    Attributes:
        windows: that the source gave, those of earlier attempts of the same run included; None: as many as the journal names.
        stored: rows in the server's store; None: it cannot be looked into, and acknowledgements (after commit) stand for them.
        sample_rate_hz, window_samples: of the encoder's front end.
        uplink_bytes, downlink_bytes: what crossed the link; None: not measured.
        bytes_measured_on: "socket" or "messages": how.
        encoder, version, codec, decider: as configured.
        wall_s: duration of the (last attempt of the) run.
        client_cpu_s: processor seconds of the client in it.
        client_rss_bytes: its memory at the end.
        skipped, gaps: recordings that could not be read, and gaps.
        resent: windows the server had already.
        seed, conditions, speed: of a replay.
        attempts: how often the run was started.
    """

    sample_rate_hz: int
    window_samples: int
    windows: int | None = None
    stored: int | None = None
    uplink_bytes: int | None = None
    downlink_bytes: int | None = None
    bytes_measured_on: str | None = None
    encoder: str | None = None
    version: str | None = None
    codec: str | None = None
    decider: str | None = None
    wall_s: float | None = None
    client_cpu_s: float | None = None
    client_rss_bytes: int | None = None
    skipped: int | None = None
    gaps: int | None = None
    resent: int | None = None
    seed: int | None = None
    conditions: str | None = None
    speed: float | str | None = None
    attempts: int = 1


def digest(records: Iterable[Record]) -> str:
    """SHA-256 (hex) over what a run made, whatever it was called and however it ran.

    Of each finished window once: sequence, start sample, split, codec and embedding hash, by stream and sequence. Streams count by the
    rank of their names, so a run's own name does not matter.
    """
    windows = _finished(records)
    ranks = {stream: rank for rank, stream in enumerate(sorted({stream for stream, _ in windows}))}
    total = hashlib.sha256()
    for (stream, sequence), record in sorted(windows.items()):
        made = [
            ranks[stream], sequence, *(record[name] for name in ("start_sample", "split", "codec", "embedding_hash"))
        ]  # fmt: skip
        total.update(json.dumps(made).encode() + b"\n")
    return total.hexdigest()


def summarise(records: Iterable[Record], run: Run) -> dict[str, Any]:
    """Counts, bytes, latencies and the digest of a run.

    Counts are of distinct windows. ``lost`` are those the source gave that are neither in the store (or, where it cannot be looked into,
    acknowledged) nor accounted for as dropped or rejected; ``duplicated`` are rows in the store beyond one per window. Both
    are 0 unless something is broken. Latencies run from a window's last sample to its usable embedding, and count finished windows only.

    Args:
        records: the journal's.
        run: what else is known.

    Returns:
        Plain JSON types; None for what was not measured.
    """
    kept = list(records)
    finished = _finished(kept)
    states = _states(kept)
    accounted = sum(state not in DONE for state in states.values())
    windows = run.windows if run.windows is not None else len(states)
    present = run.stored if run.stored is not None else len(finished)
    parts = _parts(finished.values())
    acknowledged = sum(record["state"] == "acknowledged" for record in finished.values())
    return {
        "windows": windows,
        "acknowledged": acknowledged,
        "stored": acknowledged if run.stored is None else run.stored,
        "stored_counted_in": "acknowledgements" if run.stored is None else "store",
        "lost": max(0, windows - present - accounted),
        "duplicated": max(0, run.stored - max(windows, len(states))) if run.stored is not None else 0,
        "resent": run.resent if run.resent is not None else _count(kept, "window", "duplicate"),
        "dropped": sum(state == "dropped" for state in states.values()),
        "rejected": sum(state == "rejected" for state in states.values()),
        "skipped": run.skipped if run.skipped is not None else _count(kept, "skip"),
        "gaps": run.gaps if run.gaps is not None else _count(kept, "gap"),
        "audio_s": round(windows * run.window_samples / run.sample_rate_hz, 3),
        "payload_bytes": sum(record["payload_bytes"] for record in finished.values()),
        "uplink_bytes": run.uplink_bytes,
        "downlink_bytes": run.downlink_bytes,
        "bytes_measured_on": run.bytes_measured_on,
        "latency_ms": _percentiles(parts.pop("total_ms", [])),
        "parts_ms": {name: _percentiles(values) for name, values in sorted(parts.items())},
        "splits": _counted(str(record["split"]) for record in finished.values()),
        "codecs": _counted(str(record["codec"]) for record in finished.values()),
        "encoder": run.encoder,
        "version": run.version or _only({str(record["version"]) for record in finished.values()}),
        "codec": run.codec,
        "decider": run.decider,
        "seed": run.seed,
        "conditions": run.conditions,
        "speed": run.speed,
        "wall_s": None if run.wall_s is None else round(run.wall_s, 3),
        "client_cpu_s": None if run.client_cpu_s is None else round(run.client_cpu_s, 3),
        "client_rss_bytes": run.client_rss_bytes,
        "attempts": run.attempts,
        "digest": digest(finished.values()),
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes ``summary.json`` into a folder, whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    path = Path(folder) / SUMMARY_FILE
    make_folder(path)
    write_whole(path, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    return path


def table(summary: Mapping[str, Any]) -> Table:
    """The summary for a person, one line per idea."""
    shown = Table(show_header=False, box=None, pad_edge=False)
    shown.add_column(style="bold", no_wrap=True)
    shown.add_column(overflow="fold")
    for name, text in _lines(summary):
        shown.add_row(name, text)
    return shown


def _lines(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    def counts(*names: str) -> str:
        return ", ".join(f"{summary[name]:,} {name}" for name in names if summary[name] is not None)

    lines = [
        ("windows", f"{counts('windows', 'acknowledged', 'stored')} ({summary['audio_s']:,.1f} s of audio)"),
        ("trouble", counts("lost", "duplicated", "dropped", "rejected", "skipped", "gaps", "resent")),
        ("splits", ", ".join(f"{split}: {count:,}" for split, count in summary["splits"].items()) or "none"),
        ("encoder", f"{summary['version'] or summary['encoder'] or '?'}, codec {summary['codec'] or '?'}, decider {summary['decider'] or '?'}"),
    ]  # fmt: skip
    if summary["uplink_bytes"] is not None:
        per_window = summary["uplink_bytes"] / max(1, summary["windows"])
        down = "" if summary["downlink_bytes"] is None else f", {summary['downlink_bytes']:,} bytes down"
        measured = f" (counted on {summary['bytes_measured_on']})" if summary["bytes_measured_on"] else ""
        lines.append(
            ("link", f"{summary['uplink_bytes']:,} bytes up, {per_window:,.0f} a window{down}{measured}")
        )
    if summary["latency_ms"]:
        lines.append(
            ("latency", ", ".join(f"{name} {value:,.1f} ms" for name, value in summary["latency_ms"].items()))
        )
        medians = ((name.removesuffix("_ms"), part["p50"]) for name, part in summary["parts_ms"].items())
        lines.append(("of which", ", ".join(f"{name} {value:,.2f}" for name, value in medians) + " ms (p50)"))
    if summary["wall_s"] is not None:
        cpu = "" if summary["client_cpu_s"] is None else f", {summary['client_cpu_s']:,.1f} s of processor"
        lines.append(("time", f"{summary['wall_s']:,.1f} s{cpu}"))
    return [*lines, ("digest", summary["digest"])]


def _finished(records: Iterable[Record]) -> dict[Key, Record]:
    """Finished windows by key; the first record of a key stands, as in the store."""
    finished: dict[Key, Record] = {}
    for record in records:
        if record.get("kind") == "window" and record.get("state") in DONE:
            finished.setdefault((record["stream"], record["sequence"]), record)
    return finished


def _states(records: Sequence[Record]) -> dict[Key, str]:
    """What became of each window; finished wins over anything said before or after."""
    states: dict[Key, str] = {}
    for record in records:
        if record.get("kind") != "window":
            continue
        key = record["stream"], record["sequence"]
        if states.get(key) not in DONE:
            states[key] = record["state"]
    return states


def _parts(records: Iterable[Record]) -> dict[str, list[float]]:
    parts: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.get("measured", {}).items():
            if name.endswith("_ms") and name != "unix_ms" and value is not None:
                parts.setdefault(name, []).append(float(value))
    return parts


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    p50, p95, p99 = np.percentile(np.asarray(values, np.float64), (50, 95, 99))
    return {"p50": round(float(p50), 3), "p95": round(float(p95), 3), "p99": round(float(p99), 3)}


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _count(records: Sequence[Record], kind: str, flag: str | None = None) -> int:
    return sum(record.get("kind") == kind and (flag is None or bool(record.get(flag))) for record in records)


def _only(names: set[str]) -> str | None:
    return names.pop() if len(names) == 1 else None
