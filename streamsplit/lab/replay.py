"""Replay: the same client with recordings as its source, repeatable to the bit, resumable after any death.

A run's folder holds everything: ``replay.json`` (what is being run, and whether it is finished), the client's spool and journal, and,
with an embedded server, that server's store. Run again with the same settings, an unfinished folder goes on where it stopped and a
finished one is replaced.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from streamsplit.audio.files import Recording, find_recordings, shuffled
from streamsplit.client.app import device, until_signalled
from streamsplit.client.daemon import DaemonSettings
from streamsplit.client.journal import Journal, read
from streamsplit.client.observer import Observer, ReplayObserver
from streamsplit.client.recording import RecordingSource
from streamsplit.client.spool import Spool
from streamsplit.client.version_store import LEARNED
from streamsplit.config import ClientSettings
from streamsplit.encoders.registry import Version, resolve
from streamsplit.errors import ConfigError, RecordingError, StreamSplitError
from streamsplit.lab.emulation import EmulatedObserver, load_emulation
from streamsplit.lab.processes import make_folder, server_process
from streamsplit.lab.summary import Run, summarise, write_summary
from streamsplit.policy.conditions import MadeConditions
from streamsplit.server.store import EmbeddingStore
from streamsplit.whole_file import write_whole

logger = logging.getLogger(__name__)

EMBEDDED = "embedded"
STATE_FILE = "replay.json"
STORE_FILE = "embeddings.db"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """One replay.

    Attributes:
        source: a recording, a folder of recordings, or a manifest (CSV).
        out: the run's folder.
        client: the client's settings; its `state_dir` is replaced by `out`, and its `device`, where nobody set it, by a name of the run's own.
        embedded: start a server for this run.
        speed: "real", "max", or a factor of real time.
        seed: of the made conditions, and of the order with `shuffle`.
        shuffle: play the recordings in a seeded order.
        conditions: "made" from the seed (repeatable), or "live" as measured on this machine.
        emulation: with "live": a file that says which device this machine stands for; see `lab.emulation`.
        limit: only the first so many recordings.
        patience_s: give up when the server has not answered for so long.
        backlog: windows that may wait for the server before the recordings are held back.
        server_config: TOML file of the embedded server's settings; where it refines, its state is in OUT/refiner.
    """

    source: Path
    out: Path
    client: ClientSettings
    embedded: bool = True
    speed: float | Literal["real", "max"] = "max"
    seed: int = 0
    shuffle: bool = False
    conditions: Literal["made", "live"] = "made"
    emulation: Path | None = None
    limit: int | None = None
    patience_s: float = 60.0
    backlog: int = 256
    server_config: Path | None = None


@dataclass(frozen=True, slots=True)
class _State:
    """What ``replay.json`` says."""

    fingerprint: str
    settings: dict[str, Any]
    device: str
    stream: str
    finished: bool
    attempts: int


def replay(settings: ReplaySettings, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Runs a replay to its end and writes ``summary.json``.

    Args:
        settings: see `ReplaySettings`.
        progress: called with (seconds of audio done, seconds in all) now and then.

    Returns:
        The summary.

    Raises:
        StreamSplitError: it could not start or not finish; what was done is kept, and the same call goes on from there.
    """
    return asyncio.run(_replay(settings, progress))


