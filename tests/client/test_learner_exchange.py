"""A learning device against servers that publish at any moment, or say what makes no sense: without a socket."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamsplit.client.learner import SAVE_WINDOWS, Learner
from streamsplit.client.synchroniser import Wish
from streamsplit.client.telemetry import MachineReading
from streamsplit.client.trainer import Trainer
from streamsplit.client.version_store import VersionStore
from streamsplit.config import LearnerSettings
from streamsplit.encoders.checkpoint import save
from streamsplit.encoders.registry import make_untrained
from streamsplit.encoders.version import Version
from streamsplit.learning.edge import EdgeLearner
from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.memory_file import load, pack
from streamsplit.learning.uncertainty import DisagreementHead
from streamsplit.wire.messages import PIECE_BYTES, PROTOCOL, EncoderVersion, Newest, Piece, Taken, Thing, Want
from tests.client.test_learner import moved


def idle() -> MachineReading:
    return MachineReading(0.0, 0.0, None, None, None, True, 0.0, 0)


def learner_of(version: Version, folder: Path) -> Learner:
    return Learner(LearnerSettings(sync="always"), "pi", version, folder, idle, idle)


def newest(version: Version, number: int = 1) -> Newest:
    return Newest(EncoderVersion(version.id, version.name, version.front_end.fingerprint), number)


def answer(want: Want, content: bytes, version: str) -> Piece:
    data = content[want.offset : want.offset + PIECE_BYTES]
    return Piece(want.thing, version, want.base, want.offset, len(content), data)


def wanted(learner: Learner) -> Want:
    want = learner.synchroniser.next()
    assert isinstance(want, Want)
    return want


async def fetched(learner: Learner, content: bytes, version: str) -> None:
    """Answers until the thing being fetched is there, and what is made of it is made."""
    wish = learner.synchroniser.fetching
    while learner.synchroniser.fetching == wish:
        learner.synchroniser.heard(answer(wanted(learner), content, version))
    for _ in range(500):
        if learner.synchroniser.fetching:
            break
        await asyncio.sleep(0.01)


def heard(dim: int) -> bytes:
    memory = DistributionMemory(MemorySettings(dim=dim))
    z = torch.randn(40, dim, generator=torch.Generator().manual_seed(0))
    memory.update(torch.nn.functional.normalize(z, dim=1))
    return pack(memory, with_reservoir=False)


def rows(dim: int = 128) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.eye(dim, dtype=np.float32)


def test_a_reconnect_and_a_second_announcement_keep_what_has_come(tmp_path: Path, compact: Version) -> None:
    learner, (second, message) = learner_of(compact, tmp_path), moved(compact, 1e-3)
    learner.synchroniser.heard(newest(second))
    learner.synchroniser.heard(answer(wanted(learner), message, second.id))
    learner.synchroniser.connected(PROTOCOL)
    learner.synchroniser.heard(newest(second))
    want = wanted(learner)
    assert want.offset == PIECE_BYTES
    learner.synchroniser.heard(newest(second, 2))
    learner.synchroniser.heard(answer(want, message, second.id))
    assert wanted(learner).offset == 2 * PIECE_BYTES


def test_a_memory_that_was_taken_does_not_end_a_versions_download(tmp_path: Path, compact: Version) -> None:
    learner, (second, _) = learner_of(compact, tmp_path), moved(compact, 1e-3)
    learner.synchroniser.send(Thing.MEMORY, compact.id, "", b"memory")
    learner.synchroniser.next()
    learner.synchroniser.heard(newest(second))
    learner.synchroniser.heard(Taken(Thing.MEMORY, 6))
    assert learner.synchroniser.fetching == Wish(Thing.UPGRADE, base=compact.id)


@pytest.mark.parametrize("dim", [64, 128])
async def test_a_memory_of_other_embeddings_is_not_taken(tmp_path: Path, compact: Version, dim: int) -> None:
    learner, (second, message) = learner_of(compact, tmp_path), moved(compact, 1e-3)
    learner.synchroniser.heard(newest(second))
    await fetched(learner, message, second.id)
    while learner.synchroniser.fetching:
        learner.synchroniser.heard(answer(wanted(learner), heard(dim), second.id))
    version = await learner.take_version()
    assert version is not None
    assert version.id == second.id
    assert int(learner.memory.count) == (40 if dim == 128 else 0)
    for sequence, z in enumerate(rows()[:10]):
        learner.embedded(sequence, z, second.id, None)
    assert int(learner.memory.count) == (50 if dim == 128 else 10)


async def test_the_event_loop_goes_on_while_a_version_is_kept_and_it_is_kept_before_it_is_served(
    tmp_path: Path, compact: Version
) -> None:
    VersionStore(tmp_path).begin(compact)
    learner, (second, message) = learner_of(compact, tmp_path), moved(compact, 1e-3)
    learner.synchroniser.heard(newest(second))
    await fetched(learner, message, second.id)
    learner.synchroniser.heard(answer(wanted(learner), b"", second.id))
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(turn())
    await asyncio.sleep(0)
    before = turns
    version = await learner.take_version()
    turning.cancel()
    assert version is not None
    assert version.id == second.id
    assert VersionStore(tmp_path).instead_of(compact).id == second.id
    assert turns > before


async def test_memory_and_predictor_are_written_beside_the_event_loop(
    tmp_path: Path, compact: Version
) -> None:
    learner, store = learner_of(compact, tmp_path), VersionStore(tmp_path)
    path, predictor = store.beside("memory", compact), store.beside("disagreement", compact)
    for sequence in range(SAVE_WINDOWS):
        learner.embedded(sequence, rows()[sequence % 128], compact.id, 0.2)
    assert not path.exists(), "the disk was not waited for"
    while not path.exists():
        await asyncio.sleep(0.01)
    assert int(load(path).count) == SAVE_WINDOWS
    while not predictor.exists():
        await asyncio.sleep(0.01)
    assert DisagreementHead.restore(predictor).learned == SAVE_WINDOWS
    learner.embedded(SAVE_WINDOWS, rows()[0], compact.id, None)
    await learner.close()
    assert int(load(path).count) == SAVE_WINDOWS + 1
    assert sorted(tmp_path.iterdir()) == sorted([path, predictor])


async def test_a_restart_goes_on_predicting_the_uncertainty_of_the_same_version(
    tmp_path: Path, compact: Version, caplog: pytest.LogCaptureFixture
) -> None:
    def first_told(version: Version) -> list[float] | None:
        learner = learner_of(version, tmp_path)
        for sequence, z in enumerate(rows()[:10]):
            signals = learner.embedded(sequence, z, version.id, None)
        assert signals is not None
        return signals.disagreement

    learner, store = learner_of(compact, tmp_path), VersionStore(tmp_path)
    for sequence in range(320):
        learner.embedded(sequence, rows()[sequence % 10], compact.id, 0.3)
    await learner.close()
    assert first_told(compact) == pytest.approx([0.3] * 10, abs=0.05)
    assert first_told(moved(compact, 1e-3)[0]) is None
    assert not caplog.text
    kept = store.beside("disagreement", compact).read_bytes()
    for damaged in (kept[:-8], b"", DisagreementHead(64).save()):
        caplog.clear()
        store.beside("disagreement", compact).write_bytes(damaged)
        assert first_told(compact) is None
        assert "predictor begins anew" in caplog.text


@pytest.mark.parametrize(
    "trouble",
    [
        {"on_mains": False, "battery_percent": 49.0},
        {"temperature_c": 75.0},
        {"throttled": True},
        {"cpu_percent": 80.0},
    ],
)
def test_nothing_is_sent_or_asked_for_while_power_heat_or_load_forbid(
    tmp_path: Path, compact: Version, trouble: dict[str, Any]
) -> None:
    calm, troubled = idle(), replace(idle(), **trouble)
    now = calm
    learner = Learner(LearnerSettings(memory_windows=10), "pi", compact, tmp_path, lambda: now, idle)
    learner.synchroniser.connected(PROTOCOL)

    def after_trouble() -> Want | Piece | None:
        nonlocal now
        now = troubled
        assert learner.synchroniser.next() is None
        now = calm
        return learner.synchroniser.next()

    for sequence, z in enumerate(rows()[:10]):
        learner.embedded(sequence, z, compact.id, None)
    sent = after_trouble()
    assert isinstance(sent, Piece)
    assert (sent.thing, sent.offset) == (Thing.MEMORY, 0)
    learner.synchroniser.heard(Taken(Thing.MEMORY, PIECE_BYTES))
    sent = after_trouble()
    assert isinstance(sent, Piece)
    assert sent.offset == PIECE_BYTES, "it goes on where it was"
    learner.synchroniser.heard(Taken(Thing.MEMORY, sent.total))
    want = after_trouble()
    assert isinstance(want, Want)
    assert (want.thing, want.offset) == (Thing.MEMORY, 0)
    learner.synchroniser.heard(answer(want, heard(128), compact.id))
    want = after_trouble()
    assert isinstance(want, Want)
    assert want.offset == PIECE_BYTES


async def test_another_encoder_under_our_encoders_name_is_not_taken(tmp_path: Path, compact: Version) -> None:
    learner, other = learner_of(compact, tmp_path), make_untrained("mobile", seed=0)
    save(other, tmp_path / "other.safetensors")
    said = EncoderVersion(other.id, compact.name, compact.front_end.fingerprint)
    learner.synchroniser.heard(Newest(said, 1))
    learner.synchroniser.heard(answer(wanted(learner), b"", ""))
    assert learner.synchroniser.fetching == Wish(Thing.WHOLE, other.id)
    while learner.synchroniser.fetching:
        content = (tmp_path / "other.safetensors").read_bytes()
        learner.synchroniser.heard(answer(wanted(learner), content, other.id))
    for _ in range(100):
        await asyncio.sleep(0.01)
    assert learner.synchroniser.fetching is None
    assert await learner.take_version() is None


@pytest.mark.parametrize("truth", [math.nan, math.inf, -1e-7, 2.0001])
def test_a_number_that_makes_no_sense_ends_nothing(tmp_path: Path, compact: Version, truth: float) -> None:
    learner = learner_of(compact, tmp_path)
    for sequence, z in enumerate(rows()[:20]):
        learner.embedded(sequence, z, compact.id, truth if sequence % 2 else 0.5)
    assert int(learner.memory.count) == 20


def test_training_that_fails_says_so_and_takes_no_more_errands(
    tmp_path: Path, compact: Version, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(learner: EdgeLearner) -> None:
        raise KeyError("a bug")

    trainer = Trainer(compact, LearnerSettings(mode="train"), VersionStore(tmp_path), idle)
    trainer.ask(broken)
    with caplog.at_level(logging.ERROR):
        trainer.start()
        for _ in range(500):
            if trainer.paused_for == "failure":
                break
            time.sleep(0.01)
    assert "training has ended" in caplog.text
    assert isinstance(trainer.ask(lambda learner: 1).exception(1), RuntimeError)
    trainer.stop()
