"""`streamsplit keys`, as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from streamsplit.cli import app
from streamsplit.errors import ConfigError


def test_a_lost_device_is_taken_off_the_list(tmp_path: Path) -> None:
    listed = tmp_path / "devices.json"
    for device in ("kitchen", "hall"):
        made = CliRunner().invoke(
            app, ["keys", "token", str(listed), device, "--out", str(tmp_path / f"{device}.token")]
        )
        assert made.exit_code == 0, made.output
    removed = CliRunner().invoke(app, ["keys", "remove", str(listed), "kitchen"])
    assert removed.exit_code == 0
    assert "kitchen is not on the list" in removed.stdout
    assert "kitchen" not in listed.read_text()
    assert "hall" in json.dumps(json.loads(listed.read_text()))
    again = CliRunner().invoke(app, ["keys", "remove", str(listed), "kitchen"])
    assert isinstance(again.exception, ConfigError)
    assert "expected a known device (hall), got 'kitchen'" in str(again.exception)
