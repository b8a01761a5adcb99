"""Two devices that hear different sounds: each alone against both merged, judged on the sounds of both.

    classes in two halves -> a stream each -> EdgeLearner each -> differences -> merge_differences -> gate -> version -> rebase, in rounds

Alone, a device's own difference is all that is merged. All begin with the same weights and every device hears as many windows. What is
served is judged; its batch norms are settled on windows of both halves everywhere, so that only what was learned differs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.ablation import judged
from benchmarks.learning_data import Heard as Sounds
from benchmarks.learning_data import conditions, hear
from streamsplit.cli.terminal import err, progress_bar
from streamsplit.encoders.calibrate import calibrate, settle_norms
from streamsplit.encoders.checkpoint import round_to_half
from streamsplit.encoders.registry import make_untrained, resolve
from streamsplit.encoders.version import Version, freeze
from streamsplit.learning.averaging import DeviceDifference, merge_differences
from streamsplit.learning.edge import EdgeLearner
from streamsplit.learning.edge_settings import EdgeSettings
from streamsplit.learning.evaluation import spread_over
from streamsplit.learning.gate import judge, quality
from streamsplit.learning.pool import WindowPool
from streamsplit.learning.pretrain import CALIBRATION_WINDOWS, embed
from streamsplit.learning.probe import require_sklearn
from streamsplit.learning.streams import Heard, stream

ROUNDS, ROUND_WINDOWS, QUICK_WINDOWS = 4, 2_048, 256
WARM_UP_STEPS = 4
JUDGED_WINDOWS = 384
BEGINNINGS: dict[str, Callable[[int], Version]] = {
    "untrained": lambda seed: make_untrained("compact", seed),
    "shipped": lambda seed: resolve("compact"),
}


@dataclass(slots=True)
class Device:
    """One device: its learner and what it is yet to hear."""

    name: str
    learner: EdgeLearner
    windows: Iterator[Heard]
    pieces: int = 0
    heard: int = 0

    def live(self, pool: WindowPool, windows: int) -> None:
        """Hears so many windows more and learns a pair for each."""
        batch = self.learner.settings.batch
        for window in islice(self.windows, windows):
            self.learner.hear(pool.features[window.window], window.start_s)
            self.heard += 1
            while self.pieces < self.heard // batch and (work := self.learner.step()) is not None:
                self.pieces += work.kind == "learned"


def run(
    folder: Path,
    seed: int,
    quick: bool,
    data: Path | None = None,
    seeds: int = 3,
    only: Sequence[str] = (),
) -> dict[str, Any]:
    """Both beginnings, every seed.

    Args:
        folder: for rows and the heard sounds.
        seed: the first; of the halves, the streams and the trainings.
        quick: one seed, short rounds.
        data: a manifest, or a folder with one folder per class; None: made sound.
        seeds: how many.
        only: some of `BEGINNINGS`; none: all.
    """
    require_sklearn()
    torch.set_num_threads(1)
    name, where = next(iter(conditions(data, quick).items()))
    with progress_bar(f"{name}: listening") as update:
        sounds = hear(name, data, where, quick, folder / "cache", update)
    size, seeds = (QUICK_WINDOWS, 1) if quick else (ROUND_WINDOWS, seeds)
    said: dict[str, Any] = {}
    for beginning in only or BEGINNINGS:
        rows = [compared(sounds, beginning, own, size) for own in range(seed, seed + seeds)]
        (folder / f"{beginning}.json").write_text(json.dumps(rows, indent=1))
        said[beginning] = {
            system: {
                kind: spread_over(row["systems"][system]["judged"][kind] for row in rows)
                for kind in ("pooled", "embedding")
            }
            for system in rows[0]["systems"]
        } | {
            "published": {
                system: [row["systems"][system]["published"] for row in rows] for system in rows[0]["systems"]
            }
        }
    return {"set": sounds.name, "rounds": ROUNDS, "round_windows": size, "beginnings": said}


def compared(sounds: Sounds, beginning: str, seed: int, windows: int) -> dict[str, Any]:
    """One seed: what was served at the beginning, and at the end of each device alone and of both."""
    base = BEGINNINGS[beginning](seed)
    halves = halved(sounds.pool, seed)
    systems: dict[str, Any] = {
        "before": {"judged": judged(base.trainable(), sounds.pool, sounds.clips), "published": 0}
    }
    for system, parts in {"first alone": [0], "second alone": [1], "both": [0, 1]}.items():
        systems[system] = lived(sounds, base, [(str(part), halves[part]) for part in parts], seed, windows)
        err.print(
            f"{beginning} {seed} {system}: pooled probe {100 * systems[system]['judged']['pooled']['probe']['mean']:.1f},"
            f" published {systems[system]['published']} of {ROUNDS}"
        )
    return {"seed": seed, "base": base.id, "systems": systems}


def halved(pool: WindowPool, seed: int) -> list[list[int]]:
    """Tracks that each device does not hear: classes dealt out by chance."""
    classes = sorted({str(label) for label in pool.labels})
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(seed)).tolist()
    first = {classes[place] for place in order[: len(classes) // 2]}
    inside = [str(label) in first for label in pool.labels]
    return [[track for track, yes in enumerate(inside) if yes is not own] for own in (True, False)]


def lived(
    sounds: Sounds, base: Version, parts: Sequence[tuple[str, list[int]]], seed: int, windows: int
) -> dict[str, Any]:
    """Rounds of learning, merging, judging and serving."""
    pool, serving = sounds.pool, base
    steps = ROUNDS * windows // 128
    devices = [
        Device(
            name,
            EdgeLearner(base, EdgeSettings(seed=seed, warm_up_steps=min(WARM_UP_STEPS, steps - 1))),
            stream(pool, "shuffled", ROUNDS * windows, seed, left_out),
        )
        for name, left_out in parts
    ]
    rounds = []
    for _ in range(ROUNDS):
        sent = {}
        for device in devices:
            device.live(pool, windows)
            sent[device.name] = device.learner.difference()
        merged = merge_differences(
            [DeviceDifference(name, serving.id, windows, tensors) for name, tensors in sent.items()],
            serving.state,
        )
        candidate = added(serving, merged.tensors, pool)
        verdict = judge(_qualities(candidate, pool), _qualities(serving, pool))
        rounds.append({"norms": merged.norms, "published": verdict.publish, "reasons": verdict.reasons})
        if verdict.publish:
            serving = candidate
            for device in devices:
                device.learner.sent = sent[device.name]
                device.learner.rebase(serving)
    return {
        "judged": judged(serving.trainable(), pool, sounds.clips),
        "published": sum(bool(one["published"]) for one in rounds),
        "rounds": rounds,
    }


def added(version: Version, difference: dict[str, torch.Tensor], pool: WindowPool) -> Version:
    """The version plus a difference, its norms settled, rounded as versions are."""
    encoder = version.trainable()
    with torch.no_grad():
        own = dict(encoder.named_parameters())
        for name, change in difference.items():
            own[name].add_(change)
    calm = pool.mel(pool.sample(CALIBRATION_WINDOWS))
    settle_norms(encoder, calm)
    round_to_half(encoder)
    return freeze(encoder, *calibrate(encoder, calm), trained=True, note="merged")


def _qualities(version: Version, pool: WindowPool) -> dict[str, Any]:
    """Of the path that devices train."""
    windows = pool.sample(JUDGED_WINDOWS)
    path = version.encoder.path(version.encoder.last_split)
    z = embed(version.encoder, pool, windows)[path]
    return {path: quality(z, [str(int(track)) for track in pool.track[windows]])}
