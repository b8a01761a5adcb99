"""The gRPC service: carries messages between sockets and sessions, and outcomes from the tail back to their session.

This is the only place where errors of ours become gRPC status codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc

from streamsplit.config import ServerSettings
from streamsplit.errors import RefusedError, RemoteProtocolError
from streamsplit.server.commit import Outcome
from streamsplit.server.events import (
    Close,
    Code,
    Command,
    DrainRequested,
    Fetch,
    Fetched,
    HalfClosed,
    HelloOverdue,
    Keep,
    Kept,
    Process,
    Published,
    Reply,
)
from streamsplit.server.security import TokenBucket
from streamsplit.server.session import Session, SessionLimits, State
from streamsplit.server.synchronisation import Synchronisation
from streamsplit.server.tail import Tail
from streamsplit.server.versions import ServedVersion
from streamsplit.wire import messages, translate
from streamsplit.wire.shorthand import Shorthand
from streamsplit.wire.v1 import streamsplit_pb2 as pb
from streamsplit.wire.v1 import streamsplit_pb2_grpc as pb_grpc

logger = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 10.0

STATUS = {
    Code.OK: grpc.StatusCode.OK,
    Code.BAD_MESSAGE: grpc.StatusCode.INVALID_ARGUMENT,
    Code.INCOMPATIBLE: grpc.StatusCode.FAILED_PRECONDITION,
    Code.WRONG_IDENTITY: grpc.StatusCode.PERMISSION_DENIED,
    Code.TOO_MANY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.OVERDUE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.DRAINING: grpc.StatusCode.UNAVAILABLE,
}

Context = Any  # grpc.aio.ServicerContext: grpc has no types


class Connection:
    """One call: its session, its outbox, and the tasks that serve it.

    The outbox needs no bound of its own: what may lie in it is bounded by the session's windows in flight plus one answer for each
    message read, and reading stops while `OUTBOX_HIGH` answers wait (a device that sends and never reads stalls only itself).
    """

    OUTBOX_HIGH = 256

    def __init__(
        self,
        session: Session,
        submit: Callable[[Process, Connection], None],
        synchronisation: Synchronisation | None,
    ) -> None:
        self.session = session
        self._submit = submit
        self._synchronisation = synchronisation
        self._errands: set[asyncio.Task[None]] = set()
        self._shorthand = Shorthand()
        self._outbox: list[pb.ServerMessage] = []
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self.closing: Close | None = None

    def receive(self, event: object) -> None:
        """Hands an event to the session and carries out what it commands."""
        for command in self.session.receive(event):  # type: ignore[arg-type]
            self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        match command:
            case Reply(message):
                self._outbox.append(translate.server_message(message))
                if len(self._outbox) >= self.OUTBOX_HIGH:
                    self._room.clear()
            case Process():
                self._submit(command, self)
                return
            case Fetch() | Keep():
                errand = asyncio.create_task(self._run_errand(command), name="synchronisation")
                self._errands.add(errand)
                errand.add_done_callback(self._errands.discard)
                return
            case Close():
                self.closing = command
        self._wake.set()

    async def _run_errand(self, command: Fetch | Keep) -> None:
        """What waits for the disk, in a thread."""
        sync = self._synchronisation
        if sync is None:
            return
        try:
            if isinstance(command, Fetch):
                answer: Fetched | Kept = Fetched(await asyncio.to_thread(sync.fetch, command.want))
            else:
                kept = command.device, command.thing, command.version, command.base, command.content
                problem = await asyncio.to_thread(sync.keep, *kept)
                answer = Kept(command.thing, len(command.content), problem)
        except Exception:  # a bug: it must cost this errand, and not leave its device waiting for ever
            logger.exception("synchronisation failed")
            answer = _nothing_came_of(command)
        self.receive(answer)

    async def read(self, requests: AsyncIterator[pb.DeviceMessage]) -> None:
        """Feeds the session until the device half-closes."""
        async for request in requests:
            try:
                self._shorthand.complete(request)
                message = translate.read_device_message(request)
            except RemoteProtocolError as error:
                self._carry_out(Close(Code.BAD_MESSAGE, str(error)))
                return
            if message is not None:
                self.receive(message)
            if self._outbox:  # the answer goes out before the next message is asked for
                await asyncio.sleep(0)
            if not self._room.is_set():
                await self._room.wait()
            if self.closing:
                return
        self.receive(HalfClosed())

    async def write(self, context: Context) -> Close:
        """Sends what the session replies; returns when it has closed."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._outbox:
                batch, self._outbox = self._outbox, []
                self._room.set()
                for message in batch:
                    await context.write(message)
            if self.closing:
                return self.closing


def _nothing_came_of(command: Fetch | Keep) -> Fetched | Kept:
    if isinstance(command, Keep):
        return Kept(command.thing, len(command.content), "the server failed")
    want = command.want
    return Fetched(messages.Piece(want.thing, want.version, want.base, 0, 0, b""))


