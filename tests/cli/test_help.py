"""What `streamsplit --help` lists."""

from __future__ import annotations

from typer.main import get_command
from typer.testing import CliRunner

from streamsplit.cli import app
from streamsplit.cli.terminal import PANELS


def test_every_command_stands_in_one_panel() -> None:
    listed = [name for names in PANELS.values() for name in names]
    assert sorted(listed) == sorted(get_command(app).commands)  # type: ignore[attr-defined]


def test_help_lists_the_panels_and_their_commands_in_order() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"}).stdout
    headings = [f"─ {panel} ─" for panel in PANELS]
    places = [shown.index(heading) for heading in headings]
    assert places == sorted(places)
    for names, begin, end in zip(PANELS.values(), places, [*places[1:], len(shown)], strict=True):
        rows = [line.split()[1] for line in shown[begin:end].splitlines() if line.startswith("│ ")]
        assert tuple(row for row in rows if row in names) == names
        assert len(rows) == len(names)
