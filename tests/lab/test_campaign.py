"""A whole small campaign: real server, link and clients; killed, resumed, reported."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import streamsplit
from streamsplit.cli.terminal import app
from streamsplit.encoders.registry import resolve
from streamsplit.errors import ConfigError
from streamsplit.lab.campaign import CampaignSettings, run_campaign, summarise_folder
from streamsplit.lab.markdown import write_tables
from streamsplit.lab.report import write_report
from streamsplit.lab.scenario import load

SCENARIO = """
name = "tiny"
title = "tiny & <quick>"
speed = 8
[sound]
seconds = 8
probe_seconds = 60
[link]
made = "2M"
delay_ms = 20
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """A scenario of eight seconds at eight times their speed, and a results folder that has a profile."""
    file = tmp_path / "tiny.toml"
    file.write_text(SCENARIO)
    profiles = tmp_path / "out" / "profiles"
    profiles.mkdir(parents=True)
    shipped = Path(streamsplit.__file__).parent / "weights" / "profile-compact.json"
    shutil.copy(shipped, profiles / f"{resolve('compact').id}.json")
    return file


def test_a_killed_campaign_goes_on_and_its_report_tells_what_was_run(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = (out / "tiny" / "seed-0" / f"{name}.json" for name in ("split_2", "edge_only"))
    command = [sys.executable, "-m", "streamsplit", "lab", "run", str(scenario), "--out", str(out)]
    command += ["--systems", "split_2,edge_only"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline_s = time.monotonic() + 120.0
        while not first.exists() and process.poll() is None and time.monotonic() < deadline_s:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert first.exists()
    assert not second.exists()
    made = first.stat().st_mtime_ns
    told: list[str] = []
    settings = CampaignSettings((load(str(scenario)),), out, ("split_2", "edge_only"))
    summary = run_campaign(settings, lambda what, share, done, total: told.append(what))
    assert first.stat().st_mtime_ns == made
    assert not any("split 2" in what for what in told)

    systems = json.loads((out / "summary.json").read_text())["scenarios"]["tiny"]["systems"]
    assert {"split_2", "edge_only", "best_fixed", "oracle"} <= set(systems)
    sent, here = systems["split_2"], systems["edge_only"]
    assert (sent["windows"], sent["lost"], sent["splits"]) == (8, 0, {"2": 1.0})
    assert sent["latency_ms"]["p50"] >= 40.0  # there and back
    assert here["latency_ms"]["p50"] < sent["latency_ms"]["p50"]
    assert sent["uplink_bytes_per_s"] > here["uplink_bytes_per_s"] > 130
    assert sent["accuracy"]["windows"] == 8
    assert systems["best_fixed"]["return"] == max(
        (sent["return"], here["return"]), key=lambda value: value["mean"]
    )
    assert summary["scenarios"]["tiny"]["complete"]

    page = write_report(out, summary).read_text()
    assert "tiny &amp; &lt;quick&gt;" in page
    assert "all on the device" in page
    tables = write_tables(out, summary).read_text()
    row = next(line for line in tables.splitlines() if line.startswith("| all on the device |"))
    assert f"| {here['latency_ms']['p50']:,.1f} |" in row
    assert 0.0 < summary["scenarios"]["tiny"]["prediction_error"]["bytes_error"] < 1.0
    assert (out / "windows.parquet").stat().st_size > 0

    with pytest.raises(ConfigError, match="other settings"):
        run_campaign(CampaignSettings((load(str(scenario), seconds=9.0),), out, ("split_2",)))


def test_an_empty_folder_and_an_unknown_system_are_told(scenario: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found none"):
        summarise_folder(tmp_path)
    with pytest.raises(ConfigError, match="split_1"):
        run_campaign(CampaignSettings((load(str(scenario)),), tmp_path / "x", ("slpit_1",)))


def test_the_lab_is_a_command() -> None:
    names = {group.name for group in app.registered_groups}
    assert "lab" in names
