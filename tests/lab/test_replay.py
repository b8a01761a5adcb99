"""Replay as a user runs it: in processes of their own, some of them killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from streamsplit.audio.features import LogMel
from streamsplit.audio.synth import write_clips
from streamsplit.client.journal import read
from streamsplit.encoders.registry import resolve
from streamsplit.server.query import embed_recording
from streamsplit.server.store import EmbeddingStore

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 made clips of five seconds with a manifest: 120 windows."""
    folder = tmp_path_factory.mktemp("clips")
    write_clips(folder, per_kind=2, seed=0)
    return folder


def streamsplit(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamsplit", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=150, check=False)
    assert not check or done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def started(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "streamsplit", *map(str, arguments)]
    return subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def summary(out: Path) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return made


def without_measurements(out: Path) -> list[dict[str, Any]]:
    """Signals left out: the order in which a memory hears windows is that of the answers."""
    return [
        {key: value for key, value in record.items() if key != "measured"}
        for record in read(out / "journal.jsonl")
        if record.get("kind") != "signals"
    ]


def wait_for(path: Path, lines: int) -> None:
    deadline_s = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_two_replays_with_one_seed_differ_only_in_what_was_measured(clips: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        command = ("replay", clips, "--decider", "heuristic", "--seed", 7, "--device", "kitchen")
        streamsplit(*command, "--out", tmp_path / name)
    one, two = summary(tmp_path / "one"), summary(tmp_path / "two")
    assert (one["windows"], one["stored"], one["lost"], one["duplicated"]) == (120, 120, 0, 0)
    assert len(one["splits"]) > 1
    assert one["digest"] == two["digest"]
    assert without_measurements(tmp_path / "one") == without_measurements(tmp_path / "two")
    assert devices(tmp_path / "one") == devices(tmp_path / "two") == {"kitchen"}


def devices(out: Path) -> set[str]:
    return {row.device for row in EmbeddingStore(out / "embeddings.db", read_only=True).iterate()}


def test_stored_embeddings_are_those_of_a_direct_forward_pass_within_the_codec(
    clips: Path, tmp_path: Path
) -> None:
    streamsplit(
        "replay", clips / "manifest.csv", "--split", 1, "--codec", "fp32", "--limit", 3, "--out", tmp_path
    )
    version = resolve("compact")
    rows = list(EmbeddingStore(tmp_path / "embeddings.db", read_only=True).iterate())
    for source in {row.source for row in rows}:
        direct = embed_recording(version, clips / str(source))[:, 0]
        stored = np.stack([row.embedding for row in rows if row.source == source])
        np.testing.assert_allclose(stored, direct, atol=1e-5)
        assert {row.label for row in rows if row.source == source} == {str(source).split("/")[0]}
    (device,) = {row.device for row in rows}
    assert device.startswith("replay-"), "a device that nobody named has a name of the run's own"


def test_a_client_killed_again_and_again_finishes_with_nothing_missing_or_doubled(
    clips: Path, tmp_path: Path
) -> None:
    command = ("replay", clips, "--decider", "heuristic", "--speed", 60, "--out", tmp_path / "killed")
    for kill_after in (10, 40, 80):
        process = started(*command)
        wait_for(tmp_path / "killed" / "journal.jsonl", kill_after)
        process.send_signal(signal.SIGKILL)
        process.wait()
    streamsplit(*command)
    streamsplit(*command[:-1], tmp_path / "whole")
    killed, whole = summary(tmp_path / "killed"), summary(tmp_path / "whole")
    assert (killed["windows"], killed["stored"], killed["lost"], killed["duplicated"]) == (120, 120, 0, 0)
    assert killed["attempts"] == 4
    assert killed["digest"] == whole["digest"]


def test_a_server_killed_in_the_middle_is_survived(clips: Path, tmp_path: Path, unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    serve = ("server", "--listen", address, "--store", tmp_path / "store.db")
    server = started(*serve, "--port-file", tmp_path / "port")
    wait_for_file(tmp_path / "port")
    replay = started(
        "replay", clips, "--split", 3, "--speed", 40, "--server", address, "--out", tmp_path / "out"
    )
    for lines in (15, 60):
        wait_for(tmp_path / "out" / "journal.jsonl", lines)
        server.kill()
        server.wait()
        server = started(*serve)
    assert replay.wait(timeout=120) == 0
    server.terminate()
    assert server.wait(timeout=20) == 0
    made = summary(tmp_path / "out")
    assert (made["windows"], made["acknowledged"], made["lost"]) == (120, 120, 0)
    rows = list(EmbeddingStore(tmp_path / "store.db", read_only=True).iterate())
    assert sorted(row.sequence for row in rows) == list(range(120))


def wait_for_file(path: Path) -> None:
    deadline_s = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_bad_recordings_are_skipped_and_recorded_and_the_rest_is_heard(tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    tone = np.sin(np.arange(48_000) / 20).astype(np.float32) * 0.1
    soundfile.write(sounds / "good.wav", tone, 16_000)
    soundfile.write(sounds / "eight.wav", np.tile(tone[:, None], (12, 8)), 192_000, subtype="PCM_24")
    soundfile.write(sounds / "empty.wav", tone[:0], 16_000)
    with_nan = tone.copy()
    with_nan[20_000] = np.nan
    soundfile.write(sounds / "nan.wav", with_nan, 16_000, subtype="FLOAT")
    (sounds / "text.wav").write_text("this is not audio")
    soundfile.write(sounds / "whole.flac", tone, 16_000)
    (sounds / "cut.flac").write_bytes((sounds / "whole.flac").read_bytes()[:4000])
    (sounds / "list.csv").write_text(
        "path,label\ngood.wav,tone\ngone.wav,tone\ntext.wav,\nempty.wav,\nnan.wav,\neight.wav,\ncut.flac,\n"
    )
    done = streamsplit("replay", sounds / "list.csv", "--split", 3, "--out", tmp_path / "out")
    made = summary(tmp_path / "out")
    skipped = {
        record["source"] for record in read(tmp_path / "out" / "journal.jsonl") if record["kind"] == "skip"
    }
    assert {"gone.wav", "text.wav", "empty.wav"} <= skipped
    assert made["lost"] == 0
    assert made["gaps"] == 1
    heard = {
        record["source"] for record in read(tmp_path / "out" / "journal.jsonl") if record["kind"] == "window"
    }
    assert {"good.wav", "eight.wav", "nan.wav"} <= heard
    assert "gone.wav" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("replay", "nowhere"), "nowhere"),
        (("replay", "SOUNDS", "--split", "9"), "0 .features. to 4"),
        (("replay", "SOUNDS", "--decider", "magic"), "fixed:K, heuristic"),
        (("replay", "SOUNDS", "--split", "3", "--decider", "heuristic"), "give one of them"),
        (("replay", "SOUNDS", "--codec", "int2"), "codec = 'int2'"),
        (("replay", "SOUNDS", "--encoder", "vgg"), "compact"),
        (("replay", "SOUNDS", "--encoder", "clap"), "untrained"),
        (("replay", "SOUNDS", "--weights", "no.safetensors"), "no.safetensors"),
        (("replay", "SOUNDS", "--server", "nowhere"), "HOST:PORT"),
        (("replay", "SOUNDS", "--server", "192.0.2.1:1"), "TLS is required"),
        (("replay", "SOUNDS", "--speed", "-1"), "positive"),
        (("replay", "SOUNDS", "--split", "audio"), "--send-audio|send_audio"),
        (("server", "--listen", "0.0.0.0:0"), "needs TLS"),
        (("server", "--store", "/proc/none/store.db"), "/proc/none"),
        (("search", "1", "--store", "nowhere.db"), "nowhere.db"),
        (("export", "x.parquet", "--store", "nowhere.db"), "nowhere.db"),
        (("replay", "SOUNDS", "--no-such-option"), "no-such-option"),
        (("replay", "a[/b].wav"), r"a\[/b\].wav"),
        (("demo", "--out", "/proc/none"), "/proc/none"),
    ],
)
def test_a_users_mistake_is_one_line_and_a_status(
    clips: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    import re

    words = [str(clips) if word == "SOUNDS" else word for word in arguments]
    out = ("--out", tmp_path / "out") if words[0] == "replay" else ()
    done = streamsplit(*words, *out, check=False)
    assert done.returncode in (1, 2)
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(told, last), done.stderr


def test_files_that_no_replay_left_are_not_touched(clips: Path, tmp_path: Path) -> None:
    (tmp_path / "embeddings.db").write_bytes(b"mine")
    done = streamsplit("replay", clips, "--out", tmp_path, check=False)
    assert done.returncode == 1
    assert (tmp_path / "embeddings.db").read_bytes() == b"mine"


def test_a_replay_that_hears_nothing_says_so_and_fails(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    done = streamsplit("replay", tmp_path / "text.wav", "--out", tmp_path / "out", check=False)
    assert done.returncode == 1
    assert "none of 1 recordings" in done.stderr


def test_a_stopped_replay_says_so_by_its_status(clips: Path, tmp_path: Path) -> None:
    process = started("replay", clips, "--split", 3, "--speed", 5, "--out", tmp_path)
    wait_for(tmp_path / "journal.jsonl", 2)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 1


def test_an_unfinished_replay_with_other_settings_is_not_overwritten(clips: Path, tmp_path: Path) -> None:
    process = started("replay", clips, "--split", 3, "--speed", 5, "--out", tmp_path)
    wait_for(tmp_path / "journal.jsonl", 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 1
    done = streamsplit("replay", clips, "--split", 2, "--out", tmp_path, check=False)
    assert done.returncode == 1
    assert "unfinished replay with other settings (decider)" in done.stderr


def test_a_clip_finds_itself_and_the_store_exports(clips: Path, tmp_path: Path) -> None:
    import pyarrow.parquet

    streamsplit("replay", clips, "--split", 1, "--codec", "int8", "--out", tmp_path)
    clip = "siren/siren_0001.wav"
    found = streamsplit("search", clips / clip, "--store", tmp_path / "embeddings.db", "--json")
    assert json.loads(found.stdout)["sources"][0]["source"] == clip
    streamsplit("export", tmp_path / "all.parquet", "--store", tmp_path / "embeddings.db")
    assert pyarrow.parquet.read_table(tmp_path / "all.parquet").num_rows == 120


def test_features_of_silence_are_embedded_like_any_other(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(32_000, np.float32), 16_000)
    streamsplit("replay", tmp_path / "silence.wav", "--split", 3, "--out", tmp_path / "out")
    (row, *_) = EmbeddingStore(tmp_path / "out" / "embeddings.db", read_only=True).iterate()
    version = resolve("compact")
    with torch.inference_mode():
        assert torch.isfinite(LogMel(version.front_end)(torch.zeros(1, 15_360))).all()
    assert np.isfinite(row.embedding).all()
