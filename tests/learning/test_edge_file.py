"""An edge learner goes on from its file to the same bits, also after a kill, and from no other file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, StorageError
from streamsplit.learning.edge import EdgeLearner
from streamsplit.learning.shadow import Norms
from tests.learning.learners import (
    SMALL,
    hear,
    same,
    scenario,
    work_on,
)


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
from tests.learning.learners import scenario, work_on
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
