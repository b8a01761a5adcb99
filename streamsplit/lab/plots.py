"""One picture of a run: what was heard, where the encoder was cut, how long windows took, what the link carried, what came of it.

Takes plain records and arrays and writes a PNG; reads no store and no journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamsplit.errors import ConfigError, StorageError
from streamsplit.lab.panels import (
    DEVICE,
    INK,
    SERVER,
    Event,
    Styles,
    draw_curve,
    draw_events,
    draw_latency,
    draw_map,
    draw_parts,
    draw_split,
    draw_uplink,
    styles_of,
)
from streamsplit.lab.series import Record, Timeline

SIZE_INCHES, DPI = (16.0, 10.0), 100


def timeline_png(
    records: Iterable[Record],
    path: Path,
    rates: Sequence[tuple[float, float]] | None = None,
    events: Sequence[Event] | None = None,
    embeddings: npt.NDArray[np.float32] | None = None,
    labels: Sequence[str] | None = None,
    title: str = "One run of StreamSplit",
    rates_on_wall: bool = False,
    last_split: int | None = None,
    seed: int = 0,
) -> None:
    """Draws a run as a PNG of 1600 x 1000 pixels.

    Args:
        records: journal records of one stream.
        path: the file to write.
        rates: the link's rate, where it was made: (second of the stream, bits per second).
        events: what truly sounded, where it was made.
        embeddings: [N, D] of the stream's windows, for the map.
        labels: their N true labels; "quiet" is drawn faintly.
        title: above the picture.
        rates_on_wall: the times of `rates` are milliseconds of the wall clock (Unix) and not seconds of the stream.
        last_split: L of the encoder; None: as the stream's record says, else the deepest split seen.
        seed: of the map.

    Raises:
        ConfigError: matplotlib is not installed, there is no window to draw, or not one label per embedding.
        StorageError: the file cannot be written.
    """
    make_figure = figure_class()
    timeline = Timeline.of(records, last_split)
    if not len(timeline):
        raise ConfigError(f"{path}: expected the record of at least one window, got none")
    vectors, names = np.zeros((0, 1), np.float32) if embeddings is None else embeddings, list(labels or ())
    if len(vectors) != len(names):
        raise ConfigError(f"{path}: expected one label per embedding, got {len(names)} for {len(vectors)}")
    if rates and rates_on_wall:
        rates = [(float(timeline.clock.seconds(unix_ms)), rate_bps) for unix_ms, rate_bps in rates]
    styles = styles_of([event[0] for event in events or ()] + names)
    figure = make_figure(figsize=SIZE_INCHES, dpi=DPI, facecolor="white")
    left, right = figure.add_gridspec(
        1, 2, width_ratios=(1.62, 1), left=0.088, right=0.985, top=0.885, bottom=0.062, wspace=0.19
    )
    _draw_timeline(figure, left, timeline, rates, events, styles)
    mapped = len(vectors) >= 3
    rows = right.subgridspec(2, 1, height_ratios=(2.2 if mapped else 0.01, 1), hspace=0.36)
    if mapped:
        draw_map(figure.add_subplot(rows[0]), vectors, names, styles, seed)
    draw_parts(figure.add_subplot(rows[1]), timeline)
    figure.text(0.012, 0.965, title, fontsize=18, fontweight="bold", color=INK, va="center")
    figure.text(0.012, 0.932, _headline(timeline), fontsize=11.5, color=INK, va="center")
    try:
        figure.savefig(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def require_matplotlib() -> None:
    """Raises ConfigError now if a picture could not be drawn later."""
    figure_class()


def figure_class() -> Any:
    """What makes figures that are written to files; ConfigError where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("pictures need matplotlib: install streamsplit[train]") from error

    def make(**settings: Any) -> Any:
        figure = Figure(**settings)
        FigureCanvasAgg(figure)
        return figure

    return make


def _headline(timeline: Timeline) -> str:
    """What was measured, in figures."""
    parts = [
        f"{len(timeline)} windows, {timeline.end_s:.0f} s of sound at {timeline.clock.speed:.2g}x real time"
    ]
    known = timeline.latency_ms[np.isfinite(timeline.latency_ms)]
    if len(known):
        p50, p95 = np.percentile(known, (50, 95))
        parts.append(f"latency p50 {p50:.0f} ms, p95 {p95:.0f} ms")
    if np.isfinite(timeline.share_of_pcm):
        a_window = timeline.sent_bytes / len(timeline)
        parts.append(f"uplink {a_window:.0f} bytes a window, {100 * timeline.share_of_pcm:.2g} % of PCM16")
    return "   ·   ".join(parts)


def _draw_timeline(
    figure: Any,
    place_in: Any,
    timeline: Timeline,
    rates: Sequence[tuple[float, float]] | None,
    events: Sequence[Event] | None,
    styles: Styles,
) -> None:
    """The panels that share the stream's time."""
    kinds = len({event[0] for event in events or ()})
    heights = [max(0.5, 0.16 * kinds) if events else 0.01, 1.25, 1.35, 1.35, 0.75, 0.75]
    axes = [
        figure.add_subplot(cell) for cell in place_in.subgridspec(6, 1, height_ratios=heights, hspace=0.5)
    ]
    if events:
        draw_events(axes[0], events, styles)
    else:
        axes[0].set_axis_off()
    draw_split(axes[1], timeline)
    draw_latency(axes[2], timeline)
    draw_uplink(axes[3], timeline, rates)
    draw_curve(
        axes[4], timeline, timeline.backlog, "Windows waiting for an acknowledgement (measured)", SERVER
    )
    draw_curve(axes[5], timeline, timeline.cpu_percent, "CPU that others take, % (measured)", DEVICE)
    axes[5].set_ylim(0, 100)
    for number, axis in enumerate(axes):
        axis.set_xlim(0, timeline.end_s)
        for begin_s, end_s in timeline.away():
            axis.axvspan(begin_s, end_s, color="#D55E00", alpha=0.13, lw=0, zorder=0)
        if number < 5:
            axis.tick_params(labelbottom=False)
    axes[5].set_xlabel(
        "second of the stream" + ("    (red: the device saw no server)" if timeline.away() else "")
    )
