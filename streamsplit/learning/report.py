"""What a training came to, as figures for `summary.json`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from streamsplit.encoders.split import SplitEncoder
from streamsplit.learning.pool import WindowPool
from streamsplit.learning.pretrain import Trained, Trainer, embed
from streamsplit.learning.probe import nearest_neighbour_accuracy

LAST_SHARE = 0.1
PROBED_WINDOWS = 12_000
FEWEST_LABELLED = 20
"""Recordings with labels, for a share of them to mean anything."""


def summary(trainer: Trainer, trained: Trained, seconds: float) -> dict[str, Any]:
    """Figures of a finished training.

    Returns:
        version, steps, batch, windows, silent, unreadable, seconds, threads, device; loss: term -> mean over the last tenth of the
        steps; effective_rank: path -> figure; agreement: mean cosine of the paths; knn: path -> share of labelled recordings
        whose five nearest from other groups agree with their label, and knn_chance, where there are labels.
    """
    pool = trainer.pool
    last = max(1, round(LAST_SHARE * trainer.done))
    figures: dict[str, Any] = {
        "version": trained.version.id,
        "steps": trainer.done,
        "batch": trainer.batch,
        "seed": trainer.settings.seed,
        "windows": len(pool),
        "windows_heard": pool.heard,
        "silent": pool.silent,
        "unreadable": pool.unreadable,
        "pool": pool.fingerprint,
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "device": str(trainer.device),
        "loss": {name: round(sum(values[-last:]) / last, 4) for name, values in trainer.losses.items()},
        "effective_rank": {path: round(rank, 1) for path, rank in trained.effective_rank.items()},
        "agreement": round(trained.agreement, 4),
    }
    if neighbours := knn(trained.version.encoder, pool):
        figures |= neighbours
    return figures


def knn(encoder: SplitEncoder, pool: WindowPool) -> dict[str, Any]:
    """5-NN accuracy per path over labelled recordings, by their mean embedding; empty where labels or groups are too few."""
    labelled = torch.tensor([label is not None for label in pool.labels])
    windows = torch.nonzero(labelled[pool.track]).flatten()
    if len(windows) > PROBED_WINDOWS:
        windows = windows[torch.linspace(0, len(windows) - 1, PROBED_WINDOWS).round().long()]
    tracks, place = torch.unique(pool.track[windows], return_inverse=True)
    labels = [str(pool.labels[track]) for track in tracks.tolist()]
    groups = [pool.groups[track] for track in tracks.tolist()]
    if len(labels) < FEWEST_LABELLED or len(set(labels)) < 2 or len(set(groups)) < 2:
        return {}
    accuracy = {}
    for path, z in embed(encoder, pool, windows).items():
        mean = torch.zeros(len(tracks), z.shape[1]).index_add_(0, place, z)
        accuracy[path] = round(nearest_neighbour_accuracy(F.normalize(mean, dim=1), labels, groups), 4)
    commonest = max(labels.count(name) for name in set(labels))
    return {"knn": accuracy, "knn_chance": round(commonest / len(labels), 4), "knn_recordings": len(labels)}
