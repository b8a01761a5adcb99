"""Does the memory notice a sound that was never heard before? Its novelty beside simpler signals, on streams whose classes come in turn.

    stream -> served embedding -> signals of the window, then memory.update -> AUROC of "this window is of the first clip of its class"

Every class begins once, so a passing stream has as many events as classes; windows of the first hundred are not asked. In a blocked
stream a class stays for a tenth of it, in a composed one for a minute among backgrounds; in a shuffled one nothing announces it.
"""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.ablation import BLOCKED, heard_in
from benchmarks.endurance import embedded
from benchmarks.learning_data import conditions, hear
from streamsplit.cli.terminal import progress_bar
from streamsplit.encoders.registry import resolve
from streamsplit.learning.evaluation import spread_over
from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.pool import WindowPool
from streamsplit.learning.uncertainty import auroc

WINDOWS, QUICK_WINDOWS = 4_000, 800
NOT_ASKED, RECENT = 100, 512
ORDERS = (BLOCKED, "sorted", "composed")


def run(folder: Path, seed: int, quick: bool, data: Path | None = None, seeds: int = 3) -> dict[str, Any]:
    """Every order and seed.

    Args:
        folder: for the heard sounds.
        seed: the first.
        quick: one seed, short streams.
        data: a manifest, or a folder with one folder per class; None: made sound.
        seeds: how many.
    """
    torch.set_num_threads(1)
    windows, seeds = (QUICK_WINDOWS, 1) if quick else (WINDOWS, seeds)
    name, where = next(iter(conditions(data, quick).items()))
    with progress_bar(f"{name}: listening") as update:
        pool = hear(name, data, where, quick, folder / "cache", update).pool
    orders = {
        order: spread_over(signals(pool, order, windows, own) for own in range(seed, seed + seeds))
        for order in ORDERS
    }
    return {"set": name, "windows": windows, "auroc": orders}


def signals(pool: WindowPool, order: str, windows: int, seed: int) -> dict[str, float]:
    """AUROC of every signal on one stream; and the tempered memory of raw embeddings' beside the centred one's."""
    heard, window_stream = heard_in(pool, order, windows, seed)
    encoder = resolve("compact").encoder
    z = embedded(encoder, heard, torch.arange(len(heard)))
    loud = torch.from_numpy(heard.features).float().mean((1, 2))
    said: dict[str, list[float]] = {}
    new: list[bool] = []
    memories = {
        "memory": DistributionMemory(),
        "memory of raw": DistributionMemory(MemorySettings(centred=False)),
    }
    recent: deque[int] = deque(maxlen=RECENT)
    sampled: list[int] = []
    rng = np.random.default_rng((seed, 13))
    known: set[str] = set()
    event: int | None = None
    for number, window in enumerate(window_stream):
        track = int(heard.track[window.window])
        label = str(heard.labels[track])
        if label not in known:
            known.add(label)
            event = track
        elif track != event:
            event = None
        own = z[window.window][None]
        if number >= NOT_ASKED:
            new.append(event is not None)
            before = z[list(recent)]
            for name, memory in memories.items():
                said.setdefault(name, []).append(float(memory.novelty(own)))
            alike_sampled = z[sampled] @ own[0]
            said.setdefault("nearest of 512 by chance", []).append(1 - float(alike_sampled.max()))
            alike = (before @ own[0]).max()
            mean = F.normalize(before.mean(0), dim=0)
            said.setdefault("nearest of the last 512", []).append(1 - float(alike))
            said.setdefault("distance to the mean", []).append(1 - float(mean @ own[0]))
            said.setdefault("change of embedding", []).append(1 - float(before[-1] @ own[0]))
            said.setdefault("change of loudness", []).append(
                abs(float(loud[window.window] - loud[recent[-1]]))
            )
            said.setdefault("loudness", []).append(float(loud[window.window]))
        for memory in memories.values():
            memory.update(own)
        recent.append(window.window)
        if len(sampled) < RECENT:
            sampled.append(window.window)
        elif (place := int(rng.integers(number + 1))) < RECENT:
            sampled[place] = window.window
    truth = np.array(new, dtype=float)
    found = {name: auroc(np.array(values), truth) for name, values in said.items()}
    return {name: round(value, 4) for name, value in found.items() if not math.isnan(value)} | {
        "events": float(len(known)),
        "windows of events": float(truth.sum()),
    }
