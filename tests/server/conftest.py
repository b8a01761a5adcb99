"""What the refiner is tested on: a replay that has heard a little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from streamsplit.audio.window import Samples
from streamsplit.config import RefinerSettings
from streamsplit.encoders.version import Version
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.learning.replay import FeatureReplay
from streamsplit.server.refiner import REPLAY
from tests.learning.received import received


@pytest.fixture(scope="module")
def heard(compact: Version, sound: Samples) -> list[BufferedWindow]:
    """Features of 120 windows on eight streams of two devices."""
    features = received(compact, sound, 0)
    return [replace(one, stream=f"s{turn}") for turn in range(8) for one in features]


@pytest.fixture
def settings(tmp_path: Path, heard: list[BufferedWindow]) -> RefinerSettings:
    with FeatureReplay(tmp_path / "state" / REPLAY) as replay:
        replay.add(heard)
    return RefinerSettings(
        state_dir=tmp_path / "state",
        batch=8,
        round_steps=4,
        checkpoint_steps=2,
        least_windows=64,
        new_windows=100,
        judged_windows=64,
        learning_rate=1e-4,
        nice=0,
    )
