"""A refiner's process that does not wait, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from streamsplit.config import RefinerSettings
from streamsplit.encoders.version import Version
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.learning.replay import FeatureReplay
from streamsplit.server.refiner import REPLAY, RefinerProcess


def process(
    settings: RefinerSettings, version: Version, stop: Callable[[], bool] = lambda: False
) -> RefinerProcess:
    return RefinerProcess(settings, version, stop, sleep=lambda _: None)


def lines(settings: RefinerSettings) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (settings.state_dir / "log.jsonl").read_text().splitlines()]


def more(settings: RefinerSettings, heard: Sequence[BufferedWindow], stream: str = "later") -> None:
    with FeatureReplay(settings.state_dir / REPLAY) as replay:
        replay.add([replace(one, stream=stream) for one in heard[:120]])
