"""The server process: settings in, a listening server out, drained on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import torch

from streamsplit.config import ServerSettings, split_address
from streamsplit.encoders.registry import Version, resolve
from streamsplit.errors import ConfigError, StorageError, StreamSplitError
from streamsplit.server import refining
from streamsplit.server.inbox import Inbox
from streamsplit.server.labels import LabelBook
from streamsplit.server.publications import Publications
from streamsplit.server.refiner import INBOX
from streamsplit.server.security import ServerSecurity, StrangersOut, check_listen, identifier
from streamsplit.server.service import StreamSplitService
from streamsplit.server.store import EmbeddingStore
from streamsplit.server.synchronisation import Synchronisation
from streamsplit.server.tail import Tail
from streamsplit.server.versions import ServedVersion, serve, torch_device
from streamsplit.wire.v1 import streamsplit_pb2 as pb
from streamsplit.wire.v1 import streamsplit_pb2_grpc as pb_grpc

logger = logging.getLogger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["StreamSplit"].full_name

CHANNEL_OPTIONS = (
    ("grpc.so_reuseport", 0),
    # Devices ping every 20 s on a quiet link; the default of five minutes would answer that with GOAWAY.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # And the server finds a device that went silent without a word.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.bdp_probe", 0),  # see client/channel.py
    # Windows are packed already, and small.
    ("grpc.default_compression_algorithm", 0),
)


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that listens.

    Attributes:
        port: where.
        service: its connections.
        tail: its compute and storage.
        versions: what it serves, by name.
    """

    port: int
    service: StreamSplitService
    tail: Tail
    versions: dict[str, ServedVersion]


def load_versions(settings: ServerSettings) -> list[Version]:
    """The versions the settings name."""
    if len(settings.weights) > len(settings.encoders):
        raise ConfigError(f"weights: {len(settings.weights)} files for {len(settings.encoders)} encoders")
    weights = (*settings.weights, *([None] * (len(settings.encoders) - len(settings.weights))))
    return [resolve(name, file) for name, file in zip(settings.encoders, weights, strict=True)]


@asynccontextmanager
async def running(
    settings: ServerSettings,
    versions: list[Version],
    crashed: Callable[[Exception], None] = lambda error: None,
) -> AsyncIterator[RunningServer]:
    """A listening server, for as long as the context is open; leaving it drains.

    Raises:
        ConfigError: listening there is not allowed, or not possible.
        StorageError: the store cannot be opened.
    """
    security = ServerSecurity.from_settings(settings)
    host, _ = split_address(settings.listen)
    check_listen(host, security)
    torch.set_num_threads(settings.threads)
    sys.setswitchinterval(0.001)  # compute and event loop share the interpreter: 5 ms of waiting shows in p99
    _open_store(settings).close()  # fail now, not at the first window
    publications = None
    if settings.refine:
        torch_device(settings.refiner.compute)
        publications, versions = refining.begin(settings, versions)
    served = serve(versions, settings.compute)
    service = StreamSplitService(settings, served, identifier(security))
    listeners = looked = None
    if publications:
        listeners = refining.Listeners(settings, served)
        looked = await _synchronise(settings, service, publications, served, listeners.labels)
    tail = Tail(
        served,
        lambda: _open_store(settings),
        service.deliver,
        crashed,
        settings.max_batch,
        committed=listeners,
        inline=settings.durability == "process",
    )
    service.tail = tail
    server = grpc.aio.server(
        interceptors=[StrangersOut(security, (f"/{SERVICE}/Connect", "/grpc.health.v1.Health/Check"))],
        options=(*CHANNEL_OPTIONS, ("grpc.max_receive_message_length", settings.max_message_kb * 1024)),
        maximum_concurrent_rpcs=settings.max_devices * settings.max_streams_per_device + 16,
    )
    pb_grpc.add_StreamSplitServicer_to_server(service, server)
    set_health = _add_health_and_reflection(server)
    port = _listen(server, settings.listen, security)
    tail.start()
    if listeners:
        listeners.start()
    await server.start()
    await set_health(True)
    try:
        async with AsyncExitStack() as stack:
            if publications and looked:
                await stack.enter_async_context(refining.refining(settings, publications, served, looked))
            yield RunningServer(port, service, tail, served)
    finally:
        await set_health(False)
        await service.drain(settings.drain_s)
        await server.stop(grace=0.5)
        await asyncio.to_thread(tail.stop)
        if listeners:
            await asyncio.to_thread(listeners.stop)


def run(
    settings: ServerSettings, ready: Callable[[RunningServer], None], stop_with_parent: bool = False
) -> None:
    """Runs until SIGTERM or SIGINT, then drains.

    Args:
        settings: all it is told.
        ready: told the port once it listens.
        stop_with_parent: drain as well when standard input ends, as it does when the process that made the pipe dies.

    Raises:
        StreamSplitError: it could not start, or its compute died.
    """
    asyncio.run(_run(settings, ready, stop_with_parent))


async def _run(
    settings: ServerSettings, ready: Callable[[RunningServer], None], stop_with_parent: bool
) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    if stop_with_parent:
        loop.add_reader(sys.stdin.fileno(), stop.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    failure: list[Exception] = []

    def crashed(error: Exception) -> None:
        failure.append(error)
        loop.call_soon_threadsafe(stop.set)

    versions = await asyncio.to_thread(load_versions, settings)
    async with running(settings, versions, crashed) as server:
        ready(server)
        await stop.wait()
        logger.info("draining, at most %g s", settings.drain_s)
    if failure:
        raise StreamSplitError(f"the server stopped because its compute died: {failure[0]}")


async def _synchronise(
    settings: ServerSettings,
    service: StreamSplitService,
    publications: Publications,
    served: dict[str, ServedVersion],
    labels: LabelBook,
) -> Callable[[], Awaitable[None]]:
    """Lets sessions fetch and keep; returns what is to be awaited whenever something may have been published."""
    folder = settings.refiner.state_dir
    sync = Synchronisation(publications, Inbox(folder / INBOX), folder / "memories", served, labels)
    service.synchronisation = sync

    async def looked() -> None:
        newest = await asyncio.to_thread(sync.look)
        if newest:
            service.announce(newest)

    await looked()
    return looked


def _open_store(settings: ServerSettings) -> EmbeddingStore:
    try:
        settings.store.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{settings.store.parent}: cannot be made: {error.strerror}") from None
    return EmbeddingStore(settings.store, settings.durability)


def _listen(server: grpc.aio.Server, address: str, security: ServerSecurity) -> int:
    credentials = security.credentials()
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise ConfigError(
            f"listen = {address!r}: cannot listen there: {str(error).splitlines()[0]}"
        ) from None


def _add_health_and_reflection(server: grpc.aio.Server) -> Callable[[bool], Awaitable[None]]:
    try:
        from grpc_health.v1 import health_pb2, health_pb2_grpc
        from grpc_health.v1.health import aio as health
        from grpc_reflection.v1alpha import reflection
    except ImportError as error:
        raise ConfigError(
            f"the server needs its extra: pip install 'streamsplit[server]' ({error.name} is missing)"
        ) from None
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection(
        (SERVICE, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name), server
    )

    async def set_health(serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            await servicer.set(name, status.SERVING if serving else status.NOT_SERVING)

    return set_health
