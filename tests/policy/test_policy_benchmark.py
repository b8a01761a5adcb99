"""The benchmark of policies: what counts as a win, what its tables say, that several policies fly the same worlds."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.policy import compared, flown_by, markdown, named, wins
from benchmarks.policy_signals import ranked
from streamsplit.policy.learned import SHIPPED_POLICY
from streamsplit.policy.scenarios import make_worlds, shipped_scenarios


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
def table() -> dict[str, Any]:
    learners = {name: flown_by(weights) for name, weights in named([SHIPPED_POLICY]).items()}
    made = [make_worlds([shipped_scenarios()["wifi-idle"]], seeds, 60) for seeds in ([1, 2], [1])]
    return {"made": compared(made[0], made[1], learners, 0)}


def test_another_policy_flies_beside_the_shipped_one_in_the_same_worlds(table: dict[str, Any]) -> None:
    row = table["made"]
    assert row["leads"]["learned"]["shipped"] == {"mean": 0.0, "interval": [0.0, 0.0]}
    assert row["systems"]["learned"] == row["systems"]["shipped"]
    assert set(row["leads"]["learned"]) >= {"best_fixed", "greedy_profile", "heuristic", "oracle"}
    assert row["leads"]["learned"]["oracle"]["mean"] <= 0.0


def test_the_tables_have_a_row_of_returns_and_one_of_leads_for_each_policy(table: dict[str, Any]) -> None:
    said = markdown(table, ["learned", "shipped"])
    assert said.count("| made |") == 3
    assert "| learned less | best_fixed | greedy_profile | heuristic |" in said
