"""The distribution memory: what a window costs, what it says, and how well it describes a stream beside batch EM.

Targets: <= 0.3 ms a window on one thread, < 35 KB of state, >= 24 effective components.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from benchmarks.runs import percentiles
from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.memory_file import pack
from streamsplit.learning.merging import merge

SOUNDS, DEVIATION, STAY = 40, 0.03, 0.9


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Made embeddings of forty sounds, each ten windows long on average, one thread."""
    torch.set_num_threads(1)
    train, test = made(3000 if quick else 20_000, seed), made(1000, seed + 1, sounds_seed=seed)
    return {
        "kinds": {kind: measured(kind, train, test, quick) for kind in ("gaussian", "vmf")},
        "targets": {"update_p50_ms": 0.3, "state_bytes": 35_000, "effective_components": 24},
    }


def made(windows: int, seed: int, sounds_seed: int | None = None) -> Tensor:
    """Embeddings [N, 128] of a stream that stays with a sound; equal `sounds_seed` has the same sounds."""
    sounds = torch.Generator().manual_seed(seed if sounds_seed is None else sounds_seed)
    centres = F.normalize(torch.randn(SOUNDS, 128, generator=sounds), dim=1)
    generator = torch.Generator().manual_seed(seed + 1000)
    changes = torch.rand(windows, generator=generator) >= STAY
    fresh = torch.randint(SOUNDS, (windows,), generator=generator)
    last_change = torch.where(changes, torch.arange(windows), 0).cummax(0).values
    noise = DEVIATION * torch.randn(windows, 128, generator=generator)
    return F.normalize(centres[fresh[last_change]] + noise, dim=1)


def measured(kind: Literal["gaussian", "vmf"], train: Tensor, test: Tensor, quick: bool) -> dict[str, Any]:
    """One kind's costs and likelihood."""
    memory = DistributionMemory(MemorySettings(kind=kind))
    took = [timed(lambda row=row: memory.update(row)) for row in train.split(1)]  # type: ignore[misc]
    nats = float(-memory.novelty(test).mean())
    seen, seen_test = memory.seen(train), memory.seen(test)
    raw = DistributionMemory(MemorySettings(kind=kind, centred=False))
    z, directions = test[:8], F.normalize(torch.randn(50, 128), dim=1)
    asks: dict[str, Callable[[], object]] = {
        "uncertainty_1": lambda: memory.uncertainty(z[:1]),
        "sample_negatives_8x256": lambda: memory.sample_negatives(z, 256, torch.Generator().manual_seed(0)),
        "rebuild_128": lambda: raw.rebuild(train[:128]),
        "quantile_8x50": lambda: raw.quantile(z @ directions.T, directions),
        "expected_negative_mass_8": lambda: raw.expected_negative_mass(z, 0.1),
        "merge_2": lambda: merge([memory, memory]),
    }
    return {
        "update_ms": percentiles(took),
        "update_mean_ms": round(sum(took) / len(took), 3),
        "asked_ms": {
            name: percentiles([timed(ask) for _ in range(5 if quick else 20)]) for name, ask in asks.items()
        },
        "state_bytes": memory.state_bytes(),
        "sent_bytes": len(pack(memory, with_reservoir=False)),
        "saved_bytes": len(pack(memory, with_reservoir=True)),
        "effective_components": round(memory.effective_components, 1),
        "nats_per_window": round(nats, 2),
        "batch_em_nats_per_window": round(batch_em(seen, seen_test, kind), 2),
    }


def batch_em(train: Tensor, test: Tensor, kind: str) -> float:
    """scikit-learn's, with as many components as there are sounds."""
    covariance = "diag" if kind == "gaussian" else "spherical"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = GaussianMixture(SOUNDS, covariance_type=covariance, random_state=0).fit(train.numpy())
    return float(fitted.score(test.numpy()))


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    began_s = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - began_s)
