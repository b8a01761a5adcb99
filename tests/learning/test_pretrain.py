"""Training repeats to the bit, survives a kill, makes embeddings better, and never ships a collapsed encoder."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from streamsplit.audio.features import COMPACT_FRONT_END
from streamsplit.audio.synth import EVENT_KINDS
from streamsplit.encoders.calibrate import settle_norms
from streamsplit.encoders.catalogue import build
from streamsplit.encoders.checkpoint import load, save
from streamsplit.encoders.split import SplitEncoder
from streamsplit.errors import ConfigError, StorageError
from streamsplit.learning.pool import WindowPool, gather
from streamsplit.learning.pretrain import Trainer, TrainSettings, embed
from streamsplit.learning.probe import nearest_neighbour_accuracy
from streamsplit.learning.progress import load_progress
from streamsplit.learning.report import summary
from streamsplit.learning.sources import Samples, Track
from tests.learning.conftest import clip, clips

TINY = TrainSettings(steps=6, batch=16, checkpoint_steps=2)

KILLED = """
import sys, os, signal
from pathlib import Path
from tests.learning.test_pretrain import TINY, tiny_pool
from streamsplit.learning.pretrain import Trainer
trainer = Trainer(tiny_pool(), TINY)
trainer.run(lambda done, total, terms: os.kill(os.getpid(), signal.SIGKILL) if done == 5 else None, Path(sys.argv[1]))
"""


def tiny_pool() -> WindowPool:
    return gather(clips(1), COMPACT_FRONT_END, 1_000, seed=0)


def test_a_training_killed_and_resumed_equals_one_that_was_not_to_the_bit(tmp_path: Path) -> None:
    file = tmp_path / "t.unfinished"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(file)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert load_progress(file).step == 4
    resumed, whole = Trainer(tiny_pool(), TINY), Trainer(tiny_pool(), TINY)
    resumed.resume(file)
    assert resumed.done == 4
    resumed.run()
    whole.run()
    assert resumed.losses == whole.losses
    state, expected = resumed.encoder.state_dict(), whole.encoder.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert os.listdir(tmp_path) == ["t.unfinished"]


def quieter(kind: str, seed: int) -> Iterator[Samples]:
    for block in clip(kind, seed):
        yield block * np.float32(0.1)


def test_training_tells_kinds_of_sound_apart_better_than_random_weights(pool: WindowPool) -> None:
    """Clips that were not trained on; each kind's neighbours are sought among recordings 20 dB louder or quieter."""
    tracks = [
        Track(f"{kind} {seed}", partial(listen, kind, seed), kind, group)
        for listen, group in ((clip, "near"), (quieter, "far"))
        for seed in range(8, 12)
        for kind in EVENT_KINDS
    ]
    unheard = gather(tracks, COMPACT_FRONT_END, 10_000, seed=0)
    trainer = Trainer(pool, TrainSettings(steps=120, batch=24, learning_rate=5e-4, seed=1))
    before = window_knn(settled(trainer, pool), unheard)
    trainer.run()
    after = window_knn(settled(trainer, pool), unheard)
    assert after["dense"] > before["dense"] + 0.1
    assert after["lite"] > before["lite"] + 0.1


def settled(trainer: Trainer, pool: WindowPool) -> SplitEncoder:
    encoder = copy.deepcopy(trainer.encoder)
    settle_norms(encoder, pool.mel(pool.sample(480)))
    return encoder.eval()


def window_knn(encoder: SplitEncoder, pool: WindowPool) -> dict[str, float]:
    labels = [str(pool.labels[track]) for track in pool.track.tolist()]
    groups = [pool.groups[track] for track in pool.track.tolist()]
    embeddings = embed(encoder, pool, torch.arange(len(pool)))
    return {path: nearest_neighbour_accuracy(z, labels, groups) for path, z in embeddings.items()}


