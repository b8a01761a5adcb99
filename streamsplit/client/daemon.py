"""The device's loop: listen, decide, process, spool, send; and one journal line for every window that is done with."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol

from streamsplit.audio.window import Block, Gap, Window, WindowAssembler
from streamsplit.client.conversation import Answer
from streamsplit.client.edge import Edge
from streamsplit.client.journal import Journal
from streamsplit.client.learner import Learner
from streamsplit.client.lessons import Lessons
from streamsplit.client.observer import Observer
from streamsplit.client.recording import Skip
from streamsplit.client.records import Offered, Records
from streamsplit.client.spool import Cursor, Spool
from streamsplit.client.step import Step
from streamsplit.client.uplink import LinkState, Uplink
from streamsplit.errors import LinkError, PayloadError, RefusedError, StorageError
from streamsplit.policy.decide import Choice
from streamsplit.policy.pilot import Pilot
from streamsplit.wire.codec import Codec, unpack_embedding

logger = logging.getLogger(__name__)

BRIEF_MS = 5.0


class Source(Protocol):
    """Where sound comes from: a microphone, recordings, a made soundscape."""

    sample_rate_hz: int

    async def __aenter__(self) -> Source: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def items(self) -> AsyncIterator[Block | Gap | Skip]:
        """Blocks, gaps and skipped recordings, in order."""


@dataclass(frozen=True, slots=True)
class DaemonSettings:
    """How one stream is run.

    Attributes:
        stream: its name.
        decider: the decider's name, for the journal.
        alone: there is no server: every window is done with once it is spooled.
        lossless: wait for the server rather than let the spool drop anything (replays).
        max_backlog: with `lossless`: windows that may wait in the spool before the source is held back.
        patience_s: with `lossless`: give up after so long without any answer.
        flush_s: without `lossless`: time given to the spool to empty itself at the end.
    """

    stream: str
    decider: str
    alone: bool = False
    lossless: bool = False
    max_backlog: int = 256
    patience_s: float = 60.0
    flush_s: float = 2.0


@dataclass(slots=True)
class Counters:
    """What has happened since the start.

    Attributes:
        windows: assembled from the source, those of an earlier run of the same replay included.
        processed: run through the edge in this run.
        acknowledged, duplicates, rejected, dropped: windows.
        unkept: windows that were sent while the disk had no room for them.
        gaps, skips: recorded.
        skipped_samples: ends of recordings too short for a window.
    """

    windows: int = 0
    processed: int = 0
    acknowledged: int = 0
    duplicates: int = 0
    rejected: int = 0
    dropped: int = 0
    unkept: int = 0
    gaps: int = 0
    skips: int = 0
    skipped_samples: int = 0


class Daemon:
    """One stream from its source to the server.

    Args:
        settings: see `DaemonSettings`.
        source: what to listen to.
        edge: the device's part of the encoder.
        pilot: who decides where to split.
        observer: what the decision is based on; set by the caller once the uplink exists.
        spool, journal: what survives.
        learner: what the device makes of its stream, where it learns.
        lessons: what came of the decisions, where the decider learns.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        settings: DaemonSettings,
        source: Source,
        edge: Edge,
        pilot: Pilot,
        spool: Spool,
        journal: Journal,
        learner: Learner | None = None,
        lessons: Lessons | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._source = source
        self._edge = edge
        self._pilot = pilot
        self._spool = spool
        self._clock = clock
        self._options = edge.options()
        self._choice: Choice | None = None
        self._taken_s = 0.0  # when the block that ended the present window was taken
        self._learner = learner
        self._lessons = lessons
        self._progress = asyncio.Event()
        self._brief = False
        self._uplink_bytes: Callable[[], int] = lambda: 0
        self._records = Records(
            journal,
            settings.stream,
            settings.decider,
            lambda: self._edge.version,
            lambda: self._uplink_bytes(),
        )
        self.uncertainty: float | None = None
        self.counters = Counters()

    @property
    def unjournaled(self) -> int:
        """Lines of the journal that the disk had no room for."""
        return self._records.unwritten

    async def run(self, uplink: Uplink, observer: Observer) -> None:
        """Runs the stream to its end (a microphone has none: cancel it), then lets the spool empty itself.

        Raises:
            CaptureError: the source cannot be opened.
            LinkError, RefusedError: with `lossless`, when the server does not come (back).
        """
        self._uplink_bytes = lambda: uplink.uplink_bytes
        resume_at = (self._spool.cursor(self._settings.stream) or Cursor(0, 0)).next_sequence
        async with self._source, uplink:
            self._spool.open_stream(
                self._settings.stream, int(time.time() * 1000), self._source.sample_rate_hz
            )
            self._records.stream(self._source.sample_rate_hz)
            if self._settings.lossless and not self._settings.alone:
                await uplink.welcomed()
            try:
                async for window in self._windows():
                    self.counters.windows += 1
                    await self._take_version(window.sequence, uplink)
                    observation = observer.observe(window, self._choice.split if self._choice else None)
                    self._choice = self._pilot.choose(observation, self._options)
                    if window.sequence < resume_at:
                        continue  # done in an earlier run; deciding again keeps the pilot in step with that run
                    decision: dict[str, object] = {
                        "decider": self._settings.decider,
                        "reason": self._choice.reason,
                        "observation": observation.as_dict(),
                        "expected": self._choice.expected,
                    }
                    if self._lessons:
                        self._lessons.decided((window.stream, window.sequence), self._choice, observation)
                    step = await self._process(window, self._choice)
                    await self._offer(replace(step, decision=decision), uplink)
            except asyncio.CancelledError:
                # Someone stopped a live stream: what it has heard may still be sent.
                if not self._settings.lossless:
                    await self._flush(uplink)
                self._digest()
                raise
            await self._flush(uplink)
            self._digest()

    async def _process(self, window: Window, choice: Choice) -> Step:
        """In a thread, unless it is so brief that changing threads would cost more than the event loop's wait."""
        if self._brief:
            step = self._edge.process(window, choice)
        else:
            step = await asyncio.to_thread(self._edge.process, window, choice)
        self._brief = sum(step.device_ms.values()) < BRIEF_MS
        return step

    async def _windows(self) -> AsyncIterator[Window]:
        """Windows of the source; gaps and skips go to the journal on the way."""
        assembler = WindowAssembler(self._settings.stream, self._edge.version.front_end.window_samples)
        async for item in self._source.items():
            if isinstance(item, Skip):
                self.counters.skips += 1
                self._records.skip(item)
                continue
            self._taken_s = self._clock()
            placed = (
                [assembler.push_gap(item)]
                if isinstance(item, Gap)
                else assembler.push(item, self._taken_s if item.captured_s is None else item.captured_s)
            )
            for part in placed:
                if isinstance(part, Window):
                    yield part
                else:
                    self.counters.gaps += 1
                    logger.warning("%d samples were not heard: %s", part.samples, part.reason)
                    self._records.gap(part)
        self._taken_s = self._clock()
        for window in assembler.finish(self._taken_s):
            yield window
        self.counters.skipped_samples = assembler.skipped_samples

    async def _offer(self, step: Step, uplink: Uplink) -> None:
        began_s = self._clock()
        cursor = Cursor(step.sequence + 1, step.start_sample + self._edge.version.front_end.window_samples)
        async with uplink.at_once(step) as sent:
            put_s = self._clock()
            try:
                dropped = self._spool.put(step, cursor)
            except StorageError as error:
                if self._settings.lossless:
                    raise
                self._not_kept(step, error, sent)
                return
            now_s = self._clock()
            # On the wire already, a window does not wait for the disk.
            self._records.offered[step.key] = Offered(
                self._taken_s, began_s, 0.0 if sent else (now_s - put_s) * 1e3
            )
            self.counters.processed += 1
            self._record_dropped(dropped)
        if step.split == self._edge.version.encoder.last_split:
            self._learn(step, step.payload, step.codec, None)
        if self._learner:
            await self._learner.turn()
        if self._settings.alone:
            self._records.done(step, "local", None, now_s, now_s)
            self._teach(step, now_s)
            return
        if not sent or self._learner:
            uplink.wake(urgent=step.split != self._edge.version.encoder.last_split)
        if self._settings.lossless:
            while self._spool.windows >= self._settings.max_backlog:
                await self._wait_for_progress(uplink)

    def _record_dropped(self, dropped: list[tuple[str, int]]) -> None:
        for key in dropped:
            self.counters.dropped += 1
            self._records.lost(key, "dropped")

    def _not_kept(self, step: Step, error: StorageError, sent: bool) -> None:
        """A full or read-only disk costs this window, not the stream: listening and deciding go on.

        One that is on the wire already is lost only if the link breaks before its answer.
        """
        if sent:
            self.counters.unkept += 1
        else:
            self.counters.dropped += 1
        first = self.counters.unkept + self.counters.dropped == 1
        logger.log(logging.ERROR if first else logging.DEBUG, "windows are not kept: %s", error)
        self._records.lost(step.key, "unkept" if sent else "dropped", str(error))

    def _learn(self, step: Step, embedding: bytes, codec: Codec, truth: float | None) -> None:
        """The learner takes a window's own embedding, made here or returned."""
        if self._learner is None:
            return
        try:
            z = unpack_embedding(embedding, codec, self._edge.version.encoder.embedding_dim)
        except PayloadError as error:
            logger.warning("window %d is not learned from: %s", step.sequence, error)
            return
        signals = self._learner.embedded(step.sequence, z, step.version, truth)
        if signals:
            self._records.signals(signals)
            if truth is None and signals.disagreement:
                self.uncertainty = signals.disagreement[-1]

    def _digest(self) -> None:
        """What is known of the last few windows goes to the journal, although they are not as many as are told of at once."""
        signals = self._learner.digest() if self._learner else None
        if signals:
            self._records.signals(signals)

    def _teach(self, step: Step, usable_s: float) -> None:
        """The decider learns what became of a window of this run."""
        if self._lessons:
            self._lessons.done(step, (usable_s - step.captured_s) * 1e3, self.uncertainty)

    async def _take_version(self, sequence: int, uplink: Uplink) -> None:
        """Serves the next version from this window on, once it has come."""
        if self._learner is None or not self._learner.version_ready:
            return
        self._digest()
        version = await self._learner.take_version()
        if version is None:
            return
        self._edge = self._edge.with_version(version)
        self._options = self._edge.options()
        uplink.adopt(version)
        logger.info("serving %s from window %d on", version.id, sequence)
        self._records.version(sequence, uplink.sync_bytes)

    async def _flush(self, uplink: Uplink) -> None:
        if self._settings.alone:
            return
        if self._settings.lossless:
            while self._spool.windows:
                await self._wait_for_progress(uplink)
            return
        uplink.wake()
        deadline_s = self._clock() + self._settings.flush_s
        while self._spool.windows and uplink.state is LinkState.UP and self._clock() < deadline_s:
            await asyncio.sleep(0.02)

    async def _wait_for_progress(self, uplink: Uplink) -> None:
        self._progress.clear()
        waited_s = 0.0
        while not self._progress.is_set() and self._spool.windows:
            uplink.wake()
            if isinstance(uplink.error, RefusedError):
                raise uplink.error
            if waited_s >= self._settings.patience_s:
                raise LinkError(
                    f"{self._spool.windows} windows unanswered for {waited_s:.0f} s: {uplink.error or 'the server is silent'}"
                )
            try:
                await asyncio.wait_for(self._progress.wait(), 0.5)
            except TimeoutError:
                waited_s += 0.5

    def answered(self, answer: Answer) -> None:
        """Takes what became of a window; the uplink calls it before the window leaves the spool."""
        ack = answer.acknowledgement
        if ack is None:
            self.counters.rejected += 1
        else:
            self.counters.acknowledged += 1
            self.counters.duplicates += ack.duplicate
            if ack.uncertainty is not None:
                self.uncertainty = ack.uncertainty
            # A server before 1.3 does not say what this device would have made of a window: nothing is learned from it.
            own = ack.embedding if ack.uncertainty is None else ack.own_embedding
            if own:
                self._learn(answer.step, own, Codec.INT8, ack.uncertainty)
        local = answer.step.split == self._edge.version.encoder.last_split
        offered = self._records.offered.get(answer.step.key)
        if offered:
            self._teach(answer.step, offered.offered_s if local else answer.answered_s)
        self._records.done(answer.step, answer.state, answer, answer.sent_s, answer.answered_s)
        self._progress.set()
