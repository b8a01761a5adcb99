"""The edge learner's owner: it trains what the settings say, and its thread yields to everything."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from pathlib import Path

import pytest
import torch

from streamsplit.client.telemetry import MachineReading
from streamsplit.client.trainer import Trainer
from streamsplit.client.version_store import VersionStore
from streamsplit.config import ClientSettings, LearnerSettings, load
from streamsplit.encoders.version import Version
from streamsplit.learning.edge import EdgeLearner
from tests.learning.learners import codes

PIECES = 16  # of one optimiser step


def idle() -> MachineReading:
    return MachineReading(0.0, 0.0, None, None, None, True, 0.0, 0)


@pytest.mark.parametrize(("said", "front"), [("", True), ("front = true", True), ("front = false", False)])
def test_the_front_is_trained_where_the_settings_allow(
    compact: Version, tmp_path: Path, said: str, front: bool
) -> None:
    file = tmp_path / "client.toml"
    file.write_text(f'[learn]\nmode = "train"\npieces_per_window = {PIECES}\n{said}\n')
    trainer = Trainer(compact, load(ClientSettings, file).learn, VersionStore(tmp_path), idle)
    for number in range(64):  # before so many there is nothing to learn from
        trainer.hear(codes(number), number * 0.96, silent=False)
    weights = trainer.ask(lambda learner: learner.shadow.encoder.state_dict())
    difference = trainer.ask(lambda learner: learner.difference())
    trainer.turn()
    assert trainer.updates == 1
    last = f"blocks.{len(compact.encoder.blocks) - 1}."
    moved = {
        name for name, tensor in weights.result().items() if not torch.equal(tensor, compact.state[name])
    }
    tail = {name for name in moved if name.startswith(last)}
    assert any(name.endswith("weight") for name in tail)
    assert any(name.startswith("blocks.") for name in moved - tail) == front
    assert all(name.startswith(last) for name in difference.result()) == (not front)
    trainer.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives each thread a niceness of its own")
async def test_the_trainers_thread_yields_to_all_others(compact: Version, tmp_path: Path) -> None:
    def niceness(learner: EdgeLearner | None = None) -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = niceness()
    trainer = Trainer(compact, LearnerSettings(mode="train"), VersionStore(tmp_path), idle)
    trainer.start()
    assert await asyncio.wait_for(asyncio.wrap_future(trainer.ask(niceness)), 30.0) == 10
    assert niceness() == before < 10
    trainer.stop()


async def test_an_errand_that_ends_training_is_answered(compact: Version, tmp_path: Path) -> None:
    def broken(learner: EdgeLearner) -> None:
        raise KeyError("a bug")

    trainer = Trainer(compact, LearnerSettings(mode="train"), VersionStore(tmp_path), idle)
    first, behind = trainer.ask(broken), trainer.ask(lambda learner: 1)
    trainer.start()
    for answered in (first, behind):
        with pytest.raises(RuntimeError, match="training has ended"):
            await asyncio.wait_for(asyncio.wrap_future(answered), 30.0)
    with pytest.raises(RuntimeError, match="training has ended"):
        trainer.go_over(compact)
    trainer.stop()
