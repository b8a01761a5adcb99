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
SOUND = ("synth:0.02", "--steps", "8")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "streamsplit", "train", *map(str, arguments)]


def train(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=150, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_weights_come_with_a_summary_and_a_killed_training_resumes_to_the_same(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    said = train(*SOUND, "--out", whole / "w.safetensors").stdout
    figures = json.loads((whole / "summary.json").read_text())
    version = resolve("compact", str(whole / "w.safetensors"))
    assert version.trained
    assert version.note == "streamsplit train synth:0.02 --encoder compact --steps 8 --seed 0"
    assert figures["version"] == version.id
    assert version.id in said
    assert figures["steps"] == 8
    assert sorted(path.name for path in whole.iterdir()) == ["summary.json", "w.safetensors"]

    again = (*SOUND, "--checkpoint-steps", 2, "--out", killed / "w.safetensors")
    process = subprocess.Popen(command(*again), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 60
    while not (killed / "w.safetensors.unfinished").exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "going on after step" in train(*again, "--resume").stderr
    assert (killed / "w.safetensors").read_bytes() == (whole / "w.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nowhere",), "nowhere: no such file or folder"),
        (("synth:x",), "synth:HOURS"),
        (("SECOND",), "at least 8 stretches"),
        (("synth:1", "--encoder", "clap"), "compact, cola, mobile or resnet18"),
        (("synth:1", "--steps", "0"), "train steps"),
        (("synth:1", "--compute", "abacus"), "cpu, or cuda"),
        (("synth:1", "--out", "no/such/w.safetensors"), "is no folder"),
    ],
)
def test_a_users_mistake_is_one_line_and_a_status(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    soundfile.write(tmp_path / "second.wav", np.full(16_000, 0.1, np.float32), 16_000)
    words = [str(tmp_path / "second.wav") if word == "SECOND" else word for word in arguments]
    out = () if "--out" in arguments else ("--out", tmp_path / "w.safetensors")
    done = train(*words, *out, check=False)
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
