"""The whole product as a learning system: a device that trains, a server that refines, versions that travel, over the real wire.

    clips -> sound on disk, at two phases -> manifest of several passes -> streamsplit replay (learn.mode = train) ==wire==> streamsplit server --refine
                                                                                                    <==versions, memory==

Windows are the pool's: every pass plays each clip at another of its two phases, with a pause after it, in the orders of
`learning.streams`. Server, refiner and device are processes of their own and begin with the same random weights.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.learning_sounds import backgrounds, make_sounds, write_manifest
from streamsplit.client.version_store import VersionStore
from streamsplit.encoders.checkpoint import load
from streamsplit.encoders.registry import resolve
from streamsplit.encoders.version import Version
from streamsplit.errors import StreamSplitError
from streamsplit.lab.links import LinkProxy, LinkSettings, Outage, Trace
from streamsplit.lab.processes import server_process
from streamsplit.learning.edge import EdgeLearner
from streamsplit.learning.edge_settings import EdgeSettings
from streamsplit.learning.sources import Track
from streamsplit.server.publications import Publications
from streamsplit.server.refiner import PUBLISHED

logger = logging.getLogger(__name__)

EDGE_BATCH, REFINER_BATCH = 8, 128
ROUND_STEPS, FEWEST_ROUNDS = 24, 4
"""Steps of a round; fewer where so few windows come that a first round, which takes all that have come by then, would leave none for another."""
POLL_S = 0.5
QUIET_POLLS = 6
"""A refiner that waits for so long has nothing left to do."""
PATIENCE_S = 900.0
"""After the stream's end, for the refiner to take another step."""
BURST_DECISIONS = 10
"""A hundred windows."""
UP_S, DOWN_S = 20.0, 40.0
"""Of the link that fails, in turn."""
LINK_BPS = 200e6
"""Of that link while it is up."""
BACKLOG = 1_000_000
"""Windows that may wait for it: the device goes on listening, whatever the link does."""

Update = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class StreamingSettings:
    """One streaming system.

    Attributes:
        name: of the system.
        share: of decisions whose windows are sent as features, by chance; 1: "fixed:0", every window.
        run: decisions in a row that go the same way, where `share` is below 1.
        edge: whether the device trains, too, and its differences are merged.
        fails: whether the link is down for DOWN_S after every UP_S, in wall time.
        objective: what the device minimises, a key of `OBJECTIVES`.
        batch: windows of its micro-batch.
        order: of the clips, one of `learning.streams.ORDERS`; "composed" has made backgrounds between them.
        refiner: settings of `RefinerSettings` by name, over this benchmark's own.
        refined: pairs that the refiner learns from for each window of the device's, whether it was sent or not. A server's defaults are
            25.6, as far as it keeps pace: 200 steps of 64 pairs for 500 new windows.
        speed: of the replay, as its option. More than a pair a window takes a refiner that keeps pace: its first round uses up all windows
            that have come by then, however many.
    """

    name: str
    share: float = 1.0
    run: int = 1
    edge: bool = True
    fails: bool = False
    objective: str = "reservoir"
    batch: int = EDGE_BATCH
    order: str = "shuffled"
    refiner: Mapping[str, Any] = field(default_factory=dict)
    refined: float = 1.0
    speed: str = "max"

    @property
    def pairs_per_arrival(self) -> float:
        """Pairs that the refiner learns from, for each window that arrives: however few come, as many pairs as with all of them."""
        return self.refined / self.share

    def decider(self, seed: int) -> str:
        """Of the device."""
        return "fixed:0" if self.share == 1.0 else f"random:{self.share}:{seed}:{self.run}"


