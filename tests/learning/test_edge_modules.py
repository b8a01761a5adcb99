"""Which weights and norms of the shadow move when the edge learner learns, and which never do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamsplit.encoders.version import Version
from streamsplit.learning.edge import EdgeLearner
from tests.learning.learners import (
    hear,
    mobile,
    settings,
    until_updates,
)

STATISTICS = ("running_mean", "running_var")


def test_norms_and_weights_of_what_is_frozen_never_move(compact: Version) -> None:
    learner = EdgeLearner(compact, settings("cached", train_front=False))
    before = {name: tensor.clone() for name, tensor in learner.shadow.encoder.state_dict().items()}
    hear(learner, 0, 8)
    until_updates(learner, 3)
    learner.difference()
    after = learner.shadow.encoder.state_dict()
    moved = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("blocks.3.") for name in moved)
    assert set(learner.difference()) >= {name for name in moved if not name.endswith("num_batches_tracked")}


def norms(learner: EdgeLearner) -> list[Tensor]:
    return [
        tensor.clone()
        for name, tensor in learner.shadow.tensors().items()
        if name.rpartition(".")[2] in STATISTICS
    ]


def test_stored_norms_move_before_an_optimiser_step_and_not_within(compact: Version) -> None:
    learner = EdgeLearner(compact, settings("reservoir", norms="stored"))
    hear(learner, 0, 16)
    for _ in range(2):
        moved = []
        for _ in range(4):
            before = norms(learner)
            work = learner.step()
            assert work is not None
            changed = not all(map(torch.equal, before, norms(learner)))
            moved.append((work.kind, changed))
        assert moved == [("listened", True)] * 2 + [("learned", False)] * 2
    assert learner.counters.updates == 2


def test_with_stored_norms_an_embedding_does_not_depend_on_its_batch(compact: Version) -> None:
    learner = EdgeLearner(compact, settings("cached", norms="stored"))
    hear(learner, 0, 16)
    until_updates(learner, 1)
    learner.shadow.to_train()
    mel = learner.recent.mel(torch.arange(8))
    with torch.no_grad():
        together = learner.shadow.embed(mel)["lite"]
        alone = torch.cat([learner.shadow.embed(one)["lite"] for one in mel.split(1)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_listening_moves_no_norm(compact: Version) -> None:
    learner = EdgeLearner(compact, settings("cached"))
    hear(learner, 0, 8)
    work = learner.step()
    assert work is not None
    assert work.kind == "listened"
    statistics = [m for m in learner.shadow.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    served = compact.trainable()
    expected = [m for m in served.modules() if isinstance(m, nn.BatchNorm2d)]
    for mine, theirs in zip(statistics, expected, strict=True):
        assert torch.equal(mine.running_mean, theirs.running_mean)  # type: ignore[arg-type]
        assert torch.equal(mine.running_var, theirs.running_var)  # type: ignore[arg-type]


def test_all_paths_train_the_dense_tail_too(compact: Version) -> None:
    learner = EdgeLearner(compact, settings("reservoir", paths="all"))
    hear(learner, 0, 8)
    work = until_updates(learner, 1)
    assert "dense-lite/contrast" in work[-1].terms
    assert any(
        name.startswith("dense") and part.abs().max() > 0 for name, part in learner.difference().items()
    )


def test_all_paths_train_every_tail_and_nothing_before_them_where_the_front_stays(compact: Version) -> None:
    learner = EdgeLearner(compact, settings("reservoir", paths="all", train_front=False))
    hear(learner, 0, 8)
    until_updates(learner, 2)
    moved = {name.split(".")[0] for name, part in learner.difference().items() if part.abs().max() > 0}
    assert moved == {"blocks", "widened", "unsqueezed", "dense"}
    assert {name.split(".")[1] for name in learner.difference() if name.startswith("blocks")} == {"3"}


def test_one_path_encoders_learn_too(compact: Version) -> None:
    learner = EdgeLearner(mobile(compact), settings("reservoir"))
    hear(learner, 0, 8)
    until_updates(learner, 1)
    assert max(float(part.abs().max()) for part in learner.difference().values()) > 0
