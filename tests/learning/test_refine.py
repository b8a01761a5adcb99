"""The refiner's step: gradients reach what may learn, chance follows from the step, two processes learn as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from streamsplit.audio.window import Samples
from streamsplit.encoders.checkpoint import save
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError
from streamsplit.learning.boundary_views import BoundaryViewSettings, boundary_view
from streamsplit.learning.buffer import BufferedWindow, TemporalBuffer, places_in_time
from streamsplit.learning.hybrid import temporal_ties
from streamsplit.learning.lessons import STRETCH, draw_judged, draw_lesson, held_out, recent_run, stretch
from streamsplit.learning.progress import load_progress, save_progress
from streamsplit.learning.refine import Lesson, Refiner, RefineSettings
from streamsplit.learning.replay import FeatureReplay, ReplayReader
from tests.learning.received import received

SMALL = RefineSettings(batch=8, hybrid_windows=12)


@pytest.fixture(scope="module")
def features(compact: Version, sound: Samples) -> list[BufferedWindow]:
    return received(compact, sound, 0)


@pytest.fixture(scope="module")
def activations(compact: Version, sound: Samples) -> list[BufferedWindow]:
    return received(compact, sound, 3)


def lesson(windows: Sequence[BufferedWindow], begin: int = 0) -> Lesson:
    return Lesson(
        [(windows[begin + 5 * n], windows[begin + 5 * n + 1]) for n in range(8)], windows[begin : begin + 12]
    )


def refiner(version: Version, frozen: int = 0, settings: RefineSettings = SMALL) -> Refiner:
    return Refiner(version.trainable(), settings, lambda _, split: version.ranges[split], frozen)


def reached(encoder: torch.nn.Module) -> set[str]:
    """Parts of the encoder in which every weight got a gradient."""
    parts: dict[str, list[bool]] = {}
    for name, parameter in encoder.named_parameters():
        part = ".".join(name.split(".")[:2]) if name.startswith("blocks") else name.split(".")[0]
        parts.setdefault(part, []).append(parameter.grad is not None and bool(parameter.grad.abs().sum() > 0))
    return {part for part, had in parts.items() if all(had)}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name.split(".conv")[0] for name in before if not torch.equal(before[name], after[name])}


def test_from_features_the_gradient_reaches_the_front_and_both_tails(
    compact: Version, features: list[BufferedWindow]
) -> None:
    subject = refiner(compact)
    terms = subject.step(lesson(features))
    assert reached(subject.encoder) == {
        "blocks.0", "blocks.1", "blocks.2", "blocks.3", "widened", "unsqueezed", "dense",
    }  # fmt: skip
    assert {
        "dense-dense",
        "dense-lite",
        "dense-squeezed",
        "lite-lite",
        "task",
        "spread",
        "smoothness",
        "total",
    } <= terms.keys()
    assert terms["total"] == pytest.approx(
        terms["task"] + 0.1 * terms["spread"] + 0.01 * terms["smoothness"], rel=1e-5
    )


def test_from_b2_it_reaches_the_lite_tail_and_the_door_and_all_else_stays_to_the_bit(
    compact: Version, activations: list[BufferedWindow], features: list[BufferedWindow]
) -> None:
    subject = refiner(compact, frozen=3)
    before = {name: tensor.clone() for name, tensor in subject.encoder.state_dict().items()}
    mixed = lesson(activations)
    subject.step(replace(mixed, pairs=[*mixed.pairs[:4], *lesson(features).pairs[4:]]))
    assert reached(subject.encoder) == {"blocks.3", "unsqueezed"}
    moved = changed(before, subject.encoder.state_dict())
    assert moved
    assert not [
        name for name in moved if name.startswith(("blocks.0", "blocks.1", "blocks.2", "dense", "widened"))
    ]


@pytest.mark.parametrize("term", ["spread_weight", "smoothness_weight"])
def test_the_hybrid_terms_alone_reach_the_encoder(
    compact: Version, features: list[BufferedWindow], term: str
) -> None:
    none = replace(SMALL.hybrid, spread_weight=0.0, smoothness_weight=0.0)
    plain = refiner(compact, settings=replace(SMALL, hybrid=none))
    weighted = refiner(compact, settings=replace(SMALL, hybrid=replace(none, **{term: 1.0})))
    for each in (plain, weighted):
        each.step(lesson(features))
    name = "blocks.0.0.conv.weight"
    one, other = (each.encoder.get_parameter(name).grad for each in (plain, weighted))
    assert one is not None
    assert other is not None
    assert not torch.allclose(one, other, rtol=1e-2)


def test_what_lies_behind_a_moving_block_is_refused(
    compact: Version, activations: list[BufferedWindow]
) -> None:
    with pytest.raises(ValueError, match="boundaries 0"):
        refiner(compact).step(lesson(activations))
    with pytest.raises(ConfigError, match="frozen"):
        refiner(compact, frozen=4)


def test_learning_brings_the_loss_down(compact: Version, features: list[BufferedWindow]) -> None:
    subject = refiner(compact, settings=replace(SMALL, learning_rate=2e-3, warm_up_steps=1))
    losses = [subject.step(lesson(features, n % 60))["task"] for n in range(24)]
    assert sum(losses[-6:]) < sum(losses[:6]) - 0.6


def test_a_killed_training_goes_on_to_the_same_bits(
    compact: Version, features: list[BufferedWindow], tmp_path: Path
) -> None:
    whole, part, other = refiner(compact), refiner(compact), refiner(compact)
    for n in range(3):
        whole.step(lesson(features, n))
        if n < 2:
            part.step(lesson(features, n))
    save_progress(part.progress(compact.id, {"merged": ["x"]}), tmp_path / "progress.safetensors")
    saved = load_progress(tmp_path / "progress.safetensors")
    assert saved.settings["merged"] == ["x"]
    other.resume(saved)
    other.step(lesson(features, 2))
    assert other.done == 3
    for name, tensor in whole.encoder.state_dict().items():
        assert torch.equal(tensor, other.encoder.state_dict()[name]), name
    assert whole.averaged == other.averaged == 3
    assert all(map(torch.equal, whole.mean, other.mean))
    with pytest.raises(ConfigError, match="refine"):
        refiner(compact, settings=replace(SMALL, batch=9)).resume(saved)


def test_a_gradient_that_is_not_finite_is_not_taken(compact: Version, features: list[BufferedWindow]) -> None:
    subject = refiner(compact)
    with torch.no_grad():
        subject.encoder.get_parameter("dense.project.weight").fill_(float("inf"))
    before = subject.encoder.get_parameter("blocks.3.project.weight").detach().clone()
    subject.step(lesson(features))
    assert subject.skipped == 1
    assert torch.equal(before, subject.encoder.get_parameter("blocks.3.project.weight"))


def test_a_candidate_is_a_copy_with_settled_norms(compact: Version, features: list[BufferedWindow]) -> None:
    subject = refiner(compact, settings=replace(SMALL, averaged_steps=0))
    subject.step(lesson(features))
    before = {name: tensor.clone() for name, tensor in subject.encoder.state_dict().items()}
    twin = subject.candidate(subject.boundary(features))
    assert not changed(before, subject.encoder.state_dict())
    moved = changed(before, twin.state_dict())
    assert moved
    assert all("running" in name or "batches" in name for name in moved)


def test_a_candidate_has_the_mean_of_the_last_steps_weights_and_what_devices_sent(
    compact: Version, features: list[BufferedWindow]
) -> None:
    subject = refiner(compact, settings=replace(SMALL, averaged_steps=3, learning_rate=2e-3))
    name = "dense.project.weight"
    weights = []
    for n in range(3):
        subject.step(lesson(features, n))
        weights.append(subject.encoder.get_parameter(name).detach().clone())
    plain = subject.boundary(features)
    mean = subject.candidate(plain).get_parameter(name)
    assert torch.allclose(mean, torch.stack(weights).mean(0), atol=1e-7)
    assert not torch.allclose(mean, weights[-1], atol=1e-5)
    subject.add({name: torch.ones_like(mean)})
    assert torch.allclose(subject.candidate(plain).get_parameter(name), mean + 1, atol=1e-6)


def test_devices_differences_move_only_what_learns(compact: Version) -> None:
    subject = refiner(compact, frozen=3)
    front, lite = "blocks.0.0.conv.weight", "blocks.3.project.weight"
    before = {name: subject.encoder.get_parameter(name).detach().clone() for name in (front, lite)}
    subject.add({name: torch.ones_like(tensor) for name, tensor in before.items()})
    assert torch.equal(subject.encoder.get_parameter(front), before[front])
    assert torch.equal(subject.encoder.get_parameter(lite), before[lite] + 1)
    with pytest.raises(ConfigError):
        subject.add({"blocks.9.weight": torch.ones(1)})


def test_views_of_a_boundary_keep_its_shape_and_follow_from_the_generator() -> None:
    activation = torch.randn(6, 4, 3, 12)
    one, again = (
        boundary_view(activation, BoundaryViewSettings(), torch.Generator().manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(one, again)
    assert one.shape == activation.shape
    still = boundary_view(activation, BoundaryViewSettings(0, 0, 0), torch.Generator())
    assert torch.equal(still, activation)
    moved = boundary_view(activation, BoundaryViewSettings(0.5, 0, 0), torch.Generator().manual_seed(1))
    assert all(
        any(torch.equal(moved[row, ..., column], activation[row, ..., place]) for place in range(12))
        for row in range(6)
        for column in range(12)
    )


# What is learned from, and what is not.


@pytest.fixture
def ring(features: list[BufferedWindow], tmp_path: Path) -> FeatureReplay:
    replay = FeatureReplay(tmp_path / "ring.db")
    replay.add(
        [replace(one, stream=f"s{turn}", payload=one.payload) for turn in range(8) for one in features]
    )
    return replay


def test_held_out_windows_are_never_learned_from(ring: FeatureReplay) -> None:
    buffer = TemporalBuffer()
    for window in ring.newest(1000):
        buffer.insert(window)
    learned = [draw_lesson(ring, buffer, SMALL, step) for step in range(20)]
    seen = [window for each in learned for pair in each.pairs for window in pair]
    seen += [window for each in learned for window in each.recent]
    assert len(seen) > 300
    assert not any(map(held_out, seen))
    judged = draw_judged(ring, 60, seed=0)
    assert all(map(held_out, judged.windows))
    assert judged.stretches == [stretch(window) for window in judged.windows]
    assert len(set(judged.stretches)) >= 5
    share = sum(map(held_out, ring.newest(1000))) / 960
    assert 0.03 < share < 0.25


@pytest.mark.parametrize("count", [1000, 1281, 1600, 4000])
def test_one_of_every_ten_stretches_of_a_stream_is_held_out_whatever_its_name(
    features: list[BufferedWindow], count: int
) -> None:
    places = set()
    for name in range(40):
        windows = [replace(features[0], stream=f"s{name}", sequence=n) for n in range(count)]
        apart = {stretch(one) for one in windows if held_out(one)}
        assert count // (10 * STRETCH) <= len(apart) <= count // (10 * STRETCH) + 1
        places |= {int(one.rsplit("/", 1)[1]) % 10 for one in apart}
    assert places == set(range(10))


def test_the_same_step_draws_the_same_lesson(ring: FeatureReplay) -> None:
    buffer = TemporalBuffer()
    for window in ring.newest(100):
        buffer.insert(window)

    def keys(step: int) -> list[tuple[str, str, int]]:
        drawn = draw_lesson(ring, buffer, SMALL, step)
        return [one.key for pair in drawn.pairs for one in pair] + [one.key for one in drawn.recent]

    assert keys(3) == keys(3) != keys(4)
    assert len(draw_lesson(ring, buffer, SMALL, 3).pairs) == 8


def test_windows_of_one_sound_are_not_each_others_negatives(
    features: list[BufferedWindow], tmp_path: Path
) -> None:
    with FeatureReplay(tmp_path / "many.db") as replay:
        replay.add([replace(one, stream=f"s{turn}") for turn in range(12) for one in features[:5]])
        for step in range(4):
            drawn = draw_lesson(replay, TemporalBuffer(), SMALL, step)
            streams = [anchor.stream for anchor, _ in drawn.pairs]
            assert len(streams) == len(set(streams)) == 8
            partners = [one.stream == other.stream for one, other in drawn.pairs]
            assert all(partners)


# Several processes.

_TRAIN = """
import json, sys
import torch
import torch.distributed as dist
import torch.nn.functional as F
from dataclasses import replace
from pathlib import Path
from streamsplit.encoders.checkpoint import load
from streamsplit.errors import PayloadError
from streamsplit.learning.losses import info_nce
from streamsplit.learning import across
from streamsplit.learning.buffer import TemporalBuffer
from streamsplit.learning.lessons import draw_lesson
from streamsplit.learning.refine import Refiner, RefineSettings
from streamsplit.learning.replay import ReplayReader
from streamsplit.learning.views import ViewSettings

