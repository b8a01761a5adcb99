"""What learning costs, piece by piece, on one thread: CPU milliseconds, so that what else the machine does hardly shows.

    memory update | edge pieces by objective and batch | refiner step | Hybrid terms at W = 100 beside POT | edge learner's peak memory

`benchmarks.memory` has the memory's other costs and its likelihood.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ot
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.memory import made
from benchmarks.runs import percentiles
from streamsplit.encoders.calibrate import made_mel
from streamsplit.encoders.registry import resolve
from streamsplit.errors import StreamSplitError
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.learning.edge import EdgeLearner
from streamsplit.learning.edge_settings import EdgeSettings
from streamsplit.learning.hybrid import random_directions, sliced_spread, smoothness, temporal_ties
from streamsplit.learning.memory import DistributionMemory
from streamsplit.learning.objectives import OBJECTIVES, ObjectiveSettings
from streamsplit.learning.recent import to_codes
from streamsplit.learning.refine import Lesson, Refiner, RefineSettings
from streamsplit.wire.codec import Codec, pack

WINDOW, DIM, DIRECTIONS, NEIGHBOURS = 100, 128, 50, 5
BATCHES = (1, 2, 8)


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Every cost; `folder` is not used."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    repeats = 5 if quick else 30
    combinations = [
        (name, batch) for name, one in OBJECTIVES.items() for batch in BATCHES if batch >= one.least_batch
    ]
    return {
        "memory_update_ms": memory_update(10 * repeats, seed),
        "edge_ms": {f"{name}-{batch}": edge(name, batch, repeats, seed) for name, batch in combinations},
        "refiner_step_ms": refiner(max(3, repeats // 5), seed),
        "hybrid_ms": hybrid(repeats, seed),
        "edge_memory_mib": {
            f"{name}-{batch}": edge_memory(name, batch)
            for name, batch in (("reservoir", 8), ("cached", 8), ("transport", 8), ("transport", 1))
        },
    }


def memory_update(windows: int, seed: int) -> dict[str, float]:
    """One window at a time into a memory that is full."""
    memory = DistributionMemory()
    z = made(1024 + windows, seed)
    memory.update(z[:1024])
    return cpu_ms([lambda row=row: memory.update(row) for row in z[1024:].split(1)])  # type: ignore[misc]


def edge(name: str, batch: int, repeats: int, seed: int) -> dict[str, Any]:
    """An edge learner's pieces of work: those that learn, those that only listen, and what a pair of windows costs in all.

    The dearest piece is what the device's other work may have to wait for; it moves the weights or makes a memory anew.
    """
    accumulate = 16
    learner = EdgeLearner(
        resolve("compact"),
        EdgeSettings(ObjectiveSettings(name), batch=batch, accumulate=accumulate, seed=seed),
    )
    windows = heard(max(128, batch * accumulate * 4), seed)
    started, fed = 0.0, 0
    took: dict[str, list[float]] = {"learned": [], "listened": []}

    def feed(count: int) -> None:
        nonlocal started, fed
        for _ in range(count):
            learner.hear(windows[fed % len(windows)], started)
            started, fed = started + 3.0, fed + 1

    feed(100)
    learner.step()
    updates = learner.counters.updates
    while (
        learner.counters.updates < updates + max(2, repeats // accumulate) or len(took["learned"]) < repeats
    ):
        feed(batch)
        began_s = time.process_time()
        work = learner.step()
        if work is None:
            raise StreamSplitError(f"{name} {batch}: nothing to learn from")
        took[work.kind].append(1e3 * (time.process_time() - began_s))
    pairs = batch * len(took["learned"])
    return {
        "learned": percentiles(took["learned"]),
        "listened": percentiles(took["listened"]) if took["listened"] else None,
        "dearest": round(max(took["learned"] + took["listened"]), 1),
        "a_pair": round(sum(map(sum, took.values())) / pairs, 2),
    }


def refiner(repeats: int, seed: int) -> dict[str, Any]:
    """A refiner's step of 64 pairs, with the Hybrid terms over 100 windows and without, from features and from b2's activations."""
    version = resolve("compact")
    windows = heard(2 * 64 + WINDOW, seed)
    said: dict[str, Any] = {}
    for split, frozen in ((0, 0), (3, 3)):
        kept = [_buffered(number, codes, split) for number, codes in enumerate(windows)]
        pairs = [(kept[number], kept[number + 1]) for number in range(0, 128, 2)]
        for spread in (WINDOW, 0):
            settings = RefineSettings(hybrid_windows=spread)
            one = Refiner(version.trainable(), settings, lambda _, split: version.ranges[split], frozen)
            lesson = Lesson(pairs, kept[128:] if spread else ())
            one.step(lesson)
            steps = [lambda one=one, lesson=lesson: one.step(lesson)] * repeats  # type: ignore[misc]
            said[f"split-{split}-" + ("hybrid" if spread else "plain")] = cpu_ms(steps)
    return said


def hybrid(repeats: int, seed: int) -> dict[str, Any]:
    """Spread and smoothness of W embeddings with their gradients, beside what others make of the same work.

    `pot_sphere` is POT's spherical sliced distance to the uniform sphere (Bonet et al. 2023: along great circles), `pot_sampled` its
    Euclidean one against W fresh uniform points, as the published code does; both with as many directions. `dense_laplacian` is
    tr(Z' L Z) by a full matrix.
    """
    z = F.normalize(
        torch.randn(WINDOW, DIM, generator=torch.Generator().manual_seed(seed)), dim=1
    ).requires_grad_()
    generator = torch.Generator().manual_seed(seed)
    start_s, stream = 0.96 * torch.arange(WINDOW, dtype=torch.float64), torch.zeros(WINDOW, dtype=torch.int64)
    ties, weights = temporal_ties(start_s, stream, NEIGHBOURS)
    laplacian = torch.zeros(WINDOW, WINDOW)
    laplacian[ties[0], ties[1]] = laplacian[ties[1], ties[0]] = -weights
    laplacian -= torch.diag(laplacian.sum(1))

    def ours() -> Tensor:
        spread = sliced_spread(z, random_directions(DIM, DIRECTIONS, generator))
        tied, weight = temporal_ties(start_s, stream, NEIGHBOURS)
        return spread + smoothness(z, tied, weight, NEIGHBOURS)

    def sampled() -> Tensor:
        others = F.normalize(torch.randn(WINDOW, DIM, generator=generator), dim=1)
        distance: Tensor = ot.sliced_wasserstein_distance(z, others, n_projections=DIRECTIONS)
        return distance

    works: dict[str, Callable[[], Tensor]] = {
        "spread_and_smoothness": ours,
        "spread": lambda: sliced_spread(z, random_directions(DIM, DIRECTIONS, generator)),
        "pot_sphere": lambda: ot.sliced.sliced_wasserstein_sphere_unif(z, n_projections=DIRECTIONS),
        "pot_sampled": sampled,
        "smoothness": lambda: smoothness(z, *temporal_ties(start_s, stream, NEIGHBOURS), NEIGHBOURS),
        "dense_laplacian": lambda: torch.trace(z.T @ laplacian @ z) / (WINDOW * NEIGHBOURS),
    }
    said: dict[str, Any] = {}
    for name, work in works.items():

        def both(work: Callable[[], Tensor] = work) -> None:
            z.grad = None
            work().backward()  # type: ignore[no-untyped-call]

        both()
        said[name] = cpu_ms([both] * repeats)
    for other in ("pot_sphere", "pot_sampled"):
        said[f"{other}_over_spread"] = round(said[other]["p50"] / max(1e-6, said["spread"]["p50"]), 2)
    return said


def edge_memory(name: str, batch: int) -> dict[str, float]:
    """Peak resident memory of a process that serves, and then also learns: MiB."""
    command = [sys.executable, "-m", "benchmarks.learning_steps", name, str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StreamSplitError(
            f"edge memory of {name}: status {done.returncode}: {done.stderr.strip()[-300:]}"
        )
    said: dict[str, float] = json.loads(done.stdout)
    return said


def cpu_ms(works: Sequence[Callable[[], object]]) -> dict[str, float]:
    """Each work's CPU milliseconds."""
    took = []
    for work in works:
        began_s = time.process_time()
        work()
        took.append(1e3 * (time.process_time() - began_s))
    return percentiles(took)


def heard(windows: int, seed: int) -> list[Any]:
    """Made sound as a learner hears it: [F, T] uint8 each."""
    front_end = resolve("compact").front_end
    return list(to_codes(made_mel(front_end, windows, seed), front_end))


def _buffered(number: int, codes: Any, split: int) -> BufferedWindow:
    version = resolve("compact")
    low, high = version.front_end.feature_low, version.front_end.feature_high
    mel = torch.from_numpy(codes).float()[None, None] * ((high - low) / 255.0) + low
    codec = Codec.INT8 if split == 0 else Codec.INT4
    with torch.inference_mode():
        payload = pack(version.encoder.head(mel, split).numpy()[0], codec, version.ranges[split])
    return BufferedWindow("pi", "kitchen", number, 0.96 * number, version.id, split, codec, payload)


def _peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return round(int(status.split("VmHWM:")[1].split()[0]) / 1024, 1)


def _own_memory(name: str, batch: int) -> dict[str, float]:
    torch.set_num_threads(1)
    version = resolve("compact")
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        for _ in range(5):
            version.encoder.head(torch.zeros(1, 1, 64, 96), version.encoder.last_split)
    serving = _peak_mib()
    learner = EdgeLearner(version, EdgeSettings(ObjectiveSettings(name), batch=batch))
    for number in range(600):
        learner.hear(rng.integers(0, 255, (64, 96), dtype=np.uint8), 3.0 * number)
        if number % 100 == 99:
            learner.step()
    while learner.counters.updates < 3:
        learner.step()
    gc.collect()
    return {
        "serving": serving,
        "learning": _peak_mib(),
        "held": round(learner.held_bytes / 2**20, 2),
        "bound": round(learner.bound_bytes / 2**20, 2),
    }


if __name__ == "__main__":
    print(json.dumps(_own_memory(sys.argv[1], int(sys.argv[2]))))
