"""What a device may minimise, beside each other: objective x batch x stream x seed, from random weights, alone and beside a refiner.

    pool + order -> stream -> EdgeLearner -> norms settled on the whole pool -> every figure of `learning.evaluation` -> rows/SYSTEM-SEED.json
    clips + order -> sound -> device ==wire==> server and refiner -> newest version -> likewise

As many pairs of windows are learned from as windows are heard, and the device's own path is judged. A system is named OBJECTIVE-BATCH-ORDER,
"+refiner" after the objective where the whole product ran (`benchmarks.streaming`); a row is made once, and one that is deleted is
made anew. `large` is the reference: batches of 128 of everything at once. Orders are those of `learning.streams`, and `blocked`: every
class for a tenth of the stream, and never again; `composed` has made backgrounds between the clips.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.learning_data import Heard as Sounds
from benchmarks.learning_data import conditions, hear
from benchmarks.learning_sounds import BACKGROUND_LEVEL
from benchmarks.streaming import StreamingSettings, stream_through
from streamsplit.audio.sounds import BACKGROUNDS, make_background
from streamsplit.cli.terminal import err, progress_bar
from streamsplit.encoders.calibrate import settle_norms
from streamsplit.encoders.compact import LITE, CompactEncoder
from streamsplit.encoders.registry import make_untrained
from streamsplit.encoders.split import SplitEncoder
from streamsplit.errors import ConfigError, StreamSplitError
from streamsplit.learning.clips import Clips
from streamsplit.learning.edge import EdgeLearner
from streamsplit.learning.edge_settings import STEP_PAIRS, EdgeSettings
from streamsplit.learning.evaluation import CHUNK, judge, spread_over
from streamsplit.learning.objectives import OBJECTIVES, ObjectiveSettings
from streamsplit.learning.pool import WindowPool, gather
from streamsplit.learning.pretrain import CALIBRATION_WINDOWS, Trainer, TrainSettings
from streamsplit.learning.probe import require_sklearn
from streamsplit.learning.sources import Track
from streamsplit.learning.streams import Heard, stream
from streamsplit.learning.views import ViewSettings

PAIRS, QUICK_PAIRS = 12_000, 1280
TRANSPORT = 32, 7e-4, 1.0
"""Pairs of a step, learning rate and weight of the spread. ESC-10, 12,000 pairs, seed 0, an earlier lite tail, pooled
probe and the embedding's effective rank: 75.6 and 19 at a weight of 0.3, 78.1 and 22 at 1.0."""
LARGE, BLOCKED = "large", "blocked"
BACKGROUND_S = 40.0
FIGURES = ("probe", "probe_mean_std", "knn", "effective_rank", "mean_norm")

Update = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class System:
    """One row, but for its seed.

    Attributes:
        objective: a key of `OBJECTIVES`, or LARGE.
        batch: windows of a micro-batch.
        order: of the stream.
        kept_share: of what is stored, for a sample of all that was heard (`KeptWindows`).
        refined: whether a server refines the encoder meanwhile, over the wire, the device told no more than objective and batch.
        slow: whether partners, and the memory, are of a slow copy of the encoder (`ObjectiveSettings.momentum`).
    """

    objective: str
    batch: int
    order: str = "shuffled"
    kept_share: float = 0.0
    refined: bool = False
    slow: bool = False

    @property
    def name(self) -> str:
        """OBJECTIVE-BATCH-ORDER; with "+kept", "+slow" and "+refiner" after the objective."""
        said = ("+kept", self.kept_share), ("+slow", self.slow), ("+refiner", self.refined)
        more = "".join(word for word, holds in said if holds)
        return f"{self.objective}{more}-{self.batch}-{self.order}"


