"""Micro-batching: windows of many devices, grouped by (version, split, codec), through one compute thread, then committed.

    submit() --> [compute thread: newest batch of the group whose oldest window waits longest] --> [one commit: see `commit`]
             --> deliver(outcomes), on whichever thread the caller's `deliver` hops to

A lone window never waits for company: a batch is whatever has arrived when the compute thread is free, at most `max_batch`, and of a
slow encoder only as many as take about `BATCH_S`: 32 windows of CLAP in one batch kept a device waiting until it gave up. A window that
came `APART_S` after the last one, to an idle tail, and takes no more than `BRIEF_S`, is finished where it arrived: two changes of thread
would cost it a third of a millisecond.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from streamsplit.server.commit import Committed, Committer, Computed, Outcome, Ticket
from streamsplit.server.events import Failed, WindowJob
from streamsplit.server.store import EmbeddingStore
from streamsplit.server.versions import ServedVersion
from streamsplit.wire.codec import Codec

logger = logging.getLogger(__name__)

BATCH_S = 0.1
FIRST_BATCH = 4
APART_S = 0.02
BRIEF_S = 0.01

Group = tuple[str, int, Codec]


class Tail:
    """The server's compute and storage, behind one `submit`.

    Args:
        served: versions by name; read at every batch, so versions may come and go.
        open_store: called at the first commit.
        deliver: called with (owner, outcome) pairs, from this class's threads or within `submit`.
        crashed: called when one of the threads dies of a bug; the server must stop, for nothing would be answered any more.
        max_batch: windows per batch.
        clock: monotonic seconds.
        committed: see `Committer`.
        inline: whether a lone brief window may be finished by whoever submits it; not where a commit waits for the disk.
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
        inline: bool = True,
    ) -> None:
        self._served = served
        self._committer = Committer(open_store, self._tell, committed, clock)
        self._deliver = deliver
        self._crashed = crashed
        self._max_batch = max_batch
        self._clock = clock
        self._arrived: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._computed: queue.SimpleQueue[Computed | None] = queue.SimpleQueue()
        self._groups: dict[Group, deque[Ticket]] = {}
        self._window_s: dict[Group, float] = {}
        self._waiting = 0
        self._inline = inline
        self._last_s = -math.inf
        self._behind = 0  # batches computed and not yet committed by the storage thread
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
        """Takes a job; its outcome is delivered with `owner`, from here at once if it is a brief one that came alone."""
        ticket = Ticket(job, owner, self._clock())
        window_s = self._window_s.get((job.version, job.split, job.codec), math.inf)
        alone = self._waiting == 0 and ticket.received_s - self._last_s >= APART_S and window_s <= BRIEF_S
        self._last_s = ticket.received_s
        with self._waiting_lock:
            self._waiting += 1
        if alone and self._inline:
            self._guarded(lambda: self._run([ticket]))
        else:
            self._arrived.put(ticket)

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
        computed = Computed(batch, embedded, served.last_split, began_s, ended_s)
        if self._behind == 0 and self._arrived.empty() and not self._groups:
            self._committer.commit(computed)
        else:
            with self._waiting_lock:
                self._behind += 1
            self._computed.put(computed)

    # The storage thread.

    def _store(self) -> None:
        while (computed := self._computed.get()) is not None:
            self._committer.commit(computed)
            with self._waiting_lock:
                self._behind -= 1
        self._committer.close()

    def _tell(self, outcomes: Sequence[tuple[object, Outcome]]) -> None:
        with self._waiting_lock:
            self._waiting -= len(outcomes)
        self.batches += 1
        self.windows += len(outcomes)
        self._deliver(outcomes)
