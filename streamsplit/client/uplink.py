"""The stream to the server: one conversation after another, coming back after every failure.

The spool is the queue: a conversation reads it in order, and the next one starts over at the oldest row.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import Enum
from types import TracebackType

from streamsplit import __version__
from streamsplit.client.channel import metadata, open_channel
from streamsplit.client.connection import Connection
from streamsplit.client.conversation import Answer, Conversation, Desk
from streamsplit.client.link_estimator import LinkEstimator
from streamsplit.client.socket_stats import SocketMeter, supported
from streamsplit.client.spool import Spool
from streamsplit.client.step import Step
from streamsplit.client.synchroniser import Synchroniser
from streamsplit.config import ClientSettings, split_address
from streamsplit.encoders.registry import Version
from streamsplit.errors import LinkError, RefusedError, RemoteProtocolError, StorageError
from streamsplit.wire import messages
from streamsplit.wire.v1 import streamsplit_pb2_grpc as pb_grpc

logger = logging.getLogger(__name__)

BACKOFF_S = (0.25, 30.0)
REFUSED_RETRY_S = 60.0
METER_S = 0.5


class LinkState(Enum):
    """Where the uplink stands."""

    DOWN = "down"
    UP = "up"
    DRAINING = "draining"
    REFUSED = "refused"


class Uplink:
    """An async context manager: a task keeps the stream up while the context is open.

    Args:
        settings: where and how.
        version: what this device computes heads of.
        spool: what is to be sent.
        answered: called on the event loop for every window that is done with, before it leaves the spool.
        clock: monotonic seconds.
        seed: of the reconnects' jitter; None: from the system.
        synchroniser: of weights and memory, where the device learns.
    """

    def __init__(
        self,
        settings: ClientSettings,
        version: Version,
        spool: Spool,
        answered: Callable[[Answer], None],
        clock: Callable[[], float] = time.monotonic,
        seed: int | None = None,
        synchroniser: Synchroniser | None = None,
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._clock = clock
        self._random = random.Random(seed)
        self.estimator = LinkEstimator()
        self._desk = Desk(
            settings, version, spool, self.estimator, answered, clock, self._random, synchroniser
        )
        self._connection: Connection | None = None
        self._talk: Conversation | None = None
        self._task: asyncio.Task[None] | None = None
        self._state = LinkState.DOWN
        self.meter = SocketMeter(split_address(settings.server)[1]) if settings.server else None
        self.error: Exception | None = None
        self.connections = 0
        self._message_bytes = (0, 0, 0, 0)

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

    def wake(self, urgent: bool = True) -> None:
        """Says that the spool has something new.

        Args:
            urgent: it is not to wait for company.

        Raises:
            Exception: what the uplink's task died of; a bug must not look like a dead link.
        """
        if self._task and self._task.done():
            self._task.result()
        if self._talk:
            self._talk.wake(urgent)

    @asynccontextmanager
    async def at_once(self, step: Step) -> AsyncIterator[bool]:
        """Around putting a window into the spool: sends it meanwhile if the line is idle; yields whether it did."""
        if self._talk is None:
            yield False
            return
        async with self._talk.at_once(step) as sent:
            yield sent

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
    def state(self) -> LinkState:
        """Where the uplink stands now."""
        if self._talk is None:
            return self._state
        return LinkState.DRAINING if self._talk.draining else LinkState.UP

    @property
    def serves_ours(self) -> bool:
        """Whether the server that is connected finishes windows of this device's version."""
        return self._talk is not None and self._talk.serves_ours

    @property
    def available(self) -> bool:
        """Whether a window sent now, cut anywhere, would be finished by the server."""
        return (
            self.state is LinkState.UP and self.serves_ours and self._talk is not None and not self._talk.busy
        )

    @property
    def in_flight(self) -> int:
        """Windows on the wire."""
        return self._talk.in_flight if self._talk else 0

    @property
    def last_sent_s(self) -> float | None:
        """When a window last went onto the wire, monotonic; None: not yet."""
        return self._desk.last_sent_s

    @property
    def bytes_measured_on(self) -> str:
        """What `uplink_bytes` counts: "socket" (everything, framing and TLS included) or, where no system tells, "messages"."""
        return "socket" if supported() else "messages"

    @property
    def uplink_bytes(self) -> int:
        """Bytes sent to the server so far, as of at most half a second ago."""
        return self.meter.total.sent if self.meter and supported() else self._messages()[0]

    @property
    def downlink_bytes(self) -> int:
        """Bytes received from the server so far, as of at most half a second ago."""
        return self.meter.total.received if self.meter and supported() else self._messages()[1]

    @property
    def sync_bytes(self) -> tuple[int, int]:
        """Message bytes of lazy synchronisation so far, (up, down); they are in `uplink_bytes` and `downlink_bytes`, too."""
        counted = self._messages()
        return counted[2], counted[3]

    def adopt(self, version: Version) -> None:
        """From here on this device computes heads of another version."""
        self._desk.version = version

    def _messages(self) -> tuple[int, int, int, int]:
        """Bytes (up, down), and those of synchronisation (up, down), of all connections so far."""
        if self._connection is None:
            return self._message_bytes
        now = self._connection
        counted = (now.sent_bytes, now.received_bytes, now.sync_sent_bytes, now.sync_received_bytes)
        up, down, sync_up, sync_down = (a + b for a, b in zip(self._message_bytes, counted, strict=True))
        return up, down, sync_up, sync_down

    # Keeping the stream up.

    async def _keep_up(self) -> None:
        failures = 0
        while True:
            try:
                await self._connect()
                self._state, failures, delay_s = LinkState.DOWN, 0, 0.1
            except RefusedError as error:
                self._down(LinkState.REFUSED, error)
                delay_s = REFUSED_RETRY_S
            except (LinkError, RemoteProtocolError, StorageError) as error:
                failures = 0 if self._talk and self._talk.answers else failures + 1
                self._down(LinkState.DOWN, error)
                first, most = BACKOFF_S
                delay_s = self._random.uniform(0.2, 1.0) * min(most, first * 2 ** min(failures, 10))
            self._talk = None
            await asyncio.sleep(delay_s)

    def _down(self, state: LinkState, error: Exception) -> None:
        level = logging.DEBUG if self._state is state and type(self.error) is type(error) else logging.WARNING
        logger.log(level, "%s; windows stay in the spool", error)
        self._state, self.error = state, error

    async def _connect(self) -> None:
        """One connection, from its channel to its end. Returns when the server drained it; raises otherwise."""
        server = self._settings.server or ""
        channel = open_channel(self._settings)
        self.estimator.reset()
        try:
            call = pb_grpc.StreamSplitStub(channel).Connect(metadata=metadata(self._settings))
            self._connection = Connection(call, server)
            meter = asyncio.create_task(self._poll_meter(), name="uplink-meter")
            try:
                async with asyncio.timeout(self._settings.connect_timeout_s):
                    self._talk = await self._greet(self._connection)
                await self._talk.run()
            except TimeoutError:
                raise LinkError(
                    f"server {server}: no answer within {self._settings.connect_timeout_s:g} s"
                ) from None
            finally:
                meter.cancel()
                if self.meter:
                    self.meter.poll()
                self._message_bytes, self._connection = self._messages(), None
                call.cancel()
        finally:
            await channel.close()

    async def _poll_meter(self) -> None:
        while self.meter:
            await asyncio.sleep(METER_S)
            self.meter.poll()

    async def _greet(self, connection: Connection) -> Conversation:
        ours = self._desk.version.id
        names = (ours, *(name for name in self._spool.versions() if name != ours))[: messages.MAX_VERSIONS]
        await connection.greet(
            messages.Hello(messages.PROTOCOL, self._settings.device, names, f"streamsplit {__version__}")
        )
        welcome = connection.welcome
        if not messages.interoperates(welcome.protocol):
            raise RefusedError(f"server speaks protocol {welcome.protocol}, this device {messages.PROTOCOL}")
        self.connections += 1
        self.estimator.greeted(connection.greeted_s)
        talk = Conversation(self._desk, connection)
        if not talk.serves_ours:
            logger.warning(
                "the server does not serve %s (it serves %s)",
                ours,
                ", ".join(served.version for served in welcome.served) or "nothing",
            )
        self._state, self.error = LinkState.UP, None
        return talk