NO_HYBRID = {"spread_weight": 0.0, "smoothness_weight": 0.0}
STREAMING = (
    StreamingSettings("streaming-refiner-alone", edge=False),
    StreamingSettings("streaming-4x", refined=4.0, speed="12"),
    *(
        StreamingSettings(name + end, share, run, fails=fails, refiner=refiner)
        for name, share, run, fails in (
            ("streaming", 1.0, 1, False),
            ("streaming-30", 0.3, 1, False),
            ("streaming-10", 0.1, 1, False),
            ("streaming-10-bursts", 0.1, BURST_DECISIONS, False),
            ("streaming-outages", 1.0, 1, True),
        )
        for end, refiner in (("", {}), ("-no-hybrid", NO_HYBRID))
    ),
    *(
        StreamingSettings(f"streaming-{name}-{batch}", objective=name, batch=batch)
        for name, batch in (
            ("reservoir", 2),
            ("in-batch", 8),
            ("cached", 1),
            ("transport", 8),
            ("expected", 8),
            ("published", 8),
        )
    ),
)


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
    made = partial(
        make_sounds,
        sample_rate_hz=first.front_end.sample_rate_hz,
        window_samples=first.front_end.window_samples,
    )
    clips, quiet = made(tracks, sounds), []
    if settings.order == "composed":
        quiet = made(backgrounds(first.front_end), sounds / "background")
    labels = [track.label for track in tracks]
    windows, audible = write_manifest(
        clips, labels, folder / "manifest.csv", pairs, seed, settings.order, quiet
    )
    refiner = _refiner(settings, pairs, seed)
    _write_settings(folder, settings, refiner, pairs / settings.batch / windows, seed)
    told = Progress(folder, refiner["batch"], round(audible * settings.refined), update)
    link = asyncio.run(_play(folder, weights, settings, seed, told))
    return _outcome(folder, first, settings, seed, {"windows": windows, "audible": audible, **link})


