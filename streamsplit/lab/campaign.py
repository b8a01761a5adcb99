"""Runs scenarios: every system of every seed as real processes, one after another, and what they come to.

The systems of one (scenario, seed) hear the same sound over the same stretch of trace under the same load, one at a time, so
that they do not fight for the processor; the order is rotated from seed to seed, so that none always comes first or last.
A finished run leaves one JSON file. A campaign that was stopped, even by kill -9, goes on after the last finished run when the
same command is given again.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamsplit.client.app import until_signalled
from streamsplit.encoders.registry import Version, resolve
from streamsplit.errors import StreamSplitError
from streamsplit.lab.conclusions import conclude
from streamsplit.lab.hearing import Heard, Probe
from streamsplit.lab.modelled import streamed
from streamsplit.lab.preparation import (
    QUOTA_PREFIX,
    Cores,
    Prepared,
    client_and_other_cores,
    fingerprint,
    prepare_seed,
    quota_name,
)
from streamsplit.lab.processes import make_folder, server_process
from streamsplit.lab.quota import make_quota, remove_stale
from streamsplit.lab.results import ABOUT, finished, folder_of, read_all, write_json, write_parquet, write_run
from streamsplit.lab.rows import make_rows
from streamsplit.lab.scenario import Scenario
from streamsplit.lab.schedule import make_schedule
from streamsplit.lab.software import software_ms
from streamsplit.lab.summary import write_summary
from streamsplit.lab.systems import STREAMED, System, choose, rotated
from streamsplit.lab.trial import Bench, Outcome, run_trial
from streamsplit.policy.quality import load_quality, shipped_quality
from streamsplit.server.store import EmbeddingStore

logger = logging.getLogger(__name__)

Told = Callable[[str, float, int, int], None]
"""Called with (what runs, its share 0..1, runs done, runs in all)."""

PARQUET_FILE = "windows.parquet"

STALL_S = 1.0
"""A run during which the machine (not the device) was held up for longer is repeated."""

MOST_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class CampaignSettings:
    """What is run.

    Attributes:
        scenarios: in this order.
        out: results folder.
        systems: names; empty: all.
        traces: folder of real traces; None: made ones.
        quality: a table of qualities; None: the shipped one.
        keep: keep each run's journal, logs, sound and store.
    """

    scenarios: tuple[Scenario, ...]
    out: Path
    systems: tuple[str, ...] = ()
    traces: Path | None = None
    quality: Path | None = None
    keep: bool = False


def run_campaign(
    settings: CampaignSettings, told: Told = lambda what, share, done, total: None
) -> dict[str, Any]:
    """Runs what is not finished yet; writes and returns the summary.

    Raises:
        StreamSplitError: a run failed, or was stopped; finished ones are kept.
    """
    if asyncio.run(_interruptible(settings, told)):
        raise StreamSplitError("stopped; the same command goes on after the last finished run")
    return summarise_folder(settings.out)


def summarise_folder(out: Path) -> dict[str, Any]:
    """Writes ``summary.json`` and ``windows.parquet`` of what is in a results folder.

    Raises:
        ConfigError: there is nothing.
    """
    results = read_all(out)
    summary = conclude(results)
    write_summary(out, summary)
    write_parquet(results, out / PARQUET_FILE)
    return summary


async def _interruptible(settings: CampaignSettings, told: Told) -> bool:
    return await until_signalled(_Campaign(settings, told).run())


class _Campaign:
    def __init__(self, settings: CampaignSettings, told: Told) -> None:
        self._settings, self._told = settings, told
        self._cores = client_and_other_cores()
        self._done = 0
        self._versions = {
            scenario.name: resolve(scenario.encoder, scenario.weights) for scenario in settings.scenarios
        }
        self._chosen = {
            name: choose(settings.systems, version.encoder.last_split)
            for name, version in self._versions.items()
        }
        self._total = sum(
            len(scenario.seeds) * len(self._chosen[scenario.name]) for scenario in settings.scenarios
        )

    async def run(self) -> None:
        torch.set_num_threads(1)
        remove_stale(QUOTA_PREFIX)
        make_folder(self._settings.out)
        for scenario in self._settings.scenarios:
            for seed in scenario.seeds:
                await self._seed(scenario, seed)

    async def _seed(self, scenario: Scenario, seed: int) -> None:
        version, path = self._versions[scenario.name], self._settings.quality
        folder = folder_of(self._settings.out, scenario.name, seed)
        schedule = make_schedule(scenario, seed, self._settings.traces)
        quality = shipped_quality(scenario.encoder) if path is None else load_quality(path)
        made_of = fingerprint(scenario, schedule, quality, version)
        chosen = self._chosen[scenario.name]
        todo = [system for system in rotated(chosen, seed) if not finished(folder, system.name, made_of)]
        self._done += len(chosen) - len(todo)
        if not todo:
            return
        self._say(f"{scenario.name}, seed {seed}: listening beforehand", 0.0)
        ready = await asyncio.to_thread(
            prepare_seed, scenario, seed, version, schedule, quality, chosen, folder, self._cores
        )
        if not set(ready.systems) & set(todo):
            self._done += len(todo)
            return
        async with _server(scenario, folder, self._cores) as address:
            bench = Bench(
                scenario, seed, schedule, address, ready.manifest, ready.profile_path, self._cores,
                lambda: make_quota(scenario.quota, quota_name()),
            )  # fmt: skip
            ready = await self._without_link(bench, ready, version, folder)
            write_json(folder / f"{ABOUT}.json", {**ready.about, "fingerprint": made_of})
            for system in todo:
                if system in ready.systems:
                    await self._one(bench, system, ready, folder, made_of)
                else:
                    logger.warning(
                        "%s: %s is left out: no policy is shipped for it", scenario.name, system.label
                    )
                self._done += 1
        if not self._settings.keep:
            for name in ("sound", "server", "work"):
                shutil.rmtree(folder / name, ignore_errors=True)

    async def _without_link(self, bench: Bench, ready: Prepared, version: Version, folder: Path) -> Prepared:
        self._say(f"{bench.scenario.name}, seed {bench.seed}: software without a link", 0.0)
        kept, last_split = ready.profile_path.parent, version.encoder.last_split
        took_ms = await software_ms(bench, version.id, last_split, folder / "work" / "bare", kept)
        about = {**ready.about, "software_ms": round(took_ms, 3)}
        return replace(ready, run=replace(ready.run, software_ms=took_ms), about=about)

    async def _one(self, bench: Bench, system: System, ready: Prepared, folder: Path, made_of: str) -> None:
        what = f"{bench.scenario.name}, seed {bench.seed}: {system.label}"
        self._say(what, 0.0)
        work = folder / "work" / system.name
        for attempt in range(MOST_ATTEMPTS):
            outcome = await run_trial(bench, system, work, lambda share: self._say(what, share), attempt)
            if outcome.stalled_s <= STALL_S:
                break
            logger.warning("%s: this machine stood still for %.1f s", what, outcome.stalled_s)
        store = folder / "server" / "embeddings.db"
        right = await asyncio.to_thread(_judged, store, outcome, ready.run.heard, ready.probe)
        summary = outcome.summary or {}
        run = replace(
            ready.run,
            right=right,
            client_cpu_s=summary.get("client_cpu_s"),
            uplink_bytes=summary.get("uplink_bytes") or outcome.link["bytes_up"],
        )
        rows = make_rows(run, outcome.records)
        if system.name == "server_pcm":
            write_run(folder, STREAMED, made_of, streamed(rows, run), _facts(outcome))
        write_run(folder, system.name, made_of, rows, _facts(outcome))
        if not self._settings.keep:
            shutil.rmtree(work, ignore_errors=True)

    def _say(self, what: str, share: float) -> None:
        self._told(what, share, self._done, self._total)


@asynccontextmanager
async def _server(scenario: Scenario, folder: Path, cores: Cores | None) -> AsyncIterator[str]:
    """A server of this (scenario, seed), with an empty store; its address."""
    make_folder(folder / "server")
    store = folder / "server" / "embeddings.db"
    for stale in store.parent.glob("embeddings.db*"):
        stale.unlink()
    arguments = ["--encoder", scenario.encoder, "--store", str(store), "--max-windows-per-second", "1000000"]
    if scenario.weights:
        arguments += ["--weights", scenario.weights]
    async with server_process(arguments, store.parent, cores[1] if cores else None) as server:
        yield server.address


def _judged(store: Path, outcome: Outcome, heard: Heard, probe: Probe | None) -> dict[int, bool | None]:
    """What the probe says of the embeddings that were stored."""
    if probe is None:
        return {}
    with EmbeddingStore(store, read_only=True) as opened:
        stored = [row for row in opened.iterate(device=outcome.device) if row.sequence < len(heard.labels)]
    if not stored:
        return {}
    vectors = np.stack([row.embedding for row in stored]).astype(np.float32)
    right = probe.right(vectors, [heard.labels[row.sequence] for row in stored])
    return {row.sequence: answer for row, answer in zip(stored, right, strict=True)}


def _facts(outcome: Outcome) -> dict[str, Any]:
    summary = outcome.summary or {}
    names = (
        "client_cpu_s",
        "client_rss_bytes",
        "uplink_bytes",
        "downlink_bytes",
        "bytes_measured_on",
        "wall_s",
    )
    return {
        **{name: summary.get(name) for name in (*names, "resent", "lost", "dropped", "rejected", "digest")},
        "link": outcome.link,
        "began_unix_ms": outcome.began_unix_ms,
        "note": outcome.note
        if outcome.stalled_s <= STALL_S
        else "the machine stood still during it, three times over",
        "stalled_s": round(outcome.stalled_s, 2),
        "disturbed": outcome.disturbed,
        "quota": outcome.quota,
    }