class StreamSplitService(pb_grpc.StreamSplitServicer):  # type: ignore[misc]
    """All connections of one server.

    Args:
        settings: limits.
        served: versions by name, a live view.
        identify: (authentication context, metadata) -> the device the credentials name, None where none are asked for; raises
            `RefusedError`.
    """

    def __init__(
        self,
        settings: ServerSettings,
        served: Mapping[str, ServedVersion],
        identify: Callable[[Context], str | None],
    ) -> None:
        self._settings = settings
        self._served = served
        self._identify = identify
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._connections: dict[Connection, str] = {}
        self._buckets: dict[str, TokenBucket] = {}
        self._draining = False
        self.tail: Tail | None = None
        self.synchronisation: Synchronisation | None = None
        self.stopped = asyncio.Event()
        self.refused = Counter[str]()

    def deliver(self, outcomes: Sequence[tuple[object, Outcome]]) -> None:
        """Takes outcomes from the tail, on the event loop or from its threads."""
        if threading.get_ident() == self._thread:
            self._deliver_here(outcomes)
            return
        with contextlib.suppress(
            RuntimeError
        ):  # the loop is closed: the process is going down, the windows are committed
            self._loop.call_soon_threadsafe(self._deliver_here, outcomes)

    def _deliver_here(self, outcomes: Sequence[tuple[object, Outcome]]) -> None:
        for owner, outcome in outcomes:
            if isinstance(owner, Connection):
                owner.receive(outcome)

    async def Connect(  # noqa: N802 - the generated base class names it
        self, request_iterator: AsyncIterator[pb.DeviceMessage], context: Context
    ) -> None:
        """One device's stream, from its Hello to its end."""
        if self._draining:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the server is going down")
        try:
            identity = self._identify(context)
        except RefusedError as error:
            self.refused["identity"] += 1
            logger.warning("%s refused: %s", context.peer(), error)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        connection = self._connection(identity)
        reader = asyncio.create_task(connection.read(request_iterator), name="session-read")
        overdue = self._loop.call_later(HELLO_TIMEOUT_S, connection.receive, HelloOverdue())
        try:
            writer = asyncio.create_task(connection.write(context), name="session-write")
            done, _ = await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if reader in done:
                reader.result()
            close = await writer
        finally:
            overdue.cancel()
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            self._forget(connection)
        if close.code is not Code.OK:
            self.refused[close.code.value] += 1
            logger.warning("%s closed (%s): %s", context.peer(), close.code.value, close.reason)
            await context.abort(STATUS[close.code], close.reason)

    def _connection(self, identity: str | None) -> Connection:
        settings = self._settings
        connection: Connection

        def admit(device: str) -> str | None:
            others = Counter(name for name in self._connections.values() if name)
            if device not in others and len(others) >= settings.max_devices:
                return f"device {device!r}: {len(others)} devices are connected, the limit is {settings.max_devices}"
            if others[device] >= settings.max_streams_per_device:
                return f"device {device!r}: it has {others[device]} connections, the limit is {settings.max_streams_per_device}"
            self._connections[connection] = device
            self._forget_full_buckets()
            if device not in self._buckets:
                rate = settings.max_windows_per_second
                self._buckets[device] = TokenBucket(rate, max(1.0, 2 * rate))
            logger.info("device %s connected", device)
            return None

        def take() -> bool:
            bucket = self._buckets[self._connections[connection]]
            return self.tail is not None and self.tail.waiting < settings.max_queue and bucket.take()

        limits = SessionLimits(settings.max_in_flight, settings.max_message_kb * 1024)
        session = Session(identity, self._served, limits, admit, take)
        sync = self.synchronisation
        if sync is not None:
            session.newest, session.most_bytes = sync.newest, sync.most_bytes
        connection = Connection(session, self._submit, sync)
        self._connections[connection] = ""
        return connection

    def _forget_full_buckets(self) -> None:
        """A bucket outlives its device's connection, or reconnecting would refill it; once full it says nothing any more."""
        if len(self._buckets) > 4 * self._settings.max_devices:
            present = set(self._connections.values())
            for device in [
                name for name, bucket in self._buckets.items() if name not in present and bucket.full
            ]:
                del self._buckets[device]

    def _submit(self, command: Process, connection: Connection) -> None:
        if self.tail is not None:
            self.tail.submit(command.job, connection)

    def _forget(self, connection: Connection) -> None:
        device = self._connections.pop(connection, "")
        connection.session.state = State.CLOSED
        if device:
            logger.info("device %s disconnected", device)
        if self._draining and not self._connections:
            self.stopped.set()

    def announce(self, newest: messages.Newest) -> None:
        """Tells every device that another version is the newest now."""
        for connection in list(self._connections):
            connection.receive(Published(newest))

    async def drain(self, grace_s: float) -> None:
        """Takes no new device, lets every connection finish what is in flight, at most `grace_s`."""
        self._draining = True
        for connection in list(self._connections):
            connection.receive(DrainRequested(int(grace_s * 1000)))
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.stopped.wait(), grace_s)
