"""The whole product as a learning system: a device that trains, a server that refines, versions that travel, over the real wire.

    clips -> sound on disk, at two phases -> manifest of several passes -> streamsplit replay (learn.mode = train) ==wire==> streamsplit server --refine
                                                                                                    <==versions, memory==

Windows are the pool's: every pass plays each clip at another of its two phases, with a pause after it, as `learning.streams` does with
features. Server, refiner and device are processes of their own and begin with the same random weights.
"""

from __future__ import annotations

import asyncio
import csv
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from streamsplit.encoders.checkpoint import load
from streamsplit.encoders.registry import resolve
from streamsplit.encoders.version import Version
from streamsplit.errors import StreamSplitError
from streamsplit.lab.processes import server_process
from streamsplit.learning.edge import EdgeLearner
from streamsplit.learning.edge_settings import EdgeSettings
from streamsplit.learning.objectives import ObjectiveSettings
from streamsplit.learning.pool import HOP_SHARE
from streamsplit.learning.sources import Track
from streamsplit.policy.observation import SILENCE_DBFS
from streamsplit.server.publications import Publications
from streamsplit.server.refiner import PUBLISHED

logger = logging.getLogger(__name__)

PHASES = round(1 / HOP_SHARE)
EDGE_BATCH = 8
POLL_S = 0.5
QUIET_POLLS = 6
"""A refiner that waits for so long has nothing left to do."""
PATIENCE_S = 900.0
"""For the refiner to finish what it has after the stream's end."""

Update = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class StreamingSettings:
    """One streaming system.

    Attributes:
        name: of the system.
        decider: of the device: "fixed:0" sends features of every window.
        edge: whether the device trains, too, and its differences are merged.
        refiner: settings of `RefinerSettings` by name, over this benchmark's own.
        refined_share: pairs that the refiner learns from, for each window that arrives.
    """

    name: str
    decider: str = "fixed:0"
    edge: bool = True
    refiner: Mapping[str, Any] = field(default_factory=dict)
    refined_share: float = 1.0


NO_HYBRID = {"spread_weight": 0.0, "smoothness_weight": 0.0}
SPARSE = tuple(
    StreamingSettings(
        f"streaming-{round(100 * share)}" + ("-no-hybrid" if refiner else ""),
        decider=f"random:{share}",
        refined_share=1 / share,
        refiner=refiner,
    )
    for share in (0.3, 0.1)
    for refiner in ({}, NO_HYBRID)
)
STREAMING = (
    StreamingSettings("streaming"),
    StreamingSettings("streaming-refiner-alone", edge=False),
    StreamingSettings("streaming-no-hybrid", refiner=NO_HYBRID),
    *SPARSE,
)
"""Sparse ones send a tenth or three tenths of decisions' windows, and their refiners learn as many pairs as with all of them."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """What came of it.

    Attributes:
        newest: the version published last.
        device: the one that the device served at the stream's end.
        shadow: what the device had learned on top of it; None where it did not train.
        figures: counts, plain JSON types.
    """

    newest: Version
    device: Version
    shadow: EdgeLearner | None
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sound:
    """One clip at one phase, as a file.

    Attributes:
        path: WAV: whole windows, then a silent one, which keeps neighbours of two clips further apart than neighbours may be.
        windows: of it, the silent one left out.
        audible: of these, how many are above the level at which a device learns.
    """

    path: Path
    windows: int
    audible: int


def stream_through(
    tracks: Sequence[Track],
    folder: Path,
    sounds: Path,
    pairs: int,
    seed: int,
    settings: StreamingSettings,
    update: Update,
) -> Streamed:
    """Plays recordings until the device has heard `pairs` audible windows, and waits for the refiner to finish.

    Args:
        tracks: what is played.
        folder: of the run; emptied first.
        sounds: where the clips' sound is kept between runs.
        pairs: audible windows, and pairs that the device learns from.
        seed: of weights, order and learners.
        settings: see there.
        update: called with (pairs of the refiner, pairs in all).
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    weights = f"untrained:{seed}"
    first = resolve("compact", weights)
    made = make_sounds(tracks, sounds, first.front_end.sample_rate_hz, first.front_end.window_samples)
    windows, audible = write_manifest(made, folder / "manifest.csv", pairs, seed)
    refiner = _refiner(settings, seed)
    _write_settings(folder, settings, refiner, pairs / EDGE_BATCH / windows, seed)
    wanted = int(_sent_share(settings.decider) * audible * settings.refined_share)
    decider = f"{settings.decider}:{seed}" if settings.decider.startswith("random") else settings.decider
    asyncio.run(_play(folder, weights, decider, refiner["batch"], wanted, update))
    return _outcome(folder, first, settings, seed, {"windows": windows, "audible": audible})


