"""The client process: settings in, a listening device out, stopped cleanly by SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import torch

from streamsplit.client.capture import MicrophoneSettings, MicrophoneSource
from streamsplit.client.daemon import Counters, Daemon, DaemonSettings, Source
from streamsplit.client.edge import Codecs, Edge
from streamsplit.client.journal import Journal
from streamsplit.client.learner import Learner
from streamsplit.client.lessons import Lessons
from streamsplit.client.observer import LiveObserver, Observer
from streamsplit.client.spool import Spool
from streamsplit.client.telemetry import MachineTelemetry
from streamsplit.client.uplink import Uplink
from streamsplit.client.version_store import VersionStore
from streamsplit.config import ClientSettings
from streamsplit.encoders.registry import Version, resolve
from streamsplit.errors import ConfigError
from streamsplit.policy.decide import Learner as LearningDecider
from streamsplit.policy.decide import make_decider
from streamsplit.policy.learned import encoder_quality
from streamsplit.policy.observation import AUDIO_SPLIT
from streamsplit.policy.pilot import Pilot
from streamsplit.policy.power import POWER_MODELS
from streamsplit.policy.profile import Profile, load_profile, profile_for

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """A client put together and open; `run` is its life.

    Attributes:
        daemon, uplink, spool, journal: its parts.
        observer: live, unless the caller gives another.
        learner: where the device learns.
    """

    daemon: Daemon
    uplink: Uplink
    spool: Spool
    journal: Journal
    observer: Observer
    learner: Learner | None

    async def run(self) -> Counters:
        """Runs the stream to its end; returns what was counted."""
        await self.daemon.run(self.uplink, self.observer)
        return self.daemon.counters


@asynccontextmanager
async def device(
    settings: ClientSettings,
    daemon_settings: DaemonSettings,
    source: Source,
    version: Version,
    observer: Observer | None = None,
) -> AsyncIterator[Device]:
    """Puts a client together from its settings.

    Raises:
        ConfigError: a setting is wrong, or another process uses the same state folder.
        StorageError: the state folder cannot be used.
    """
    if settings.decider == f"fixed:{AUDIO_SPLIT}" and not settings.send_audio:
        raise ConfigError(
            "split audio sends sound itself, which must be allowed: --send-audio, or send_audio = true"
        )
    torch.set_num_threads(settings.threads)
    spool = Spool(settings.state_dir / "spool.db", int(settings.spool_max_mb * 1e6))
    with contextlib.ExitStack() as open_:
        open_.callback(spool.close)
        version = VersionStore(settings.state_dir).begin(version)
        profile = _profile(settings, version)
        decider = make_decider(
            settings.decider,
            profile,
            last_split=version.encoder.last_split,
            hold_windows=settings.hold_windows,
            predicts=settings.learn.mode != "off",
        )
        pilot = Pilot(decider, hop_s=version.front_end.window_s)
        lessons = None
        if profile is not None and isinstance(pilot.decider, LearningDecider):
            lessons = Lessons(pilot, profile, encoder_quality(profile))
        journal = Journal(settings.state_dir / "journal.jsonl", int(settings.journal_max_mb * 1e6))
        open_.callback(journal.close)
        telemetry = MachineTelemetry()
        learner = None
        if settings.learn.mode != "off":
            learner = Learner(
                settings.learn,
                settings.device,
                version,
                settings.state_dir,
                telemetry.read,
                MachineTelemetry().read,
            )
        edge = Edge(version, Codecs.from_settings(settings), learner.heard if learner else None)
        daemon = Daemon(daemon_settings, source, edge, pilot, spool, journal, learner, lessons)
        synchroniser = learner.synchroniser if learner else None
        uplink = Uplink(settings, version, spool, daemon.answered, synchroniser=synchroniser)
        live = observer or LiveObserver(telemetry, uplink, spool, lambda: daemon.uncertainty)
        keeping = asyncio.create_task(telemetry.keep_fresh(), name="telemetry") if observer is None else None
        try:
            if learner:
                learner.start()
            _return_memory()
            yield Device(daemon, uplink, spool, journal, live, learner)
        finally:
            if learner:
                await learner.close()
            if keeping:
                keeping.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await keeping


def _return_memory() -> None:
    """Gives back what loading and folding weights has used up: 12 MB of some 340, where the C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _profile(settings: ClientSettings, version: Version) -> Profile | None:
    if settings.profile:
        return load_profile(settings.profile)
    kind = settings.decider.partition(":")[0]
    if kind not in ("greedy-profile", "learned", "linucb"):
        return None
    return replace(profile_for(version), power=POWER_MODELS[settings.power])


def run(settings: ClientSettings) -> Counters:
    """Listens to the microphone until SIGTERM or SIGINT."""
    return asyncio.run(_run(settings))


async def _run(settings: ClientSettings) -> Counters:
    version = resolve(settings.encoder, settings.weights)
    source = MicrophoneSource(MicrophoneSettings(settings.microphone, version.front_end.sample_rate_hz))
    stream = f"{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}"
    daemon_settings = DaemonSettings(stream, settings.decider, alone=settings.server is None)
    async with device(settings, daemon_settings, source, version) as client:
        logger.info(
            "device %s, stream %s, encoder %s, decider %s, server %s; journal %s",
            settings.device,
            stream,
            version.id,
            settings.decider,
            settings.server or "none (working alone)",
            settings.state_dir / "journal.jsonl",
        )
        await until_signalled(client.run())
        return client.daemon.counters


async def until_signalled(work: object) -> bool:
    """Runs a coroutine until it ends or SIGTERM / SIGINT comes, which cancels it so that it can put its things away.

    Returns:
        True if a signal ended it.
    """
    task: asyncio.Task[object] = asyncio.ensure_future(work)  # type: ignore[call-overload]
    signalled = False

    def stop() -> None:
        nonlocal signalled
        signalled = True
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not signalled:
            raise
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    return signalled