async def _replay(settings: ReplaySettings, progress: Progress) -> dict[str, Any]:
    recordings = find_recordings(settings.source)
    if settings.shuffle:
        recordings = shuffled(recordings, settings.seed)
    recordings = recordings[: settings.limit]
    if not recordings:
        raise ConfigError(f"{settings.source}: expected at least one recording, found none")
    version = await asyncio.to_thread(resolve, settings.client.encoder, settings.client.weights)
    state = _begin(settings, recordings, version)
    began_s = time.monotonic()
    cpu_before_s = time.process_time()
    async with _server(settings, version) as address:
        client = settings.client.model_copy(
            update={"server": address, "state_dir": settings.out, "device": state.device}
        )
        source = RecordingSource(recordings, version.front_end.sample_rate_hz, settings.speed)
        daemon_settings = DaemonSettings(
            state.stream,
            client.decider,
            alone=address is None,
            lossless=True,
            max_backlog=settings.backlog,
            patience_s=settings.patience_s,
        )
        observer = _observer(settings)
        async with device(client, daemon_settings, source, version, observer) as running:
            if isinstance(observer, EmulatedObserver):
                observer.bind(running)
            done = running.spool.cursor(state.stream)
            source.resume_at(done.next_sample if done else 0)
            watcher = asyncio.create_task(_report(source, progress), name="progress")
            try:
                if await until_signalled(running.run()):
                    raise StreamSplitError(
                        f"stopped after {running.daemon.counters.windows} windows; the same command goes on from there"
                    )
            finally:
                watcher.cancel()
            counters, uplink = running.daemon.counters, running.uplink
    if not counters.windows:
        raise RecordingError(f"{settings.source}: none of {len(recordings)} recordings gave anything to hear")
    cpu_s = time.process_time() - cpu_before_s
    journal = settings.out / "journal.jsonl"
    records = _canonical(journal)
    run = Run(
        windows=counters.windows,
        stored=_stored(settings, state) if settings.embedded else None,
        sample_rate_hz=version.front_end.sample_rate_hz,
        window_samples=version.front_end.window_samples,
        # Of a run that was interrupted only the last attempt was counted: better nothing than a part.
        uplink_bytes=uplink.uplink_bytes if state.attempts == 1 else None,
        downlink_bytes=uplink.downlink_bytes if state.attempts == 1 else None,
        bytes_measured_on=uplink.bytes_measured_on,
        encoder=version.encoder.name,
        version=version.id,
        codec=client.codec,
        decider=client.decider,
        wall_s=time.monotonic() - began_s,
        client_cpu_s=cpu_s if state.attempts == 1 else None,
        client_rss_bytes=psutil.Process().memory_info().rss,
        skipped=counters.skips,
        gaps=counters.gaps,
        resent=counters.duplicates,
        seed=settings.seed,
        conditions=settings.conditions,
        speed=settings.speed,
        attempts=state.attempts,
    )
    summary = summarise(records, run)
    write_summary(settings.out, summary)
    _write_state(settings.out, state, finished=True)
    return summary


def _observer(settings: ReplaySettings) -> Observer | None:
    """What decisions are based on; None: the client observes its machine."""
    if settings.conditions == "made":
        return ReplayObserver(MadeConditions(settings.seed))
    return EmulatedObserver(load_emulation(settings.emulation)) if settings.emulation else None


def _begin(settings: ReplaySettings, recordings: Sequence[Recording], version: Version) -> _State:
    """Goes on with the run in the folder, or begins a new one in it."""
    described = _described(settings, recordings, version)
    fingerprint = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    make_folder(settings.out)
    earlier = _read_state(settings.out)
    if earlier is None and (strange := _own_files(settings.out)):
        raise ConfigError(
            f"{settings.out} holds {strange[0].name}, which no replay left there; give another --out"
        )
    if earlier and not earlier.finished and _begun(settings.out):
        if earlier.fingerprint != fingerprint:
            changed = [key for key in described if described[key] != earlier.settings.get(key)]
            raise ConfigError(
                f"{settings.out} holds an unfinished replay with other settings ({', '.join(changed)}); finish that one with its own "
                "command, or give another --out, or delete the folder"
            )
        logger.info("going on with the unfinished replay in %s", settings.out)
        state = _State(**{**asdict(earlier), "attempts": earlier.attempts + 1})
    else:
        _clear(settings.out)
        name, unique = _device_name(settings.client), f"replay-{fingerprint[:6]}-{time.time_ns() % 16**8:08x}"
        # A server that goes on after the run must not take its windows for an earlier run's: device or stream is this run's own.
        known_by_name = name and settings.client.server and not settings.embedded
        stream = unique if known_by_name else f"replay-{fingerprint}"
        state = _State(fingerprint, described, name or unique, stream, False, 1)
    _write_state(settings.out, state, finished=False)
    return state


def _device_name(client: ClientSettings) -> str | None:
    """The name that the user gave this device, or that its credentials are for; None: any will do."""
    given = "device" in client.model_fields_set or client.token_file or client.tls
    return client.device if given else None


