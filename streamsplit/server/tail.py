"""Micro-batching: windows of many devices, grouped by (version, split, codec), through one compute thread and one storage thread.

    submit() --> [compute thread: newest batch of the group whose oldest window waits longest] --> [storage thread: one commit]
             --> deliver(outcomes), on whichever thread the caller's `deliver` hops to

A lone window never waits for company: a batch is whatever has arrived when the compute thread is free, at most `max_batch`, and of a
slow encoder only as many as take about `BATCH_S`: 32 windows of CLAP in one batch kept a device waiting until it gave up. The
storage thread exists because a checkpoint's disk flush takes tens of milliseconds now and then, and compute must not wait for it.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from streamsplit.errors import StorageError
from streamsplit.server.session import Done, Failed, WindowJob
from streamsplit.server.store import EmbeddingStore, StoredWindow
from streamsplit.server.versions import Embedded, ServedVersion
from streamsplit.wire.codec import Array, Codec, pack_embedding

logger = logging.getLogger(__name__)

BATCH_S = 0.1
FIRST_BATCH = 4

Outcome = Done | Failed
Group = tuple[str, int, Codec]


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A job on its way: who to tell, and when it came (monotonic)."""

    job: WindowJob
    owner: object
    received_s: float


@dataclass(frozen=True, slots=True, eq=False)
class _Computed:
    tickets: Sequence[Ticket]
    embedded: Embedded
    last_split: int
    began_s: float
    ended_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Committed:
    """A window that has just been stored for the first time.

    Attributes:
        job: what came.
        features: [1, F, T] float32 of a window that came as sound; None of all others.
    """

    job: WindowJob
    features: Array | None


class Tail:
    """The server's compute and storage, behind one `submit`.

    Args:
        served: versions by name; read at every batch, so versions may come and go.
        open_store: called on the storage thread, which then owns the store.
        deliver: called from this class's threads with (owner, outcome) pairs.
        crashed: called when one of the threads dies of a bug; the server must stop, for nothing would be answered any more.
        max_batch: windows per batch.
        clock: monotonic seconds.
        committed: called on the storage thread with every batch's new windows, after their owners were told; it must not wait.
    """

    def __init__(
        self,
        served: Mapping[str, ServedVersion],
        open_store: Callable[[], EmbeddingStore],
        deliver: Callable[[Sequence[tuple[object, Outcome]]], None],
        crashed: Callable[[Exception], None],
        max_batch: int = 32,
        clock: Callable[[], float] = time.monotonic,
        committed: Callable[[Sequence[Committed]], None] | None = None,
    ) -> None:
        self._served = served
        self._open_store = open_store
        self._deliver = deliver
        self._crashed = crashed
        self._max_batch = max_batch
        self._clock = clock
        self._committed = committed
        self._arrived: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._computed: queue.SimpleQueue[_Computed | None] = queue.SimpleQueue()
        self._groups: dict[Group, deque[Ticket]] = {}
        self._window_s: dict[Group, float] = {}
        self._waiting = 0
        self._waiting_lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._guarded, args=(self._compute,), name="tail-compute", daemon=True),
            threading.Thread(target=self._guarded, args=(self._store,), name="tail-store", daemon=True),
        ]
        self.batches = 0
        self.windows = 0

    def start(self) -> None:
        """Starts both threads."""
        for thread in self._threads:
            thread.start()

    def submit(self, job: WindowJob, owner: object) -> None:
        """Takes a job; its outcome is delivered with `owner`."""
        with self._waiting_lock:
            self._waiting += 1
        self._arrived.put(Ticket(job, owner, self._clock()))

    @property
    def waiting(self) -> int:
        """Jobs submitted and not yet delivered."""
        return self._waiting

    def stop(self) -> None:
        """Finishes what was submitted, commits it, and ends the threads."""
        self._arrived.put(None)
        for thread in self._threads:
            thread.join()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            logger.exception("%s died", threading.current_thread().name)
            self._computed.put(None)  # lets the storage thread end, so that `stop` can
            self._crashed(error)

    # The compute thread.

    def _compute(self) -> None:
        open_ = True
        while open_ or self._groups:
            open_ = self._collect(block=not self._groups) and open_
            batch = self._next_batch()
            if batch:
                self._run(batch)
        self._computed.put(None)

    def _collect(self, block: bool) -> bool:
        """Moves everything that has arrived into its group; False when the end was among it."""
        while True:
            try:
                ticket = self._arrived.get(block=block)
            except queue.Empty:
                return True
            if ticket is None:
                return False
            job = ticket.job
            self._groups.setdefault((job.version, job.split, job.codec), deque()).append(ticket)
            block = False

    def _next_batch(self) -> list[Ticket]:
        if not self._groups:
            return []
        group = min(self._groups, key=lambda name: self._groups[name][0].received_s)
        tickets = self._groups[group]
        window_s = self._window_s.get(group)
        affordable = FIRST_BATCH if window_s is None else max(1, int(BATCH_S / window_s))
        batch = [tickets.popleft() for _ in range(min(self._max_batch, affordable, len(tickets)))]
        if not tickets:
            del self._groups[group]
        return batch

    def _run(self, batch: list[Ticket]) -> None:
        job = batch[0].job
        served = self._served.get(job.version)
        if served is None:
            self._tell(
                [
                    (ticket.owner, Failed(ticket.job, "its version was withdrawn", again=True))
                    for ticket in batch
                ]
            )
            return
        began_s = self._clock()
        try:
            embedded = served.embed(job.split, job.codec, [ticket.job.payload for ticket in batch])
        except (
            RuntimeError,
            MemoryError,
        ) as error:  # what torch raises when a device is lost or out of memory
            logger.error(
                "a batch of %d windows of %s at split %d failed: %s",
                len(batch),
                job.version,
                job.split,
                error,
            )
            self._tell(
                [(ticket.owner, Failed(ticket.job, "the server failed", again=True)) for ticket in batch]
            )
            return
        ended_s = self._clock()
        self._window_s[job.version, job.split, job.codec] = max(1e-6, (ended_s - began_s) / len(batch))
        self._computed.put(_Computed(batch, embedded, served.last_split, began_s, ended_s))

    # The storage thread.

    def _store(self) -> None:
        store: EmbeddingStore | None = None
        failing = False
        while (computed := self._computed.get()) is not None:
            good = [
                index for index in range(len(computed.tickets)) if index not in computed.embedded.problems
            ]
            outcomes: list[tuple[object, Outcome]] = [
                (computed.tickets[index].owner, Failed(computed.tickets[index].job, reason, again=False))
                for index, reason in computed.embedded.problems.items()
            ]
            try:
                store = store or self._open_store()
                outcomes += self._insert(store, computed, good)
                failing = False
            except StorageError as error:
                logger.log(
                    logging.DEBUG if failing else logging.ERROR,
                    "windows are refused until it is cured: %s",
                    error,
                )
                failing = True
                outcomes += [
                    (
                        computed.tickets[index].owner,
                        Failed(computed.tickets[index].job, str(error), again=True),
                    )
                    for index in good
                ]
            self._tell(outcomes)
            if self._committed:
                self._committed(_fresh(computed, outcomes))
        if store:
            store.close()

    def _insert(
        self, store: EmbeddingStore, computed: _Computed, good: Sequence[int]
    ) -> list[tuple[object, Outcome]]:
        """One commit for the batch; if a row cannot be stored as it is, row by row, so that it costs only itself."""
        if not good:
            return []
        try:
            fresh = store.insert([_row(computed, index) for index in good])
        except (ValueError, OverflowError) as error:
            if len(good) > 1:
                return [outcome for index in good for outcome in self._insert(store, computed, [index])]
            ticket = computed.tickets[good[0]]
            return [(ticket.owner, Failed(ticket.job, f"it cannot be stored: {error}", again=False))]
        ended_s = self._clock()
        return [
            (computed.tickets[index].owner, _done(computed, index, new, ended_s))
            for index, new in zip(good, fresh, strict=True)
        ]

    def _tell(self, outcomes: Sequence[tuple[object, Outcome]]) -> None:
        with self._waiting_lock:
            self._waiting -= len(outcomes)
        self.batches += 1
        self.windows += len(outcomes)
        self._deliver(outcomes)


