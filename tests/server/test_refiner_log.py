"""What the refiner tells TensorBoard: every step once, whatever ended the process that told it first."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from streamsplit.server.refiner_log import RefinerLog
from tests.server.rounds import scalars


def told(folder: Path, steps: Iterable[int]) -> RefinerLog:
    log = RefinerLog(folder, lambda: 0, lambda: 0.0)
    for step in steps:
        log.scalars({"refiner/total": 1.0 / step}, step)
    return log


def test_steps_repeated_after_a_kill_are_drawn_once(tmp_path: Path) -> None:
    told(tmp_path, range(1, 6)).flush()  # killed at step 5; its progress was kept at step 3
    told(tmp_path, range(4, 9)).close()
    assert scalars(tmp_path) == {"refiner/total": [1, 2, 3, 4, 5, 6, 7, 8]}


def test_a_log_that_has_no_step_to_tell_takes_nothing_back(tmp_path: Path) -> None:
    told(tmp_path, range(1, 4)).close()
    idle = told(tmp_path, ())
    idle.flush()
    idle.close()
    assert scalars(tmp_path) == {"refiner/total": [1, 2, 3]}
