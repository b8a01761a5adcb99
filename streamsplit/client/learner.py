"""What a device makes of its own stream: the distribution memory, the uncertainty's predictor, training, and the exchange about them.

    embedding (own or returned) -> memory, signals for journal and policy        every T_sync windows: memory up, merged memory down
    features -> trainer (shadow weights) -> difference up ... the server merges, refines, publishes -> upgrade down -> swap

A new version is built in a thread and handed over between two windows (`take_version`): head and tail of a window are always of one
version. What belongs to the old weights (memory, predictor's trust, the shadow's base) changes with it, on disk before the version is
kept: a killed device begins with a version and what it has learned with that one.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamsplit.audio.window import SILENCE_DBFS, Window
from streamsplit.client.signals import HeardWindow, Insight, Signals
from streamsplit.client.synchroniser import Fetched, Synchroniser, Wish
from streamsplit.client.trainer import Trainer
from streamsplit.client.version_store import VersionStore
from streamsplit.config import LearnerSettings
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, PayloadError, StorageError, StreamSplitError
from streamsplit.learning import memory_file
from streamsplit.learning.device_difference import pack_device_difference
from streamsplit.learning.differences import most_bytes, spec_of
from streamsplit.learning.label_head import LabelHead
from streamsplit.learning.label_head import most_bytes as most_head_bytes
from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.pacing import BudgetSettings, Conditions, may_train
from streamsplit.learning.recent import to_codes
from streamsplit.learning.uncertainty import DisagreementHead
from streamsplit.learning.upgrade import upgraded
from streamsplit.whole_file import write_whole
from streamsplit.wire.messages import EncoderVersion, Thing

logger = logging.getLogger(__name__)

TOGETHER = 10
"""Windows whose signals are made at once, as many as share a decision: one by one they cost the device as much as all else together."""
MOST_MEMORY_BYTES = 64 << 10
SAVE_WINDOWS = 500


class Learner:
    """See the module's text. Everything but `heard` belongs to the event loop's thread.

    Args:
        settings: what to learn and exchange.
        device: this device's name.
        version: served now.
        folder: for what must survive a restart.
        conditions: the device's state now, asked on the event loop.
        trainer_conditions: the same, asked by the trainer's thread.

    Attributes:
        synchroniser: for the uplink.
        memory: of this device's stream.
        world: of all devices' streams, as the server last told.
        swaps: versions taken.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        device: str,
        version: Version,
        folder: Path,
        conditions: Callable[[], Conditions],
        trainer_conditions: Callable[[], Conditions],
    ) -> None:
        self._settings = settings
        self._device = device
        self._version = version
        self._conditions = conditions
        self._store = VersionStore(folder)
        self._budget = BudgetSettings(
            cpu_percent=settings.cpu_percent,
            temperature_c=settings.temperature_c,
            battery_percent=settings.battery_percent,
        )
        self.memory = self._known_memory()
        self.world: DistributionMemory | None = None
        self._insight = Insight(self._known_predictor())
        self._trainer = (
            Trainer(version, settings, self._store, trainer_conditions) if settings.mode == "train" else None
        )
        self.synchroniser = Synchroniser(self._may_sync, self._told_newest, self._fetched, self._given)
        self._newest: EncoderVersion | None = None
        self._coming: Version | None = None
        self._ready: Version | None = None
        self._building: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._sending: tuple[str, dict[str, Tensor]] | None = None  # a difference, with its base
        self._heard: list[HeardWindow] = []
        self._windows = 0
        self._since_difference = 0
        self.swaps = 0

    def start(self) -> None:
        """Begins to train, where it is to."""
        if self._trainer:
            self._trainer.start()

    async def close(self) -> None:
        """Stops training and keeps everything."""
        self.digest()
        if self._building:
            self._building.cancel()
        if self._keeping:
            await self._keeping
        if self._trainer:
            await asyncio.to_thread(self._trainer.stop)
        if self._saving:
            await self._saving
        await self._save_memory()

    # The stream.

    def heard(self, window: Window, mel: Tensor) -> None:
        """Takes a window's features [1, F, T]; from whichever thread processes windows."""
        if self._trainer:
            seconds = window.start_sample / self._version.front_end.sample_rate_hz
            codes = to_codes(mel[None], self._version.front_end)[0]
            self._trainer.hear(codes, seconds, window.level_dbfs <= SILENCE_DBFS)

    async def turn(self) -> None:
        """After every window: training in step with the stream, if it is to be."""
        if self._trainer and self._trainer.in_step:
            await asyncio.to_thread(self._trainer.turn)

    def embedded(
        self, sequence: int, embedding: np.ndarray[Any, Any], version: str, truth: float | None
    ) -> Signals | None:
        """Takes a window's own embedding: memory and predictor are of what this device makes of its stream, whoever has computed it.

        Args:
            sequence: the window's.
            embedding: [D] unit norm.
            version: whose.
            truth: 1 - cos(lite, dense) as the server found it; None where it could not.

        Returns:
            What is known of the last `TOGETHER` windows, once there are so many.
        """
        if version != self._version.id:
            return None
        if truth is not None:  # a server's number: rounding may take it out of range, a bug anywhere
            truth = min(max(truth, 0.0), 2.0) if math.isfinite(truth) else None
        self._heard.append(HeardWindow(sequence, np.asarray(embedding, np.float32), truth))
        return self.digest() if len(self._heard) >= TOGETHER else None

    def digest(self) -> Signals | None:
        """Makes signals of the windows that wait, then learns from them: one matrix product costs little more than one window's."""
        if not self._heard:
            return None
        heard, self._heard = self._heard, []
        embeddings = np.stack([one.embedding for one in heard])
        signals = self._insight.of(heard, embeddings, self.memory)
        self.memory.update(torch.from_numpy(embeddings))
        before, self._windows = self._windows, self._windows + len(heard)
        self._since_difference += len(heard)
        self._exchange(before)
        return signals

    def _exchange(self, before: int) -> None:
        settings = self._settings
        free = self._saving is None or self._saving.done()  # a disk slower than the stream misses a turn
        if free and self._windows // SAVE_WINDOWS > before // SAVE_WINDOWS:
            self._saving = asyncio.create_task(self._save_memory(), name="save-memory")
        every = settings.memory_windows
        if every and self._windows // every > before // every:
            packed = memory_file.pack(self.memory, with_reservoir=False)
            self.synchroniser.send(Thing.MEMORY, self._version.id, "", packed)
        due = settings.difference_windows and self._since_difference >= settings.difference_windows
        if due and self._trainer and self._trainer.updates and self._is_newest():
            self._since_difference = 0
            answer = self._trainer.ask(
                lambda learner: (learner.version, learner.difference(), learner.learned)
            )
            loop = asyncio.get_running_loop()
            answer.add_done_callback(lambda done: loop.call_soon_threadsafe(self._send_difference, done))

    def _send_difference(self, answer: Future[Any]) -> None:
        try:
            base, difference, learned = answer.result()
            if base.id != self._version.id or not difference:
                return
            packed = pack_device_difference(difference, base, self._device, max(1, learned))
        except (StreamSplitError, ValueError, RuntimeError) as error:
            logger.error("what was learned is not sent: %s", error)
            return
        self._sending = (base.id, difference)
        self.synchroniser.send(Thing.DIFFERENCE, "", base.id, packed)

    def _is_newest(self) -> bool:
        return self._newest is not None and self._newest.version == self._version.id

    def _may_sync(self) -> bool:
        return (
            self._settings.sync == "always"
            or may_train(self._conditions(), self._budget, was_training=True) is None
        )

    # What the server says.

    def _told_newest(self, newest: EncoderVersion) -> None:
        self._newest = newest
        if newest.encoder == self._version.name and self._settings.take_versions:
            self._want_more()

    def _want_more(self) -> None:
        """One step of the way to the newest version."""
        at = self._coming or self._version
        if self._newest is None or self._building:
            return
        if at.id != self._newest.version:
            bound = 2 * most_bytes(spec_of(at.state)) + (1 << 20)
            self.synchroniser.fetch(Wish(Thing.UPGRADE, base=at.id), bound)
        elif self._coming is not None:
            self.synchroniser.fetch(Wish(Thing.MEMORY, version=at.id), MOST_MEMORY_BYTES)

    def _fetched(self, fetched: Fetched) -> None:
        wish = fetched.wish
        if wish.thing is Thing.HEAD:
            self._take_head(wish.version, fetched.content)
        elif wish.thing is Thing.MEMORY:
            self._take_memory(wish.version, fetched.content)
        elif fetched.content:
            self._building = asyncio.create_task(self._build(fetched), name="build-version")
        elif wish.thing is Thing.UPGRADE and self._newest:
            bound = 4 * sum(tensor.nbytes for tensor in self._version.state.values()) + (1 << 20)
            self.synchroniser.fetch(Wish(Thing.WHOLE, version=self._newest.version), bound)
        else:
            logger.warning("the server has no %s any more", wish.version)

    async def _build(self, fetched: Fetched) -> None:
        base = self._coming or self._version
        try:
            if fetched.wish.thing is Thing.UPGRADE:
                self._coming = await asyncio.to_thread(upgraded, base, fetched.content)
            else:
                whole = await asyncio.to_thread(self._store.read, fetched.content, fetched.wish.version)
                self._coming = _alike(whole, base)
        except (PayloadError, StorageError, ConfigError) as error:
            logger.error("a new version was not taken: %s", error)
            self._newest = None
        finally:
            self._building = None
        self._want_more()

    def _take_memory(self, version: str, content: bytes) -> None:
        memory, dim = None, (self._coming or self._version).encoder.embedding_dim
        try:
            memory = memory_file.unpack(content) if content else None
            if memory and memory.settings.dim != dim:
                raise PayloadError(f"memory: expected one of {dim} dimensions, got {memory.settings.dim}")
        except PayloadError as error:
            memory = None
            logger.error("a memory was not taken: %s", error)
        self.world = memory
        if self._coming is not None and self._coming.id == version:
            self._ready = self._coming
        elif version == self._version.id:
            wish = Wish(Thing.HEAD, version=version)
            self.synchroniser.fetch(wish, most_head_bytes(self._version.encoder.embedding_dim))

    def _take_head(self, version: str, content: bytes) -> None:
        """Judges by it from here on; where there is none, or none that can be used, by the one before."""
        if version != self._version.id or not content:
            return
        try:
            head = LabelHead.unpack(content, self._version.encoder.embedding_dim)
        except PayloadError as error:
            logger.error("a label head was not taken: %s", error)
            return
        self._insight.take_labels(head, self.memory.settings.components)

    def _given(self, thing: Thing, problem: str) -> None:
        if thing is Thing.DIFFERENCE:
            if self._trainer and self._sending and self._sending[0] == self._version.id and not problem:
                self._trainer.gave(self._sending[1])
            self._sending = None
        on_the_way = self._coming or self._building or self.synchroniser.fetching
        if thing is Thing.MEMORY and not problem and not on_the_way:
            self.synchroniser.fetch(Wish(Thing.MEMORY, version=self._version.id), MOST_MEMORY_BYTES)

    # The swap.

    @property
    def version_ready(self) -> bool:
        """Whether `take_version` has one."""
        return self._ready is not None

    async def take_version(self) -> Version | None:
        """The next version once it is whole and kept; the caller serves it from the next window on.

        The trainer's piece of work and the disk are waited for in a thread: capture and uplink go on meanwhile.
        """
        version, self._ready = self._ready, None
        if version is None:
            return None
        self._coming, self._heard = None, []
        self._sending = None
        self._version = version
        self.synchroniser.withdraw(Thing.DIFFERENCE)  # of what was; the trainer still has it
        self._insight.changed_version()
        self.memory = self.world or DistributionMemory(MemorySettings(dim=version.encoder.embedding_dim))
        self.swaps += 1
        self._keeping = asyncio.create_task(self._keep(version), name="keep-version")
        await asyncio.shield(self._keeping)
        return version

    async def _keep(self, version: Version) -> None:
        """Last of all the version: whatever a kill leaves, what was learned with the version that is there is there, too."""
        await self._save_memory()
        try:
            if self._trainer:
                await asyncio.to_thread(self._trainer.go_over, version)
            await asyncio.to_thread(self._store.keep, version)
        except (StreamSplitError, ValueError, RuntimeError) as error:
            logger.warning("after a restart the device begins with an older version: %s", error)

    # Memory and predictor on disk.

    def _known_memory(self) -> DistributionMemory:
        path = self._store.beside("memory", self._version)
        if path.exists():
            try:
                return memory_file.load(path)
            except StorageError as error:
                logger.warning("the memory begins anew: %s", error)
        return DistributionMemory(MemorySettings(dim=self._version.encoder.embedding_dim))

    def _known_predictor(self) -> DisagreementHead:
        path, dim = self._store.beside("disagreement", self._version), self._version.encoder.embedding_dim
        if path.exists():
            try:
                head = DisagreementHead.restore(path)
                if head.dim != dim:
                    raise StorageError(f"{path}: expected {dim} dimensions, got {head.dim}")
                return head
            except (ConfigError, StorageError) as error:
                logger.warning("the uncertainty's predictor begins anew: %s", error)
        return DisagreementHead(dim)

    async def _save_memory(self) -> None:
        """Memory and predictor as they are now; the disk is waited for in a thread."""
        memory, predictor = (self._store.beside(kind, self._version) for kind in ("memory", "disagreement"))
        heard, learned = memory_file.pack(self.memory, with_reservoir=True), self._insight.disagreement.save()
        try:
            await asyncio.to_thread(write_whole, memory, heard)
            await asyncio.to_thread(write_whole, predictor, learned)
        except StorageError as error:
            logger.warning("memory and predictor are not saved: %s", error)


def _alike(version: Version, ours: Version) -> Version:
    """The version, if this device can go over to it while its stream goes on."""
    theirs, mine = (
        (one.name, one.front_end.sample_rate_hz, one.front_end.window_samples, one.encoder.embedding_dim)
        for one in (version, ours)
    )
    if theirs != mine:
        raise PayloadError(
            f"version {version.id}: expected encoder, Hz, samples and dimensions {mine}, got {theirs}"
        )
    return version
