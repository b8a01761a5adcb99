"""Learning systems beside each other: the same windows, the same judgement, several seeds.

    pool + seed -> system -> weights -> every figure of `learning.evaluation` -> rows/SET-SYSTEM-SEED.json

A row is made once: the same command goes on where it was stopped, and a row that is deleted is made anew. To add a system, give it a
name in `SYSTEMS`. `gap_points` is how many points a system's probe is behind `REFERENCE`, the mean over its seeds: below 0 is ahead of it;
`knn_gap_points` likewise in 5-NN.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.learning_data import Heard, conditions, hear
from benchmarks.streaming import STREAMING, StreamingSettings, stream_through
from streamsplit.cli.terminal import err, progress_bar
from streamsplit.encoders.calibrate import calibrate, settle_norms
from streamsplit.encoders.checkpoint import round_to_half, save
from streamsplit.encoders.registry import make_untrained
from streamsplit.encoders.version import Version, freeze
from streamsplit.errors import ConfigError, StreamSplitError
from streamsplit.learning.edge import EdgeLearner
from streamsplit.learning.edge_settings import STEP_PAIRS, EdgeSettings
from streamsplit.learning.evaluation import joined, judge, judge_uncertainty, represent, spread_over
from streamsplit.learning.floors import MEL_STATISTICS, floors
from streamsplit.learning.objectives import ObjectiveSettings
from streamsplit.learning.pool import WindowPool
from streamsplit.learning.pretrain import CALIBRATION_WINDOWS, GENTLE_VIEWS, Trainer, TrainSettings
from streamsplit.learning.probe import require_sklearn
from streamsplit.learning.sources import Track
from streamsplit.learning.streams import stream

LARGE_BATCH = 128
REFERENCE, RANDOM, FLOOR = "large-batch", "random", "floor"
QUICK_PAIRS = 1280
HEADLINES = ("probe", "probe_mean_std", "knn")
GAPS = {"gap_points": "probe", "knn_gap_points": "knn"}

Update = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Task:
    """What a system is given.

    Attributes:
        pool: the windows, without labels for those who play fair.
        pairs: of windows to learn from in all: the budget that is the same for every system.
        seed: everything random follows from it.
        update: to be called with (pairs done, pairs in all).
        tracks: the recordings that the windows are of, for systems that hear sound.
        folder: for what a system leaves on disk.
    """

    pool: WindowPool
    pairs: int
    seed: int
    update: Update
    tracks: Sequence[Track] = ()
    folder: Path = Path()


@dataclass(frozen=True, slots=True)
class Learned:
    """What a system of several parts came to.

    Attributes:
        version: what it is judged by.
        others: more versions to be judged beside it, by name.
        figures: what else is to be told, plain JSON types.
    """

    version: Version
    others: Mapping[str, Version]
    figures: Mapping[str, Any]


System = Callable[[Task], Version | Learned]


def large_batch(task: Task, times: int = 1) -> Version:
    """The server-centric reference: everything at once, batches of 128; `times` as many pairs."""
    pairs = times * task.pairs
    trainer = Trainer(
        task.pool, TrainSettings(steps=max(1, pairs // LARGE_BATCH), batch=LARGE_BATCH, seed=task.seed)
    )
    trainer.run(lambda done, total, _: task.update(done * LARGE_BATCH, total * LARGE_BATCH))
    return trainer.finish(f"large batch, {pairs} pairs, seed {task.seed}").version


def random_encoder(task: Task) -> Version:
    """Weights that learned nothing."""
    return make_untrained("compact", task.seed)


def edge(task: Task, objective: str, batch: int, order: str = "shuffled") -> Version:
    """An edge learner alone, from random weights: every window is heard once, and a pair is learned for each.

    Both paths learn, and views are the reference's, so that only the system differs.
    """
    updates = max(2, task.pairs // STEP_PAIRS)
    settings = EdgeSettings(
        ObjectiveSettings(name=objective),
        batch=batch,
        accumulate=STEP_PAIRS // batch,
        warm_up_steps=max(1, updates // 20),
        horizon_steps=updates,
        paths="all",
        seed=task.seed,
        views=GENTLE_VIEWS,
    )
    learner = EdgeLearner(make_untrained("compact", task.seed), settings)
    learned = 0
    for heard, window in enumerate(stream(task.pool, order, task.pairs, task.seed), 1):
        learner.hear(task.pool.features[window.window], window.start_s)
        while learned < heard // batch and (work := learner.step()) is not None:
            learned += work.kind == "learned"
        task.update(heard, task.pairs)
    return _finished(learner, task)


def streaming(task: Task, settings: StreamingSettings) -> Learned:
    """The whole product; judged by the version that its server published last, and by what its device served and had learned."""
    folder = task.folder / "runs" / f"{settings.name}-{task.seed}"
    streamed = stream_through(
        task.tracks, folder, task.folder / "sound", task.pairs, task.seed, settings, task.update
    )
    others = {"device": streamed.device}
    if streamed.shadow is not None:
        others["shadow"] = _finished(streamed.shadow, task)
    return Learned(streamed.newest, others, streamed.figures)


def _finished(learner: EdgeLearner, task: Task) -> Version:
    """The trained copy as a version, its norms settled on plain windows as the reference's are."""
    encoder = copy.deepcopy(learner.shadow.encoder).eval()
    encoder.to(memory_format=torch.contiguous_format)
    calm = task.pool.mel(task.pool.sample(CALIBRATION_WINDOWS))
    settle_norms(encoder, calm)
    round_to_half(encoder)
    note = (
        f"edge learner, {learner.settings.objective.name}, batch {learner.settings.batch}, seed {task.seed}"
    )
    return freeze(encoder, *calibrate(encoder, calm), trained=True, note=note)


