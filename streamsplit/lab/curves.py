"""A training's curves as one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from streamsplit.errors import ConfigError, StorageError
from streamsplit.lab.panels import DEVICE, INK, SERVER, dress
from streamsplit.lab.plots import figure_class

DPI = 100
SMOOTHED = 0.05
"""Of the steps that were drawn: what the bright line is a running mean of."""

Curve = tuple[Sequence[int], Sequence[float]]


def curves_png(curves: Mapping[str, Curve], path: Path, title: str) -> None:
    """A panel per curve: every step faintly, the mean of the steps around it brightly.

    Args:
        curves: name -> (steps, ascending; values), as many of the one as of the other.
        path: the PNG to write.
        title: above.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to draw.
        StorageError: the file cannot be written.
    """
    if not curves or not all(len(steps) for steps, _ in curves.values()):
        raise ConfigError(f"{path}: expected something to draw, got nothing")
    make_figure = figure_class()
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure = make_figure(figsize=(4.4 * columns + 0.6, 3.0 * rows + 0.7), dpi=DPI, facecolor="white")
    for place, (name, (steps, values)) in enumerate(curves.items()):
        axis = figure.add_subplot(rows, columns, place + 1)
        axis.plot(steps, values, color=DEVICE, lw=0.8, alpha=0.45)
        axis.plot(steps, _smoothed(np.asarray(values, np.float64)), color=SERVER, lw=1.6)
        dress(axis, name)
        axis.set_xlabel("step")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    try:
        figure.savefig(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def _smoothed(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[float]:
    """The mean of each value and those around it, `SMOOTHED` of all; of fewer at the ends."""
    half = round(SMOOTHED * len(values) / 2)
    total = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(values))
    begins, ends = np.maximum(0, place - half), np.minimum(len(values), place + half + 1)
    return list((total[ends] - total[begins]) / (ends - begins))
