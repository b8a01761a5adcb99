"""The gate lets better versions through, stops collapsed ones, and says why."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.errors import ConfigError
from streamsplit.learning.gate import (
    FLOORS_ALONE,
    GateSettings,
    Quality,
    Verdict,
    judge,
    neighbour_agreement,
    quality,
)
from streamsplit.learning.probe import nearest_neighbour_accuracy

GOOD = Quality(400, effective_rank=40.0, uniformity=-2.5, mean_norm=0.5, agreement=0.6, accuracy=0.7)


def chance(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def held_out(scatter: float = 0.5, seed: int = 0) -> tuple[Tensor, list[str], list[str]]:
    """Forty recordings of five windows, in eight classes: embeddings [200, 128], recordings, labels."""
    centres = torch.randn(8, 128, generator=chance(1)).repeat_interleave(5, 0)
    centres = centres + 0.7 * torch.randn(40, 128, generator=chance(2))
    z = centres.repeat_interleave(5, 0) + scatter * torch.randn(200, 128, generator=chance(seed))
    recordings = [f"r{place // 5}" for place in range(200)]
    return F.normalize(z, dim=1), recordings, [f"c{place // 25}" for place in range(200)]


def verdict(new: Quality, old: Quality | None = GOOD) -> Verdict:
    return judge({"dense": new}, {} if old is None else {"dense": old})


def test_an_equal_version_may_be_published() -> None:
    assert verdict(GOOD) == Verdict(True, (), {"dense": GOOD}, {"dense": GOOD})
    assert str(verdict(GOOD)).startswith("publish: dense: rank 40.0, uniformity -2.50, mean vector 0.500")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"effective_rank": 22.0}, "dense: effective rank fell from 40.0 to 22.0"),
        ({"uniformity": -2.0}, "dense: uniformity rose from -2.50 to -2.00"),
        ({"mean_norm": 0.6}, "dense: mean vector grew from 0.500 to 0.600"),
        ({"agreement": 0.5}, "dense: neighbours' agreement fell from 0.600 to 0.500"),
        ({"accuracy": 0.6}, "dense: accuracy fell from 0.700 to 0.600"),
        ({"accuracy": math.nan}, "dense: embeddings are not finite"),
        ({"uniformity": math.nan}, "dense: embeddings are not finite"),
    ],
)
def test_each_figure_that_gets_worse_stops_it_alone_and_is_named(
    change: dict[str, float], reason: str
) -> None:
    said = verdict(replace(GOOD, **change))  # type: ignore[arg-type]
    assert not said.publish
    assert said.reasons == (reason,)
    assert str(said) == f"refused: {reason}"


def test_what_is_better_in_everything_passes() -> None:
    better = Quality(400, 60.0, -3.5, 0.1, 0.8, 0.9)
    assert verdict(better).publish


def test_the_first_version_needs_only_the_floors() -> None:
    assert verdict(GOOD, None).publish
    said = verdict(replace(GOOD, effective_rank=3.0, mean_norm=0.99), None)
    assert said.reasons == (
        "dense: effective rank 3.0, expected 20.0 or more",
        "dense: mean vector 0.990, expected 0.980 or less",
    )


def test_slow_decline_ends_at_the_floor() -> None:
    """Each step is within what one step may lose; together they are not."""
    now, steps = GOOD, 0
    while verdict(new := replace(now, effective_rank=0.92 * now.effective_rank), now).publish:
        now, steps = new, steps + 1
    assert now.effective_rank >= 20.0
    assert steps < 10


def test_a_serving_version_below_the_floor_can_be_replaced_by_a_better_one_only() -> None:
    poor = replace(GOOD, effective_rank=8.0)
    assert verdict(replace(poor, effective_rank=9.0), poor).publish
    assert not verdict(replace(poor, effective_rank=7.9), poor).publish


def test_one_a_little_below_the_floor_can_be_replaced_by_its_like() -> None:
    low = replace(GOOD, effective_rank=18.0)
    assert verdict(replace(low, effective_rank=17.7), low).publish
    assert not verdict(replace(low, effective_rank=15.0), low).publish


def test_a_broken_serving_version_does_not_hold_up_a_sound_one() -> None:
    assert verdict(GOOD, replace(GOOD, uniformity=math.nan)).publish


def test_one_bad_path_stops_the_version() -> None:
    bad = replace(GOOD, agreement=0.2)
    said = judge({"dense": GOOD, "lite": bad}, {"dense": GOOD, "lite": GOOD})
    assert said.reasons == ("lite: neighbours' agreement fell from 0.600 to 0.200",)


def test_labels_that_one_side_lacks_are_not_asked() -> None:
    assert verdict(replace(GOOD, accuracy=None)).publish


def test_figures_of_other_windows_or_paths_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the same windows, got 10 and 400"):
        verdict(replace(GOOD, windows=10))
    with pytest.raises(ValueError, match="expected the same paths"):
        judge({"lite": GOOD}, {"dense": GOOD})
    with pytest.raises(ValueError, match="expected the same paths"):
        judge({}, {})
    with pytest.raises(ConfigError, match="rank_fall: expected a number from 0, got -1"):
        GateSettings(rank_fall=-1)


# From embeddings.


def test_a_sound_version_passes_and_its_collapsed_heir_does_not() -> None:
    z, recordings, labels = held_out()
    serving = {"dense": quality(z, recordings, labels)}
    assert judge(serving, serving).publish
    assert serving["dense"].effective_rank > 20

    pulled = F.normalize(z + 30 * z[:1], dim=1)
    flat = F.normalize(torch.cat([z[:, :2], torch.zeros(200, 126)], dim=1), dim=1)
    point = z[:1].expand(200, -1)
    shuffled = z[torch.randperm(200, generator=chance(5))]
    for heir, face in (
        (pulled, "mean vector grew"),
        (flat, "effective rank fell"),
        (point, "uniformity rose"),
        (shuffled, "agreement fell"),
        (shuffled, "accuracy fell"),
        (z * math.nan, "not finite"),
    ):
        said = judge({"dense": quality(heir, recordings, labels)}, serving)
        assert not said.publish
        assert any(face in reason for reason in said.reasons), said


def test_noise_of_one_training_run_does_not_stop_a_version() -> None:
    one, recordings, labels = held_out(seed=3)
    other = held_out(seed=4)[0]
    assert judge(
        {"dense": quality(other, recordings, labels)}, {"dense": quality(one, recordings, labels)}
    ).publish


def test_figures_are_what_their_definitions_say() -> None:
    z, recordings, labels = held_out()
    found = quality(z, recordings, labels)
    assert found.windows == 200
    assert found.mean_norm == pytest.approx(float(z.mean(0).norm()))
    assert found.accuracy == nearest_neighbour_accuracy(z, labels, recordings)
    assert quality(z, recordings).accuracy is None


def test_agreement_is_one_where_recordings_stand_apart_and_their_share_by_chance() -> None:
    z, recordings, _ = held_out(scatter=0.01)
    assert neighbour_agreement(z, recordings) == 1.0
    noise = F.normalize(torch.randn(200, 128, generator=chance(6)), dim=1)
    assert neighbour_agreement(noise, recordings) == pytest.approx(4 / 199, abs=0.02)


def test_agreement_is_counted_by_hand_on_a_line() -> None:
    """Nearest by angle: a1-a2 find each other; b1's nearest is a2; b2's is b1; c is alone and not asked."""
    degrees = torch.tensor([0.0, 10.0, 25.0, 50.0, 180.0]) * math.pi / 180
    z = torch.stack([degrees.cos(), degrees.sin(), torch.zeros(5)], dim=1)
    centred = z - z.mean(0)
    unit = F.normalize(centred, dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)[:4].tolist()
    recordings = ["a", "a", "b", "b", "c"]
    expected = sum(recordings[place] == recordings[near] for place, near in enumerate(nearest)) / 4
    assert neighbour_agreement(z, recordings, neighbours=1) == pytest.approx(expected)


def test_too_few_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="expected 3 embeddings or more"):
        quality(torch.eye(4)[:2], ["a", "b"])
    with pytest.raises(ValueError, match="with a recording each"):
        quality(torch.eye(4), ["a", "b"])


def test_of_many_directions_some_may_be_lost() -> None:
    wide = replace(GOOD, effective_rank=98.0)
    assert verdict(replace(GOOD, effective_rank=60.0), wide).publish
    assert not verdict(replace(GOOD, effective_rank=23.0), wide).publish


def test_directions_may_go_where_neighbours_agree_more_but_not_all() -> None:
    better = replace(GOOD, agreement=0.7)
    assert verdict(replace(better, effective_rank=17.0)).publish
    assert verdict(replace(GOOD, uniformity=-2.6, effective_rank=17.0)).publish
    assert not verdict(replace(GOOD, agreement=0.61, effective_rank=17.0)).publish
    assert verdict(replace(better, effective_rank=5.0)).reasons == (
        "dense: effective rank 5.0, expected 10.0 or more",
    )


def test_few_windows_are_not_asked_for_more_than_they_can_tell() -> None:
    few = replace(GOOD, windows=64)
    assert verdict(replace(few, agreement=0.55), few).publish
    assert not verdict(replace(few, agreement=0.5), few).publish


def test_random_weights_are_no_standard_but_floors_hold() -> None:
    random = replace(GOOD, effective_rank=98.0, uniformity=-3.5, agreement=0.7)
    assert judge({"dense": GOOD}, {"dense": random}, FLOORS_ALONE).publish
    collapsed = replace(GOOD, effective_rank=12.0, mean_norm=0.99)
    assert len(judge({"dense": collapsed}, {"dense": random}, FLOORS_ALONE).reasons) == 2
