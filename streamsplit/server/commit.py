"""What follows a batch's compute: one commit for it, and the outcomes to tell.

The compute thread commits a batch itself while nothing waits, before it or behind it, which saves a lone window the way to another
thread; under load the storage thread does, because a checkpoint's disk flush takes tens of milliseconds now and then, and compute must
not wait for it. Either way batches are committed in the order they came.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamsplit.errors import StorageError
from streamsplit.server.events import Done, Failed, WindowJob
from streamsplit.server.store import EmbeddingStore, StoredWindow
from streamsplit.server.versions import Embedded
from streamsplit.wire.codec import Array

logger = logging.getLogger(__name__)

Outcome = Done | Failed


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A job on its way: who to tell, and when it came (monotonic)."""

    job: WindowJob
    owner: object
    received_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """A batch whose embeddings are there.

    Attributes:
        tickets: B jobs of one (version, split, codec).
        embedded: their embeddings.
        last_split: L of their encoder.
        began_s, ended_s: of the compute, monotonic.
    """

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
        own: [D] float32: what the device embeds, or would have embedded, it as.
        dense: [D] float32: what the dense tail embeds it as; None of a window that it never saw.
        features: [1, F, T] float32 of a window that came as sound; None of all others.
    """

    job: WindowJob
    own: Array
    dense: Array | None
    features: Array | None


class Committer:
    """Commits batches, one at a time.

    Args:
        open_store: called at the first commit.
        tell: called with (owner, outcome) pairs once they are true.
        committed: called with every batch's new windows, after their owners were told; it must not wait.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        open_store: Callable[[], EmbeddingStore],
        tell: Callable[[Sequence[tuple[object, Outcome]]], None],
        committed: Callable[[Sequence[Committed]], None] | None,
        clock: Callable[[], float],
    ) -> None:
        self._open_store = open_store
        self._tell = tell
        self._committed = committed
        self._clock = clock
        self._store: EmbeddingStore | None = None
        self._failing = False
        self._lock = threading.Lock()

    def commit(self, computed: Computed) -> None:
        """Commits the batch, waiting for its turn."""
        with self._lock:
            self._commit(computed)

    def close(self) -> None:
        """Closes the store."""
        with self._lock:
            if self._store:
                self._store.close()

    def _commit(self, computed: Computed) -> None:
        tickets, problems = computed.tickets, computed.embedded.problems
        good = [index for index in range(len(tickets)) if index not in problems]
        outcomes: list[tuple[object, Outcome]] = [
            (tickets[index].owner, Failed(tickets[index].job, reason, again=False))
            for index, reason in problems.items()
        ]
        try:
            self._store = self._store or self._open_store()
            outcomes += self._insert(self._store, computed, good)
            self._failing = False
        except StorageError as error:
            level = logging.DEBUG if self._failing else logging.ERROR
            logger.log(level, "windows are refused until it is cured: %s", error)
            self._failing = True
            outcomes += [
                (tickets[index].owner, Failed(tickets[index].job, str(error), again=True)) for index in good
            ]
        self._tell(outcomes)
        if self._committed:
            self._committed(_fresh(computed, outcomes))

    def _insert(
        self, store: EmbeddingStore, computed: Computed, good: Sequence[int]
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


def _row(computed: Computed, index: int) -> StoredWindow:
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


def _done(computed: Computed, index: int, fresh: bool, ended_s: float) -> Done:
    ticket = computed.tickets[index]
    uncertainties = computed.embedded.uncertainties
    return Done(
        ticket.job,
        computed.embedded.packed[index],
        computed.embedded.packed_own[index],
        None if uncertainties is None else float(uncertainties[index]),
        queue_us=_us(computed.began_s - ticket.received_s),
        tail_us=_us(computed.ended_s - computed.began_s),
        store_us=_us(ended_s - computed.ended_s),
        duplicate=not fresh,
    )


def _fresh(computed: Computed, outcomes: Sequence[tuple[object, Outcome]]) -> list[Committed]:
    """Those of a batch that are in the store now and were not before."""
    new = {id(outcome.job) for _, outcome in outcomes if isinstance(outcome, Done) and not outcome.duplicate}
    embedded = computed.embedded
    dense = None if embedded.uncertainties is None else embedded.embeddings
    return [
        Committed(ticket.job, embedded.own[index], _row_of(dense, index), _row_of(embedded.features, index))
        for index, ticket in enumerate(computed.tickets)
        if id(ticket.job) in new
    ]


def _row_of(rows: Array | None, index: int) -> Array | None:
    return None if rows is None else rows[index]


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1e6))