ORDERS = "shuffled", "sorted", "composed", BLOCKED
KEPT = 0.5
"""As shipped."""
MOMENTUM = 0.9
"""Of slow copies: 12,000 pairs are 94 optimiser steps."""
PLAN: tuple[System, ...] = (
    System(LARGE, STEP_PAIRS),
    *(System("reservoir", 8, order, KEPT) for order in ORDERS),
    *(System(name, 8, order) for order in ORDERS for name in ("in-batch", "published")),
    *(System("transport+reservoir", 8, order, KEPT) for order in ORDERS),
    *(System(name, 8, kept_share=KEPT) for name in ("cached", "transport", "expected")),
    *(System("reservoir", 8, order) for order in ("shuffled", BLOCKED)),
    *(System(name, 2, kept_share=KEPT) for name in ("reservoir", "cached", "transport")),
    *(System(name, 1, kept_share=KEPT) for name in ("cached", "transport")),
    *(System(name, 2) for name in ("in-batch", "published")),
    System("published", 1),
    *(
        System(name, batch, order, kept)
        for order in ("sorted", "composed")
        for batch, kept, names in (
            (8, KEPT, ("cached", "transport", "expected")),
            (2, KEPT, ("reservoir", "cached", "transport")),
            (2, 0.0, ("in-batch", "published")),
            (1, KEPT, ("cached", "transport")),
            (1, 0.0, ("published",)),
        )
        for name in names
    ),
    *(System("expected", batch, order, KEPT) for order in ORDERS[:3] for batch in (2, 1)),
    *(System(name, 8, order, KEPT, slow=True) for order in ORDERS[:2] for name in ("expected", "reservoir")),
    *(
        System(name, batch, order, KEPT * OBJECTIVES[name].stores, refined=True)
        for order in ORDERS[:3]
        for name in ("reservoir", "in-batch", "transport", "expected", "published", "cached")
        for batch in (8, 2, 1)
        if batch >= OBJECTIVES[name].least_batch
    ),
)