SYSTEMS: dict[str, System] = {
    RANDOM: random_encoder,
    REFERENCE: large_batch,
    f"{REFERENCE}-4x": partial(large_batch, times=4),
    **{
        f"edge-{objective}-{batch}": partial(edge, objective=objective, batch=batch)
        for objective, batch in (("reservoir", 8), ("reservoir", 2), ("cached", 8), ("in-batch", 8))
    },
    **{settings.name: partial(streaming, settings=settings) for settings in STREAMING},
}
"""In the order they are run."""


def run(
    folder: Path,
    seed: int,
    quick: bool,
    data: Path | None = None,
    seeds: int = 3,
    pairs: int = 24_000,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Every system on every set with every seed.

    Args:
        folder: for rows, weights and the heard sounds.
        seed: the first.
        quick: one seed, few pairs, the smallest set.
        data: a manifest, or a folder with one folder per class; None: made sound.
        seeds: how many.
        pairs: of windows that each system learns from.
        only: names of systems; none: all.
    """
    require_sklearn()
    if unknown := [name for name in only if name not in SYSTEMS]:
        raise ConfigError(f"systems: expected some of {', '.join(SYSTEMS)}, got {', '.join(unknown)}")
    pairs, seeds = (QUICK_PAIRS, 1) if quick else (pairs, seeds)
    rows = []
    for name, where in conditions(data, quick).items():
        with progress_bar(f"{name}: listening") as update:
            heard = hear(name, data, where, quick, folder / "cache", update)
        rows.append(_row(folder, heard, FLOOR, 0, 0, lambda heard=heard: _floors(heard)))
        for own in range(seed, seed + seeds):
            for system, make in SYSTEMS.items():
                if only and system not in only:
                    continue
                work = _work(folder, heard, system, make, own, pairs)
                rows.append(_row(folder, heard, system, own, pairs, work))
    return summarise(rows) | {"pairs": pairs, "data": data.name if data else "made"}


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows by set and system: every seed's headline figures, their mean and spread, and the gap to the reference.

    Returns:
        sets: set -> system -> {"seeds": seed -> {"probe", "probe_mean_std", "knn", "gap_points", "knn_gap_points", "effective_rank"},
        each by representation, "over_seeds": representation -> figure -> {"mean", "spread", "seeds"}, "uncertainty": seed -> figures}.
        Shares are 0..1, gaps in points of the clip-mean probe and of 5-NN; None without a reference.
    """
    sets: dict[str, Any] = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        reference = _over([row for row in own if row["system"] == REFERENCE])
        sets[name] = {
            system: _system([row for row in own if row["system"] == system], reference)
            for system in dict.fromkeys(row["system"] for row in own)
        }
    return {"sets": sets}


def _system(rows: Sequence[Mapping[str, Any]], reference: Mapping[str, Any]) -> dict[str, Any]:
    over = _over(rows)
    for kind, figures in over.items():
        for name, figure in GAPS.items():
            figures[name] = _gap(reference, kind, figure, figures[figure]["mean"])
    return {
        "seeds": {str(row["seed"]): _headlines(row, reference) for row in rows},
        "over_seeds": over,
        "uncertainty": {str(row["seed"]): row["uncertainty"] for row in rows if row["uncertainty"]},
        "seconds": [row["seconds"] for row in rows],
    }


def _headlines(row: Mapping[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    judged = row["representations"]
    headlines = {name: {kind: own[name]["mean"] for kind, own in judged.items()} for name in HEADLINES}
    return (
        headlines
        | {"effective_rank": {kind: own["effective_rank"] for kind, own in judged.items()}}
        | {
            name: {kind: _gap(reference, kind, figure, own[figure]["mean"]) for kind, own in judged.items()}
            for name, figure in GAPS.items()
        }
    )


def _over(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    kinds = dict.fromkeys(kind for row in rows for kind in row["representations"])
    return {kind: spread_over(row["representations"][kind] for row in rows) for kind in kinds}


def _gap(reference: Mapping[str, Any], kind: str, figure: str, share: float) -> float | None:
    return None if kind not in reference else round(100 * (reference[kind][figure]["mean"] - share), 2)


def _work(
    folder: Path, heard: Heard, system: str, make: System, seed: int, pairs: int
) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        with progress_bar(f"{heard.name} {system} seed {seed}") as update:
            own = folder / "sounds" / f"{heard.name}-{heard.fingerprint}"
            made = make(Task(heard.pool, pairs, seed, update, heard.tracks, own))
        learned = made if isinstance(made, Learned) else Learned(made, {}, {})
        version = learned.version
        weights = folder / "weights" / f"{heard.name}-{system}-{seed}.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        save(version, weights)
        represented = represent(version.encoder, heard.clips)
        plain = floors(heard.clips)[MEL_STATISTICS]
        both = {
            f"{path} + {MEL_STATISTICS}": joined(represented[path], plain) for path in version.encoder.paths
        }
        uncertain = {"lite", "dense"} <= set(represented) and system != RANDOM
        return {
            "version": version.id,
            "representations": _judged(represented | both | _beside(learned, heard), heard),
            **learned.figures,
            "uncertainty": judge_uncertainty(represented, heard.clips) if uncertain else None,
        }

    return work


def _beside(learned: Learned, heard: Heard) -> dict[str, Tensor]:
    """The other versions' representations, by version and path."""
    return {
        f"{name} {kind}": features
        for name, version in learned.others.items()
        for kind, features in represent(version.encoder, heard.clips).items()
    }


def _floors(heard: Heard) -> dict[str, Any]:
    return {"version": None, "representations": _judged(floors(heard.clips), heard), "uncertainty": None}


def _judged(represented: Mapping[str, Tensor], heard: Heard) -> dict[str, Any]:
    return {kind: judge(features, heard.clips, windows=False) for kind, features in represented.items()}


def _row(
    folder: Path, heard: Heard, system: str, seed: int, pairs: int, work: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The row as it was made before on the same sounds, or made now. A system that fails on purpose has no row and stops the run."""
    key = {"set": heard.name, "system": system, "seed": seed, "pairs": pairs, "sounds": heard.fingerprint}
    path = folder / "rows" / f"{heard.name}-{system}-{seed}.json"
    if path.exists():
        row: dict[str, Any] = json.loads(path.read_text())
        if {name: row.get(name) for name in key} == key:
            return row
    began_s = time.monotonic()
    try:
        made = work()
    except StreamSplitError as error:
        raise StreamSplitError(f"{heard.name}, {system}, seed {seed}: {error}") from error
    row = key | made | {"seconds": round(time.monotonic() - began_s, 1), "threads": torch.get_num_threads()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(row, indent=1))
    os.replace(partial, path)
    for line in _told(row):
        err.print(line)
    return row


def _told(row: Mapping[str, Any]) -> Iterator[str]:
    for kind, figures in row["representations"].items():
        if "+" not in kind:
            yield (
                f"{row['set']} {row['system']} {row['seed']} {kind}: probe {100 * figures['probe']['mean']:.1f},"
                f" mean+std {100 * figures['probe_mean_std']['mean']:.1f}, 5-NN {100 * figures['knn']['mean']:.1f},"
                f" rank {figures['effective_rank']:.0f}"
            )