folder, steps = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
if len(sys.argv) > 3:
    dist.init_process_group("gloo")
version, reader, buffer = load(folder / "v.safetensors"), ReplayReader(folder / "ring.db"), TemporalBuffer()
for window in reader.newest(400):
    buffer.insert(window)
mild = ViewSettings(0.9, 1.0, 0.9, 1.0, mix_share=0.1, gain_db=3.0, equaliser_db=1.0, mask_bands=2, mask_frames=2)
settings = RefineSettings(batch=16, hybrid_windows=16, learning_rate=2e-3, warm_up_steps=1, neighbour_s=0.0, views=mild)
refiner = Refiner(version.trainable(), settings, lambda _, split: version.ranges[split])
losses = [refiner.step(draw_lesson(reader, buffer, settings, step)) for step in range(steps)]
# The law behind it, without norms and chance: the sum over processes is the gradient of the whole.
chance = torch.Generator().manual_seed(0)
matrix, points = torch.randn(6, 5, generator=chance).requires_grad_(), torch.randn(2, 8, 6, generator=chance)


def loss(first, second, gather):
    return info_nce(*(gather(F.normalize(each @ matrix, dim=1)) for each in (first, second)))


loss(points[0], points[1], lambda z: z).backward()
whole, matrix.grad = matrix.grad, None
loss(*(each[across.rank() :: across.processes()] for each in points), across.gathered).backward()
across.sum_gradients([matrix])
weights = torch.cat([parameter.detach().flatten() for parameter in refiner.encoder.parameters()])
# A payload that only the second process would unpack.
lesson = draw_lesson(reader, buffer, settings, steps)
anchor, partner = lesson.pairs[1]
try:
    refiner.step(replace(lesson, pairs=[lesson.pairs[0], (replace(anchor, payload=b"?"), partner), *lesson.pairs[2:]]))
    problem = ""
