"""`streamsplit status`, `versions` and `versions rollback`, as a user runs them over a state folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from streamsplit.audio.window import Samples
from streamsplit.cli import app, main
from streamsplit.config import RefinerSettings
from streamsplit.encoders.version import Version
from streamsplit.learning.replay import FeatureReplay
from streamsplit.learning.upgrade import make_upgrade
from streamsplit.server.publications import Publications
from streamsplit.server.refiner import PUBLISHED, REPLAY, RefinerProcess
from tests.learning.received import received

WIDE = {"COLUMNS": "200", "NO_COLOR": "1"}


def said(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in arguments], env=WIDE)
    assert done.exit_code == 0, done.output
    return done.stdout


def rows(table: str) -> dict[str, str]:
    """What a table of names and values says; a value may be folded over several lines."""
    found: dict[str, str] = {}
    name = ""
    for line in table.splitlines():
        if line.startswith("│"):
            first, value = (cell.strip() for cell in line.split("│")[1:-1])
            name = first or name
            found[name] = f"{found.get(name, '')} {value}".strip()
    return found


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory, compact: Version, sound: Samples) -> Path:
    """A state folder after one round, which published."""
    folder = tmp_path_factory.mktemp("state")
    heard = received(compact, sound, 0)
    with FeatureReplay(folder / REPLAY) as replay:
        replay.add([replace(one, stream=f"s{turn}") for turn in range(8) for one in heard])
    settings = RefinerSettings(
        state_dir=folder, batch=8, round_steps=3, least_windows=64, judged_windows=64, learning_rate=1e-4
    )
    subject = RefinerProcess(settings, compact, lambda: False)
    assert subject.turn()
    subject.log.close()
    return folder


@pytest.fixture
def published(tmp_path: Path, compact: Version) -> tuple[Path, list[str]]:
    """A state folder in which two versions have been published, and their ids."""
    publications = Publications(tmp_path / PUBLISHED)
    publications.start(compact, 0)
    encoder = compact.trainable()
    with torch.no_grad():
        encoder.get_parameter("blocks.3.norm.bias").add_(0.1)
    second, message = make_upgrade(compact, encoder, None)
    assert publications.publish(second, compact.id, message, None, 1) is not None
    return tmp_path, [compact.id, second.id]


def listed(folder: Path) -> dict[str, Any]:
    current: dict[str, Any] = json.loads(said("versions", "--state-dir", folder, "--json"))
    return current


def test_status_shows_rounds_losses_and_the_newest_version(refined: Path, compact: Version) -> None:
    asked = ("status", "--state-dir", refined, "--store", refined / "none.db")
    seen = json.loads(said(*asked, "--json"))
    (line,) = (refined / "log.jsonl").read_text().splitlines()
    newest = json.loads(line)["candidate"]
    assert (seen["newest_version"], seen["previous_version"]) == (newest, compact.id)
    assert (seen["refiner_round"], seen["refiner_step"], seen["refiner_published"]) == (2, 3, 1)
    assert seen["refiner_refused"] == 0
    assert seen["refiner_loss"].keys() >= {"total", "task", "spread", "smoothness"}
    assert seen["replay_windows"] == 960
    shown = rows(said(*asked))
    assert shown["newest version"] == newest
    assert (shown["refiner"], shown["refiner round"], shown["refiner published"]) == (
        "between rounds",
        "2",
        "1",
    )
    for name in ("total", "task", "spread"):
        assert f"{name} {seen['refiner_loss'][name]}" in shown["refiner loss"]
    assert shown["stored windows"] == "-"


def test_status_of_a_folder_that_no_refiner_has_seen_makes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "none"
    shown = rows(said("status", "--state-dir", folder, "--store", tmp_path / "none.db"))
    assert (shown["refiner"], shown["newest version"]) == ("has never run here", "-")
    assert not folder.exists()


def test_versions_lists_what_was_published_and_as_what_it_is_served(
    published: tuple[Path, list[str]],
) -> None:
    folder, (first, second) = published
    shown: list[list[str]] = []
    for line in said("versions", "--state-dir", folder).splitlines():
        if line.startswith("│"):
            cells = [cell.strip() for cell in line.split("│")[1:-1]]
            if cells[0]:
                shown.append(cells)
            else:  # folded
                shown[-1] = [first + more for first, more in zip(shown[-1], cells, strict=True)]
    assert [(row[0], row[1], row[3], row[5]) for row in shown] == [
        ("0", first, "start", "N-1"),
        ("1", second, "refiner", "N"),
    ]
    assert "no version has been published yet" in said("versions", "--state-dir", folder / "none")


def test_rollback_makes_the_previous_version_the_newest_and_a_second_one_takes_that_back(
    published: tuple[Path, list[str]],
) -> None:
    folder, (first, second) = published
    told = said("versions", "--state-dir", folder, "rollback")
    assert told.strip() == f"{first} is served again, {second} as the one before"
    now = listed(folder)
    assert (now["newest"], now["previous"]) == (first, second)
    assert [one["by"] for one in now["history"]] == ["start", "refiner", "rollback"]
    said("versions", "--state-dir", folder, "rollback")
    assert (listed(folder)["newest"], listed(folder)["previous"]) == (second, first)


@pytest.fixture
def mistaken(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a command that fails says on its error stream."""

    def run(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["streamsplit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize("versions", [0, 1])
def test_rollback_says_in_one_line_that_there_is_no_version_before(
    tmp_path: Path, compact: Version, mistaken: Callable[..., str], versions: int
) -> None:
    publications = Publications(tmp_path / PUBLISHED)
    if versions:
        publications.start(compact, 0)
    before = publications.current()
    told = mistaken("versions", "--state-dir", tmp_path, "rollback")
    assert told == f"streamsplit: {tmp_path / PUBLISHED}: rollback: no version before the newest is there\n"
    assert publications.current() == before


@pytest.mark.parametrize("command", ["refine", "server --refine --listen 127.0.0.1:0"])
def test_where_it_cannot_compute_is_said_in_one_line(
    tmp_path: Path, mistaken: Callable[..., str], command: str
) -> None:
    """Before the server starts a refiner that would die again and again."""
    settings = tmp_path / "server.toml"
    settings.write_text(
        f'store = "{tmp_path}/e.db"\n[refiner]\ncompute = "banana"\nstate_dir = "{tmp_path}/state"\n'
    )
    told = mistaken(*command.split(), "--config", settings)
    assert "compute = 'banana': expected cpu, cuda" in told
    assert "Traceback" not in told
