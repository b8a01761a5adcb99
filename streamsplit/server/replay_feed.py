"""From the storage thread to the refiner's replay: what was just stored is kept to learn from, in a thread of its own.

    tail-store --committed windows--> bounded queue --> [replay-feed thread: pack features of sound, one commit] --> FeatureReplay

The storage thread answers devices and must not wait for a second file. Nothing a device was promised depends on the replay: a full
queue or a full disk loses windows for learning, counted, and nothing else.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from pathlib import Path

from streamsplit.audio.window import SILENCE_DBFS
from streamsplit.errors import StorageError
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.learning.replay import FeatureReplay
from streamsplit.server.commit import Committed
from streamsplit.server.versions import ServedVersion
from streamsplit.wire.codec import Codec, pack

logger = logging.getLogger(__name__)

QUEUE = 1024
"""Batches that may wait; more are dropped, counted."""
AT_ONCE = 256
"""Windows of one commit, about."""
PAUSE_S = 0.25
"""Between commits: one commit of what came meanwhile costs a tenth of one for every batch."""


class ReplayFeed:
    """The replay's only writer.

    Args:
        path: of the replay.
        most_bytes: its bound.
        served: versions by name, a live view: whose windows can be learned from.
        encoder: registry name of the encoder that is refined; windows of others are left out.

    Attributes:
        kept: windows written.
        lost: windows that came while the queue was full or could not be written.
    """

    def __init__(self, path: Path, most_bytes: int, served: dict[str, ServedVersion], encoder: str) -> None:
        self._path, self._most_bytes, self._served, self._encoder = path, most_bytes, served, encoder
        self._arrived: queue.Queue[Sequence[Committed] | None] = queue.Queue(QUEUE)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="replay-feed", daemon=True)
        self.kept = 0
        self.lost = 0

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def __call__(self, windows: Sequence[Committed]) -> None:
        """Takes what `Tail` hands on; never waits."""
        if not windows:
            return
        try:
            self._arrived.put_nowait(windows)
        except queue.Full:
            self.lost += len(windows)

    def stop(self) -> None:
        """Writes what waits, and ends the thread."""
        self._stop.set()
        self._arrived.put(None)
        self._thread.join()

    def _work(self) -> None:
        replay: FeatureReplay | None = None
        failing = False
        while batch := self._next():
            windows = [one for one in map(self._window, batch) if one is not None]
            try:
                replay = replay or FeatureReplay(self._path, self._most_bytes)
                self.kept += replay.add(windows)
                failing = False
            except StorageError as error:
                self.lost += len(windows)
                logger.log(
                    logging.DEBUG if failing else logging.ERROR,
                    "windows are not kept to learn from: %s",
                    error,
                )
                failing = True
            self._stop.wait(PAUSE_S)
        if replay:
            replay.close()

    def _next(self) -> list[Committed]:
        """Waits for a batch and takes all that came with it; empty at the end."""
        batch: list[Committed] = []
        while len(batch) < AT_ONCE:
            try:
                arrived = self._arrived.get(block=not batch)
            except queue.Empty:
                break
            if arrived is None:
                self._stop.set()
                if batch:
                    self._arrived.put(None)
                break
            batch += arrived
        return batch

    def _window(self, committed: Committed) -> BufferedWindow | None:
        """What can be embedded anew and is not silent: features and activations as they came, sound as its features; of an embedding nothing can."""
        job = committed.job
        served = self._served.get(job.version)
        if served is None or served.version.name != self._encoder or job.split >= served.last_split:
            return None
        if job.level_dbfs <= SILENCE_DBFS:
            return None
        split, codec, payload = job.split, job.codec, job.payload
        if committed.features is not None:
            split, codec = 0, Codec.INT8
            payload = pack(committed.features, codec, served.version.ranges[0])
        return BufferedWindow(
            device=job.device,
            stream=job.stream,
            sequence=job.sequence,
            start_s=job.started_unix_ms / 1e3 + job.start_sample / job.sample_rate_hz,
            version=job.version,
            split=split,
            codec=codec,
            payload=payload,
        )
