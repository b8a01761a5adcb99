"""What the benchmarks share: made sound, one replay, percentiles."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamsplit.audio.synth import Soundscape, SoundscapeSettings
from streamsplit.client.journal import read
from streamsplit.errors import StreamSplitError


def made_sound(folder: Path, seconds: float, seed: int) -> Path:
    """A soundscape on disk."""
    path = folder / "soundscape.wav"
    Soundscape(SoundscapeSettings(seconds=seconds, seed=seed)).write(path, path.with_suffix(".csv"))
    return path


def replay(source: Path, out: Path, *arguments: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One ``streamsplit replay`` in its own process, as a user would run it: its summary and its window records."""
    command = [
        sys.executable,
        "-m",
        "streamsplit",
        "-q",
        "replay",
        str(source),
        "--out",
        str(out),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StreamSplitError(
            f"{' '.join(command[2:])}: status {done.returncode}: {done.stderr.strip()[-300:]}"
        )
    summary = json.loads((out / "summary.json").read_text())
    return summary, [record for record in read(out / "journal.jsonl") if record["kind"] == "window"]


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and how many."""
    p50, p95, p99 = np.percentile(np.asarray(values), [50, 95, 99]) if len(values) else (float("nan"),) * 3
    return {
        "p50": round(float(p50), 3),
        "p95": round(float(p95), 3),
        "p99": round(float(p99), 3),
        "n": len(values),
    }
