"""The picture of a run: it is made from whatever is known, at the size that was promised."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamsplit.errors import ConfigError, StorageError
from streamsplit.lab.plots import timeline_png

EVENTS = [(f"sound {n}", float(n), n + 2.0) for n in range(14)]


def records(windows: int = 60) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = [{"kind": "stream", "sample_rate_hz": 16000, "window_samples": 16000}]
    for n in range(windows):
        observation = {
            "cpu_percent": 30.0 + n % 7,
            "backlog_windows": n % 5,
            "server_available": not 20 < n < 30,
        }
        measured = {
            "total_ms": 5.0 + n % 9,
            "head_ms": 2.0,
            "wire_ms": 3.0,
            "unix_ms": 1000 * n,
            "uplink_bytes": 400 * n,
        }
        made.append({
            "kind": "window", "stream": "s", "sequence": n, "start_s": float(n + (n > 40)), "split": n % 4 - 1,
            "payload_bytes": 300, "decision": {"observation": observation}, "measured": measured,
        })  # fmt: skip
    return made


def pixels(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def test_everything_known_makes_a_picture_of_1600_by_1000(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    labels = [f"sound {n % 14}" if n % 3 else "quiet" for n in range(60)]
    path = tmp_path / "all.png"
    rates = [(0.0, 8e6), (20.0, 0.0), (30.0, 3e5)]
    timeline_png(records(), path, rates, EVENTS, embeddings, labels, title="All", last_split=4)
    assert pixels(path) == (1600, 1000)


@pytest.mark.parametrize("windows", [1, 2, 60])
def test_records_alone_are_enough(tmp_path: Path, windows: int) -> None:
    timeline_png(records(windows), tmp_path / "alone.png")
    assert pixels(tmp_path / "alone.png") == (1600, 1000)


def test_windows_that_say_nothing_of_themselves_make_a_picture_too(tmp_path: Path) -> None:
    poor = [
        {"kind": "window", "stream": "s", "sequence": n, "start_s": float(n), "split": 0} for n in range(5)
    ]
    timeline_png(poor, tmp_path / "poor.png", rates=[(0.0, 0.0)])
    assert pixels(tmp_path / "poor.png") == (1600, 1000)


def test_equal_runs_give_equal_pictures(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
    for name in ("a.png", "b.png"):
        timeline_png(records(), tmp_path / name, events=EVENTS, embeddings=embeddings, labels=["x"] * 60)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_rates_may_be_told_in_wall_clock_time(tmp_path: Path) -> None:
    # These windows end at second n + 1 and are done with at 1000 n ms: the stream began at -1000 ms.
    timeline_png(records(30), tmp_path / "stream.png", [(0.0, 1e6), (10.0, 1e5), (25.0, 1e6)])
    on_wall = [(-1000.0, 1e6), (9000.0, 1e5), (24000.0, 1e6)]
    timeline_png(records(30), tmp_path / "wall.png", on_wall, rates_on_wall=True)
    assert (tmp_path / "stream.png").read_bytes() == (tmp_path / "wall.png").read_bytes()


def test_no_window_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one window"):
        timeline_png([{"kind": "gap"}], tmp_path / "none.png")


def test_each_embedding_needs_a_label(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got 2 for 3"):
        timeline_png(records(), tmp_path / "x.png", embeddings=np.ones((3, 4), np.float32), labels=["a", "b"])


def test_a_folder_that_is_not_there_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"none/x\.png"):
        timeline_png(records(), tmp_path / "none" / "x.png")


def test_without_matplotlib_the_error_names_the_extra_to_install(tmp_path: Path) -> None:
    (tmp_path / "matplotlib").mkdir()
    (tmp_path / "matplotlib" / "__init__.py").write_text("raise ImportError('not installed')\n")
    program = (
        "from pathlib import Path\nfrom streamsplit.lab.plots import timeline_png\n"
        "try:\n    timeline_png([], Path('x.png'))\nexcept ValueError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{program}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "streamsplit[train]" in done.stdout
