"""A refiner's process that does not wait, and what it leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

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


def scalars(folder: Path) -> dict[str, list[int]]:
    """Scalar -> the steps that TensorBoard draws it at, as read from a state folder."""
    return {name: [step for step, _ in curve] for name, curve in curves(folder).items()}


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalar -> (step, value) as TensorBoard draws it, as read from a state folder."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="wants the extra `train`"
    )
    events = accumulator.EventAccumulator(
        str(folder / "tensorboard"), size_guidance={accumulator.SCALARS: 0}
    ).Reload()
    return {
        name: [(one.step, one.value) for one in events.Scalars(name)] for name in events.Tags()["scalars"]
    }
