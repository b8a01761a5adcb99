"""The curves of a training, drawn and looked at as pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamsplit.errors import ConfigError, StorageError
from streamsplit.lab.curves import _smoothed, curves_png

image = pytest.importorskip("matplotlib.image", reason="needs the extra `train`")


def test_a_panel_per_curve_is_drawn_and_falls_where_the_loss_falls(tmp_path: Path) -> None:
    steps = list(range(1, 101))
    falling, rising = list(np.linspace(3, 1, 100)), list(np.linspace(1, 3, 100))
    curves_png(
        {"loss/total": (steps, falling), "loss/spread": (steps, rising)}, tmp_path / "c.png", "a training"
    )
    pixels = image.imread(tmp_path / "c.png")[:, :, :3]
    halves = np.split(pixels[:, : pixels.shape[1] // 2 * 2], 2, axis=1)
    coloured = [(half.max(2) - half.min(2)) > 0.25 for half in halves]
    slopes = [np.polyfit(*np.nonzero(half)[::-1], 1)[0] for half in coloured]
    assert slopes[0] > 0.2, "down the picture: the rows of an image count downwards"
    assert slopes[1] < -0.2


def test_the_bright_line_is_the_mean_of_the_steps_around() -> None:
    values = np.arange(100, dtype=np.float64) ** 2
    smooth = _smoothed(values)
    assert smooth[0] == pytest.approx(values[:3].mean())
    assert smooth[50] == pytest.approx(values[48:53].mean())
    assert smooth[99] == pytest.approx(values[97:].mean())
    assert _smoothed(np.array([2.0])) == [2.0]


def test_nothing_to_draw_and_nowhere_to_write_are_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="something to draw"):
        curves_png({}, tmp_path / "c.png", "")
    with pytest.raises(StorageError, match="cannot be written"):
        curves_png({"loss": ([1], [1.0])}, tmp_path / "gone" / "c.png", "")
