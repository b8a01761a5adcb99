from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from streamsplit.client.socket_stats import SocketBytes, SocketMeter, supported

pytestmark = pytest.mark.skipif(not supported(), reason="this system does not count bytes per connection")


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def connect(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    ours = socket.create_connection(("127.0.0.1", port(listener)))
    theirs, _ = listener.accept()
    return ours, theirs


def carry(sender: socket.socket, receiver: socket.socket, count: int) -> None:
    """Sends in pieces that fit the buffers of one thread, and takes them."""
    while count:
        piece = min(count, 8192)
        sender.sendall(b"x" * piece)
        taken = 0
        while taken < piece:
            taken += len(receiver.recv(piece - taken))
        count -= piece


@pytest.mark.parametrize(("up", "down"), [(0, 0), (1, 0), (12_345, 678), (3_000_000, 1_000_001)])
def test_what_was_sent_and_received_is_counted_to_the_byte(
    listener: socket.socket, up: int, down: int
) -> None:
    ours, theirs = connect(listener)
    meter = SocketMeter(port(listener))
    with closing(ours), closing(theirs):
        carry(ours, theirs, up)
        carry(theirs, ours, down)
        assert meter.poll() == SocketBytes(sent=up, received=down)


def test_bytes_add_up_over_reconnects(listener: socket.socket) -> None:
    meter = SocketMeter(port(listener))
    for number in range(1, 4):
        ours, theirs = connect(listener)
        carry(ours, theirs, 1000)
        assert meter.poll() == SocketBytes(sent=1000 * number)
        ours.close()
        theirs.close()
        assert meter.poll() == SocketBytes(sent=1000 * number)
    assert meter.total == SocketBytes(sent=3000)


def test_connections_side_by_side_are_summed_and_others_left_out(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        pairs = [connect(listener), connect(listener), connect(elsewhere)]
        for ours, theirs in pairs:
            carry(ours, theirs, 500)
        assert SocketMeter(port(listener)).poll() == SocketBytes(sent=1000)
        assert SocketMeter(port(listener), port(elsewhere)).poll() == SocketBytes(sent=1500)
        for pair in pairs:
            for end in pair:
                end.close()


def test_the_server_s_own_end_in_the_same_process_is_not_counted(listener: socket.socket) -> None:
    ours, theirs = connect(listener)
    with closing(ours), closing(theirs):
        carry(theirs, ours, 100)
        assert SocketMeter(port(listener)).poll() == SocketBytes(received=100)


def test_polling_neither_closes_nor_keeps_open_a_connection(listener: socket.socket) -> None:
    ours, theirs = connect(listener)
    meter = SocketMeter(port(listener))
    with closing(theirs):
        for _ in range(3):
            meter.poll()
            carry(ours, theirs, 10)
        ours.close()
        assert theirs.recv(1) == b""


def test_ipv6_connections_count_too() -> None:
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")
    with server, socket.create_connection(("::1", server.getsockname()[1])) as ours:
        theirs, _ = server.accept()
        with theirs:
            carry(ours, theirs, 77)
            assert SocketMeter(server.getsockname()[1]).poll() == SocketBytes(sent=77)
