"""The link as a process: lines in, JSON lines out."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from streamsplit.errors import ConfigError
from streamsplit.lab.link_process import Remote, parse_outage
from streamsplit.lab.links import LinkProxy, LinkSettings, Trace

Run = Callable[[Any], Any]


def test_the_remote_control_obeys_lines_and_explains_what_it_does_not_know(run_virtual: Run) -> None:
    async def talk() -> None:
        settings = LinkSettings("127.0.0.1:1", Trace.constant(50e6))
        async with LinkProxy(settings, asyncio.get_running_loop().time) as link:
            remote = Remote(link)
            assert json.loads(remote.obey("rate 300k 2M\n"))["rate_up_bps"] == 3e5
            assert json.loads(remote.obey("rate - -"))["rate_up_bps"] == 50e6
            assert json.loads(remote.obey("freeze"))["frozen"] is True
            assert json.loads(remote.obey("thaw"))["frozen"] is False
            assert json.loads(remote.obey("cut"))["cuts"] == 1
            assert json.loads(remote.obey("stats"))["rate_down_bps"] is None
            for line in ("", "explode", "rate", "rate fast", "stats now"):
                assert "expected" in json.loads(remote.obey(line))["error"]

    run_virtual(talk())


def test_outages_are_read_from_text() -> None:
    assert parse_outage("3:9.5:cut") == (3.0, 9.5, "cut")
    with pytest.raises(ConfigError, match="START:END"):
        parse_outage("3:cut")


def test_as_a_process_it_tells_its_port_first_and_its_statistics_last() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        target = f"127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-m", "streamsplit.lab.links", "--target", target, "--trace", "5M"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            port = json.loads(process.stdout.readline())["port"]
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"through")
                accepted, _ = server.accept()
                with accepted:
                    assert accepted.recv(7, socket.MSG_WAITALL) == b"through"
            process.send_signal(signal.SIGTERM)
            last = json.loads(process.stdout.read().splitlines()[-1])
    assert process.returncode == 0
    assert (last["bytes_up"], last["connections"]) == (7, 1)


def test_as_a_process_it_obeys_standard_input_and_ends_with_it() -> None:
    command = [sys.executable, "-m", "streamsplit.lab.links", "--target", "127.0.0.1:1", "--control"]
    done = subprocess.run(command, input="rate 300k\nnonsense\n", capture_output=True, text=True, check=True)
    _, rated, confused, _ = (json.loads(line) for line in done.stdout.splitlines())
    assert rated["rate_up_bps"] == 3e5
    assert "nonsense" in confused["error"]


@pytest.mark.parametrize(
    "wrong", [["--target", "example.org:1"], ["--target", "127.0.0.1:1", "--outage", "5:1:cut"]]
)
def test_as_a_process_it_explains_a_wrong_option_in_one_line(wrong: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamsplit.lab.links", *wrong], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
