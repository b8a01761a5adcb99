"""The one owner of the device's edge learner: a thread of its own that yields to everything, or turns in step with the stream.

hear(codes) -> learner's inbox          ask(errand) -> [between two pieces of work] -> its result

Progress is saved every SAVE_S under the name of the version learned from, and at once when it goes over to another: it is there before
that version is kept, so no kill parts a version from what was learned with it.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from streamsplit.client.version_store import VersionStore
from streamsplit.config import LearnerSettings
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, StorageError, StreamSplitError
from streamsplit.learning.edge import EdgeLearner
from streamsplit.learning.edge_settings import EdgeSettings
from streamsplit.learning.pacing import BudgetSettings, Conditions, learn
from streamsplit.whole_file import make_folder

logger = logging.getLogger(__name__)

SAVE_S = 60.0

Errand = Callable[[EdgeLearner], Any]


class Trainer:
    """Runs an `EdgeLearner`; see the module's text.

    Args:
        version: served now.
        settings: what and how much.
        store: where progress is kept, over restarts.
        conditions: the device's state now.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        version: Version,
        settings: LearnerSettings,
        store: VersionStore,
        conditions: Callable[[], Conditions],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        edge = EdgeSettings.of_batch(settings.objective, settings.batch, settings.seed, settings.front)
        self._settings = settings
        self._budget = BudgetSettings(
            core_share=settings.core_share,
            cpu_percent=settings.cpu_percent,
            temperature_c=settings.temperature_c,
            battery_percent=settings.battery_percent,
        )
        self._store = store
        self._conditions = conditions
        self._clock = clock
        self._learner = EdgeLearner(version, edge)
        self._errands: queue.SimpleQueue[tuple[Errand, Future[Any]]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._ended = False
        self._thread: threading.Thread | None = None
        self._saved_s = clock()
        self._owed = 0.0
        self.paused_for: str | None = None
        self._go_on()

    @property
    def in_step(self) -> bool:
        """Whether it waits for `turn` instead of running by itself."""
        return self._settings.pieces_per_window is not None

    @property
    def updates(self) -> int:
        """Optimiser steps so far, those of earlier runs included."""
        return self._learner.counters.updates

    def start(self) -> None:
        """Begins to train in the background, unless it is to go in step with the stream."""
        if not self.in_step:
            self._thread = threading.Thread(target=self._life, name="edge-learner", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the piece of work at hand, and saves."""
        self._stop.set()
        if self._thread:
            self._thread.join()
        self._ended = True
        self._run_errands()
        self._save()

    def hear(self, codes: Any, start_s: float, silent: bool) -> None:
        """Takes a window; see `EdgeLearner.hear`."""
        self._learner.hear(codes, start_s, silent)

    def ask(self, errand: Errand) -> Future[Any]:
        """Has something done by the learner's owner, between two pieces of work; a RuntimeError once training has ended."""
        answer: Future[Any] = Future()
        self._errands.put((errand, answer))
        if self._ended:
            self._refuse_errands()
        return answer

    def gave(self, difference: Mapping[str, Tensor]) -> None:
        """The server has taken a difference: counted, and saved at once, so that it is merged no second time after a kill."""
        self.ask(lambda learner: self._give(difference))

    def go_over(self, version: Version) -> None:
        """Rebases, and saves what comes of that as the version's; see `EdgeLearner.rebase`.

        Waits for the piece of work at hand, and for the disk. In step with the stream: between two turns.

        Raises:
            ConfigError: another encoder.
            StorageError: the disk has no room for it.
            RuntimeError: training has ended.
        """
        answer = self.ask(lambda learner: self._rebase(version))
        if self._thread is None:
            self._run_errands()
        answer.result()

    def turn(self) -> None:
        """In step with the stream: the work that one more window is worth. From one thread at a time."""
        self._owed += self._settings.pieces_per_window or 0.0
        while self._owed >= 1.0:
            self._owed -= 1.0
            self._learner.step()
        self._between(None)

    def _life(self) -> None:
        torch.set_num_threads(1)
        try:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        except (OSError, AttributeError):
            logger.debug("the learner's thread keeps its priority")
        try:
            learn(self._learner, self._budget, self._conditions, self._stop, self._clock, self._between)
        except (
            Exception
        ):  # a bug, or no memory: the device goes on listening, and says that it no longer learns
            logger.exception("training has ended")
            self._ended, self.paused_for = True, "failure"
            self._refuse_errands()

    def _between(self, reason: str | None) -> None:
        if reason != self.paused_for:
            logger.info("training %s", f"pauses: {reason}" if reason else "goes on")
            self.paused_for = reason
        self._run_errands()
        if self._clock() - self._saved_s > SAVE_S:
            self._save()

    def _run_errands(self) -> None:
        while True:
            try:
                errand, answer = self._errands.get_nowait()
            except queue.Empty:
                return
            try:
                answer.set_result(errand(self._learner))
            except (StreamSplitError, ValueError, RuntimeError) as error:
                answer.set_exception(error)
            except Exception:  # ends training, and whoever waits must not wait for ever
                answer.set_exception(RuntimeError("training has ended"))
                raise

    def _refuse_errands(self) -> None:
        while True:
            try:
                _, answer = self._errands.get_nowait()
            except queue.Empty:
                return
            answer.set_exception(RuntimeError("training has ended"))

    def _give(self, difference: Mapping[str, Tensor]) -> None:
        self._learner.sent = dict(difference)
        self._save()

    def _rebase(self, version: Version) -> None:
        self._learner.rebase(version)
        self._write()

    def _go_on(self) -> None:
        path = self._store.beside("training", self._learner.version)
        if not path.exists():
            return
        try:
            self._learner.restore(path)
            logger.info("training goes on after %d steps", self.updates)
        except (ConfigError, StorageError) as error:
            logger.warning("training begins anew: %s", error)

    def _save(self) -> None:
        try:
            self._write()
        except StorageError as error:
            logger.warning("training is not saved: %s", error)

    def _write(self) -> None:
        self._saved_s = self._clock()
        path = self._store.beside("training", self._learner.version)
        make_folder(path)
        self._learner.save(path)
