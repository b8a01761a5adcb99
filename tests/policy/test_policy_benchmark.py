"""The benchmark of policies: what counts as a win, what its tables say, that several policies fly the same worlds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.policy import markdown, run, wins
from benchmarks.policy_signals import ranked
from streamsplit.policy.learned import SHIPPED_POLICY


def lead(low: float, high: float) -> dict[str, Any]:
    return {"mean": (low + high) / 2, "interval": [low, high]}


def test_a_win_has_its_whole_interval_above_nought() -> None:
    table = {
        "a": {"leads": {"learned": {"best_fixed": lead(0.1, 0.2), "greedy_profile": lead(0.1, 0.3)}}},
        "b": {"leads": {"learned": {"best_fixed": lead(-0.1, 0.2), "greedy_profile": lead(0.1, 0.3)}}},
        "c": {"leads": {"learned": {"best_fixed": lead(-0.2, -0.1), "greedy_profile": lead(-0.1, 0.1)}}},
    }
    assert wins(table, "learned") == {
        "best_fixed": {"above": 1, "below": 1},
        "greedy_profile": {"above": 2, "below": 0},
        "both": ["a"],
        "scenarios": 3,
    }


def test_correlation_of_ranks() -> None:
    assert ranked([1.0, 2.0, 3.0], [1.0, 10.0, 1000.0]) == 1.0
    assert ranked([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == -1.0


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("bench")
    said = run(folder, 0, True, policies=[SHIPPED_POLICY], only=("wifi-idle",))
    return said, (folder / "table.md").read_text()


def test_another_policy_flies_beside_the_shipped_one_in_the_same_worlds(
    figures: tuple[dict[str, Any], str],
) -> None:
    row = figures[0]["scenarios"]["wifi-idle"]
    assert row["leads"]["learned"]["shipped"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    assert row["systems"]["learned"] == row["systems"]["shipped"]
    assert set(row["leads"]["learned"]) >= {"best_fixed", "greedy_profile", "heuristic", "oracle"}
    assert row["systems"]["oracle"]["return"]["mean"] >= row["systems"]["learned"]["return"]["mean"]


def test_the_table_has_a_row_of_returns_and_one_of_leads_for_each_policy(
    figures: tuple[dict[str, Any], str],
) -> None:
    said, table = figures
    assert table == markdown(said["scenarios"], ["learned", "shipped"])
    assert table.count("| wifi-idle |") == 3
    assert "| learned less | best_fixed | greedy_profile | heuristic |" in table
