"""One run of one system: a real client, over a shaped link, on an emulated and perhaps loaded device, against a running server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamsplit.client.journal import read
from streamsplit.errors import StorageError, StreamSplitError
from streamsplit.lab.emulation import Emulation, core_seconds, used_s
from streamsplit.lab.load_process import write_load
from streamsplit.lab.processes import ToldProcess, make_folder, on_cores
from streamsplit.lab.quota import Quota
from streamsplit.lab.scenario import Scenario
from streamsplit.lab.schedule import Schedule
from streamsplit.lab.systems import System

LOADED_S = 180.0
"""A client that has not said hello by then never will."""

LOOK_S = 0.02
WATCH_S = 0.25


@dataclass(frozen=True, slots=True)
class Bench:
    """What the trials of one (scenario, seed) share.

    Attributes:
        scenario, seed: which.
        schedule: of link, load and outages.
        server: HOST:PORT.
        manifest: of the recordings.
        profile: of the emulated device.
        cores: (of the client and its load, of everything else); None: any.
        limited: makes the device's quota; entered once per trial.
    """

    scenario: Scenario
    seed: int
    schedule: Schedule
    server: str
    manifest: Path
    profile: Path
    cores: tuple[Sequence[int], Sequence[int]] | None
    limited: Callable[[], Quota]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a trial left.

    Attributes:
        records: the journal.
        summary: the replay's own; None: it did not get to its end.
        link: the link's statistics.
        began_unix_ms: wall clock when trace and load began.
        device: name in the server's store.
        note: what went wrong, for the report.
        quota: method that limited the client.
        stalled_s: the longest time that this process was held up: the machine stood still, and nothing it timed means anything.
        disturbed: share of the device's core, 0..1, that neither the device used nor idled: other people's work; None: not known.
    """

    records: list[dict[str, Any]]
    summary: dict[str, Any] | None
    link: dict[str, Any]
    began_unix_ms: float
    device: str
    note: str | None
    quota: str
    stalled_s: float
    disturbed: float | None


async def run_trial(
    bench: Bench,
    system: System,
    folder: Path,
    progress: Callable[[float], None] = lambda share: None,
    attempt: int = 0,
    name: str | None = None,
) -> Outcome:
    """Runs one system from a fresh folder.

    Args:
        progress: called with the share of windows that are done with, 0..1.
        attempt: another one must have another name for the device, or the server knows its windows already.
        name: for that name, instead of the system's.

    Raises:
        StreamSplitError: a process did not start, or the client failed.
    """
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    scenario = bench.scenario
    client_cores, other_cores = bench.cores or (None, None)
    _write_files(bench, folder)
    link = ToldProcess(
        "link", "streamsplit.lab.links", _link_arguments(bench, folder), folder / "link.log", other_cores
    )
    load = ToldProcess("load", "streamsplit.lab.load_process",
                       [str(folder / "load.csv"), "--processes", str(scenario.load.processes), "--speed", str(scenario.speed)],
                       folder / "load.log", client_cores)  # fmt: skip
    loaded = scenario.load.kind != "none"
    device = f"lab-{name or system.name}-{bench.seed}-{attempt}"
    async with contextlib.AsyncExitStack() as open_:
        quota = open_.enter_context(bench.limited())
        _write_emulation(bench, quota, folder)
        open_.push_async_callback(load.stop)
        open_.push_async_callback(link.stop)
        await link.start()
        port = int((await link.hear())["port"])
        if loaded:
            await load.start()
        client = await _start_client(bench, system, folder, port, device)
        open_.push_async_callback(_end, client)
        await _wait_for_stream(client, folder)
        if loaded:
            quota.add(load.pid)
        quota.add(client.pid)
        began_unix_ms = time.time() * 1e3
        link.tell("begin")
        await link.hear()
        if loaded:
            load.tell("begin")
        core = _Core(bench.cores[0][0] if bench.cores else None, quota)
        note, stalled_s = await _watch(bench, client, folder, progress)
        disturbed = core.disturbed()
        link.tell("stats")
        statistics = await link.hear()
    summary_file = folder / "replay" / "summary.json"
    summary = json.loads(summary_file.read_text()) if summary_file.exists() else None
    records = list(read(folder / "replay" / "journal.jsonl"))
    return Outcome(
        records, summary, statistics, began_unix_ms, device, note, quota.method, stalled_s, disturbed
    )


class _Core:
    """The device's core from now on: who uses it."""

    def __init__(self, core: int | None, quota: Quota) -> None:
        self._core, self._usage = core, quota.usage
        self._before = self._read()

    def disturbed(self) -> float | None:
        """Share of it that went to others, so far."""
        before, after = self._before, self._read()
        if before is None or after is None or after[1] <= before[1]:
            return None
        others_s = (after[0] - before[0]) - (after[2] - before[2])
        return round(min(1.0, max(0.0, others_s / (after[1] - before[1]))), 3)

    def _read(self) -> tuple[float, float, float] | None:
        """(busy, all, the device's) processor seconds."""
        if self._core is None or self._usage is None:
            return None
        return *core_seconds(self._core), used_s(self._usage)