def test_a_finished_training_is_a_version_that_the_file_gives_back(pool: WindowPool, tmp_path: Path) -> None:
    trainer = Trainer(pool, TrainSettings(steps=8, batch=32))
    trainer.run()
    trained = trainer.finish("made in a test")
    save(trained.version, tmp_path / "w.safetensors")
    again = load(tmp_path / "w.safetensors")
    assert again.id == trained.version.id
    assert again.trained
    assert again.note == "made in a test"
    z, z_again = (embed(version.encoder, pool, pool.sample(5)) for version in (trained.version, again))
    assert all(torch.equal(z[path], z_again[path]) for path in ("dense", "lite"))
    figures = summary(trainer, trained, 1.0)
    assert figures["windows"] == len(pool)
    assert figures["steps"] == 8
    assert set(figures["loss"]) == {
        "dense-dense", "dense-lite", "dense-squeezed", "lite-lite", "lite-squeezed", "squeezed-squeezed", "total",
    }  # fmt: skip
    assert figures["knn_recordings"] == 48
    assert -1.0 <= figures["agreement"] <= 1.0


def test_a_collapsed_encoder_is_refused(pool: WindowPool) -> None:
    trainer = Trainer(pool, TINY)
    with torch.no_grad():
        trainer.encoder.embedding_block.project.weight.zero_()
    with pytest.raises(ConfigError, match=r"compact: collapsed: effective rank of lite .* got 0\.0"):
        trainer.finish()


def test_other_settings_or_sounds_do_not_go_on(pool: WindowPool, tmp_path: Path) -> None:
    file = tmp_path / "t.unfinished"
    trainer = Trainer(pool, TINY)
    trainer.step()
    trainer.run(progress_file=file)
    with pytest.raises(ConfigError, match="trained with other settings \\(learning_rate, seed\\)"):
        Trainer(pool, TrainSettings(steps=6, batch=16, learning_rate=1.0, seed=4)).resume(file)
    with pytest.raises(ConfigError, match="trained on other sounds"):
        Trainer(tiny_pool(), TINY).resume(file)
    file.write_bytes(file.read_bytes()[:9_000])
    with pytest.raises(StorageError, match="not a readable training"):
        Trainer(pool, TINY).resume(file)
    with pytest.raises(StorageError, match="not a readable training"):
        Trainer(pool, TINY).resume(tmp_path / "nothing")
    save(Trainer(pool, TINY).finish().version, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="expected a training in progress"):
        Trainer(pool, TINY).resume(tmp_path / "w.safetensors")


def test_a_folder_that_cannot_be_written_is_told(pool: WindowPool, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        Trainer(pool, TrainSettings(steps=1, batch=8)).run(progress_file=tmp_path / "nowhere" / "x")


def test_the_rate_rises_in_the_warm_up_and_falls_to_nothing(pool: WindowPool) -> None:
    trainer = Trainer(pool, TrainSettings(steps=200, learning_rate=1e-3))
    rates = [trainer.rate(step) for step in range(200)]
    assert max(rates) == rates[10] == 1e-3
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 1e-6


def test_the_seed_decides_and_chance_is_left_alone(pool: WindowPool) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    losses = [
        Trainer(pool, TrainSettings(steps=6, batch=16, seed=seed)).step()["total"] for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.rand(1), expected)
    assert losses[0] == losses[1] != losses[2]
    assert all(math.isfinite(loss) for loss in losses)


def test_an_encoder_with_one_path_is_trained_alike(pool: WindowPool) -> None:
    trainer = Trainer(pool, TrainSettings(encoder="mobile", steps=2, batch=8))
    assert set(trainer.step()) == {"full-full", "total"}


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="train steps: expected at least 1, got 0"):
        TrainSettings(steps=0)
    with pytest.raises(ConfigError, match="train batch"):
        TrainSettings(batch=2)
    with pytest.raises(ConfigError, match="another front end"):
        Trainer(tiny_pool(), TrainSettings(), encoder=build("clap", options={"config": {}}))


@pytest.mark.gpu
def test_an_accelerator_trains_too(pool: WindowPool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no accelerator here")
    trainer = Trainer(pool, TINY, "cuda")
    trainer.run()
    assert trainer.finish().version.trained
