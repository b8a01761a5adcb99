"""What the client costs a device: processor time per second of sound, and memory. Targets: <= 10 ms per second, <= 350 MB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.runs import made_sound, replay

SPLITS = (1, 2, 3, 4)


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Each split at four times real time, in a process of its own; the start (imports, weights) does not count."""
    source = made_sound(folder, 40.0 if quick else 160.0, seed)
    splits = {}
    for split in SPLITS:
        summary, _ = replay(source, folder / f"split-{split}", "--split", str(split), "--speed", "4")
        splits[str(split)] = {
            "cpu_ms_per_s_of_audio": round(1e3 * summary["client_cpu_s"] / summary["audio_s"], 3),
            "rss_mb": round(summary["client_rss_bytes"] / 1e6, 1),
            "seconds_of_audio": summary["audio_s"],
        }
    return {"splits": splits, "targets": {"cpu_ms_per_s_of_audio": 10.0, "rss_mb": 350.0}}
