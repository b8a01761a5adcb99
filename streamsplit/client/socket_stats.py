"""Bytes that really crossed this process's TCP connections to the server: headers, TLS and HTTP/2 frames included.

Linux counts them per socket (``TCP_INFO``). gRPC opens its sockets itself, so they are found among this process's file descriptors
by the port of their other end. Other systems offer nothing comparable to an ordinary process: `SocketMeter.poll` then returns None,
and the caller counts message bytes and says that it does.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

# struct tcp_info, linux/tcp.h: 8 bytes of flags, 24 x u32, then u64s from 104 on; it only ever grew at its end.
_BYTES_ACKED_AT = 120  # since Linux 4.1
_BYTES_RECEIVED_AT = 128  # since Linux 4.1
_BYTES_SENT_AT = 200  # since Linux 4.19, retransmitted bytes included
_BYTES_RETRANSMITTED_AT = 208  # since Linux 4.19
_WANTED_BYTES = 216
_DESCRIPTORS = Path("/proc/self/fd")


@dataclass(frozen=True, slots=True)
class SocketBytes:
    """What crossed TCP connections, in bytes of TCP payload (without TCP/IP headers: about 52 bytes a segment more on the wire).

    Attributes:
        sent: handed to the network once each.
        received: taken from the network.
        retransmitted: sent again because the network lost them; not in `sent`.
    """

    sent: int = 0
    received: int = 0
    retransmitted: int = 0

    def __add__(self, other: SocketBytes) -> SocketBytes:
        return SocketBytes(
            self.sent + other.sent, self.received + other.received, self.retransmitted + other.retransmitted
        )


class SocketMeter:
    """Sums the bytes of all connections of this process to some ports, over reconnects.

    What crosses a connection between its last poll and its close is missed: poll before closing, and a few times a second.

    Args:
        remote_ports: the server's ports.
    """

    def __init__(self, *remote_ports: int) -> None:
        self._ports = frozenset(remote_ports)
        self._open: dict[int, SocketBytes] = {}
        self._closed = SocketBytes()

    def poll(self) -> SocketBytes | None:
        """Total so far; None where the system does not tell."""
        if not supported():
            return None
        now = _connections(self._ports)
        for inode, last in self._open.items():
            if inode not in now:
                self._closed += last
        self._open = now
        return self.total

    @property
    def total(self) -> SocketBytes:
        """As of the last poll."""
        return sum(self._open.values(), self._closed)


def supported() -> bool:
    """Whether this system counts bytes per connection."""
    return sys.platform == "linux" and _DESCRIPTORS.is_dir()


def _connections(ports: frozenset[int]) -> dict[int, SocketBytes]:
    """Counters by inode, which names a socket for as long as it is open; a descriptor's number is used again."""
    found: dict[int, SocketBytes] = {}
    for name in os.listdir(_DESCRIPTORS):
        descriptor = int(name)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISSOCK(status.st_mode):
                continue
            counters = _counters(descriptor, ports)
        except OSError:  # closed since it was listed, or not connected
            continue
        if counters is not None:
            found[status.st_ino] = counters
    return found


def _counters(descriptor: int, ports: frozenset[int]) -> SocketBytes | None:
    # On a duplicate: a socket object closes what it holds, and the descriptor is not ours.
    with socket.socket(fileno=os.dup(descriptor)) as connection:
        if (
            connection.family not in (socket.AF_INET, socket.AF_INET6)
            or connection.type != socket.SOCK_STREAM
        ):
            return None
        if connection.getpeername()[1] not in ports:
            return None
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _WANTED_BYTES)
    return _parse(info)


def _parse(info: bytes) -> SocketBytes | None:
    def u64(offset: int) -> int:
        return int(struct.unpack_from("=Q", info, offset)[0])

    if len(info) >= _WANTED_BYTES:
        again = u64(_BYTES_RETRANSMITTED_AT)
        return SocketBytes(u64(_BYTES_SENT_AT) - again, u64(_BYTES_RECEIVED_AT), again)
    if len(info) >= _BYTES_RECEIVED_AT + 8:  # an old kernel: what the peer has acknowledged is the next best
        return SocketBytes(u64(_BYTES_ACKED_AT), u64(_BYTES_RECEIVED_AT))
    return None
