"""A long run: so many windows through the memory and the edge learner of one device, and nothing drifts.

    passes over the recordings, each in another order -> served embedding -> memory
                                                      -> EdgeLearner, a piece of work every 50 windows (endless: a constant rate)

The served version stays what it was, as on a device whose server is silent. Forty samples over time go into samples.json and a picture;
the summary compares the second fifth of the run with the last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.learning_data import conditions, hear
from streamsplit.cli.terminal import progress_bar
from streamsplit.encoders.registry import resolve
from streamsplit.encoders.split import SplitEncoder
from streamsplit.encoders.version import Version
from streamsplit.learning.edge import EdgeLearner
from streamsplit.learning.edge_settings import EdgeSettings
from streamsplit.learning.losses import effective_rank
from streamsplit.learning.memory import DistributionMemory
from streamsplit.learning.pool import WindowPool
from streamsplit.learning.streams import stream

WINDOWS, QUICK_WINDOWS = 200_000, 4_000
PIECES_PER_WINDOW = 0.02
SAMPLES, JUDGED, CHUNK = 40, 512, 64
DRIFTING = (
    "effective_components",
    "nats",
    "loss",
    "rss_mib",
    "held_mib",
    "effective_rank",
    "mean_norm",
    "update_ms",
)


@dataclass(slots=True)
class Spell:
    """What went by since the last sample."""

    losses: list[float] = field(default_factory=list)
    memory_s: float = 0.0
    learner_s: float = 0.0
    windows: int = 0


def run(
    folder: Path, seed: int, quick: bool, data: Path | None = None, windows: int = WINDOWS
) -> dict[str, Any]:
    """One device.

    Args:
        folder: for samples.json, endurance.png and the heard sounds.
        seed: of the stream and of the training.
        quick: a fiftieth of the length.
        data: a manifest, or a folder with one folder per class; None: made sound.
        windows: how many.
    """
    torch.set_num_threads(1)
    windows = QUICK_WINDOWS if quick else windows
    name, where = next(iter(conditions(data, quick).items()))
    with progress_bar(f"{name}: listening") as update:
        pool = hear(name, data, where, quick, folder / "cache", update).pool
    version = resolve("compact")
    samples = lived(pool, version, windows, seed)
    (folder / "samples.json").write_text(json.dumps(samples, indent=1))
    picture(samples, folder / "endurance.png")
    return {
        "set": name,
        "version": version.id,
        "windows": windows,
        "pieces_per_window": PIECES_PER_WINDOW,
        "drift": drift(samples),
        "last": samples[-1],
    }


def lived(
    pool: WindowPool, version: Version, windows: int, seed: int, samples_in_all: int = SAMPLES
) -> list[dict[str, float]]:
    """The samples of a device's life."""
    memory = DistributionMemory()
    learner = EdgeLearner(version, EdgeSettings(seed=seed))
    served = embedded(version.encoder, pool, torch.arange(len(pool)))
    judged = pool.sample(JUDGED)
    every, pieces = max(1, windows // samples_in_all), 0
    samples, spell = [], Spell()
    with progress_bar("living") as update:
        for heard, window in enumerate(stream(pool, "shuffled", windows, seed), 1):
            began_s = time.process_time()
            memory.update(served[window.window][None])
            between_s = time.process_time()
            learner.hear(pool.features[window.window], window.start_s)
            while pieces < int(heard * PIECES_PER_WINDOW):
                work = learner.step()
                pieces += 1
                if work is not None and work.terms:
                    spell.losses.append(work.terms["total"])
            spell.memory_s += between_s - began_s
            spell.learner_s += time.process_time() - between_s
            spell.windows += 1
            if heard % every == 0:
                samples.append(sample(heard, spell, memory, learner, served[judged], pool, judged))
                spell = Spell()
                update(heard, windows)
    return samples


def sample(
    heard: int,
    spell: Spell,
    memory: DistributionMemory,
    learner: EdgeLearner,
    served: Tensor,
    pool: WindowPool,
    judged: Tensor,
) -> dict[str, float]:
    """Where things stand: the memory on embeddings of the served version, the learner on those of its own weights."""
    encoder = learner.shadow.encoder.eval()
    own = embedded(encoder, pool, judged)
    return {
        "windows": heard,
        "effective_components": round(memory.effective_components, 2),
        "nats": round(float(-memory.novelty(served).mean()), 3),
        "loss": round(sum(spell.losses) / max(1, len(spell.losses)), 4),
        "rss_mib": round(psutil.Process().memory_info().rss / 2**20, 1),
        "held_mib": round(learner.held_bytes / 2**20, 3),
        "effective_rank": round(effective_rank(own), 2),
        "mean_norm": round(float(own.mean(0).norm()), 4),
        "update_ms": round(1e3 * spell.memory_s / spell.windows, 4),
        "learner_ms": round(1e3 * spell.learner_s / spell.windows, 4),
        "updates": learner.counters.updates,
        "overflowed": learner.counters.overflowed,
    }


@torch.no_grad()
def embedded(encoder: SplitEncoder, pool: WindowPool, windows: Tensor) -> Tensor:
    """The device's own embeddings of a pool's windows, [n, D]."""
    parts = [encoder.head(pool.mel(part), encoder.last_split) for part in torch.split(windows, CHUNK)]
    return F.normalize(torch.cat(parts), dim=1)


def drift(samples: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Means over the second fifth of the run and over the last, and the lowest and highest sample from there on."""
    fifth = max(1, len(samples) // 5)
    said = {}
    for name in DRIFTING:
        values = [float(one[name]) for one in samples]
        second, last = values[fifth : 2 * fifth] or values, values[-fifth:]
        said[name] = {
            "second_fifth": round(sum(second) / len(second), 4),
            "last_fifth": round(sum(last) / len(last), 4),
            "lowest": min(values[fifth:] or values),
            "highest": max(values[fifth:] or values),
        }
    return said


def picture(samples: Sequence[Mapping[str, float]], path: Path) -> None:
    """Six curves over windows as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = {
        "effective_components": "memory: effective components of 64",
        "nats": "memory: log-likelihood, nats a window",
        "loss": "edge learner: loss",
        "effective_rank": "trained copy: effective rank",
        "mean_norm": "trained copy: length of the mean vector",
        "rss_mib": "resident memory, MiB",
    }
    figure, axes = pyplot.subplots(2, 3, figsize=(13.0, 6.5), layout="constrained")
    at = [one["windows"] / 1000 for one in samples]
    for axis, (name, title) in zip(axes.flat, panels.items(), strict=True):
        values = [one[name] for one in samples]
        axis.plot(at, values, color="#1f5fa8", linewidth=1.6)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylim(0.0 if min(values) >= 0 else None, 1.15 * max(values) if max(values) > 0 else None)
        axis.grid(True, color="#e4e4e4", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("thousand windows heard")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