except PayloadError as error:
    problem = str(error)
told = {"losses": [one["total"] for one in losses], "weights": weights.double().sum().item(), "n": across.processes(),
        "apart": float((matrix.grad - whole).abs().max()), "problem": problem}
(folder / f"told{len(sys.argv)}.{across.rank()}.json").write_text(json.dumps(told))
if dist.is_initialized():
    dist.destroy_process_group()
"""


def test_two_processes_learn_as_one_does(
    features: list[BufferedWindow], compact: Version, tmp_path: Path
) -> None:
    with FeatureReplay(tmp_path / "ring.db") as ring:
        ring.add(features)
    save(compact, tmp_path / "v.safetensors")
    script = tmp_path / "train.py"
    script.write_text(_TRAIN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    steps = "14"
    subprocess.run([sys.executable, script, tmp_path, steps], check=True, env=environment, timeout=120)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    torchrun += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0"]
    done = subprocess.run(
        [*torchrun, str(script), str(tmp_path), steps, "two"],
        env=environment,
        timeout=120,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone = json.loads((tmp_path / "told3.0.json").read_text())
    first, second = (json.loads((tmp_path / f"told4.{rank}.json").read_text()) for rank in range(2))
    assert (alone["n"], first["n"]) == (1, 2)
    assert first["apart"] < 1e-6
    assert first["problem"] == "another process' payload does not decode"
    assert all("got 1 that are neither" in one["problem"] for one in (alone, second))
    assert first["losses"] == second["losses"]
    assert first["weights"] == second["weights"]
    # Another draw of views and batch norms of half the windows: the same curve within a step's noise.
    gaps = [abs(one - other) for one, other in zip(alone["losses"], first["losses"], strict=True)]
    assert sum(gaps) / len(gaps) < 0.4
    assert sum(alone["losses"][-3:]) < sum(alone["losses"][:3]) - 1.0


def test_a_replay_of_nothing_gives_an_empty_lesson(tmp_path: Path) -> None:
    FeatureReplay(tmp_path / "ring.db").close()
    with ReplayReader(tmp_path / "ring.db") as reader:
        assert draw_lesson(reader, TemporalBuffer(), SMALL, 0).pairs == []
        assert draw_judged(reader, 10, 0).windows == []


def test_windows_for_the_hybrid_terms_are_neighbours_even_where_a_device_has_many_streams(
    features: list[BufferedWindow],
) -> None:
    buffer = TemporalBuffer()
    for turn in range(6):
        for number, window in enumerate(features[:40]):
            at_once = replace(window, device="pi0", stream=f"s{turn}", sequence=number, start_s=0.96 * number)
            buffer.insert(at_once)
    with_ties = 0
    for seed in range(5):
        chance = torch.Generator().manual_seed(seed)
        recent = recent_run(buffer, 24, chance)
        ties, _ = temporal_ties(*places_in_time(recent))
        with_ties += len(set(ties.flatten().tolist()))
    assert with_ties > 0.9 * 5 * 24