def _described(settings: ReplaySettings, recordings: Sequence[Recording], version: Version) -> dict[str, Any]:
    """What makes two replays the same replay."""
    client = settings.client
    return {
        "source": str(settings.source.resolve()),
        "recordings": hashlib.sha256("\n".join(r.source for r in recordings).encode()).hexdigest()[:16],
        "version": version.id,
        "decider": client.decider,
        "codecs": [
            client.codec,
            client.features_codec,
            client.embedding_codec,
            client.audio_codec,
            client.audio_kbps,
            client.send_audio,
        ],
        "seed": settings.seed,
        "conditions": settings.conditions,
        "server": EMBEDDED if settings.embedded else client.server,
        "device": _device_name(client),
        "profile": str(client.profile) if client.profile else None,
        "learn": client.learn.model_dump(),
        "server_config": str(settings.server_config) if settings.server_config else None,
    }


def _clear(out: Path) -> None:
    """Removes an earlier run's own files, and nothing else."""
    for path in _own_files(out):
        path.unlink()


def _own_files(out: Path) -> list[Path]:
    files = ("spool.db*", "journal.jsonl*", f"{STORE_FILE}*", "summary.json", "server.log", "server.port")
    learned = (*(f"{kind}-*.safetensors" for kind in LEARNED), "version.json", "version.safetensors")
    refined = ("refiner/*", "refiner/*/*")
    patterns = files + learned + refined
    return [path for pattern in patterns for path in sorted(out.glob(pattern)) if path.is_file()]


def _begun(out: Path) -> bool:
    """Whether an unfinished run has come as far as a window."""
    if not (out / "spool.db").exists():
        return False
    with Spool(out / "spool.db", 1 << 40) as spool:
        return any(spool.cursor(stream) for stream in spool.streams())


def _read_state(out: Path) -> _State | None:
    path = out / STATE_FILE
    try:
        return _State(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: cannot be understood ({error}); delete the folder or give another --out"
        ) from None


def _write_state(out: Path, state: _State, finished: bool) -> None:
    write_whole(out / STATE_FILE, json.dumps({**asdict(state), "finished": finished}, indent=1).encode())


@asynccontextmanager
async def _server(settings: ReplaySettings, version: Version) -> AsyncIterator[str | None]:
    if not settings.embedded:
        yield settings.client.server
        return
    arguments = ["--encoder", version.encoder.name, "--store", str(settings.out / STORE_FILE)]
    arguments += ["--max-windows-per-second", "1000000"]
    if settings.client.weights:
        arguments += ["--weights", settings.client.weights]
    if settings.server_config:
        arguments += ["--config", str(settings.server_config), "--refiner-dir", str(settings.out / "refiner")]
    async with server_process(arguments, settings.out) as server:
        yield server.address


async def _report(source: RecordingSource, progress: Progress) -> None:
    while True:
        progress(source.recordings_done, len(source.recordings))
        await asyncio.sleep(0.1)


def _canonical(journal: Path) -> list[dict[str, Any]]:
    """Puts a finished run's journal in the order of its windows, one line each: acknowledgements come in the order of chance."""
    once = {_rank(record, place): record for place, record in enumerate(read(journal))}
    records = [once[rank] for rank in sorted(once)]
    new = journal.with_suffix(".new")
    with Journal(new) as ordered:
        for record in records:
            ordered.write(record)
    new.replace(journal)
    return records


def _rank(record: dict[str, Any], place: int) -> tuple[int, int, int, str]:
    """Streams, then windows by sequence, then gaps by sample, then skips, then all else; records of equal rank are the same one told twice."""
    match record["kind"]:
        case "stream":
            return (0, 0, 0, "")
        case "window":
            return (1, record["sequence"], 0, record["stream"])
        case "gap":
            return (2, record["start_sample"], 0, record["reason"])
        case "skip":
            return (3, 0, 0, str(record["source"]))
        case _:
            return (4, place, 0, "")


def _stored(settings: ReplaySettings, state: _State) -> int:
    with EmbeddingStore(settings.out / STORE_FILE) as store:
        return store.count(device=state.device, stream=state.stream)
