"""The stream to the server: sends what the spool holds, takes acknowledgements, comes back after every failure.

The spool is the queue: the uplink reads it in order, remembers how far it has sent on this connection, and starts over at the oldest
row after a reconnect. Nothing leaves the spool before the server has committed it, or has said that it never will.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import TracebackType

import grpc

from streamsplit import __version__
from streamsplit.client.channel import meaning, metadata, open_channel
from streamsplit.client.connection import Call, Connection
from streamsplit.client.edge import as_features
from streamsplit.client.link_estimator import LinkEstimator
from streamsplit.client.socket_stats import SocketMeter, supported
from streamsplit.client.spool import Spool
from streamsplit.client.step import Step
from streamsplit.config import ClientSettings, split_address
from streamsplit.encoders.registry import Version
from streamsplit.errors import LinkError, RefusedError, RemoteProtocolError, StorageError
from streamsplit.wire import messages
from streamsplit.wire.v1 import streamsplit_pb2_grpc as pb_grpc

logger = logging.getLogger(__name__)

BACKOFF_S = (0.25, 30.0)
REFUSED_RETRY_S = 60.0
WATCH_S = 0.5
_NOWHERE = 1 << 62


class LinkState(Enum):
    """Where the uplink stands."""

    DOWN = "down"
    UP = "up"
    DRAINING = "draining"
    REFUSED = "refused"


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
class _InFlight:
    step: Step
    row: int
    sent_s: float


class Uplink:
    """An async context manager: a task keeps the stream up while the context is open.

    Args:
        settings: where and how.
        version: what this device computes heads of.
        spool: what is to be sent.
        answered: called on the event loop for every window that is done with, before it leaves the spool.
        clock: monotonic seconds.
        seed: of the reconnects' jitter; None: from the system.
    """

    def __init__(
        self,
        settings: ClientSettings,
        version: Version,
        spool: Spool,
        answered: Callable[[Answer], None],
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        self._settings = settings
        self._version = version
        self._spool = spool
        self._answered = answered
        self._clock = clock
        self._random = random.Random(seed)
        self._wake = asyncio.Event()
        self._in_flight: dict[tuple[str, int], _InFlight] = {}
        self._task: asyncio.Task[None] | None = None
        self._progress_s = 0.0
        self._busy_until_s = 0.0
        self._sent_row = 0
        self._rewind_to = _NOWHERE
        self._unwanted: set[int] = set()
        self._answers = 0
        self.estimator = LinkEstimator()
        self.meter = SocketMeter(split_address(settings.server)[1]) if settings.server else None
        self.state = LinkState.DOWN
        self.serves_ours = False
        self.error: Exception | None = None
        self.connections = 0
        self.message_bytes_up = 0
        self.message_bytes_down = 0

    async def __aenter__(self) -> Uplink:
        if self._settings.server is not None:
            open_channel(self._settings)  # a bad setting is the caller's mistake: say so now, not in the task
            metadata(self._settings)
            self._task = asyncio.create_task(self._keep_up(), name="uplink")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def wake(self) -> None:
        """Says that the spool has something new.

        Raises:
            Exception: what the uplink's task died of; a bug must not look like a dead link.
        """
        if self._task and self._task.done():
            self._task.result()
        self._wake.set()

    async def welcomed(self) -> None:
        """Returns once the server has let this device in.

        Raises:
            RefusedError: it said no.
            LinkError: it did not answer within `connect_timeout_s`.
        """
        deadline_s = self._clock() + self._settings.connect_timeout_s
        while self.state is not LinkState.UP:
            self.wake()
            if isinstance(self.error, RefusedError):
                raise self.error
            if self._clock() > deadline_s:
                raise LinkError(str(self.error or f"server {self._settings.server}: no answer"))
            await asyncio.sleep(0.02)

    @property
    def available(self) -> bool:
        """Whether a window sent now, cut anywhere, would be finished by the server."""
        return self.state is LinkState.UP and self.serves_ours and self._clock() >= self._busy_until_s

    @property
    def in_flight(self) -> int:
        """Windows on the wire."""
        return len(self._in_flight)

    @property
    def bytes_measured_on(self) -> str:
        """What `uplink_bytes` counts: "socket" (everything, framing and TLS included) or, where no system tells, "messages"."""
        return "socket" if supported() else "messages"

    @property
    def uplink_bytes(self) -> int:
        """Bytes sent to the server so far, as of at most half a second ago."""
        return self.meter.total.sent if self.meter and supported() else self.message_bytes_up

    @property
    def downlink_bytes(self) -> int:
        """Bytes received from the server so far, as of at most half a second ago."""
        return self.meter.total.received if self.meter and supported() else self.message_bytes_down

    # Keeping the stream up.

    async def _keep_up(self) -> None:
        failures = 0
        while True:
            answers = self._answers
            try:
                await self._connect()
                failures, delay_s = 0, 0.1
            except RefusedError as error:
                self._down(LinkState.REFUSED, error)
                delay_s = REFUSED_RETRY_S
            except (LinkError, RemoteProtocolError, StorageError) as error:
                failures = 0 if self._answers > answers else failures + 1
                self._down(LinkState.DOWN, error)
                first, most = BACKOFF_S
                delay_s = self._random.uniform(0.2, 1.0) * min(most, first * 2 ** min(failures, 10))
            await asyncio.sleep(delay_s)

    def _down(self, state: LinkState, error: Exception) -> None:
        level = logging.DEBUG if self.state is state and type(self.error) is type(error) else logging.WARNING
        logger.log(level, "%s; windows stay in the spool", error)
        self._set_state(state, error)

    def _set_state(self, state: LinkState, error: Exception | None = None) -> None:
        self.state, self.error = state, error

    async def _connect(self) -> None:
        """One connection, from its channel to its end. Returns when the server drained it; raises otherwise."""
        server = self._settings.server or ""
        channel = open_channel(self._settings)
        self._in_flight.clear()
        self._unwanted.clear()
        self._sent_row, self._rewind_to = 0, _NOWHERE
        self.estimator.reset()
        try:
            call = pb_grpc.StreamSplitStub(channel).Connect(metadata=metadata(self._settings))
            try:
                async with asyncio.timeout(self._settings.connect_timeout_s):
                    connection = await self._greet(call)
                await self._converse(connection)
            except TimeoutError:
                raise LinkError(
                    f"server {server}: no answer within {self._settings.connect_timeout_s:g} s"
                ) from None
            except asyncio.InvalidStateError:  # gRPC's word for a write to a call that has just ended
                raise LinkError(f"server {server}: the stream ended") from None
            except grpc.aio.AioRpcError as error:
                raise meaning(error.code(), error.details() or "", server) from None
            finally:
                if self.meter:
                    self.meter.poll()
                call.cancel()
        finally:
            await channel.close()

    async def _greet(self, call: Call) -> Connection:
        names = (self._version.id, *(name for name in self._spool.versions() if name != self._version.id))[
            :16
        ]
        hello = messages.Hello(messages.PROTOCOL, self._settings.device, names, f"streamsplit {__version__}")
        await call.write(messages.device_message(hello))
        welcome = await self._read(call)
        if not isinstance(welcome, messages.Welcome):
            raise RemoteProtocolError(f"server: expected Welcome, got {type(welcome).__name__}")
        if not messages.interoperates(welcome.protocol):
            raise RefusedError(f"server speaks protocol {welcome.protocol}, this device {messages.PROTOCOL}")
        self.connections += 1
        self._progress_s = self._clock()
        self.serves_ours = any(served.version == self._version.id for served in welcome.served)
        if not self.serves_ours:
            logger.warning(
                "the server does not serve %s (it serves %s)",
                self._version.id,
                ", ".join(served.version for served in welcome.served) or "nothing",
            )
        self._set_state(LinkState.UP)
        return Connection(call, names, welcome)

    async def _converse(self, connection: Connection) -> None:
        tasks = [
            asyncio.create_task(work, name=f"uplink-{name}")
            for name, work in (
                ("send", self._send(connection)),
                ("receive", self._receive(connection)),
                ("watch", self._watch()),
            )
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finished = [task for task in tasks if task.done()]
            for task in finished:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        """Finds a server that neither answers nor hangs up."""
        while True:
            await asyncio.sleep(WATCH_S)
            if self.meter:
                self.meter.poll()
            quiet_s = self._clock() - self._progress_s
            if self._in_flight and quiet_s > self._settings.acknowledge_timeout_s:
                raise LinkError(f"server {self._settings.server}: no answer for {quiet_s:.0f} s")

    # Sending.

    async def _send(self, connection: Connection) -> None:
        while self.state is LinkState.UP:
            self._wake.clear()
            sent = await self._send_some(connection)
            if not sent:
                wait_s = self._busy_until_s - self._clock()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), wait_s if wait_s > 0 else None)
        await connection.call.done_writing()
        await asyncio.Event().wait()  # the receiver ends the connection

    async def _send_some(self, connection: Connection) -> int:
        room = connection.welcome.max_in_flight - len(self._in_flight)
        if room <= 0 or self._clock() < self._busy_until_s:
            return 0
        self._sent_row, self._rewind_to = min(self._sent_row, self._rewind_to), _NOWHERE
        sent = 0
        for row, step in self._spool.pending(
            self._sent_row, room + len(self._in_flight) + len(self._unwanted)
        ):
            self._sent_row = row
            if step.key in self._in_flight or row in self._unwanted:
                continue
            await self._send_step(connection, row, step)
            sent += 1
            # An answer that came meanwhile may want an earlier window sent again: begin anew from there.
            if sent >= room or self.state is not LinkState.UP or self._rewind_to != _NOWHERE:
                break
        return sent

    async def _send_step(self, connection: Connection, row: int, step: Step) -> None:
        opening = connection.opening(step, self._spool.stream)
        if opening:
            await self._write(connection, opening)
        now_s = self._clock()
        if not self._in_flight:
            self._progress_s = now_s
        self._in_flight[step.key] = _InFlight(step, row, now_s)
        self.estimator.sent(step.key, len(step.payload), now_s)
        await self._write(connection, connection.window_message(step))

    async def _write(self, connection: Connection, message: messages.DeviceSays) -> None:
        wire = messages.device_message(message)
        self.message_bytes_up += wire.ByteSize() + 5
        await connection.call.write(wire)

    # Receiving.

    async def _read(self, call: Call) -> messages.ServerSays | None:
        """The next message; None at the end of a stream that ended well."""
        while True:
            message = await call.read()
            if message is grpc.aio.EOF:
                return None
            self.message_bytes_down += message.ByteSize() + 5
            said = messages.read_server_message(message)
            if said is not None:
                return said

    async def _receive(self, connection: Connection) -> None:
        while (said := await self._read(connection.call)) is not None:
            self._progress_s = self._clock()
            match said:
                case messages.Acknowledgement():
                    self._acknowledged(connection, said)
                case messages.Busy():
                    self._busy(connection, said)
                case messages.VersionGone():
                    self._version_gone(connection, said)
                case messages.Rejected():
                    self._rejected(connection, said)
                case messages.Drain():
                    logger.info("the server is draining; reconnecting in a moment")
                    self._set_state(LinkState.DRAINING)
                case messages.Welcome():
                    raise RemoteProtocolError("server: Welcome came twice")
            self._wake.set()
        self._set_state(LinkState.DOWN)

    def _take(self, connection: Connection, stream: int, sequence: int) -> _InFlight | None:
        return self._in_flight.pop(connection.key(stream, sequence), None)

    def _acknowledged(self, connection: Connection, ack: messages.Acknowledgement) -> None:
        flight = self._take(connection, ack.stream, ack.sequence)
        if flight is None:
            return
        now_s = self._clock()
        self._answers += 1
        self.estimator.acknowledged(flight.step.key, now_s, (ack.queue_us + ack.tail_us + ack.store_us) / 1e3)
        self._answered(Answer(flight.step, "acknowledged", ack, "", flight.sent_s, now_s))
        self._spool.acknowledge([flight.step.key])

    def _busy(self, connection: Connection, busy: messages.Busy) -> None:
        self._busy_until_s = self._clock() + busy.retry_ms / 1e3 * self._random.uniform(0.8, 1.2)
        flight = self._take(connection, busy.stream, busy.sequence)
        if flight:
            self.estimator.lost(flight.step.key)
            self._rewind_to = min(self._rewind_to, flight.row - 1)

    def _version_gone(self, connection: Connection, gone: messages.VersionGone) -> None:
        """Sends the window again from its features, to a served version whose front end makes equal ones."""
        flight = self._take(connection, gone.stream, gone.sequence)
        if flight is None:
            return
        self.estimator.lost(flight.step.key)
        ours = flight.step.version == self._version.id
        self.serves_ours = self.serves_ours and not ours
        usable = [served.version for served in gone.served if served.front_end == flight.step.front_end]
        again = as_features(flight.step, usable[0]) if usable else None
        if again is None and not ours:
            # An old window that nobody here can finish: it waits in the spool, and must not hold up those behind it.
            logger.warning(
                "window %d of %s waits for a server of %s",
                flight.step.sequence,
                flight.step.stream,
                flight.step.version,
            )
            self._unwanted.add(flight.row)
            return
        if again is None:
            raise RefusedError(
                f"server {self._settings.server} does not serve {flight.step.version} and serves no version that takes its features "
                f"(it serves {', '.join(served.version for served in gone.served) or 'nothing'})"
            )
        self._spool.replace(flight.step.key, again)
        self._rewind_to = min(self._rewind_to, flight.row - 1)

    def _rejected(self, connection: Connection, rejected: messages.Rejected) -> None:
        flight = self._take(connection, rejected.stream, rejected.sequence)
        if flight is None:
            return
        self.estimator.lost(flight.step.key)
        logger.warning("the server rejected a window: %s", rejected.reason)
        self._answered(Answer(flight.step, "rejected", None, rejected.reason, flight.sent_s, self._clock()))
        self._spool.acknowledge([flight.step.key])
