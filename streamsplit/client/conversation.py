"""One connection from its welcome to its end: windows go out, answers come in, silence is noticed.

Two ways lead onto the wire. A window that finds nothing waiting before it is written at once (`at_once`) and put into the spool while it
travels; everything else is read from the spool in order. Either way its answer is looked at only once the spool holds it, and nothing
leaves the spool before the server has committed it, or has said that it never will.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from streamsplit.client.connection import Connection
from streamsplit.client.edge import as_features
from streamsplit.client.link_estimator import LinkEstimator
from streamsplit.client.spool import Spool
from streamsplit.client.step import Step
from streamsplit.client.synchroniser import Synchroniser
from streamsplit.config import ClientSettings
from streamsplit.encoders.registry import Version
from streamsplit.errors import LinkError, RefusedError, RemoteProtocolError, StorageError
from streamsplit.wire import messages

logger = logging.getLogger(__name__)

WATCH_S = 0.5
BRIEF_BYTES = 16 << 10
"""Up to here a message to an idle connection leaves without waiting for the other end to make room."""
COMPANY = 4
"""So many embeddings that waited for each other are on the wire at a time: a window that is waited for comes behind these at most."""
LULL_WINDOWS = 3
"""Embedded here since a window was waited for: before that, those that wait for each other go singly."""
_NOWHERE = 1 << 62


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What became of one window.

    Attributes:
        step: as it was sent (its split may have changed on the way: see `messages.VersionGone`).
        state: "acknowledged" or "rejected".
        acknowledgement: the server's, where it acknowledged.
        reason: why it was rejected.
        sent_s, answered_s: monotonic.
    """

    step: Step
    state: str
    acknowledgement: messages.Acknowledgement | None
    reason: str
    sent_s: float
    answered_s: float


@dataclass(slots=True, eq=False)
class Desk:
    """What every conversation of one uplink shares.

    Attributes:
        settings: where and how.
        version: what this device computes heads of; another one from a swap on.
        spool: what is to be sent.
        estimator: of the link; told of every window and every answer.
        answered: called on the event loop for every window that is done with, before it leaves the spool.
        clock: monotonic seconds.
        random: jitter.
        synchroniser: of weights and memory, where the device learns.
        last_sent_s: when a window last went onto the wire.
    """

    settings: ClientSettings
    version: Version
    spool: Spool
    estimator: LinkEstimator
    answered: Callable[[Answer], None]
    clock: Callable[[], float]
    random: random.Random
    synchroniser: Synchroniser | None = None
    last_sent_s: float | None = None


@dataclass(slots=True, eq=False)
class _InFlight:
    step: Step
    row: int
    sent_s: float


