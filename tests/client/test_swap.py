"""What a device has learned outlives a swap of versions, whichever instruction of it a kill falls on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from streamsplit.audio.window import Window
from streamsplit.client.learner import TOGETHER, Learner
from streamsplit.client.telemetry import MachineReading
from streamsplit.client.trainer import Trainer
from streamsplit.client.version_store import LEARNED, VersionStore
from streamsplit.config import LearnerSettings
from streamsplit.encoders.checkpoint import save
from streamsplit.encoders.version import Version
from streamsplit.learning.edge import EdgeLearner
from streamsplit.learning.edge_settings import EdgeSettings
from streamsplit.learning.memory_file import load
from streamsplit.learning.uncertainty import DisagreementHead
from streamsplit.wire.messages import Piece, Taken
from tests.client.test_learner import moved
from tests.client.test_learner_exchange import answer, fetched, newest, wanted

HEARD = 64
PIECES = 16  # of one optimiser step


def idle() -> MachineReading:
    return MachineReading(0.0, 0.0, None, None, None, True, 0.0, 0)


def learner_of(
    folder: Path, own: Version, pieces_per_window: float | None, difference_windows: int = 0
) -> Learner:
    """As after a start: with the version that is kept, and what was learned with it."""
    settings = LearnerSettings(
        sync="always",
        mode="train",
        pieces_per_window=pieces_per_window,
        memory_windows=0,
        difference_windows=difference_windows,
    )
    return Learner(settings, "pi", VersionStore(folder).begin(own), folder, idle, idle)


async def learn(folder: Path, own: Version) -> None:
    """In step with its stream: one optimiser step, a memory, all saved at its end."""
    learner = learner_of(folder, own, PIECES / 4)
    noise, generator = np.random.default_rng(0), torch.Generator().manual_seed(0)
    for number in range(HEARD + 3):  # once there are HEARD, four windows make a step
        samples = noise.normal(0, 0.1, 15_360).astype(np.float32)
        learner.heard(
            Window("s", number, number * 15_360, samples), torch.rand(1, 64, 96, generator=generator)
        )
        await learner.turn()
        learner.embedded(number, np.eye(128, dtype=np.float32)[number], own.id, 0.1)
    await learner.close()


@pytest.fixture(scope="module")
def first_life(compact: Version, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a device that has learned."""
    folder = tmp_path_factory.mktemp("first-life")
    asyncio.run(learn(folder, compact))
    return folder


@pytest.fixture
def folder(first_life: Path, tmp_path: Path) -> Path:
    """Another one like that."""
    return shutil.copytree(first_life, tmp_path / "device")


async def swap(folder: Path, own: Version, second: Version, message: bytes, step: float | None) -> None:
    """A second life: the next version comes, and is served."""
    learner = learner_of(folder, own, step)
    learner.start()
    learner.synchroniser.heard(newest(second))
    await fetched(learner, message, second.id)
    learner.synchroniser.heard(answer(wanted(learner), b"", second.id))
    taken = await learner.take_version()
    assert taken is not None
    assert taken.id == second.id
    await learner.close()


def gone_on(folder: Path, own: Version) -> tuple[Version, EdgeLearner]:
    """What a third life begins with."""
    version = VersionStore(folder).begin(own)
    learner = EdgeLearner(version, EdgeSettings.of_batch("reservoir", 8, 0))
    learner.restore(VersionStore(folder).beside("training", version))
    assert Trainer(version, LearnerSettings(mode="train"), VersionStore(folder), idle).updates
    return version, learner


