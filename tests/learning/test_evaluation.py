"""Figures of made representations whose worth is known, and of an encoder on made sound."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamsplit.audio.features import COMPACT_FRONT_END
from streamsplit.encoders.registry import resolve
from streamsplit.learning.clips import Clips, gather_clips
from streamsplit.learning.evaluation import (
    FIGURES,
    SHARES,
    by_fold,
    joined,
    judge,
    judge_uncertainty,
    represent,
    space,
    spread_over,
)
from streamsplit.learning.floors import floors
from tests.learning.conftest import clips as tracks_of

pytest.importorskip("sklearn", reason="needs the extra `train`")

CLASSES, CLIPS, WINDOWS = 4, 80, 5


@pytest.fixture(scope="module")
def made() -> Clips:
    """Eighty clips of five windows, without sound: representations of them are drawn below."""
    labels = [f"c{n % CLASSES}" for n in range(CLIPS)]
    return Clips(
        COMPACT_FRONT_END,
        np.zeros((CLIPS * WINDOWS, 1, 1), np.uint8),
        torch.arange(CLIPS).repeat_interleave(WINDOWS),
        tuple(str(n) for n in range(CLIPS)),
        tuple(labels),
        tuple(n // CLASSES % 4 for n in range(CLIPS)),
        False,
        0,
    )


def drawn(clips: Clips, noise: float, seed: int = 0, dims: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, dims, generator=torch.Generator().manual_seed(9))
    label = clips.label_numbers[clips.clip]
    return centres[label] + noise * torch.randn(len(label), dims, generator=generator)


def test_a_clear_representation_scores_all_and_noise_scores_chance(made: Clips) -> None:
    clear, nothing = judge(drawn(made, 0.1), made), judge(drawn(made, 1e4), made)
    assert clear.keys() == FIGURES.keys()
    for name in SHARES:
        assert clear[name]["mean"] == 1.0, name
        assert nothing[name]["mean"] < 0.5, name
        assert set(clear[name]["folds"]) == {"0", "1", "2", "3"}
    assert clear["effective_rank"] < nothing["effective_rank"]
    assert clear["alignment"] < nothing["alignment"]
    assert "probe_windows" not in judge(drawn(made, 0.1), made, windows=False)


def test_no_label_of_the_judged_fold_is_learned_from(made: Clips) -> None:
    # Each clip's own number tells its class only to a probe that has seen the clip.
    private = F.one_hot(made.clip, CLIPS).float()
    assert judge(private, made, windows=False)["probe"]["mean"] <= 0.3


def test_space_knows_a_collapsed_representation(made: Clips) -> None:
    same = torch.ones(len(made.clip), 8) + 1e-9
    assert space(same, made) == {
        "uniformity": 0.0,
        "alignment": 0.0,
        "effective_rank": 0.0,
        "mean_norm": 1.0,
        "dimensions": 8,
    }


def test_joining_brings_what_only_one_part_knows(made: Clips) -> None:
    first, second = drawn(made, 0.1), 1000 * drawn(made, 0.1, dims=7)
    blind = torch.randn(len(made.clip), 16, generator=torch.Generator().manual_seed(3))
    assert joined(first, second).shape == (len(made.clip), 23)
    assert judge(joined(blind, second), made, windows=False)["probe"]["mean"] > 0.9
    squares = joined(first, second).square()
    assert float(squares[:, :16].sum(1).mean()) == pytest.approx(float(squares[:, 16:].sum(1).mean()))


def test_uncertainty_that_knows_the_errors_recovers_them_first(made: Clips) -> None:
    dense = F.normalize(drawn(made, 0.05), dim=1)
    lost = torch.arange(len(dense)) % 10 == 0
    lite = torch.where(lost[:, None], F.normalize(-dense + 0.3 * torch.randn(dense.shape), dim=1), dense)
    judged = judge_uncertainty({"lite": lite, "dense": dense}, made)
    assert judged["dense"]["mean"] > judged["lite"]["mean"] + 0.05
    assert judged["wrong_and_mended"] == pytest.approx(
        judged["dense"]["mean"] - judged["lite"]["mean"], abs=0.03
    )
    assert judged["disagreement"] == pytest.approx(float(1 - (lite * dense).sum(1).mean()), abs=1e-3)
    assert 0.0 <= judged["calibration_error"] < judged["disagreement"]
    assert judged["signals"]["disagreement"]["auroc"] > 0.95
    assert judged["signals"]["disagreement"]["recovered"] > 0.9
    assert judged["signals"]["predicted change"]["auroc"] > 0.9
    assert judged["signals"]["predicted change"]["recovered"] > 0.7
    by_chance = judged["signals"]["random"]
    assert (by_chance["auroc"], by_chance["recovered"]) == (0.5, pytest.approx(0.2, abs=0.003))
    assert 0.0 < by_chance["spread"] < 0.2
    turned = judge_uncertainty({"lite": lite, "dense": dense.roll(1, 1)}, made)["heads"]
    heads = judged["heads"]
    assert turned["dense"]["mean"] == pytest.approx(heads["dense"]["mean"], abs=0.02), "a head for each path"
    assert heads["dense"]["mean"] > heads["lite"]["mean"] + 0.05
    assert heads["wrong_and_mended"] == pytest.approx(
        heads["dense"]["mean"] - heads["lite"]["mean"], abs=0.03
    )
    assert heads["signals"]["disagreement"]["recovered"] > 0.9
    nothing = judge_uncertainty({"lite": dense, "dense": dense}, made)
    assert nothing["signals"]["disagreement"]["recovered"] is None
    assert nothing["heads"]["signals"]["disagreement"]["recovered"] is None
    assert nothing["heads"]["wrong_and_mended"] == nothing["heads"]["spoilt"] == 0.0


def test_where_classes_are_too_small_for_heads_nothing_is_judged_by_them(made: Clips) -> None:
    dense = F.normalize(drawn(made, 0.05), dim=1)
    lonely = replace(made, labels=tuple(str(place) for place in range(CLIPS)))
    judged = judge_uncertainty({"lite": dense, "dense": dense}, lonely)
    assert judged["heads"] is None
    assert judged["lite"]["mean"] == 0.0, "no clip's class is in another fold"


def test_what_labels_taught_is_unsure_of_windows_that_are_like_no_class(made: Clips) -> None:
    dense = F.normalize(drawn(made, 0.05), dim=1)
    lost = torch.arange(len(dense)) % 10 == 0
    noise = torch.randn(dense.shape, generator=torch.Generator().manual_seed(4))
    blurred = F.normalize(dense.mean(0) + 0.05 * noise, dim=1)
    judged = judge_uncertainty({"lite": torch.where(lost[:, None], blurred, dense), "dense": dense}, made)
    signals, by_heads = judged["signals"], judged["heads"]["signals"]
    assert signals["head entropy"]["auroc"] > 0.8
    assert signals["head margin"]["auroc"] > 0.8
    assert by_heads["head margin"]["auroc"] > 0.7
    assert by_heads["head margin"]["recovered"] > 0.5
    assert by_heads["head change"]["recovered"] > 0.7
    assert by_heads["head change"]["auroc"] > 0.7
    assert 0.0 <= signals["component classes"]["auroc"] <= 1.0
    assert signals["posterior entropy"]["auroc"] > 0.55


def test_folds_count_alike_and_what_cannot_be_asked_counts_nowhere() -> None:
    folds = torch.tensor([1, 1, 1, 2])
    said = by_fold(torch.tensor([1.0, 0.0, torch.nan, 1.0]), folds)
    assert said == {"mean": 0.75, "spread": pytest.approx(0.3536), "folds": {"1": 0.5, "2": 1.0}}
    over = spread_over([{"probe": {"mean": 0.5}, "rank": 20.0}, {"probe": {"mean": 0.7}, "rank": 22.0}])
    assert over["probe"] == {"mean": pytest.approx(0.6), "spread": pytest.approx(0.1414), "seeds": 2}
    assert over["rank"]["mean"] == 21.0


def test_an_encoder_is_judged_by_every_path_embedded_and_pooled() -> None:
    clips = gather_clips(tracks_of(2)[:24:3], COMPACT_FRONT_END)
    encoder = resolve("compact").encoder
    done: list[tuple[int, int]] = []
    represented = represent(encoder, clips, lambda *at: done.append(at))
    assert {name: z.shape[1] for name, z in represented.items()} == {
        "dense": 128, "dense pooled": 512, "squeezed": 128, "squeezed pooled": 512, "lite": 128, "lite pooled": 256,
    }  # fmt: skip
    assert done[-1] == (len(clips.clip), len(clips.clip))
    with torch.no_grad():
        torch.testing.assert_close(
            represented["lite"][-3:], encoder.embeddings(clips.mel(slice(-3, None)))["lite"]
        )
    assert {name: z.shape[1] for name, z in floors(clips).items()} == {
        "mean log-mel": 64,
        "mel statistics": 256,
    }
