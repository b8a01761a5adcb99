"""What most tests stand on: one untrained `compact`, real sound made on the spot, a real server on a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from streamsplit.audio.synth import EVENT_KINDS, make_clip
from streamsplit.audio.window import Samples, Window
from streamsplit.config import ServerSettings
from streamsplit.encoders.registry import make_untrained
from streamsplit.encoders.version import Version
from streamsplit.server.app import RunningServer, running

Serve = Callable[..., AbstractAsyncContextManager[RunningServer]]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two threads on a busy machine make everything slower, and bits depend on their number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def compact() -> Version:
    """An untrained `compact`, calibrated on made sound."""
    return make_untrained("compact", seed=0)


@pytest.fixture(scope="session")
def sound() -> Samples:
    """Two minutes of made clips of every kind, 16 kHz."""
    clips = [make_clip(kind, seed=seed) for seed in range(2) for kind in EVENT_KINDS]
    return np.concatenate(clips)[: 16_000 * 120]


@pytest.fixture(scope="session")
def windows(sound: Samples) -> list[Window]:
    """The sound, cut."""
    return [
        Window("s", number, number * 15_360, sound[number * 15_360 : (number + 1) * 15_360])
        for number in range(len(sound) // 15_360)
    ]


@pytest.fixture
def serve(tmp_path: Path, compact: Version) -> Serve:
    """`async with serve(max_in_flight=2) as server`: a server with these settings, on a free port of loopback."""

    @asynccontextmanager
    async def start(versions: list[Version] | None = None, **changes: object) -> AsyncIterator[RunningServer]:
        settings = ServerSettings(
            **{"listen": "127.0.0.1:0", "store": tmp_path / "embeddings.db", "drain_s": 2.0, **changes}  # type: ignore[arg-type]
        )
        async with running(settings, versions or [compact]) as server:
            yield server

    return start