def _row(computed: _Computed, index: int) -> StoredWindow:
    job = computed.tickets[index].job
    uncertainties = computed.embedded.uncertainties
    return StoredWindow(
        device=job.device,
        stream=job.stream,
        sequence=job.sequence,
        start_sample=job.start_sample,
        sample_rate_hz=job.sample_rate_hz,
        started_unix_ms=job.started_unix_ms,
        received_unix_ms=int(time.time() * 1000),
        version=job.version,
        split=job.split,
        codec=str(job.codec),
        computed_on="device" if job.split == computed.last_split else "server",
        uncertainty=None if uncertainties is None else float(uncertainties[index]),
        level_dbfs=job.level_dbfs,
        source=job.source,
        label=job.label,
        payload_bytes=len(job.payload),
        embedding=computed.embedded.embeddings[index],
    )


def _done(computed: _Computed, index: int, fresh: bool, ended_s: float) -> Done:
    ticket = computed.tickets[index]
    uncertainties = computed.embedded.uncertainties
    own = ticket.job.split == computed.last_split
    return Done(
        ticket.job,
        b"" if own else pack_embedding(computed.embedded.embeddings[index], Codec.INT8),
        None if uncertainties is None else float(uncertainties[index]),
        queue_us=_us(computed.began_s - ticket.received_s),
        tail_us=_us(computed.ended_s - computed.began_s),
        store_us=_us(ended_s - computed.ended_s),
        duplicate=not fresh,
    )


def _fresh(computed: _Computed, outcomes: Sequence[tuple[object, Outcome]]) -> list[Committed]:
    """Those of a batch that are in the store now and were not before."""
    new = {id(outcome.job) for _, outcome in outcomes if isinstance(outcome, Done) and not outcome.duplicate}
    features = computed.embedded.features
    return [
        Committed(ticket.job, None if features is None else features[index])
        for index, ticket in enumerate(computed.tickets)
        if id(ticket.job) in new
    ]


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