def settings_of(system: System, pairs: int, seed: int) -> EdgeSettings:
    """An optimiser step of 128 pairs at 2e-3 for all that contrast; transport needs no company and takes shorter steps."""
    alone = system.objective == "transport"
    accumulated, rate, spread = TRANSPORT if alone else (STEP_PAIRS, 2e-3, 0.3)
    steps = max(2, pairs // accumulated)
    return EdgeSettings(
        ObjectiveSettings(system.objective, spread_weight=spread, momentum=MOMENTUM if system.slow else 0.0),
        batch=system.batch,
        accumulate=accumulated // system.batch,
        kept_share=system.kept_share,
        learning_rate=rate,
        warm_up_steps=max(1, steps // 20),
        horizon_steps=steps,
        seed=seed,
    )


def learned(
    learner: EdgeLearner, pool: WindowPool, windows: Iterator[Heard], pairs: int, update: Update
) -> None:
    """Lets it hear the stream, and learn a pair for each window."""
    pieces, batch = 0, learner.settings.batch
    for heard, window in enumerate(windows, 1):
        learner.hear(pool.features[window.window], window.start_s)
        while pieces < heard // batch and (work := learner.step()) is not None:
            pieces += work.kind == "learned"
        if heard % 64 == 0:
            update(heard, pairs)


def heard_in(pool: WindowPool, order: str, pairs: int, seed: int) -> tuple[WindowPool, Iterator[Heard]]:
    """A stream of so many windows in an order, and the pool its numbers are of: for "composed" with backgrounds."""
    if order == BLOCKED:
        return pool, blocked(pool, pairs, seed)
    if order != "composed":
        return pool, stream(pool, order, pairs, seed)
    both = with_backgrounds(pool, seed)
    return both, stream(both, order, pairs, seed, range(len(pool.labels), len(both.labels)))


def blocked(pool: WindowPool, windows: int, seed: int) -> Iterator[Heard]:
    """Each class over and over for its share of the stream, clips in another order in each pass; classes in random order."""
    classes = sorted({str(label) for label in pool.labels})
    order = np.random.default_rng((seed, 11)).permutation(len(classes))
    share, begins_s = -(-windows // len(classes)), 0.0
    heard = 0
    for place in order:
        others = [track for track, label in enumerate(pool.labels) if label != classes[place]]
        for window in stream(pool, "shuffled", min(share, windows - heard), seed, others):
            yield replace(window, start_s=begins_s + window.start_s)
        heard += share
        begins_s += 10.0 * share  # farther than it lasted: pauses included


def with_backgrounds(pool: WindowPool, seed: int) -> WindowPool:
    """The pool and, as tracks after its own, a stretch of every kind of made background."""
    rate = pool.front_end.sample_rate_hz

    def made(kind: str) -> Iterator[Any]:
        rng = np.random.default_rng((seed, 12, list(BACKGROUNDS).index(kind)))
        yield BACKGROUND_LEVEL * make_background(kind, rng, int(BACKGROUND_S * rate), rate)

    tracks = [Track(kind, partial(made, kind), "background", kind) for kind in BACKGROUNDS]
    quiet = gather(tracks, pool.front_end, 10_000, seed)
    return replace(
        pool,
        features=np.concatenate([pool.features, quiet.features]),
        first=torch.cat([pool.first, len(pool) + quiet.first]),
        count=torch.cat([pool.count, quiet.count]),
        at_hop=torch.cat([pool.at_hop, quiet.at_hop]),
        track=torch.cat([pool.track, len(pool.labels) + quiet.track]),
        labels=pool.labels + quiet.labels,
        groups=pool.groups + quiet.groups,
    )


class DeviceOnly(CompactEncoder):
    """`compact` without its dense path: what the reference trains, so that only the system differs."""

    paths = (LITE,)

    def embeddings(self, activation: Tensor, split: int = 0) -> dict[str, Tensor]:
        """The lite embedding alone."""
        if split:
            raise ValueError(f"device only: expected split 0, got {split}")
        return {LITE: self.head(activation, self.last_split)}


def device_only(seed: int) -> SplitEncoder:
    """Random weights, those an edge learner of this seed begins with."""
    version = make_untrained("compact", seed)
    encoder = DeviceOnly(version.front_end)
    encoder.load_state_dict(version.trainable().state_dict())
    return encoder


def large(pool: WindowPool, pairs: int, seed: int, update: Update) -> SplitEncoder:
    """The reference."""
    settings = TrainSettings(steps=max(1, pairs // STEP_PAIRS), seed=seed, views=ViewSettings())
    trainer = Trainer(pool, settings, encoder=device_only(seed))
    trainer.run(lambda done, total, _: update(done, total))
    return trainer.encoder


def small(pool: WindowPool, system: System, pairs: int, seed: int, update: Update) -> SplitEncoder:
    """What an edge learner made of a stream."""
    learner = EdgeLearner(make_untrained("compact", seed), settings_of(system, pairs, seed))
    heard, windows = heard_in(pool, system.order, pairs, seed)
    learned(learner, heard, windows, pairs, update)
    return learner.shadow.encoder


def beside_refiner(
    folder: Path, sounds: Sounds, system: System, pairs: int, seed: int, update: Update
) -> tuple[SplitEncoder, dict[str, Any]]:
    """What device and server made of a stream: the encoder published last, and the run's figures."""
    run = folder / "runs" / f"{system.name}-{seed}"
    settings = StreamingSettings(
        system.name, objective=system.objective, batch=system.batch, order=system.order
    )
    kept = folder / "sounds" / f"{sounds.name}-{sounds.fingerprint}"
    streamed = stream_through(sounds.tracks, run, kept, pairs, seed, settings, update)
    shutil.rmtree(run)
    return streamed.newest.trainable(), streamed.figures


@torch.no_grad()
def judged(encoder: SplitEncoder, pool: WindowPool, clips: Clips) -> dict[str, Any]:
    """Every figure of the device's embedding and pooled features, batch norms settled on windows of the whole pool."""
    own = DeviceOnly(encoder.front_end)
    own.load_state_dict(encoder.state_dict())
    settle_norms(own, pool.mel(pool.sample(CALIBRATION_WINDOWS)))
    parts = [clips.mel(part) for part in torch.arange(len(clips.clip)).split(CHUNK)]
    said = {"embedding": torch.cat([own.head(part, own.last_split) for part in parts])}
    said["pooled"] = torch.cat([own.pooled(part, LITE) for part in parts])
    return {kind: judge(features, clips, windows=False) for kind, features in said.items()}


def run(
    folder: Path,
    seed: int,
    quick: bool,
    data: Path | None = None,
    seeds: int = 3,
    pairs: int = PAIRS,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Every system with every seed on the first set of the data.

    Args:
        folder: for rows, the heard sounds and table.md.
        seed: the first.
        quick: one seed, few pairs.
        data: a manifest, or a folder with one folder per class; None: made sound.
        seeds: how many.
        pairs: of windows that each system learns from.
        only: names of systems; none: all.
    """
    require_sklearn()
    torch.set_num_threads(1)
    known = {system.name: system for system in PLAN}
    if unknown := [name for name in only if name not in known]:
        raise ConfigError(f"systems: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    pairs, seeds = (QUICK_PAIRS, 1) if quick else (pairs, seeds)
    name, where = next(iter(conditions(data, quick).items()))
    with progress_bar(f"{name}: listening") as update:
        sounds = hear(name, data, where, quick, folder / "cache", update)
    for own in range(seed, seed + seeds):
        for system in [known[name] for name in only] or PLAN:
            made_once(folder, sounds, system, own, pairs)
    rows = [json.loads(path.read_text()) for path in sorted((folder / "rows").glob("*.json"))]
    kept = [
        row
        for row in rows
        if (row["set"], row["sounds"], row["pairs"]) == (sounds.name, sounds.fingerprint, pairs)
    ]
    systems = summarise(kept)
    (folder / "table.md").write_text(table(systems))
    return {"set": sounds.name, "data": data.name if data else "made", "pairs": pairs, "systems": systems}


def made_once(folder: Path, sounds: Sounds, system: System, seed: int, pairs: int) -> dict[str, Any]:
    """A system's row, as it was made before on the same sounds, or made now."""
    key = {
        "set": sounds.name,
        "sounds": sounds.fingerprint,
        "system": system.name,
        "seed": seed,
        "pairs": pairs,
    }
    path = folder / "rows" / f"{system.name}-{seed}.json"
    if path.exists():
        row: dict[str, Any] = json.loads(path.read_text())
        if {name: row.get(name) for name in key} == key:
            return row
    began_s, figures = _cpu_s(), {}
    try:
        with progress_bar(f"{system.name} seed {seed}") as update:
            if system.objective == LARGE:
                encoder = large(sounds.pool, pairs, seed, update)
            elif system.refined:
                encoder, figures = beside_refiner(folder, sounds, system, pairs, seed, update)
            else:
                encoder = small(sounds.pool, system, pairs, seed, update)
    except StreamSplitError as error:
        raise StreamSplitError(f"{system.name}, seed {seed}: {error}") from error
    trained_s = _cpu_s() - began_s
    said = judged(encoder, sounds.pool, sounds.clips)
    row = key | figures | {"cpu_s": round(trained_s, 1), "judged": said}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".partial")
    partial_path.write_text(json.dumps(row, indent=1))
    os.replace(partial_path, path)
    err.print(_line(system.name, seed, row["judged"]))
    return row


def _cpu_s() -> float:
    """Of this process and of those it waited for."""
    return sum(os.times()[:4])


def summarise(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """System -> "embedding" and "pooled" -> figure -> {"mean", "spread", "seeds"}; and "cpu_s", the mean of its trainings."""
    order = {system.name: place for place, system in enumerate(PLAN)}
    names = sorted({row["system"] for row in rows}, key=lambda name: (order.get(name, len(order)), name))
    said: dict[str, Any] = {}
    for name in names:
        own = [row for row in rows if row["system"] == name]
        said[name] = {kind: spread_over(row["judged"][kind] for row in own) for kind in own[0]["judged"]}
        said[name]["cpu_s"] = round(sum(row["cpu_s"] for row in own) / len(own), 1)
    return said


def table(systems: Mapping[str, Any]) -> str:
    """Markdown: probe of clip means / means and deviations, 5-NN, in points; rank and mean vector of the embedding."""
    lines = [
        "| objective | batch | stream | seeds | pooled: probe | mean+std | 5-NN | embedding: probe | mean+std | 5-NN | rank | mean vector | CPU s |",
        "| --- " * 13 + "|",
    ]
    for name, said in systems.items():
        objective, batch, order = name.rsplit("-", 2)
        pooled, own = said["pooled"], said["embedding"]
        shares = [_points(kind[figure]) for kind in (pooled, own) for figure in FIGURES[:3]]
        lines.append(
            f"| {objective} | {batch} | {order} | {own['probe']['seeds']} | "
            + " | ".join(shares)
            + f" | {own['effective_rank']['mean']:.0f} | {own['mean_norm']['mean']:.2f} | {said['cpu_s']:.0f} |"
        )
    return "\n".join(lines) + "\n"


def _points(figure: Mapping[str, float]) -> str:
    spread = f" ± {100 * figure['spread']:.1f}" if figure["seeds"] > 1 else ""
    return f"{100 * figure['mean']:.1f}{spread}"


def _line(name: str, seed: int, said: Mapping[str, Any]) -> str:
    own, pooled = said["embedding"], said["pooled"]
    return (
        f"{name} {seed}: pooled {100 * pooled['probe']['mean']:.1f} / {100 * pooled['probe_mean_std']['mean']:.1f},"
        f" 5-NN {100 * pooled['knn']['mean']:.1f}; embedding {100 * own['probe']['mean']:.1f} /"
        f" {100 * own['probe_mean_std']['mean']:.1f}, 5-NN {100 * own['knn']['mean']:.1f},"
        f" rank {own['effective_rank']:.0f}, mean vector {own['mean_norm']:.2f}"
    )
