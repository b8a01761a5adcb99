"""A slow, far, failing link between two processes of one machine: a TCP proxy on loopback that shapes what passes.

Theory of operation. Each direction is one bottleneck shared by all connections, as a modem is. A connection's reader takes bytes from
its socket into the bottleneck's bounded queue; while that is full it does not read, the kernel's (small) buffer fills, and the
sender's TCP feels the link. Ends and resets travel in line with the bytes.

    client -> read -> [bottleneck: rate] -> (delay line) -> write -> server          and the same back

What is counted is TCP payload, to the byte: gRPC's and TLS's overhead is in it, TCP/IP headers are not. A black hole holds bytes back
instead of losing them, which is what TCP makes of one that ends; the kernel still accepts new connections during it, but nothing moves.

    python -m streamsplit.lab.links --target 127.0.0.1:7600 --trace 300k --delay-ms 50        prints {"port": ...}
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Literal

import typer

from streamsplit.errors import ConfigError
from streamsplit.lab.shaping import MIN_CHUNK, Bottleneck, DelayLine
from streamsplit.lab.traces import Trace
from streamsplit.lab.tunnel import Tunnel, close, connect, listen

__all__ = ["LinkProxy", "LinkSettings", "LinkStats", "Outage", "Trace"]

Outage = tuple[float, float, Literal["freeze", "cut"]]
"""Start and end in seconds since the link came up, and what happens: "freeze" is a black hole; "cut" resets all connections, and
every new one until the end."""

LOOPBACK = {"127.0.0.1", "::1", "localhost"}


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What a link does.

    Attributes:
        target: "HOST:PORT" of the server, on loopback.
        uplink: rate from client to server.
        downlink: rate back; None: no limit.
        delay_ms: one-way delay, in each direction.
        jitter_ms: extra delay, uniform in 0..jitter_ms per chunk; order is kept.
        outages: scheduled failures.
        seed: of the jitter.
        queue_bytes: the bottleneck's buffer per direction (on a fast link 20 ms of its rate); a full one stops the readers.
        window_bytes: bytes of one connection and direction that may be inside the link.
        listen_port: 0 takes a free one.
        waits: traces and outages begin with `LinkProxy.begin`, not with the link; until then the first rates hold.
    """

    target: str
    uplink: Trace = field(default_factory=lambda: Trace.constant(20e6))
    downlink: Trace | None = None
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    outages: Sequence[Outage] = ()
    seed: int = 0
    queue_bytes: int = 32 * 1024
    window_bytes: int = 1024 * 1024
    listen_port: int = 0
    waits: bool = False

    def __post_init__(self) -> None:
        host, port = self.address
        if host not in LOOPBACK or not 0 < port < 65536:
            raise ConfigError(
                f"target: expected HOST:PORT on loopback (127.0.0.1, [::1]), got {self.target!r}"
            )
        if self.delay_ms < 0 or self.jitter_ms < 0:
            raise ConfigError(
                f"delay and jitter: expected 0 ms or more, got {self.delay_ms} and {self.jitter_ms}"
            )
        if min(self.queue_bytes, self.window_bytes) < MIN_CHUNK:
            got = f"{self.queue_bytes} and {self.window_bytes}"
            raise ConfigError(f"queue and window: expected {MIN_CHUNK} bytes or more, got {got}")
        for start_s, end_s, mode in self.outages:
            if not 0 <= start_s < end_s or mode not in ("freeze", "cut"):
                got = f"{start_s:g}:{end_s:g}:{mode}"
                raise ConfigError(f"outage: expected START < END seconds and freeze or cut, got {got}")

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the target; port 0 where it has none."""
        host, _, port = self.target.rpartition(":")
        return host.strip("[]"), int(port) if port.isdecimal() else 0


@dataclass(frozen=True, slots=True)
class LinkStats:
    """The link at one moment; counters since it came up.

    Attributes:
        bytes_up: delivered to the server.
        bytes_down: delivered to the client.
        bytes_lost: taken from a sender and not delivered, because the connection was reset; a write under way counts as lost whole.
        connections: joined to the target so far.
        open_connections: of them, open now.
        refused: reset at once: during a scheduled cut, or because the target did not answer.
        cuts: times all connections were reset.
        rate_up_bps: the uplink's rate now; 0 while frozen or in a scheduled cut.
        rate_down_bps: the downlink's; None without a limit.
        frozen: the link is a black hole now.
        elapsed_s: the link's time.
    """

    bytes_up: int
    bytes_down: int
    bytes_lost: int
    connections: int
    open_connections: int
    refused: int
    cuts: int
    rate_up_bps: float
    rate_down_bps: float | None
    frozen: bool
    elapsed_s: float


class LinkProxy:
    """The link, listening on 127.0.0.1. An async context manager; its time starts when it is entered.

        async with LinkProxy(LinkSettings("127.0.0.1:7600", Trace.parse("300k"), delay_ms=50)) as link:
            ... connect to 127.0.0.1:link.port ...
            link.cut()

    Args:
        settings: what the link does.
        clock: monotonic seconds.
    """

    def __init__(self, settings: LinkSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.settings = settings
        self._clock, self._began_s = clock, clock()
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._up = self._bottleneck(settings.uplink, settings.seed)
        self._down = self._bottleneck(settings.downlink, settings.seed + 1)
        self._connections: set[Tunnel] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self._refusing = False
        self._begun = False
        self._count = {
            "connections": 0,
            "refused": 0,
            "cuts": 0,
            "bytes_up": 0,
            "bytes_down": 0,
            "bytes_lost": 0,
        }

    async def __aenter__(self) -> LinkProxy:
        """Binds the port and starts the link's time."""
        try:
            self._listener = listen(self.settings.listen_port)
        except OSError as error:
            raise ConfigError(
                f"link: cannot listen on 127.0.0.1:{self.settings.listen_port}: {error}"
            ) from error
        self._began_s = self._clock()
        for work in (
            self._accept(self._listener),
            self._up.run(),
            self._down.run(),
        ):
            self._start(work)
        if self.settings.waits:
            first = [trace and Trace.constant(trace.rates_bps[0]) for trace in self._traces]
            self._up.use(first[0])
            self._down.use(first[1])
        else:
            self.begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Resets what is open; bytes still inside the link are lost, and counted."""
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        for error in ended:
            if isinstance(error, Exception):
                raise error

    @property
    def port(self) -> int:
        """Port to connect to; 0 before the link is entered."""
        return 0 if self._listener is None else int(self._listener.getsockname()[1])

    @property
    def stats(self) -> LinkStats:
        """Counters and rates at this moment."""
        counted = dict(self._count)
        for connection in self._connections:
            counted["bytes_up"] += connection.up.delivered
            counted["bytes_down"] += connection.down.delivered
        down_bps = 0.0 if self._refusing else self._down.rate_bps
        return LinkStats(
            **counted,
            open_connections=len(self._connections),
            rate_up_bps=0.0 if self._refusing else self._up.rate_bps,
            rate_down_bps=None if down_bps == float("inf") else down_bps,
            frozen=not self._thawed.is_set(),
            elapsed_s=self._now(),
        )

    def set_rate(self, uplink_bps: float | None, downlink_bps: float | None = None) -> None:
        """From now on constant rates in place of the traces; None goes back to the trace of the settings."""
        self._up.use(self.settings.uplink if uplink_bps is None else Trace.constant(uplink_bps))
        self._down.use(self.settings.downlink if downlink_bps is None else Trace.constant(downlink_bps))

    def begin(self) -> None:
        """From now on time counts for traces and outages; a second call does nothing."""
        if self._begun:
            return
        self._begun = True
        origin_s = self._now() if self.settings.waits else 0.0
        for direction, trace in zip((self._up, self._down), self._traces, strict=True):
            direction.origin_s = origin_s
            direction.use(trace)
        self._start(self._fail_on_schedule(origin_s))

    def freeze(self) -> None:
        """A black hole: nothing moves and nobody is told."""
        self._thawed.clear()
        self._up.wake()
        self._down.wake()

    def thaw(self) -> None:
        """Ends `freeze`: what was held back goes on."""
        self._thawed.set()

    def cut(self) -> None:
        """Resets all connections, at both ends. New ones are served, except during a scheduled cut."""
        self._count["cuts"] += 1
        for connection in self._connections:
            connection.reset()

    @property
    def _traces(self) -> tuple[Trace, Trace | None]:
        return self.settings.uplink, self.settings.downlink

    def _now(self) -> float:
        return self._clock() - self._began_s

    def _bottleneck(self, trace: Trace | None, seed: int) -> Bottleneck:
        chosen = self.settings
        delay_s, jitter_s = chosen.delay_ms / 1000, chosen.jitter_ms / 1000
        generator = random.Random(seed)
        return Bottleneck(trace, chosen.queue_bytes, delay_s, jitter_s, self._now, self._thawed, generator)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or task.exception() is None:
            self._tasks.discard(task)  # one that failed stays, and `__aexit__` raises its error

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(listener)
            self._start(self._join(client))

    async def _join(self, client: socket.socket) -> None:
        """Serves one client from its accept to its end."""
        server = None if self._refusing else await connect(*self.settings.address)
        if server is None:
            self._count["refused"] += 1
            close(client, reset=True)
            return
        up, down = (DelayLine(self.settings.window_bytes, self._now, self._thawed) for _ in range(2))
        connection = Tunnel(client, server, up, down)
        self._count["connections"] += 1
        self._connections.add(connection)
        try:
            await connection.run(self._up, self._down)
        finally:
            self._connections.discard(connection)
            self._count["bytes_up"] += up.delivered
            self._count["bytes_down"] += down.delivered
            self._count["bytes_lost"] += up.inside + down.inside

    async def _fail_on_schedule(self, origin_s: float) -> None:
        starts = [(start_s, mode, True) for start_s, _, mode in self.settings.outages]
        ends = [(end_s, mode, False) for _, end_s, mode in self.settings.outages]
        for at_s, mode, begins in sorted([*starts, *ends]):
            await asyncio.sleep(max(0.0, origin_s + at_s - self._now()))
            if mode == "freeze":
                (self.freeze if begins else self.thaw)()
                continue
            self._refusing = begins
            if begins:
                self.cut()


if __name__ == "__main__":
    from streamsplit.lab.link_process import main

    typer.run(main)
