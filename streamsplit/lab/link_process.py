"""The shaped link as a process of its own: options in, JSON lines out, controls on standard input."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import asdict
from typing import Annotated, Literal, cast

import typer

from streamsplit.errors import ConfigError
from streamsplit.lab.links import LinkProxy, LinkSettings, Outage
from streamsplit.lab.traces import Trace


class Remote:
    """A link's controls as lines of text: ``begin``, ``cut``, ``freeze``, ``thaw``, ``rate UP [DOWN]`` (bits/s, ``-`` the trace), ``stats``.

    Args:
        link: the link to control.
    """

    def __init__(self, link: LinkProxy) -> None:
        self._link = link

    def obey(self, line: str) -> str:
        """Does what `line` says; returns a JSON line: the link's statistics, or {"error": ...}."""
        word, *rest = line.split() or [""]
        try:
            if word == "rate" and 1 <= len(rest) <= 2:
                self._link.set_rate(*[None if text == "-" else Trace.parse(text).rate_at(0) for text in rest])
            elif word in ("begin", "cut", "freeze", "thaw") and not rest:
                getattr(self._link, word)()
            elif word != "stats" or rest:
                raise ConfigError(
                    f"expected begin, cut, freeze, thaw, rate UP [DOWN] or stats, got {line.strip()!r}"
                )
        except ConfigError as error:
            return json.dumps({"error": str(error)})
        return json.dumps(asdict(self._link.stats))


def parse_outage(text: str) -> Outage:
    """``START:END:freeze`` or ``START:END:cut``, in seconds."""
    parts = text.split(":")
    try:
        start, end, mode = parts
        return float(start), float(end), cast(Literal["freeze", "cut"], mode)
    except ValueError as error:
        raise ConfigError(
            f"outage: expected START:END:freeze or START:END:cut in seconds, got {text!r}"
        ) from error


async def serve(settings: LinkSettings, control: bool) -> None:
    """Runs a link until SIGINT or SIGTERM, or with `control` until standard input ends; writes JSON lines."""
    over, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    async with LinkProxy(settings) as link:
        typer.echo(json.dumps({"port": link.port, "target": settings.target, "uplink": settings.uplink.name}))
        sys.stdout.flush()
        listening = asyncio.create_task(_listen_to_input(Remote(link))) if control else None
        if listening is not None:
            listening.add_done_callback(lambda _: over.set())
        await over.wait()
        if listening is not None:
            listening.cancel()
    typer.echo(json.dumps(asdict(link.stats)))


async def _listen_to_input(remote: Remote) -> None:
    loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        typer.echo(remote.obey(line.decode("utf-8", "replace")))
        sys.stdout.flush()


def main(
    target: Annotated[str, typer.Option(help="HOST:PORT of the server, on loopback")],
    trace: Annotated[
        str, typer.Option(help="uplink: 2M, 300k, 0:2M,5:200k, walk:SEED:SECONDS:LOW:HIGH or a trace file")
    ] = "20M",
    downlink: Annotated[
        str | None, typer.Option(help="the same for the way back; without it no limit")
    ] = None,
    delay_ms: Annotated[float, typer.Option(help="one-way delay")] = 0.0,
    jitter_ms: Annotated[float, typer.Option(help="extra delay, uniform up to this")] = 0.0,
    outage: Annotated[
        list[str] | None, typer.Option(help="START:END:freeze or START:END:cut, seconds; repeatable")
    ] = None,
    seed: Annotated[int, typer.Option(help="of the jitter")] = 0,
    listen_port: Annotated[int, typer.Option(help="0 takes a free one")] = 0,
    control: Annotated[
        bool, typer.Option(help="obey lines on standard input: begin, cut, freeze, thaw, rate, stats")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="traces and outages begin with the line `begin`")
    ] = False,
) -> None:
    """Runs a shaped link as a process of its own; its first line is {"port": ...}, its last the statistics."""
    try:
        down = None if downlink is None else Trace.parse(downlink)
        outages = [parse_outage(text) for text in outage or []]
        settings = LinkSettings(
            target,
            Trace.parse(trace),
            down,
            delay_ms,
            jitter_ms,
            outages,
            seed,
            listen_port=listen_port,
            waits=wait,
        )
        asyncio.run(serve(settings, control))
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
