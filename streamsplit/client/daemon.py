"""The device's loop: listen, decide, process, spool, send; and one journal line for every window that is done with."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

from streamsplit.audio.window import Block, Gap, Window, WindowAssembler
from streamsplit.client.conversation import Answer
from streamsplit.client.edge import Edge
from streamsplit.client.journal import Journal
from streamsplit.client.observer import Observer
from streamsplit.client.recording import Skip
from streamsplit.client.spool import Cursor, Spool
from streamsplit.client.step import Step
from streamsplit.client.uplink import LinkState, Uplink
from streamsplit.errors import LinkError, RefusedError, StorageError
from streamsplit.policy.decide import Choice, Pilot
from streamsplit.wire.codec import Codec, pack_embedding, unpack_embedding

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
        unjournaled: lines the disk had no room for.
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
    unjournaled: int = 0


class Daemon:
    """One stream from its source to the server.

    Args:
        settings: see `DaemonSettings`.
        source: what to listen to.
        edge: the device's part of the encoder.
        pilot: who decides where to split.
        observer: what the decision is based on; set by the caller once the uplink exists.
        spool, journal: what survives.
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._source = source
        self._edge = edge
        self._pilot = pilot
        self._spool = spool
        self._journal = journal
        self._clock = clock
        self._options = edge.options()
        self._choice: Choice | None = None
        self._offered: dict[tuple[str, int], tuple[float, float]] = {}
        self._progress = asyncio.Event()
        self._brief = False
        self._uplink_bytes: Callable[[], int] = lambda: 0
        self.uncertainty: float | None = None
        self.counters = Counters()

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
            self._note(self._stream_record())
            if self._settings.lossless and not self._settings.alone:
                await uplink.welcomed()
            try:
                async for window in self._windows():
                    self.counters.windows += 1
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
                    step = await self._process(window, self._choice)
                    await self._offer(replace(step, decision=decision), uplink)
            except asyncio.CancelledError:
                # Someone stopped a live stream: what it has heard may still be sent.
                if not self._settings.lossless:
                    await self._flush(uplink)
                raise
            await self._flush(uplink)

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
                self._note({"kind": "skip", "source": item.source, "reason": item.reason})
                continue
            placed = (
                [assembler.push_gap(item)] if isinstance(item, Gap) else assembler.push(item, self._clock())
            )
            for part in placed:
                if isinstance(part, Window):
                    yield part
                else:
                    self._record_gap(part)
        for window in assembler.finish(self._clock()):
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
            self._offered[step.key] = (began_s, 0.0 if sent else (now_s - put_s) * 1e3)
            self.counters.processed += 1
            self._record_dropped(dropped)
        if self._settings.alone:
            self._note(self._record(step, "local", None, now_s, now_s))
            return
        if not sent:
            uplink.wake()
        if self._settings.lossless:
            while self._spool.windows >= self._settings.max_backlog:
                await self._wait_for_progress(uplink)

    def _record_dropped(self, dropped: list[tuple[str, int]]) -> None:
        for stream, sequence in dropped:
            self.counters.dropped += 1
            self._offered.pop((stream, sequence), None)
            self._note({"kind": "window", "stream": stream, "sequence": sequence, "state": "dropped"})

    def _not_kept(self, step: Step, error: StorageError, sent: bool) -> None:
        """A full or read-only disk costs this window, not the stream: listening and deciding go on.

        One that is on the wire already is lost only if the link breaks before its answer.
        """
        state = "unkept" if sent else "dropped"
        if sent:
            self.counters.unkept += 1
        else:
            self.counters.dropped += 1
        first = self.counters.unkept + self.counters.dropped == 1
        logger.log(logging.ERROR if first else logging.DEBUG, "windows are not kept: %s", error)
        about = {"kind": "window", "stream": step.stream, "sequence": step.sequence}
        self._note({**about, "state": state, "reason": str(error)})

    async def _flush(self, uplink: Uplink) -> None:
        if self._settings.alone:
            return
        if self._settings.lossless:
            while self._spool.windows:
                await self._wait_for_progress(uplink)
            return
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
        self._note(self._record(answer.step, answer.state, answer, answer.sent_s, answer.answered_s))
        self._offered.pop(answer.step.key, None)
        self._progress.set()

    # Journal lines.

    def _note(self, record: dict[str, Any]) -> None:
        """Writes a line; a full disk costs the line, not the stream."""
        try:
            self._journal.write(record)
        except StorageError as error:
            self.counters.unjournaled += 1
            logger.log(
                logging.DEBUG if self.counters.unjournaled > 1 else logging.ERROR, "lines are lost: %s", error
            )

    def _record(
        self, step: Step, state: str, answer: Answer | None, sent_s: float, ended_s: float
    ) -> dict[str, Any]:
        ack = answer.acknowledgement if answer else None
        local = step.split == self._edge.version.encoder.last_split
        record: dict[str, Any] = {
            "kind": "window",
            "stream": step.stream,
            "sequence": step.sequence,
            "start_sample": step.start_sample,
            "start_s": round(step.start_sample / self._edge.version.front_end.sample_rate_hz, 4),
            "source": step.mark.source if step.mark else None,
            "label": step.mark.label if step.mark else None,
            "level_dbfs": round(step.level_dbfs, 1),
            "split": step.split,
            "codec": str(step.codec),
            "version": step.version,
            "payload_bytes": len(step.payload),
            "state": state,
            "duplicate": bool(ack and ack.duplicate),
            "uncertainty": None if ack is None or ack.uncertainty is None else round(ack.uncertainty, 6),
            "embedding_hash": self._embedding_hash(step, ack.embedding if ack else b"", local),
            "decision": step.decision,
            "measured": self._measured(step, answer, local, sent_s, ended_s),
        }
        if answer and answer.reason:
            record["reason"] = answer.reason
        return record

    def _measured(
        self, step: Step, answer: Answer | None, local: bool, sent_s: float, ended_s: float
    ) -> dict[str, Any]:
        ack = answer.acknowledgement if answer else None
        measured: dict[str, Any] = {f"{part}_ms": round(spent, 4) for part, spent in step.device_ms.items()}
        offered = self._offered.get(step.key)
        if offered:  # of this run: its clock readings still mean something
            offered_s, spool_ms = offered
            usable_s = offered_s if local else ended_s
            measured["spool_ms"] = round(spool_ms, 4)
            measured["wait_ms"] = round((offered_s - step.captured_s) * 1e3 - sum(step.device_ms.values()), 4)
            measured["queue_ms"] = round(max(0.0, (sent_s - offered_s) * 1e3 - spool_ms), 4)
            measured["total_ms"] = round((usable_s - step.captured_s) * 1e3, 4)
        if ack:
            server_ms = (ack.queue_us + ack.tail_us + ack.store_us) / 1e3
            measured["wire_ms"] = round((ended_s - sent_s) * 1e3 - server_ms, 4)
            measured |= {
                "server_queue_ms": ack.queue_us / 1e3,
                "tail_ms": ack.tail_us / 1e3,
                "store_ms": ack.store_us / 1e3,
            }
        measured["uplink_bytes"] = self._uplink_bytes()
        measured["unix_ms"] = int(time.time() * 1000)
        return measured

    def _embedding_hash(self, step: Step, returned: bytes, local: bool) -> str | None:
        """Of the int8 embedding, whoever made it."""
        if local:
            dim = self._edge.version.encoder.embedding_dim
            returned = (
                step.payload
                if step.codec is Codec.INT8
                else pack_embedding(unpack_embedding(step.payload, step.codec, dim), Codec.INT8)
            )
        return hashlib.sha256(returned).hexdigest()[:16] if returned else None

    def _record_gap(self, gap: Gap) -> None:
        self.counters.gaps += 1
        logger.warning("%d samples were not heard: %s", gap.samples, gap.reason)
        self._note(
            {
                "kind": "gap",
                "stream": self._settings.stream,
                "start_sample": gap.start_sample,
                "samples": gap.samples,
                "reason": gap.reason,
            }
        )

    def _stream_record(self) -> dict[str, Any]:
        version = self._edge.version
        return {
            "kind": "stream",
            "stream": self._settings.stream,
            "encoder": version.encoder.name,
            "version": version.id,
            "sample_rate_hz": self._source.sample_rate_hz,
            "window_samples": version.front_end.window_samples,
            "last_split": version.encoder.last_split,
            "block_names": list(version.encoder.block_names),
            "decider": self._settings.decider,
            "measured": {"unix_ms": int(time.time() * 1000)},
        }