def make_sounds(
    tracks: Sequence[Track], folder: Path, sample_rate_hz: int, window_samples: int
) -> list[list[Sound]]:
    """Each clip at each phase, as WAV files that are made once; a clip too short for a phase has fewer."""
    index = folder / "index.json"
    if index.exists():
        known = json.loads(index.read_text())
        return [[Sound(folder / name, *counts) for name, *counts in clip] for clip in known]
    folder.mkdir(parents=True, exist_ok=True)
    clips: list[list[Sound]] = []
    for number, track in enumerate(tracks):
        heard = np.concatenate(list(track.listen()))
        clips.append([])
        for phase in range(PHASES):
            cut = heard[phase * window_samples // PHASES :]
            count = len(cut) // window_samples
            if not count:
                continue
            whole = cut[: count * window_samples].reshape(count, window_samples)
            level_db = 10 * np.log10(np.square(whole, dtype=np.float64).mean(1) + 1e-12)
            path = folder / f"{number:05d}-{phase}.wav"
            padded = np.concatenate([whole.reshape(-1), np.zeros(window_samples, np.float32)])
            soundfile.write(path, padded, sample_rate_hz, subtype="PCM_16")
            clips[-1].append(Sound(path, count, int((level_db >= SILENCE_DBFS).sum())))
    said = [[(sound.path.name, sound.windows, sound.audible) for sound in clip] for clip in clips]
    index.write_text(json.dumps(said))
    return clips


def write_manifest(clips: Sequence[Sequence[Sound]], path: Path, pairs: int, seed: int) -> tuple[int, int]:
    """A manifest of passes over all clips, each in another order and at another phase, until `pairs` audible windows are in it.

    Returns:
        Windows the stream has, pauses included, and the audible ones of them.
    """
    windows = audible = number = 0
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path"])
        while audible < pairs:
            before = audible
            rng = np.random.default_rng((seed, number, 7))
            for place in rng.permutation(len(clips)):
                if clips[place] and audible < pairs:
                    sound = clips[place][rng.integers(len(clips[place]))]
                    rows.writerow([os.path.abspath(sound.path)])
                    windows += sound.windows + 1
                    audible += sound.audible
            if audible == before:
                raise StreamSplitError("streaming: expected sound, the recordings are silent")
            number += 1
    return windows, audible


def _refiner(settings: StreamingSettings, seed: int) -> dict[str, Any]:
    own = {
        "seed": seed,
        "batch": 128,
        "learning_rate": 2e-3,
        "round_steps": 24,
        "front": "train",
        "nice": 0,
        **settings.refiner,
    }
    # A round for as many windows as its pairs: never more pairs than windows that came, times the share.
    for name in ("least_windows", "new_windows"):
        own.setdefault(name, max(64, round(own["round_steps"] * own["batch"] / settings.refined_share)))
    return own


def _sent_share(decider: str) -> float:
    return float(decider.partition(":")[2]) if decider.startswith("random") else 1.0


def _write_settings(
    folder: Path, settings: StreamingSettings, refiner: Mapping[str, Any], pieces_per_window: float, seed: int
) -> None:
    learn = {
        "mode": "train" if settings.edge else "memory",
        "batch": EDGE_BATCH,
        "pieces_per_window": pieces_per_window,
        "difference_windows": 1000,
        "sync": "always",
        "seed": seed,
    }
    (folder / "client.toml").write_text(_toml("learn", learn))
    (folder / "server.toml").write_text("refine = true\n" + _toml("refiner", refiner))


def _toml(table: str, values: Mapping[str, Any]) -> str:
    return f"[{table}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


async def _play(folder: Path, weights: str, decider: str, batch: int, wanted: int, update: Update) -> None:
    server = ["--encoder", "compact", "--weights", weights, "--config", str(folder / "server.toml")]
    server += ["--store", str(folder / "embeddings.db"), "--refiner-dir", str(folder / "refiner")]
    async with server_process([*server, "--max-windows-per-second", "1000000"], folder) as running:
        command = [sys.executable, "-m", "streamsplit", "-q", "replay", str(folder / "manifest.csv")]
        command += ["--out", str(folder / "client"), "--server", running.address, "--weights", weights]
        command += [
            "--config",
            str(folder / "client.toml"),
            "--decider",
            decider,
            "--patience",
            str(PATIENCE_S),
        ]
        with (folder / "client.log").open("wb") as log:
            client = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        try:
            while client.returncode is None:
                await asyncio.sleep(POLL_S)
                update(min(wanted, batch * int(_status(folder).get("step", 0))), wanted)
        finally:
            if client.returncode is None:
                client.terminate()
                await client.wait()
        if client.returncode:
            last = (folder / "client.log").read_text(errors="replace").strip()[-300:]
            raise StreamSplitError(f"streaming: the device ended with status {client.returncode}: {last}")
        await _until_quiet(folder, lambda step: update(min(wanted, batch * step), wanted))


async def _until_quiet(folder: Path, told: Callable[[int], None]) -> None:
    """Until the refiner has waited for QUIET_POLLS looks, PATIENCE_S at most."""
    quiet = 0
    for _ in range(int(PATIENCE_S / POLL_S)):
        await asyncio.sleep(POLL_S)
        said = _status(folder)
        told(int(said.get("step", 0)))
        quiet = quiet + 1 if said.get("state") == "waiting" else 0
        if quiet >= QUIET_POLLS:
            return
    logger.warning("the refiner was still at work after %g s", PATIENCE_S)


def _status(folder: Path) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads((folder / "refiner" / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return said


def _outcome(
    folder: Path, first: Version, settings: StreamingSettings, seed: int, figures: dict[str, Any]
) -> Streamed:
    publications = Publications(folder / "refiner" / PUBLISHED)
    current = publications.current()
    if current is None:
        raise StreamSplitError("streaming: the server published nothing, not even its own weights")
    newest = publications.load(current.newest)
    taken = folder / "client" / "version.safetensors"
    device = load(taken) if taken.exists() else first
    shadow = None
    if settings.edge:
        learner = EdgeSettings(ObjectiveSettings(), batch=EDGE_BATCH, seed=seed)
        shadow = EdgeLearner(device, learner)
        shadow.restore(folder / "client" / "training.safetensors")
    rounds = [json.loads(line) for line in (folder / "refiner" / "log.jsonl").read_text().splitlines()]
    replayed = json.loads((folder / "client" / "summary.json").read_text())
    steps = rounds[-1]["steps"] if rounds else 0
    figures |= {
        "refiner_pairs": steps * _refiner(settings, seed)["batch"],
        "rounds": [{key: one.get(key) for key in ("outcome", "steps", "why", "devices")} for one in rounds],
        "published": len(current.history) - 1,
        "device_is_newest": device.id == newest.id,
        "uplink_bytes": replayed.get("uplink_bytes"),
        "downlink_bytes": replayed.get("downlink_bytes"),
    }
    if shadow is not None:
        figures["edge_pairs"] = shadow.counters.updates * EDGE_BATCH * shadow.settings.accumulate
        figures["edge_heard"], figures["edge_silent"] = shadow.counters.heard, shadow.counters.silent
    return Streamed(newest, device, shadow, figures)
