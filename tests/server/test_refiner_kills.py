"""A refiner that is stopped, killed or started twice comes to what it would have come to."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from itertools import chain, repeat
from pathlib import Path

import pytest

from streamsplit.config import RefinerSettings, ServerSettings
from streamsplit.encoders.checkpoint import save
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.learning.progress import load_progress
from streamsplit.learning.replay import FeatureReplay
from streamsplit.server.refiner import PROGRESS, REPLAY, run
from streamsplit.server.refiner_log import read_status
from streamsplit.server.refining import command
from tests.server.rounds import lines, more, process, scalars


def test_a_training_that_was_stopped_comes_to_the_same_candidate(
    settings: RefinerSettings, compact: Version, heard: list[BufferedWindow], tmp_path: Path
) -> None:
    whole = process(settings, compact)
    whole.turn()
    other = settings.model_copy(update={"state_dir": tmp_path / "other"})
    with FeatureReplay(other.state_dir / REPLAY) as replay:
        replay.add(heard)
    asked = chain([False] * 3, repeat(True))
    process(other, compact, stop=lambda: next(asked)).turn()  # two steps were saved, a third is lost
    assert load_progress(other.state_dir / PROGRESS).step == 2
    process(other, compact).turn()
    assert lines(other)[0]["candidate"] == lines(settings)[0]["candidate"]


def test_a_kill_right_after_publishing_is_found_out(
    settings: RefinerSettings, compact: Version, heard: list[BufferedWindow]
) -> None:
    subject = process(settings, compact)
    subject.turn()
    before = load_progress(settings.state_dir / PROGRESS)
    more(settings, heard)
    subject._close_round = lambda outcome: None  # type: ignore[method-assign]
    subject.turn()
    after = load_progress(settings.state_dir / PROGRESS)
    assert after.settings["standing"]["candidate"]
    assert after.pool == before.pool
    again = process(settings, compact)
    assert again.standing.published == 2
    assert not again.standing.open
    assert again._base.id == after.settings["standing"]["candidate"]
    assert again._refiner.done == 8


def test_a_refiner_that_is_killed_again_and_again_publishes_all_the_same(
    settings: RefinerSettings, compact: Version, tmp_path: Path
) -> None:
    save(compact, tmp_path / "v.safetensors")
    server = ServerSettings(
        weights=(str(tmp_path / "v.safetensors"),),
        refiner=settings.model_copy(update={"round_steps": 30, "checkpoint_steps": 3, "nice": 0}),
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    progress = settings.state_dir / PROGRESS
    steps = []
    for kill in (True, True, False):
        child = subprocess.Popen(command(server), stdin=subprocess.PIPE, env=environment)
        try:
            begun = load_progress(progress).step if progress.exists() else 0
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                if kill and progress.exists() and load_progress(progress).step >= begun + 6:
                    break
                if not kill and (settings.state_dir / "log.jsonl").exists():
                    break
                assert child.poll() is None, "the refiner died by itself"
                time.sleep(0.05)
            steps.append(load_progress(progress).step)
        finally:
            if kill:
                child.send_signal(signal.SIGKILL)
            else:
                assert child.stdin is not None
                child.stdin.close()  # as when the server dies
            child.wait(30)
            if child.stdin is not None:
                child.stdin.close()
    assert child.returncode == 0
    assert 6 <= steps[0] < steps[1] <= steps[2] == 30
    (line,) = lines(settings)
    assert line["outcome"] == "published"
    told = read_status(settings.state_dir)
    assert told is not None
    assert (told["state"], told["running"]) == ("stopped", False)
    curves = scalars(settings.state_dir)
    assert curves.keys() >= {
        f"refiner/{name}" for name in ("total", "task", "spread", "smoothness", "gradient")
    }
    assert {name: steps for name, steps in curves.items() if steps != list(range(1, 31))} == {}


def test_a_second_refiner_is_turned_away(settings: RefinerSettings, compact: Version, tmp_path: Path) -> None:
    save(compact, tmp_path / "v.safetensors")
    server = ServerSettings(weights=(str(tmp_path / "v.safetensors"),), refiner=settings)

    def second() -> bool:
        with pytest.raises(ConfigError, match="another refiner"):
            run(server, lambda: True)
        return True

    run(server, second)