class Conversation:
    """See the module's text; `run` is its life.

    Attributes:
        draining: the server is going down; nothing more is sent.
        answers: windows answered so far.
    """

    def __init__(self, desk: Desk, connection: Connection) -> None:
        self._desk = desk
        self._connection = connection
        self._in_flight: dict[tuple[str, int], _InFlight] = {}
        self._unwanted: set[int] = set()
        self._sent_row = 0
        self._ahead: set[int] = set()  # numbers of windows on the wire that overtook others
        self._rewind_to = _NOWHERE
        self._busy_until_s = 0.0
        self._progress_s = desk.clock()
        self._held = 0
        self._since_awaited = LULL_WINDOWS
        self._wake = asyncio.Event()
        self._writing = asyncio.Lock()
        self._keeping = asyncio.Lock()
        self._served = {served.version for served in connection.welcome.served}
        if desk.synchroniser:
            desk.synchroniser.connected(connection.welcome.protocol)
        self.draining = False
        self.answers = 0

    @property
    def in_flight(self) -> int:
        """Windows on the wire."""
        return len(self._in_flight)

    @property
    def serves_ours(self) -> bool:
        """Whether the server finishes windows of this device's version."""
        return self._desk.version.id in self._served

    @property
    def busy(self) -> bool:
        """The server has asked for a pause."""
        return self._desk.clock() < self._busy_until_s

    def wake(self, urgent: bool = True) -> None:
        """Says that the spool has something new, and whether it may wait for company (`hold_windows`)."""
        self._held += 1
        self._since_awaited += not urgent
        if urgent or self._held > self._desk.settings.hold_windows:
            self._held = 0
            self._wake.set()

    async def run(self) -> None:
        """Talks until the server has drained the connection; every other end is an error.

        Raises:
            LinkError: the server fell silent.
            RemoteProtocolError, RefusedError: it said what makes no sense, or does not want this device's windows.
        """
        tasks = [
            asyncio.create_task(work, name=f"uplink-{name}")
            for name, work in (("send", self._send()), ("receive", self._receive()), ("watch", self._watch()))
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in tasks if task.done()]:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """Finds a server that neither answers nor hangs up."""
        settings = self._desk.settings
        while True:
            await asyncio.sleep(WATCH_S)
            quiet_s = self._desk.clock() - self._progress_s
            if self._in_flight and quiet_s > settings.acknowledge_timeout_s:
                raise LinkError(f"server {settings.server}: no answer for {quiet_s:.0f} s")

    # Sending.

    @asynccontextmanager
    async def at_once(self, step: Step) -> AsyncIterator[bool]:
        """Writes a window that the spool does not hold yet, if the line is idle; the body puts it there.

        The body's disk write then costs no latency, and a loop that listens is never held up by a slow link: what could wait for
        room on the wire goes the long way. Windows that only wait for company do not hold it up: they follow its answer.

        Yields:
            Whether it is on the wire. If not, it goes the long way, through the spool.
        """
        async with self._keeping:
            held = self._desk.settings.hold_windows > 0 and self._local(step)
            sent = not held and len(step.payload) <= BRIEF_BYTES and self._idle()
            row = self._desk.spool.next_row
            if sent:
                self._since_awaited = 0
                try:
                    await self._send_step(row, step)
                except (LinkError, RefusedError):
                    sent = False  # the receiver has heard it, too, and ends this conversation
            yield sent
            if sent and self._desk.spool.next_row > row:  # a full disk leaves the number to the next window
                self._ahead.add(row)

    def _local(self, step: Step) -> bool:
        return step.split == self._desk.version.encoder.last_split

    def _idle(self) -> bool:
        return not (
            self._in_flight
            or self._writing.locked()
            or self.draining
            or self.busy
            or self._rewind_to != _NOWHERE
            or self._desk.spool.windows > len(self._unwanted) + self._held
            or (self._unwanted and self._more_wait())
        )

    def _more_wait(self) -> bool:
        """Whether the spool has windows that were not sent yet; it may have dropped some of the unwanted, so their number does not tell."""
        try:
            return bool(self._desk.spool.pending(self._sent_row, 1))
        except StorageError:
            return True

    async def _send(self) -> None:
        while not self.draining:
            self._wake.clear()
            sent = await self._send_some() + await self._synchronise()
            if not sent:
                wait_s = self._busy_until_s - self._desk.clock()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), wait_s if wait_s > 0 else None)
        await self._connection.done_writing()
        await asyncio.Event().wait()  # the receiver ends the connection

    async def _send_some(self) -> int:
        room = self._connection.welcome.max_in_flight - len(self._in_flight)
        if room <= 0 or self.busy:
            return 0
        self._held = 0
        self._sent_row, self._rewind_to = min(self._sent_row, self._rewind_to), _NOWHERE
        # Those that were answered are gone from the spool; those that must go again are no longer in flight.
        self._ahead &= {flight.row for flight in self._in_flight.values()}
        if self._desk.settings.hold_windows > 0:
            if await self._send_awaited():
                return 1
            room = min(room, self._room_for_held())
            if room <= 0:
                return 0
        sent = 0
        most = room + len(self._in_flight) + len(self._unwanted)
        for row, step in self._desk.spool.pending(self._sent_row, most):
            self._sent_row = row
            if step.key in self._in_flight or row in self._ahead or row in self._unwanted:
                continue
            await self._send_step(row, step)
            sent += 1
            # An answer that came meanwhile may want an earlier window sent again: begin anew from there.
            if sent >= room or self.draining or self._rewind_to != _NOWHERE:
                break
        return sent

    def _room_for_held(self) -> int:
        """How many more embeddings that waited for each other may go now; none beside a window that is waited for.

        An answer costs a busy device more time than its bytes cost the link: in bursts of load, sixty sent at once made ten windows
        that followed them late by half a second each.
        """
        held = sum(self._local(flight.step) for flight in self._in_flight.values())
        if held < len(self._in_flight):
            return 0
        return (COMPANY if self._since_awaited >= LULL_WINDOWS else 1) - held

    async def _send_awaited(self) -> bool:
        """The oldest window that the server must finish, before embeddings that only wait to be sent."""
        last, known = self._desk.version.encoder.last_split, self._ahead | self._unwanted
        known |= {flight.row for flight in self._in_flight.values()}
        found = self._desk.spool.first_but(last, self._sent_row, known)
        if found is None:
            return False
        self._ahead.add(found[0])
        self._since_awaited = 0
        await self._send_step(*found)
        return True

    async def _synchronise(self) -> bool:
        """One piece of what is synchronised, between the windows."""
        message = self._desk.synchroniser.next() if self._desk.synchroniser else None
        if message is None:
            return False
        async with self._writing:
            await self._connection.write(message)
        return True

    async def _send_step(self, row: int, step: Step) -> None:
        async with self._writing:
            for message in self._connection.introductions(step, self._desk.spool.stream):
                await self._connection.write(message)
            now_s = self._desk.clock()
            if not self._in_flight:
                self._progress_s = now_s
            self._in_flight[step.key] = _InFlight(step, row, now_s)
            self._desk.last_sent_s = now_s
            self._desk.estimator.sent(step.key, len(step.payload), now_s)
            await self._connection.write(self._connection.window_message(step))

    # Receiving.

    async def _receive(self) -> None:
        while (said := await self._connection.read()) is not None:
            self._progress_s = self._desk.clock()
            async with self._keeping:  # what is on the wire is in the spool, too, before its answer counts
                pass
            match said:
                case messages.Acknowledgement():
                    self._acknowledged(said)
                case messages.Busy():
                    self._put_off(said)
                case messages.VersionGone():
                    self._version_gone(said)
                case messages.Rejected():
                    self._rejected(said)
                case messages.Newest() | messages.Piece() | messages.Taken():
                    self._synchronised(said)
                case messages.Drain():
                    logger.info("the server is draining; reconnecting in a moment")
                    self.draining = True
                case messages.Welcome():
                    raise RemoteProtocolError("server: Welcome came twice")
            self._wake.set()

    def _synchronised(self, said: messages.Newest | messages.Piece | messages.Taken) -> None:
        if isinstance(said, messages.Newest):
            self._served.add(said.version.version)
        if self._desk.synchroniser:
            self._desk.synchroniser.heard(said)

    def _take(self, stream: int, sequence: int) -> _InFlight | None:
        return self._in_flight.pop(self._connection.key(stream, sequence), None)

    def _acknowledged(self, ack: messages.Acknowledgement) -> None:
        flight = self._take(ack.stream, ack.sequence)
        if flight is None:
            return
        server_ms = (ack.queue_us + ack.tail_us + ack.store_us) / 1e3
        self._desk.estimator.acknowledged(flight.step.key, self._progress_s, server_ms)
        self._done(Answer(flight.step, "acknowledged", ack, "", flight.sent_s, self._progress_s))

    def _rejected(self, rejected: messages.Rejected) -> None:
        flight = self._take(rejected.stream, rejected.sequence)
        if flight is None:
            return
        self._desk.estimator.lost(flight.step.key)
        logger.warning("the server rejected a window: %s", rejected.reason)
        self._done(Answer(flight.step, "rejected", None, rejected.reason, flight.sent_s, self._progress_s))

    def _done(self, answer: Answer) -> None:
        self.answers += 1
        self._desk.answered(answer)
        self._desk.spool.acknowledge([answer.step.key])

    def _put_off(self, busy: messages.Busy) -> None:
        self._busy_until_s = self._desk.clock() + busy.retry_ms / 1e3 * self._desk.random.uniform(0.8, 1.2)
        flight = self._take(busy.stream, busy.sequence)
        if flight:
            self._desk.estimator.lost(flight.step.key)
            self._rewind_to = min(self._rewind_to, flight.row - 1)

    def _version_gone(self, gone: messages.VersionGone) -> None:
        """Sends the window again from its features, to a served version whose front end makes equal ones."""
        flight = self._take(gone.stream, gone.sequence)
        if flight is None:
            return
        self._desk.estimator.lost(flight.step.key)
        step = flight.step
        ours = step.version == self._desk.version.id
        self._served = {served.version for served in gone.served}
        usable = [served.version for served in gone.served if served.front_end == step.front_end]
        again = as_features(step, usable[0]) if usable else None
        if again is None and not ours:
            # An old window that nobody here can finish: it waits in the spool, and must not hold up those behind it.
            logger.warning(
                "window %d of %s waits for a server of %s", step.sequence, step.stream, step.version
            )
            self._unwanted.add(flight.row)
            return
        if again is None:
            raise RefusedError(
                f"server {self._desk.settings.server} does not serve {step.version} and serves no version that takes its features "
                f"(it serves {', '.join(served.version for served in gone.served) or 'nothing'})"
            )
        self._desk.spool.replace(step.key, again)
        self._rewind_to = min(self._rewind_to, flight.row - 1)
