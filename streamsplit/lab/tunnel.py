"""One connection through a shaped link: the client's socket, the server's, and a delay line each way."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress

from streamsplit.lab.shaping import Bottleneck, DelayLine, Signal

KERNEL_BUFFER = 32 * 1024
SEGMENT = 1400
"""With loopback's own 64 KB segments the kernel took 3.9 MB from a sender whose receiver read nothing; with these, 80 KB."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Tunnel:
    """One client joined to the server.

    Args:
        client: accepted socket; closed when `run` returns.
        server: connected socket; closed too.
        up: what is inside the link on its way to the server.
        down: what is on its way back.
    """

    def __init__(self, client: socket.socket, server: socket.socket, up: DelayLine, down: DelayLine) -> None:
        self.up, self.down = up, down
        self._client, self._server = client, server
        self._work: asyncio.Task[None] | None = None

    def reset(self) -> None:
        """Ends it hard, both ways."""
        if self._work is not None:
            self._work.cancel()

    async def run(self, uplink: Bottleneck, downlink: Bottleneck) -> None:
        """Carries both directions until both have ended, one has failed or `reset` is called."""
        self._work = work = asyncio.create_task(self._carry(uplink, downlink))
        try:
            await asyncio.wait([work])
        finally:
            if (
                not work.done()
            ):  # we are being cancelled: the sockets must have no reader any more when they close
                work.cancel()
                await asyncio.wait([work])
            error = None if work.cancelled() else work.exception()
            clean = not work.cancelled() and error is None
            self.up.closed = self.down.closed = True
            close(self._client, reset=not clean)
            close(self._server, reset=not clean)
        if error is not None and not isinstance(error, ConnectionResetError):
            raise error

    async def _carry(self, uplink: Bottleneck, downlink: Bottleneck) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_read(self._client, uplink, self.up))
                group.create_task(_write(self.up, self._server))
                group.create_task(_read(self._server, downlink, self.down))
                group.create_task(_write(self.down, self._client))
        except* OSError as errors:
            raise ConnectionResetError("one side has failed") from errors


async def _read(source: socket.socket, bottleneck: Bottleneck, line: DelayLine) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await line.room()
        try:
            data = await loop.sock_recv(source, bottleneck.chunk_bytes)
        except OSError:
            return await bottleneck.send(line, Signal.RESET)
        if not data:
            return await bottleneck.send(line, Signal.END)
        await bottleneck.send(line, data)


async def _write(line: DelayLine, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while isinstance(item := await line.pop(), bytes):
        await loop.sock_sendall(sink, item)
        line.done(item)
    if item is Signal.RESET:
        raise ConnectionResetError("reset by the other side")
    with suppress(OSError):  # gone already: there is nobody to tell
        sink.shutdown(socket.SHUT_WR)


def listen(port: int) -> socket.socket:
    """A listening socket on 127.0.0.1 whose connections have small buffers; port 0 takes a free one."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _tighten(listener)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        listener.close()
        raise
    listener.listen(128)
    listener.setblocking(False)
    return listener


async def connect(host: str, port: int) -> socket.socket | None:
    """A connection to the server, or None if it does not answer."""
    server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    _tighten(server)
    server.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(server, (host, port))
    except OSError:
        server.close()
        return None
    except asyncio.CancelledError:
        server.close()
        raise
    return server


def close(connection: socket.socket, reset: bool) -> None:
    """Closes a socket: in order, or with a reset that the other end sees at once."""
    if reset:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    connection.close()


def _tighten(made: socket.socket) -> None:
    """Before connect or listen: small buffers and network-sized segments, so that little hides in the kernel."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BUFFER)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BUFFER)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with suppress(OSError):  # not every kernel lets one choose
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
