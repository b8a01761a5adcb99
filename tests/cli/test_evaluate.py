"""`streamsplit eval` as a user runs it: figures, pictures, a table, mistakes in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from streamsplit.audio.synth import make_clip
from streamsplit.cli import app
from streamsplit.errors import ConfigError
from streamsplit.learning.evaluation import FIGURES
from streamsplit.policy.quality import load_quality

for needed in ("sklearn", "matplotlib"):
    pytest.importorskip(needed, reason="needs the extra `train`")

KINDS = ("bell", "engine", "siren")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six clips of each of three kinds, one folder per kind, and manifests of them."""
    folder = tmp_path_factory.mktemp("sounds")
    rows = ["path,label,fold,source_id,first"]
    for place, kind in enumerate(KINDS):
        (folder / kind).mkdir()
        for n in range(6):
            soundfile.write(folder / kind / f"{n}.wav", make_clip(kind, 10 * place + n, 2.0), 16_000)
            rows.append(f"{kind}/{n}.wav,{kind},{n % 3},s{n},{int(place < 2)}")
    (folder / "folds.csv").write_text("\n".join(rows))
    (folder / "bare.csv").write_text("\n".join(",".join(row.split(",")[:2]) for row in rows))
    (folder / "unlabelled.csv").write_text("\n".join(row.split(",")[0] for row in rows))
    (folder / "one.csv").write_text(
        "\n".join(row for row in rows if "engine" not in row and "siren" not in row)
    )
    return folder


def run(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "streamsplit", "eval", *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=150, check=False)
    assert not check or done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_named_weights_stand_beside_floors_with_every_figure(sounds: Path, tmp_path: Path) -> None:
    weights = ("--weights", "mine=untrained:3", "--weights", "untrained:4")
    said = run(sounds / "folds.csv", *weights, "--where", "first=1", "--out", tmp_path, "--seed", 4)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["clips"], summary["classes"], summary["folds"]) == (12, 2, [0, 1, 2])
    assert not summary["made_folds"]
    assert list(summary["systems"]) == ["mine", "untrained:4", "random", "floor"]
    mine = summary["systems"]["mine"]["representations"]
    assert set(mine) == {
        "dense", "dense pooled", "squeezed", "squeezed pooled", "lite", "lite pooled",
        "dense + mel statistics", "squeezed + mel statistics", "lite + mel statistics",
    }  # fmt: skip
    for figures in mine.values():
        assert figures.keys() == FIGURES.keys()
        assert set(figures["probe"]["folds"]) == {"0", "1", "2"}
    assert set(summary["systems"]["floor"]["representations"]) == {"mean log-mel", "mel statistics"}
    assert set(summary["systems"]["mine"]["uncertainty"]["signals"]) >= {"disagreement", "entropy", "random"}
    other, random = (summary["systems"][name] for name in ("untrained:4", "random"))
    assert other["version"] == random["version"] != summary["systems"]["mine"]["version"]
    assert other["representations"]["lite"] == random["representations"]["lite"]
    for picture in ("bars.png", "maps.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    assert "lite + mel statistics" in said.stdout
    assert "folds given" not in said.stderr


def test_without_folds_it_makes_them_and_folders_are_labels_too(sounds: Path, tmp_path: Path) -> None:
    options = ("--no-floors", "--no-windows", "--out")
    said = run(sounds / "bare.csv", *options, tmp_path / "a")
    assert "no folds given: made 4" in said.stderr
    folders = tmp_path / "folders"
    for kind in KINDS:
        (folders / kind).mkdir(parents=True)
        for clip in (sounds / kind).iterdir():
            (folders / kind / clip.name).hardlink_to(clip)
    run(folders, *options, tmp_path / "b")
    one, again = (json.loads((tmp_path / name / "summary.json").read_text()) for name in "ab")
    assert one["systems"] == again["systems"]
    assert one["made_folds"]
    assert one["systems"]["shipped"]["representations"]["lite"]["probe"]["mean"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("unlabelled.csv",), "expected a label"),
        (("folds.csv", "--where", "fold=1"), "folds: expected 2 at least"),
        (("folds.csv", "--weights", "a=untrained", "--weights", "a=untrained:1"), "'a' is taken"),
        (("folds.csv", "--weights", "nowhere.safetensors"), "nothing there"),
        (("folds.csv", "--encoder", "cochlea"), "expected one of"),
        (("nowhere.csv",), "no such file or folder"),
    ],
)
def test_a_users_mistake_is_named(
    sounds: Path, tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        app(
            ["eval", str(sounds / arguments[0]), *arguments[1:], "--no-floors", "--out", str(tmp_path)],
            standalone_mode=False,
        )


def test_a_mistake_is_one_line_and_a_status(sounds: Path, tmp_path: Path) -> None:
    done = run(sounds / "one.csv", "--no-floors", "--out", tmp_path, check=False)
    assert done.returncode == 1
    assert "2 classes at least, got bell" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_table_of_qualities_is_written_and_told(sounds: Path, tmp_path: Path) -> None:
    options = ("--no-floors", "--no-windows", "--out", tmp_path, "--quality", tmp_path / "q.json")
    said = run(sounds / "folds.csv", "--weights", "mine=untrained:3", *options)
    table = load_quality(tmp_path / "q.json")
    assert table.measured
    assert set(table.paths) == {"device", "server", "1", "2", "3", "skip"}
    assert str(tmp_path) not in table.source
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert sum(summary["quality"]["windows"]) == summary["windows"]
    assert "gain" in said.stdout