KILLED = """
import asyncio, os, shutil, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from streamsplit.encoders.checkpoint import load
from streamsplit.learning.upgrade import upgraded
from tests.client.test_swap import swap
made = Path(sys.argv[1])
folder, first, message = made / "device", load(made / "first"), (made / "message").read_bytes()
second = upgraded(first, message)
points = {
    ("os.rename", f"training-{second.id}.safetensors"): "rebased",
    ("os.rename", "version.safetensors"): "saved",
    ("os.remove", f"training-{first.id}.safetensors"): "kept",
}
def kill(event, arguments):
    if event in ("os.rename", "os.remove"):
        name = Path(arguments[1 if event == "os.rename" else 0]).name
        if point := points.pop((event, name), None):
            shutil.copytree(folder, made / point)  # what a kill leaves here
            if not points:
                os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
asyncio.run(swap(folder, first, second, message, None))
"""


def test_a_device_killed_in_a_swap_goes_on_with_all_it_had_learned(
    compact: Version, folder: Path, tmp_path: Path
) -> None:
    second, message = moved(compact, 1e-3)
    save(compact, tmp_path / "first")
    (tmp_path / "message").write_bytes(message)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    for left, expected in (("rebased", compact), ("saved", compact), ("kept", second), ("device", second)):
        store = VersionStore(tmp_path / left)
        version, learner = gone_on(tmp_path / left, compact)
        assert version.id == expected.id, left
        assert learner.counters.updates >= 1
        assert learner.recent.heard == HEARD + 3
        assert any(bool(part.any()) for part in learner.difference().values())
        heard = 0 if expected is second else HEARD + 3
        assert int(load(store.beside("memory", version)).count) == heard
        assert DisagreementHead.restore(store.beside("disagreement", version)).learned == HEARD + 3
        there = [f"{kind}-{version.id}.safetensors" for kind in LEARNED] + ["version.json"]
        there += ["version.safetensors"] if expected is second else []
        assert sorted(path.name for path in (tmp_path / left).iterdir()) == sorted(there)


async def test_training_in_step_goes_over_to_a_version_before_it_is_served(
    compact: Version, folder: Path
) -> None:
    second, message = moved(compact, 1e-3)
    _, before = gone_on(folder, compact)
    difference = before.shadow.difference()
    await swap(folder, compact, second, message, step=1.0)
    version, after = gone_on(folder, compact)
    assert version.id == second.id
    assert after.counters.updates == before.counters.updates == 1
    assert torch.equal(after.recent.codes, before.recent.codes)
    for name, parameter in after.shadow.parameters().items():
        assert torch.equal(parameter, second.state[name] + difference[name]), name


async def test_what_the_server_has_taken_is_not_learned_twice_after_a_kill(
    compact: Version, folder: Path
) -> None:
    learner = learner_of(folder, compact, 1e-9, difference_windows=TOGETHER)
    learner.synchroniser.heard(newest(compact))
    for number in range(TOGETHER):
        learner.embedded(number, np.eye(128, dtype=np.float32)[number], compact.id, None)
    await learner.turn()
    while (piece := learner.synchroniser.next()) is None:
        await asyncio.sleep(0.01)
    while piece is not None:
        assert isinstance(piece, Piece)
        learner.synchroniser.heard(Taken(piece.thing, piece.offset + len(piece.data), ""))
        piece = learner.synchroniser.next()
    await learner.turn()  # and no more: it is killed here
    second, message = moved(compact, 1e-3)
    _, before = gone_on(folder, compact)
    assert before.sent
    assert before.counters.updates == 1
    await swap(folder, compact, second, message, step=1.0)
    _, after = gone_on(folder, compact)
    assert not after.sent
    for name, parameter in after.shadow.parameters().items():
        assert torch.allclose(parameter, second.state[name], atol=1e-6), name


async def test_a_version_is_not_kept_while_training_cannot_go_over_to_it(
    compact: Version, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    second, message = moved(compact, 1e-3)
    VersionStore(folder).beside("training", second).mkdir()  # nothing takes the name of a folder
    await swap(folder, compact, second, message, step=1.0)
    assert "begins with an older version" in caplog.text
    VersionStore(folder).beside("training", second).rmdir()
    version, learner = gone_on(folder, compact)
    assert version.id == compact.id
    assert learner.counters.updates == 1