def _refiner(settings: StreamingSettings, pairs: int, seed: int) -> dict[str, Any]:
    own = {
        "seed": seed,
        "batch": REFINER_BATCH,
        "learning_rate": 2e-3,
        "round_steps": max(1, min(ROUND_STEPS, pairs // (FEWEST_ROUNDS * REFINER_BATCH))),
        "front": "train",
        "nice": 0,
        **settings.refiner,
    }
    # A round for as many windows as its pairs: never more pairs than windows that came, times the share.
    for name in ("least_windows", "new_windows"):
        own.setdefault(name, max(64, round(own["round_steps"] * own["batch"] / settings.pairs_per_arrival)))
    return own


def _write_settings(
    folder: Path, settings: StreamingSettings, refiner: Mapping[str, Any], pieces_per_window: float, seed: int
) -> None:
    learn = {
        "mode": "train" if settings.edge else "memory",
        "objective": settings.objective,
        "batch": settings.batch,
        "pieces_per_window": pieces_per_window,
        "difference_windows": 1000,
        "sync": "always",
        "seed": seed,
    }
    (folder / "client.toml").write_text(_toml("learn", learn))
    (folder / "server.toml").write_text("refine = true\n" + _toml("refiner", refiner))


def _toml(table: str, values: Mapping[str, Any]) -> str:
    return f"[{table}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


@dataclass(frozen=True, slots=True)
class Progress:
    """What the refiner has done so far, told to whoever waits.

    Attributes:
        folder: of the run.
        batch: pairs of its step.
        wanted: pairs in all.
        update: called with (pairs done, pairs in all).
    """

    folder: Path
    batch: int
    wanted: int
    update: Update

    def look(self) -> dict[str, Any]:
        """The refiner's status, told; empty before its first."""
        try:
            said: dict[str, Any] = json.loads((self.folder / "refiner" / "status.json").read_text())
        except (OSError, ValueError):
            said = {}
        self.update(min(self.wanted, self.batch * int(said.get("step", 0))), self.wanted)
        return said


async def _play(
    folder: Path, weights: str, settings: StreamingSettings, seed: int, told: Progress
) -> dict[str, Any]:
    """Server and device from the first window to the refiner's last step; what the link did, where it fails."""
    server = ["--encoder", "compact", "--weights", weights, "--config", str(folder / "server.toml")]
    server += ["--store", str(folder / "embeddings.db"), "--refiner-dir", str(folder / "refiner")]
    async with (
        server_process([*server, "--max-windows-per-second", "1000000"], folder) as running,
        _link(running.address, settings) as link,
    ):
        address = f"127.0.0.1:{link.port}" if link else running.address
        with (folder / "client.log").open("wb") as log:
            command = _device_command(folder, address, weights, settings, seed)
            client = await asyncio.create_subprocess_exec(*command, stdout=log, stderr=log)
        polls = joined = 0
        try:
            while client.returncode is None:
                await asyncio.sleep(POLL_S)
                told.look()
                polls, joined = polls + 1, joined + bool(link and link.stats.open_connections)
        finally:
            if client.returncode is None:
                client.terminate()
                await client.wait()
        if client.returncode:
            last = (folder / "client.log").read_text(errors="replace").strip()[-300:]
            raise StreamSplitError(f"streaming: the device ended with status {client.returncode}: {last}")
        await _until_quiet(told)
        if link is None:
            return {}
        return {"link_cuts": link.stats.cuts, "link_joined_share": joined / polls}


@asynccontextmanager
async def _link(address: str, settings: StreamingSettings) -> AsyncIterator[LinkProxy | None]:
    """The link that fails, for as long as anybody may wait; None where there is none."""
    if not settings.fails:
        yield None
        return
    period_s = UP_S + DOWN_S
    outages: list[Outage] = [
        (turn * period_s + UP_S, (turn + 1) * period_s, "cut") for turn in range(int(24 * 3600 / period_s))
    ]
    async with LinkProxy(LinkSettings(address, Trace.constant(LINK_BPS), outages=outages)) as link:
        yield link


def _device_command(
    folder: Path, address: str, weights: str, settings: StreamingSettings, seed: int
) -> list[str]:
    command = [sys.executable, "-m", "streamsplit", "-q", "replay", str(folder / "manifest.csv")]
    command += ["--out", str(folder / "client"), "--server", address, "--weights", weights]
    command += ["--config", str(folder / "client.toml"), "--decider", settings.decider(seed)]
    command += ["--patience", str(PATIENCE_S), "--speed", settings.speed]
    return [*command, "--backlog", str(BACKLOG)] if settings.fails else command


async def _until_quiet(told: Progress) -> None:
    """Until the refiner has waited for QUIET_POLLS looks, or has taken no step for PATIENCE_S."""
    quiet = still = 0
    step = -1
    while still * POLL_S < PATIENCE_S:
        await asyncio.sleep(POLL_S)
        said = told.look()
        now = said.get("step", step)
        still, step = still + 1 if now == step else 0, now
        quiet = quiet + 1 if said.get("state") == "waiting" else 0
        if quiet >= QUIET_POLLS:
            return
    logger.warning("the refiner took no step for %g s", PATIENCE_S)


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
        shadow = EdgeLearner(device, EdgeSettings.of_batch(settings.objective, settings.batch, seed))
        shadow.restore(VersionStore(folder / "client").beside("training", device))
    log = folder / "refiner" / "log.jsonl"  # there from the first round on
    rounds = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    replayed = json.loads((folder / "client" / "summary.json").read_text())
    steps = rounds[-1]["steps"] if rounds else 0
    figures |= {
        "refiner_pairs": steps * REFINER_BATCH,
        "rounds": [{key: one.get(key) for key in ("outcome", "steps", "why", "devices")} for one in rounds],
        "published": len(current.history) - 1,
        "device_is_newest": device.id == newest.id,
        "uplink_bytes": replayed.get("uplink_bytes"),
        "downlink_bytes": replayed.get("downlink_bytes"),
    }
    if shadow is not None:
        figures["edge_pairs"] = shadow.counters.updates * settings.batch * shadow.settings.accumulate
        figures["edge_heard"], figures["edge_silent"] = shadow.counters.heard, shadow.counters.silent
    return Streamed(newest, device, shadow, figures)
