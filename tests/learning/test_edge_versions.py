"""What the edge learner tells the server, and how it goes on from a newly served version."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamsplit.encoders.calibrate import calibrate, made_mel
from streamsplit.encoders.version import Version, freeze
from streamsplit.errors import ConfigError
from streamsplit.learning.edge import EdgeLearner
from streamsplit.learning.progress import load_progress
from tests.learning.learners import (
    SMALL,
    hear,
    mobile,
    until_updates,
)


def published(learner: EdgeLearner, shift: float) -> Version:
    """The served version, its lite projection moved by so much, as a server might publish it."""
    encoder = learner.version.trainable()
    with torch.no_grad():
        encoder.embedding_block.project.bias += shift
    mel = made_mel(encoder.front_end, 32)
    return freeze(encoder, *calibrate(encoder, mel), trained=True)


def test_the_difference_brings_the_served_weights_to_the_shadow(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    assert all(float(part.abs().max()) == 0 for part in learner.difference().values())
    hear(learner, 0, 16)
    until_updates(learner, 2)
    difference = learner.difference()
    shadow = learner.shadow.encoder.state_dict()
    for name, part in difference.items():
        assert torch.allclose(compact.state[name] + part, shadow[name], atol=1e-6)


def test_a_rebase_keeps_what_was_learned_since_the_difference_was_sent(
    compact: Version, tmp_path: Path
) -> None:
    learner = EdgeLearner(compact, SMALL)
    hear(learner, 0, 16)
    until_updates(learner, 2)
    sent = learner.difference()
    until_updates(learner, 4)
    since = {name: part - sent[name] for name, part in learner.shadow.difference().items()}
    fresh = published(learner, 0.5)
    learner.sent = sent
    learner.save(tmp_path / "saved")
    learner = EdgeLearner(compact, SMALL)
    learner.restore(tmp_path / "saved")
    learner.rebase(fresh)
    assert not learner.sent
    assert learner.version is fresh
    bias = "blocks.3.project.bias"
    assert torch.allclose(learner.shadow.tensors()[bias], fresh.state[bias] + since[bias], atol=1e-6)
    assert torch.allclose(learner.shadow.difference()[bias], since[bias], atol=1e-6)
    norm = "blocks.3.layers.norm.running_var"
    assert torch.equal(learner.shadow.tensors()[norm], fresh.state[norm])
    assert SMALL.rate(learner.counters.since_rebase) < SMALL.learning_rate / 2
    until_updates(learner, 5)


def test_a_rebase_without_anything_sent_keeps_all_that_was_learned(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    hear(learner, 0, 16)
    until_updates(learner, 2)
    learned = learner.shadow.difference()
    learner.rebase(published(learner, 0.5))
    weight = "blocks.3.project.weight"
    assert torch.allclose(learner.shadow.difference()[weight], learned[weight], atol=1e-6)


def test_the_optimiser_keeps_its_scale_and_forgets_its_direction_in_a_rebase(
    compact: Version, tmp_path: Path
) -> None:
    learner = EdgeLearner(compact, SMALL)
    hear(learner, 0, 16)
    until_updates(learner, 2)
    learner.save(tmp_path / "before")
    learner.rebase(published(learner, 0.1))
    learner.save(tmp_path / "after")
    before, after = (load_progress(tmp_path / name).optimiser for name in ("before", "after"))
    for name, value in before.items():
        if name.endswith("/exp_avg"):
            assert float(value.abs().max()) > 0
            assert float(after[name].abs().max()) == 0
        else:
            assert torch.equal(after[name], value)


def test_another_encoder_or_a_foreign_difference_is_refused(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    with pytest.raises(ConfigError, match="rebase: expected a version of compact"):
        learner.rebase(mobile(compact))
    learner.sent = {"dense.0": torch.zeros(1)}
    with pytest.raises(ConfigError, match=r"rebase: dense.0: sent, but not a tensor"):
        learner.rebase(compact)
