"""The ablation of what devices minimise: its streams, its reference, its rows."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="needs the extra `train`")

from benchmarks import ablation, endurance, two_devices
from benchmarks.learning_data import hear
from streamsplit.encoders.registry import make_untrained
from streamsplit.learning.edge import EdgeLearner


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return hear("made", None, None, True, tmp_path_factory.mktemp("cache"))


def test_a_blocked_stream_hears_each_class_once_and_never_again(sounds: Any) -> None:
    heard = list(ablation.blocked(sounds.pool, 120, 3))
    labels = [sounds.pool.labels[int(sounds.pool.track[one.window])] for one in heard]
    changes = sum(one != other for one, other in pairwise(labels))
    assert len(heard) == 120
    assert set(labels) == set(sounds.pool.labels)
    assert changes == len(set(labels)) - 1
    times = np.array([one.start_s for one in heard])
    assert bool((np.diff(times) > 0).all())


def test_backgrounds_are_heard_between_clips_and_belong_to_no_clip(sounds: Any) -> None:
    both, windows = ablation.heard_in(sounds.pool, "composed", 200, 0)
    tracks = [int(both.track[one.window]) for one in windows]
    quiet = [track for track in tracks if track >= len(sounds.pool.labels)]
    assert 0 < len(quiet) < len(tracks)
    assert {both.labels[track] for track in quiet} == {"background"}
    assert np.array_equal(both.features[: len(sounds.pool)], sounds.pool.features)


def test_the_reference_begins_with_the_edge_learners_weights_and_has_its_path_only(sounds: Any) -> None:
    learner = EdgeLearner(make_untrained("compact", 5))
    mel = sounds.pool.mel(torch.arange(4))
    encoder = ablation.device_only(5).eval()
    learner.shadow.encoder.eval()
    theirs = learner.shadow.encoder.embeddings(mel)["lite"]
    assert set(encoder.embeddings(mel)) == {"lite"}
    assert torch.allclose(encoder.embeddings(mel)["lite"], theirs, atol=1e-6)


@pytest.mark.parametrize("system", ablation.PLAN, ids=lambda system: system.name)
def test_every_planned_system_takes_at_least_two_steps_of_whole_batches(system: ablation.System) -> None:
    if system.objective == ablation.LARGE:
        return
    settings = ablation.settings_of(system, ablation.QUICK_PAIRS, 0)
    assert settings.batch == system.batch
    assert settings.horizon_steps is not None
    assert settings.horizon_steps >= 2
    assert settings.batch * settings.accumulate * settings.horizon_steps <= ablation.QUICK_PAIRS


def test_a_row_is_made_once_and_told_in_the_table(sounds: Any, tmp_path: Path) -> None:
    system = ablation.System("reservoir", 8)
    first = ablation.made_once(tmp_path, sounds, system, 0, 256)
    path = tmp_path / "rows" / "reservoir-8-shuffled-0.json"
    changed = {**first, "cpu_s": 123.0}
    path.write_text(json.dumps(changed))
    assert ablation.made_once(tmp_path, sounds, system, 0, 256) == changed
    said = ablation.summarise([changed, {**changed, "seed": 1}])
    assert said["reservoir-8-shuffled"]["embedding"]["probe"]["seeds"] == 2
    assert "| reservoir | 8 | shuffled | 2 |" in ablation.table(said)


def test_a_device_lives_and_its_samples_are_told(sounds: Any) -> None:
    samples = endurance.lived(sounds.pool, make_untrained("compact", 0), 200, 0, 4)
    assert [one["windows"] for one in samples] == [50, 100, 150, 200]
    assert samples[-1]["effective_components"] > 1
    assert samples[-1]["overflowed"] == 0
    said = endurance.drift([{name: float(at) for name in endurance.DRIFTING} for at in range(10)])
    assert said["loss"] == {"second_fifth": 2.5, "last_fifth": 8.5, "lowest": 2.0, "highest": 9.0}


def test_two_devices_share_no_class_and_hear_all_of_them(sounds: Any) -> None:
    labels = sounds.pool.labels
    heard = [
        {label for track, label in enumerate(labels) if track not in set(left_out)}
        for left_out in two_devices.halved(sounds.pool, 1)
    ]
    assert heard[0] | heard[1] == set(labels)
    assert not heard[0] & heard[1]


def test_what_is_merged_is_the_version_plus_the_difference(sounds: Any) -> None:
    version = make_untrained("compact", 0)
    name = next(name for name in version.state if name.startswith("blocks.0") and name.endswith("weight"))
    merged = two_devices.added(version, {name: torch.full_like(version.state[name], 0.25)}, sounds.pool)
    assert torch.allclose(merged.state[name], version.state[name] + 0.25, atol=2e-3)