def _write_files(bench: Bench, folder: Path) -> None:
    speed = bench.scenario.speed
    try:
        bench.schedule.write_uplink(folder / "uplink.csv", speed)
        write_load(folder / "load.csv", bench.schedule.load, speed)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from error


def _write_emulation(bench: Bench, quota: Quota, folder: Path) -> None:
    core = bench.cores[0][0] if bench.cores else None
    usage = None if quota.usage is None else str(quota.usage)
    Emulation(core, bench.scenario.quota, bench.scenario.speed, usage).save(folder / "emulation.json")


def _link_arguments(bench: Bench, folder: Path) -> list[str]:
    link, speed = bench.scenario.link, bench.scenario.speed
    arguments = ["--target", bench.server, "--trace", str(folder / "uplink.csv"), "--control", "--wait"]
    arguments += ["--delay-ms", str(link.delay_ms / speed), "--jitter-ms", str(link.jitter_ms / speed)]
    arguments += ["--seed", str(bench.seed)]
    if bench.schedule.downlink_bps is not None:
        arguments += ["--downlink", str(bench.schedule.downlink_bps * speed)]
    for begin_s, end_s, mode in bench.schedule.outages:
        arguments += ["--outage", f"{begin_s / speed}:{end_s / speed}:{mode}"]
    return arguments


async def _start_client(
    bench: Bench, system: System, folder: Path, port: int, device: str
) -> asyncio.subprocess.Process:
    scenario = bench.scenario
    arguments = ["replay", str(bench.manifest), "--out", str(folder / "replay"), "--device", device]
    arguments += [
        "--server",
        f"127.0.0.1:{port}",
        "--encoder",
        scenario.encoder,
        "--speed",
        f"{scenario.speed:g}",
    ]
    arguments += ["--conditions", "live", "--emulation", str(folder / "emulation.json"), *system.arguments]
    if scenario.weights:
        arguments += ["--weights", scenario.weights]
    if scenario.device.hold_windows:
        arguments += ["--hold-windows", str(scenario.device.hold_windows)]
    if system.profiled:
        arguments += ["--profile", str(bench.profile)]
    with (folder / "client.log").open("wb") as log, on_cores(bench.cores[0] if bench.cores else None):
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "streamsplit", *arguments, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
        )  # fmt: skip


async def _wait_for_stream(client: asyncio.subprocess.Process, folder: Path) -> None:
    """Until the client has loaded its encoder and is about to hear."""
    journal, deadline_s = folder / "replay" / "journal.jsonl", time.monotonic() + LOADED_S
    while not (journal.exists() and journal.stat().st_size > 0):
        if client.returncode is not None or time.monotonic() > deadline_s:
            raise StreamSplitError(f"the client did not start: {_last_words(folder)}")
        await asyncio.sleep(LOOK_S)


async def _watch(
    bench: Bench, client: asyncio.subprocess.Process, folder: Path, progress: Callable[[float], None]
) -> tuple[str | None, float]:
    """Until the client ends; one that is hopelessly behind is stopped. Returns a note, and for how long the machine stood still."""
    scenario, journal = bench.scenario, folder / "replay" / "journal.jsonl"
    sound_s = scenario.sound.seconds / scenario.speed
    deadline_s = time.monotonic() + 3.0 * sound_s + 60.0
    waiting = asyncio.ensure_future(client.wait())
    looked_s, stalled_s = time.monotonic(), 0.0
    while not waiting.done():
        await asyncio.wait({waiting}, timeout=WATCH_S)
        now_s = time.monotonic()
        looked_s, stalled_s = now_s, max(stalled_s, now_s - looked_s - WATCH_S)
        with contextlib.suppress(OSError):
            progress(min(1.0, journal.stat().st_size / (900.0 * scenario.sound.seconds)))
        if time.monotonic() > deadline_s:
            await _end(client)
            return (
                f"stopped: it took more than three times as long as its {sound_s:.0f} s of sound",
                stalled_s,
            )
    if client.returncode and not (folder / "replay" / "summary.json").exists():
        raise StreamSplitError(f"the client failed: {_last_words(folder)}")
    note = "the replay reported windows that were lost, dropped or rejected" if client.returncode else None
    return note, stalled_s


async def _end(client: asyncio.subprocess.Process) -> None:
    if client.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            client.terminate()
        try:
            await asyncio.wait_for(client.wait(), 10.0)
        except TimeoutError:
            client.kill()
            await client.wait()


def _last_words(folder: Path) -> str:
    lines = (folder / "client.log").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
