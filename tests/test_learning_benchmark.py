"""The comparison of learning systems: gaps have the right sign, rows are made once, a cached set is the set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="needs the extra `train`")

from benchmarks import learning
from benchmarks.learning_data import conditions, hear
from streamsplit.encoders.registry import make_untrained
from streamsplit.encoders.version import Version


def row(system: str, seed: int, probe: float, knn: float = 0.5) -> dict[str, Any]:
    share = {"mean": probe}
    figures = {"probe": share, "probe_mean_std": share, "knn": {"mean": knn}, "effective_rank": 30.0}
    return {
        "set": "made", "system": system, "seed": seed, "seconds": 1.0, "uncertainty": None,
        "representations": {"lite": figures},
    }  # fmt: skip


def test_a_gap_is_how_many_points_a_system_is_behind_the_references_mean() -> None:
    rows = [
        row("large-batch", 0, 0.80),
        row("large-batch", 1, 0.84),
        row("edge", 0, 0.79, knn=0.54),
        row("edge", 1, 0.83),
    ]
    edge = learning.summarise(rows)["sets"]["made"]["edge"]
    assert edge["over_seeds"]["lite"]["gap_points"] == pytest.approx(1.0)
    assert edge["over_seeds"]["lite"]["probe"] == {"mean": 0.81, "spread": pytest.approx(0.0283), "seeds": 2}
    assert edge["seeds"]["1"]["gap_points"]["lite"] == pytest.approx(-1.0)
    assert edge["over_seeds"]["lite"]["knn_gap_points"] == pytest.approx(-2.0)
    assert edge["seeds"]["0"]["knn_gap_points"]["lite"] == pytest.approx(-4.0)
    assert (
        learning.summarise([row("edge", 0, 0.7)])["sets"]["made"]["edge"]["over_seeds"]["lite"]["gap_points"]
        is None
    )


def test_a_row_is_made_once_for_its_sounds_and_seed(tmp_path: Path) -> None:
    made: list[int] = []

    def counted(task: learning.Task) -> Version:
        made.append(task.seed)
        task.update(task.pairs, task.pairs)
        return make_untrained("compact", task.seed)

    heard = hear("made", None, None, True, tmp_path / "cache")
    again = hear("made", None, None, True, tmp_path / "cache")
    assert again.pool.fingerprint == heard.pool.fingerprint
    assert np.array_equal(again.clips.features, heard.clips.features)
    assert torch.equal(again.clips.clip, heard.clips.clip)
    assert again.clips.folds == heard.clips.folds

    def one(seed: int, pairs: int) -> dict[str, Any]:
        work = learning._work(tmp_path, heard, "counted", counted, seed, pairs)
        return learning._row(tmp_path, heard, "counted", seed, pairs, work)

    first = one(3, 16)
    assert one(3, 16) == first
    assert made == [3]
    assert {"lite", "dense pooled", "lite + mel statistics"} <= set(first["representations"])
    one(3, 32)
    one(4, 16)
    assert made == [3, 3, 4]


def test_a_manifest_that_marks_esc10_is_two_sets(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text("path,label,fold,esc10\na.wav,dog,1,1\n")
    assert conditions(manifest, quick=False) == {"esc10": "esc10=1", "esc50": None}
    assert conditions(manifest, quick=True) == {"esc10": "esc10=1"}
    manifest.write_text("path,label\na.wav,dog\n")
    assert conditions(manifest, quick=False) == {"m": None}
    assert conditions(None, quick=False) == {"made": None}


@pytest.mark.timeout(600)
def test_a_quick_comparison_runs_the_whole_product_and_its_refiner(tmp_path: Path) -> None:
    summary = learning.run(tmp_path, seed=0, quick=True, only=["streaming"])["sets"]["made"]
    own = summary["streaming"]["seeds"]["0"]
    for figure in ("probe", "gap_points", "effective_rank"):
        assert {"lite", "dense", "lite pooled", "device lite"} <= set(own[figure])
    row = json.loads((tmp_path / "rows" / "made-streaming-0.json").read_text())
    # The last round has at least 1,024 audible windows, so 7 held-out stretches or more: enough to judge by, whatever the stream's name.
    assert row["rounds"][-1]["outcome"] in {"published", "refused"}, row["rounds"]
    assert row["refiner_pairs"] > 0
    assert row["edge_pairs"] > 0
