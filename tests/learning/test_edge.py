"""The edge learner learns in small steps, holds a bounded memory, survives a kill to the bit, and leaves the served weights alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamsplit.encoders.calibrate import calibrate, made_mel
from streamsplit.encoders.catalogue import build
from streamsplit.encoders.version import Version, freeze
from streamsplit.errors import ConfigError, StorageError
from streamsplit.learning.edge import EdgeLearner, EdgeSettings, Work
from streamsplit.learning.objectives import OBJECTIVES, ObjectiveSettings
from streamsplit.learning.pool import WindowPool
from streamsplit.learning.progress import load_progress
from streamsplit.learning.shadow import Norms
from streamsplit.learning.views import ViewSettings

STATISTICS = ("running_mean", "running_var")
SMALL = EdgeSettings(batch=2, accumulate=2, windows=32, fewest_windows=8, queue_windows=32)


def settings(name: str, **changes: object) -> EdgeSettings:
    objective = ObjectiveSettings(name, fresh_windows=8, sampled=16, directions=8)
    return replace(SMALL, objective=objective, **changes)  # type: ignore[arg-type]


def codes(number: int) -> np.ndarray:
    """Made of its number: bands of noise, each window others."""
    rng = np.random.default_rng(number)
    bands = rng.integers(0, 200, (64, 1)) * (rng.random((64, 1)) < 0.3)
    return (bands + rng.integers(0, 40, (64, 96))).astype(np.uint8)


def hear(learner: EdgeLearner, first: int, count: int) -> None:
    for number in range(first, first + count):
        learner.hear(codes(number), number * 0.96)


def mobile(other: Version) -> Version:
    """Another encoder, not calibrated: training does not ask for that."""
    encoder = build("mobile")
    return replace(other, encoder=encoder.for_inference(), state=encoder.state_dict())


def until_updates(learner: EdgeLearner, updates: int) -> list[Work]:
    """Steps, a window heard before each."""
    done: list[Work] = []
    while learner.counters.updates < updates:
        hear(learner, learner.counters.heard, 2)
        done.append(learner.step() or pytest.fail("expected work"))
    return done


def same(one: EdgeLearner, other: EdgeLearner) -> bool:
    first, second = one.shadow.tensors(), other.shadow.tensors()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_the_lite_path_and_leaves_the_served_version_alone(
    compact: Version, name: str
) -> None:
    before = {key: tensor.clone() for key, tensor in compact.state.items()}
    learner = EdgeLearner(compact, settings(name))
    hear(learner, 0, 8)
    work = until_updates(learner, 2)
    listened = {"none": 0, "fresh": 2, "stream": 0}[OBJECTIVES[name].memory]
    if OBJECTIVES[name].whole_step:
        listened = 2
    assert [step.kind for step in work] == 2 * (listened * ["listened"] + 2 * ["learned"])
    assert [step.updated for step in work].count(True) == 2
    assert all("total" in step.terms for step in work if step.kind == "learned")
    difference = learner.shadow.difference()
    assert all(torch.isfinite(part).all() for part in difference.values())
    for place, module in (("blocks.0", "front"), ("blocks.3", "lite tail")):
        moved = [key for key, part in difference.items() if key.startswith(place) and part.abs().max() > 0]
        assert moved, f"{module} has not moved"
    assert not any(key.startswith("dense") for key in difference)
    assert all(torch.equal(compact.state[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("name", ["cached", "transport", "expected", "published"])
def test_objectives_that_need_no_batch_learn_at_any(compact: Version, name: str, batch: int) -> None:
    learner = EdgeLearner(compact, settings(name, batch=batch, fewest_windows=16, windows=32))
    hear(learner, 0, 16)
    work = until_updates(learner, 1)
    assert all(np.isfinite(value) for step in work for value in step.terms.values())
    assert max(float(part.abs().max()) for part in learner.shadow.difference().values()) > 0


@pytest.mark.parametrize("name", ["in-batch", "reservoir"])
def test_infonce_of_one_pair_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"edge batch: expected at least 2 for objective {name}, got 1"):
        settings(name, batch=1)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "in-batch"])
def test_following_an_objective_makes_it_smaller(compact: Version, name: str) -> None:
    """The same sixteen windows, views hardly changed. (`in-batch` is `reservoir` of windows heard once.)"""
    gentle = replace(
        SMALL.views, shortest=0.98, longest=1.0, narrowest=0.98, widest=1.0, mix_share=0.0, mask_bands=1, mask_frames=1
    )  # fmt: skip
    objective = ObjectiveSettings(name, fresh_windows=16, sampled=16)
    learner = EdgeLearner(
        compact,
        replace(
            SMALL,
            objective=objective,
            batch=4,
            windows=16,
            kept_share=0.0,
            fewest_windows=16,
            warm_up_steps=2,
            neighbour_s=0.0,
            views=gentle,
        ),
    )
    hear(learner, 0, 16)
    totals = []
    while learner.counters.updates < 16:
        work = learner.step()
        if work and work.kind == "learned":
            totals.append(work.terms["total"])
    assert sum(totals[-8:]) < 0.97 * sum(totals[:8])


class Watched(EdgeLearner):
    """Keeps the gradient each optimiser step is made with."""

    pull: dict[str, Tensor]

    def _update(self) -> bool:
        self.pull = {
            name: parameter.grad.clone()
            for name, parameter in self.shadow.parameters().items()
            if parameter.grad is not None
        }
        return super()._update()


def test_cached_gradients_are_those_of_the_whole_batch(compact: Version) -> None:
    """With views that change nothing and stored norms, micro-batches of 1 and 4 pull as a batch of 16 does."""
    plain = ViewSettings(1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, None, 0, 0)
    pulls = []
    for batch, accumulate in ((16, 1), (4, 4), (1, 16)):
        objective = ObjectiveSettings("cached")
        learner = Watched(
            compact,
            EdgeSettings(objective, batch, accumulate, fewest_windows=64, views=plain, norms="stored"),
        )
        hear(learner, 0, 64)
        until_updates(learner, 1)
        pulls.append(torch.cat([part.flatten() for part in learner.pull.values()]))
    assert float(pulls[0].norm()) > 1e-3
    for other in pulls[1:]:
        assert float((other - pulls[0]).norm() / pulls[0].norm()) < 1e-3


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


# A kill.


def scenario(compact: Version, name: str, momentum: float = 0.0, norms: Norms = "batch") -> EdgeLearner:
    objective = ObjectiveSettings(name, fresh_windows=8, sampled=16, directions=8, momentum=momentum)
    learner = EdgeLearner(compact, replace(SMALL, objective=objective, norms=norms))
    hear(learner, 0, 8)
    return learner


def work_on(learner: EdgeLearner, steps: int) -> None:
    for _ in range(steps):
        learner.step()
        hear(learner, learner.counters.heard, 2)


@pytest.mark.parametrize("after", [1, 3, 4, 6])
@pytest.mark.parametrize(
    ("name", "momentum", "norms"),
    [
        ("cached", 0.0, "batch"),
        ("published", 0.0, "batch"),
        ("transport", 0.0, "stored"),
        ("expected", 0.9, "stored"),
    ],
)
def test_a_learner_saved_between_any_two_steps_goes_on_to_the_same_bits(
    compact: Version, tmp_path: Path, name: str, momentum: float, norms: Norms, after: int
) -> None:
    whole = scenario(compact, name, momentum, norms)
    work_on(whole, after)
    whole.save(tmp_path / "edge")
    resumed = scenario(compact, name, momentum, norms)
    resumed.restore(tmp_path / "edge")
    for learner in (whole, resumed):
        work_on(learner, 7)
    assert resumed.counters == whole.counters
    assert same(resumed, whole)


def test_a_learner_with_kept_windows_goes_on_to_the_same_bits(compact: Version, tmp_path: Path) -> None:
    keeping = replace(SMALL, windows=32, fewest_windows=8, kept_share=0.5)
    whole, resumed = EdgeLearner(compact, keeping), EdgeLearner(compact, keeping)
    for _ in range(8):
        hear(whole, whole.counters.heard, 8)
        whole.step()
    assert len(whole.recent) == 32
    whole.save(tmp_path / "edge")
    resumed.restore(tmp_path / "edge")
    for learner in (whole, resumed):
        work_on(learner, 7)
    assert same(resumed, whole)
    assert torch.equal(resumed.recent.start_s, whole.recent.start_s)
    assert whole.held_bytes <= whole.bound_bytes


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from streamsplit.encoders.registry import make_untrained
from tests.learning.test_edge import scenario, work_on
learner = scenario(make_untrained("compact", seed=0), "transport")
work_on(learner, 5)
learner.save(Path(sys.argv[1]))
work_on(learner, 2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_is_gone_on_from_to_the_same_bits(compact: Version, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "edge")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    resumed, whole = scenario(compact, "transport"), scenario(compact, "transport")
    resumed.restore(tmp_path / "edge")
    work_on(whole, 5)
    for learner in (resumed, whole):
        work_on(learner, 9)
    assert whole.counters.updates >= 2
    assert same(resumed, whole)
    assert os.listdir(tmp_path) == ["edge"]


def test_other_settings_versions_or_damage_do_not_go_on(compact: Version, tmp_path: Path) -> None:
    file = tmp_path / "edge"
    learner = EdgeLearner(compact, SMALL)
    learner.save(file)
    with pytest.raises(ConfigError, match=r"learned with other settings \(batch, seed\)"):
        EdgeLearner(compact, replace(SMALL, batch=4, seed=3)).restore(file)
    with pytest.raises(ConfigError, match=r"learned with other settings \(kept_share\)"):
        EdgeLearner(compact, replace(SMALL, kept_share=0.0)).restore(file)
    with pytest.raises(ConfigError, match="learned from version compact-"):
        EdgeLearner(replace(compact, id="compact-other"), SMALL).restore(file)
    file.write_bytes(file.read_bytes()[:20_000])
    with pytest.raises(StorageError, match="not a readable training"):
        EdgeLearner(compact, SMALL).restore(file)


def test_the_seed_decides(compact: Version) -> None:
    learners = [EdgeLearner(compact, replace(SMALL, seed=seed)) for seed in (1, 1, 2)]
    for learner in learners:
        hear(learner, 0, 8)
        until_updates(learner, 1)
    assert same(learners[0], learners[1])
    assert not same(learners[0], learners[2])


# What it holds and hears.


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_it_holds_stays_below_the_stated_bound(compact: Version, name: str) -> None:
    learner = EdgeLearner(compact, settings(name))
    most = 0
    hear(learner, 0, 40)
    for _ in range(24):
        hear(learner, learner.counters.heard, 12)
        learner.step()
        most = max(most, learner.held_bytes)
    assert learner.counters.updates
    assert 0.5 * learner.bound_bytes < most <= learner.bound_bytes


def test_the_defaults_hold_less_than_twelve_megabytes(compact: Version) -> None:
    assert EdgeLearner(compact).bound_bytes < 12e6


def test_a_momentum_encoder_is_part_of_the_bound(compact: Version) -> None:
    learner = scenario(compact, "expected", momentum=0.9)
    work_on(learner, 6)
    assert learner.counters.updates
    assert learner.held_bytes <= learner.bound_bytes


def test_silent_windows_are_counted_but_not_learned_from(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    for number in range(12):
        assert learner.hear(codes(number), number * 0.96, silent=number % 3 == 0) == (number % 3 != 0)
    learner.step()
    assert (learner.counters.heard, learner.counters.silent, len(learner.recent)) == (12, 4, 8)
    assert learner.counters.silent_share == pytest.approx(1 / 3)


def test_the_inbox_overflows_at_its_end_counted(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    hear(learner, 0, 40)
    assert (learner.counters.heard, learner.counters.overflowed) == (40, 8)
    learner.step()
    assert learner.recent.heard == 32
    assert float(learner.recent.start_s.max()) == pytest.approx(31 * 0.96)


def test_windows_learned_from_once_are_taken_in_order_and_none_twice(compact: Version) -> None:
    learner = EdgeLearner(compact, settings("in-batch"))
    assert learner.step() is None
    hear(learner, 0, 5)
    assert learner.step() is not None
    assert learner.step() is not None
    assert learner.step() is None
    assert learner.counters.used == 4
    hear(learner, 5, 1)
    assert learner.step() is not None


def test_too_few_windows_are_waited_for(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    hear(learner, 0, 7)
    assert learner.step() is None
    hear(learner, 7, 1)
    assert learner.step() is not None


def test_a_window_of_another_shape_is_refused(compact: Version) -> None:
    with pytest.raises(ValueError, match=r"window at 3 s: expected uint8 \(64, 96\), got float64 \(64, 96\)"):
        EdgeLearner(compact, SMALL).hear(np.zeros((64, 96)), 3.0)  # type: ignore[arg-type]


def test_what_is_heard_is_copied(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    window = codes(0)
    learner.hear(window, 0.0)
    window[:] = 0
    learner.step()
    assert int(learner.recent.codes[0].max()) > 0


def test_a_gradient_that_is_not_finite_is_thrown_away(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    hear(learner, 0, 8)
    learner.step()
    next(iter(learner.shadow.parameters().values())).grad.fill_(float("nan"))  # type: ignore[union-attr]
    work = learner.step()
    assert work is not None
    assert not work.updated
    assert (learner.counters.updates, learner.counters.skipped) == (0, 1)
    assert all(torch.isfinite(tensor).all() for tensor in learner.shadow.tensors().values())
    until_updates(learner, 1)


# Versions.


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


def test_a_rebase_keeps_what_was_learned_since_the_difference_was_sent(compact: Version) -> None:
    learner = EdgeLearner(compact, SMALL)
    hear(learner, 0, 16)
    until_updates(learner, 2)
    sent = learner.difference()
    until_updates(learner, 4)
    since = {name: part - sent[name] for name, part in learner.shadow.difference().items()}
    fresh = published(learner, 0.5)
    learner.rebase(fresh, sent)
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
    with pytest.raises(ConfigError, match=r"rebase: dense.0: sent, but not a tensor"):
        learner.rebase(compact, {"dense.0": torch.zeros(1)})


def test_the_rate_rises_then_stays_or_falls_to_nothing() -> None:
    assert [SMALL.rate(step) for step in (9, 10, 1_000_000)] == [SMALL.learning_rate] * 3
    assert SMALL.rate(0) == pytest.approx(SMALL.learning_rate / 10)
    ending = replace(SMALL, horizon_steps=100)
    rates = [ending.rate(step) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)
    assert ending.rate(500) == pytest.approx(0.0, abs=1e-9)


def test_a_learner_gets_better_at_telling_windows_apart(compact: Version, pool: WindowPool) -> None:
    """Real made sound at the default objective: the loss of the last optimiser steps is below that of the first."""
    learner = EdgeLearner(compact, EdgeSettings(batch=8, accumulate=4, learning_rate=1e-3))
    for number in range(0, len(pool), 4):
        learner.hear(pool.features[number], number * 10.0)
    totals = []
    while learner.counters.updates < 20:
        work = learner.step()
        assert work is not None
        totals.append(work.terms["total"])
    assert sum(totals[-16:]) < 0.85 * sum(totals[:16])
