"""Pictures of a comparison of representations: bars with spread, and each one's map coloured by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamsplit.errors import ConfigError, StorageError
from streamsplit.lab.maps import principal_components
from streamsplit.lab.panels import DEVICE, INK, dress
from streamsplit.lab.plots import figure_class

DPI = 100
SHOWN_CLASSES = 12
"""More colours than that cannot be told apart: the most frequent classes are coloured, the others grey."""


def bars_png(values: Mapping[str, tuple[float, float]], path: Path, title: str, chance: float | None) -> None:
    """A bar per name, longest name and all, with a whisker of one spread to each side.

    Args:
        values: name -> (mean, spread), shares 0..1; drawn from the top in this order.
        path: the PNG to write.
        title: above.
        chance: drawn as a line.

    Raises:
        ConfigError: matplotlib is not installed, or there is nothing to draw.
        StorageError: the file cannot be written.
    """
    if not values:
        raise ConfigError(f"{path}: expected something to draw, got nothing")
    figure = figure_class()(figsize=(10.0, 1.6 + 0.3 * len(values)), dpi=DPI, facecolor="white")
    axis = figure.add_subplot()
    names = list(values)[::-1]
    means = np.array([values[name][0] for name in names]) * 100
    spreads = np.array([values[name][1] for name in names]) * 100
    axis.barh(names, means, xerr=spreads, height=0.7, color=DEVICE, ecolor=INK, capsize=3)
    for row, (mean, spread) in enumerate(zip(means, spreads, strict=True)):
        axis.text(mean + spread + 0.8, row, f"{mean:.1f}", va="center", fontsize=9, color=INK)
    if chance is not None:
        axis.axvline(100 * chance, color="#D55E00", lw=1, ls="--")
    dress(axis, title)
    axis.set_xlim(0, 106)
    axis.set_xlabel("%; whiskers: standard deviation over folds; dashed: always saying the commonest class")
    _save(figure, path)


def maps_png(
    maps: Mapping[str, npt.NDArray[np.float32]], labels: Sequence[str], path: Path, title: str
) -> None:
    """Each representation's two principal components, a point per clip, coloured by class.

    Args:
        maps: name -> [clips, P].
        labels: of the clips.
        path: the PNG to write.
        title: above.

    Raises: as `bars_png`.
    """
    if not maps:
        raise ConfigError(f"{path}: expected something to draw, got nothing")
    make_figure = figure_class()
    from matplotlib import colormaps

    columns = min(3, len(maps))
    rows = -(-len(maps) // columns)
    figure = make_figure(figsize=(5.2 * columns + 1.8, 4.6 * rows + 0.6), dpi=DPI, facecolor="white")
    names = sorted(sorted(set(labels)), key=lambda name: -labels.count(name))[:SHOWN_CLASSES]
    palette = colormaps["tab20" if len(names) > 10 else "tab10"]
    label = np.array(labels)
    for place, (name, vectors) in enumerate(maps.items()):
        axis = figure.add_subplot(rows, columns, place + 1)
        points = principal_components(np.asarray(vectors, np.float64))
        rest = ~np.isin(label, names)
        axis.scatter(*points[rest].T, s=8, color="#D5D5D5", label="others" if rest.any() else None)
        for number, kind in enumerate(names):
            chosen = label == kind
            axis.scatter(*points[chosen].T, s=14, color=palette(number), label=kind.replace("_", " "))
        dress(axis, name)
        axis.set_xticks([])
        axis.set_yticks([])
    handles, shown = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, shown, loc="center right", fontsize=8, frameon=False)
    figure.suptitle(
        f"{title} (PCA of clip means)", x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK
    )
    figure.tight_layout(rect=(0, 0, 1 - 1.7 / (5.2 * columns + 1.8), 0.97))
    _save(figure, path, tight=False)


def _save(figure: Any, path: Path, tight: bool = True) -> None:
    if tight:
        figure.tight_layout()
    try:
        figure.savefig(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error
