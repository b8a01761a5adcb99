"""Whole devices that hear what a test plays them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from streamsplit.audio.window import Block, Gap, Samples
from streamsplit.client.app import Device, device
from streamsplit.client.daemon import DaemonSettings
from streamsplit.client.journal import read
from streamsplit.client.recording import Skip
from streamsplit.config import ClientSettings
from streamsplit.encoders.version import Version
from streamsplit.server.store import EmbeddingStore, StoredWindow
from tests.conftest import Serve

WINDOW = 15_360


class Played:
    """A source that plays a list and ends."""

    sample_rate_hz = 16_000

    def __init__(self, items: Sequence[Block | Gap | Skip], pause_s: float = 0.0) -> None:
        self._items = items
        self._pause_s = pause_s

    async def __aenter__(self) -> Played:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def items(self) -> AsyncIterator[Block | Gap | Skip]:
        for item in self._items:
            await asyncio.sleep(self._pause_s)
            yield item


def blocks(sound: Samples, windows: int) -> list[Block]:
    return [Block(sound[number * WINDOW : (number + 1) * WINDOW]) for number in range(windows)]


@asynccontextmanager
async def client(
    folder: Path,
    version: Version,
    source: Played,
    server: str | None,
    *,
    lossless: bool = True,
    stream: str = "s",
    patience_s: float = 20.0,
    **changes: Any,
) -> AsyncIterator[Device]:
    settings = ClientSettings(
        **{
            "device": "pi",
            "server": server,
            "state_dir": folder,
            "decider": "fixed:3",
            "acknowledge_timeout_s": 2.0,
            "connect_timeout_s": 2.0,
            **changes,
        }
    )
    daemon = DaemonSettings(
        stream, settings.decider, alone=server is None, lossless=lossless, patience_s=patience_s
    )
    async with device(settings, daemon, source, version) as made:
        yield made


@asynccontextmanager
async def connected(
    serve: Serve, folder: Path, version: Version, source: Played, **changes: Any
) -> AsyncIterator[Device]:
    """A device in FOLDER/c and a server of its own, which stores in FOLDER; `changes` are `client`'s."""
    async with (
        serve() as server,
        client(folder / "c", version, source, f"127.0.0.1:{server.port}", **changes) as made,
    ):
        yield made


def rows(folder: Path) -> list[StoredWindow]:
    return list(EmbeddingStore(folder / "embeddings.db", read_only=True).iterate())


def journaled(folder: Path, state: str) -> list[int]:
    return [
        r["sequence"] for r in read(folder / "journal.jsonl") if r["kind"] == "window" and r["state"] == state
    ]
