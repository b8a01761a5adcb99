"""`streamsplit train` as a user runs it: weights that other commands take, a summary, a kill, mistakes in one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamsplit.encoders.registry import resolve

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
SOUND = ("synth:0.02", "--steps", "4")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "streamsplit", "train", *map(str, arguments)]


def train(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=150, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_a_folder_gets_weights_summary_and_events_and_a_killed_training_goes_on_to_the_same(
    tmp_path: Path,
) -> None:
    whole, killed = tmp_path / "new" / "whole", tmp_path / "killed"
    said = train(*SOUND, "--quick", "--out", whole).stdout
    figures = json.loads((whole / "summary.json").read_text())
    version = resolve("compact", str(whole / "compact.safetensors"))
    assert version.trained
    assert version.note == "streamsplit train synth:0.02 --encoder compact --steps 4 --seed 0 --quick"
    assert (figures["encoder"], figures["weights"], figures["quick"]) == (
        "compact",
        "compact.safetensors",
        True,
    )
    assert figures["version"] == version.id
    assert version.id in said
    assert figures["steps"] == 4
    assert steps_logged(whole) == list(range(1, 5))
    assert sorted(path.name for path in whole.iterdir()) == [
        "compact.safetensors", "curves.png", "events", "summary.json",
    ]  # fmt: skip

    again = (*SOUND, "--quick", "--checkpoint-steps", 2, "--out", killed)
    process = subprocess.Popen(command(*again), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 60
    while not (killed / "progress.safetensors").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    other = train(*SOUND, "--quick", "--seed", 1, "--out", killed, check=False)
    assert other.returncode == 1
    assert "was trained with other settings (seed)" in other.stderr
    assert "going on after step" in train(*again).stderr
    assert (killed / "compact.safetensors").read_bytes() == (whole / "compact.safetensors").read_bytes()
    assert steps_logged(killed)[-1] == 4


def steps_logged(folder: Path) -> list[int]:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="wants the extra `train`"
    )
    events = accumulator.EventAccumulator(str(folder / "events")).Reload()
    return [scalar.step for scalar in events.Scalars("loss/total")]


def test_weights_that_no_training_left_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "compact.safetensors").write_bytes(b"mine")
    done = train(*SOUND, "--out", tmp_path, check=False)
    assert done.returncode == 1
    assert "which no training left there" in done.stderr
    assert (tmp_path / "compact.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere",), "nowhere: no such file or folder"),
        (("synth:x",), "synth:HOURS"),
        (("SECOND",), "at least 8 stretches"),
        (("synth:1", "--encoder", "clap"), "compact, cola, mobile or resnet18"),
        (("synth:1", "--steps", "0"), "train steps"),
        (("synth:1", "--compute", "abacus"), "cpu, or cuda"),
        (("synth:1", "--out", "w.safetensors"), "expected a folder"),
        (("synth:1", "--out", "/proc/none"), "/proc/none: cannot be made"),
    ],
)
def test_a_users_mistake_is_one_line_and_a_status(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    soundfile.write(tmp_path / "second.wav", np.full(16_000, 0.1, np.float32), 16_000)
    words = [str(tmp_path / "second.wav") if word == "SECOND" else word for word in arguments]
    out = () if "--out" in arguments else ("--out", tmp_path / "out")
    done = train(*words, *out, check=False)
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
