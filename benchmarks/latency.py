"""Latency of a window, by part, at one client on loopback: how much is compute, and how much is everything else.

Overhead is what remains of the time from a window's last sample to its usable embedding after features, head, packing and tail: waiting,
spool, gRPC, queues, the store's commit. Target: median <= 2 ms, p99 <= 10 ms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.runs import made_sound, percentiles, replay

COMPUTE = ("features_ms", "head_ms", "pack_ms", "tail_ms")
PARTS = (*COMPUTE, "wait_ms", "spool_ms", "queue_ms", "wire_ms", "server_queue_ms", "store_ms", "total_ms")
SPLITS = (0, 1, 2, 3, 4)


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Every split in turn, the same sound at eight times real time; rounds interleave the splits."""
    source = made_sound(folder, 60.0 if quick else 120.0, seed)
    measured: dict[int, list[dict[str, float]]] = {split: [] for split in SPLITS}
    for attempt in range(1 if quick else 3):
        for split in SPLITS:
            out = folder / f"split-{split}-{attempt}"
            _, records = replay(source, out, "--split", str(split), "--speed", "8", "--seed", str(seed))
            measured[split] += [record["measured"] for record in records if "total_ms" in record["measured"]]
    by_split = {}
    for split, windows in measured.items():
        overhead = [window["total_ms"] - sum(window.get(part, 0.0) for part in COMPUTE) for window in windows]
        by_split[str(split)] = {
            "overhead_ms": percentiles(overhead),
            **{part: percentiles([window[part] for window in windows if part in window]) for part in PARTS},
        }
    offloaded = [by_split[str(split)]["overhead_ms"] for split in SPLITS[:-1]]
    return {
        "splits": by_split,
        "overhead_ms": {
            "p50": max(part["p50"] for part in offloaded),
            "p99": max(part["p99"] for part in offloaded),
            "of": "the worst of splits 0 to 3",
        },
        "targets": {"overhead_p50_ms": 2.0, "overhead_p99_ms": 10.0},
    }
