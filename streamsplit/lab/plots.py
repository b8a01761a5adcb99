"""One picture of a run: what was heard, where the encoder was cut, how long windows took, what the link carried, what came of it.

Takes plain records and arrays and writes a PNG; reads no store and no journal. Colours are those of Okabe and Ito, which people with
any colour vision tell apart; where there are more sounds than colours, marker shapes go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamsplit.errors import ConfigError, StorageError
from streamsplit.lab.maps import place
from streamsplit.lab.series import ON_DEVICE, Numbers, Record, Timeline

DEVICE, SERVER, LINK, INK, QUIET = "#0072B2", "#E69F00", "#009E73", "#222222", "#8A8A8A"
EVENT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#A39400", "#5D3A9B")
EVENT_MARKERS = ("o", "^", "s", "D")
PART_COLOURS = ("#56B4E9", "#0072B2", "#0B3C5D", "#C8C8C8", "#009E73", "#F0E442", "#E69F00", "#D55E00")
SIZE_INCHES, DPI = (16.0, 10.0), 100
BACKGROUND = ("quiet", "background", "none", "")
SMOOTHED_WINDOWS = 9

Event = tuple[str, float, float]
"""What sounded, from which second to which."""
Styles = Mapping[str, tuple[str, str]]
"""Colour and marker of each sound."""


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
    figure_class = _figure_class()
    timeline = Timeline.of(records, last_split)
    if not len(timeline):
        raise ConfigError(f"{path}: expected the record of at least one window, got none")
    vectors, names = np.zeros((0, 1), np.float32) if embeddings is None else embeddings, list(labels or ())
    if len(vectors) != len(names):
        raise ConfigError(f"{path}: expected one label per embedding, got {len(names)} for {len(vectors)}")
    if rates and rates_on_wall:
        rates = [(float(timeline.clock.seconds(unix_ms)), rate_bps) for unix_ms, rate_bps in rates]
    styles = _styles([event[0] for event in events or ()] + names)
    figure = figure_class(figsize=SIZE_INCHES, dpi=DPI, facecolor="white")
    left, right = figure.add_gridspec(
        1, 2, width_ratios=(1.62, 1), left=0.088, right=0.985, top=0.885, bottom=0.062, wspace=0.19
    )
    _draw_timeline(figure, left, timeline, rates, events, styles)
    mapped = len(vectors) >= 3
    rows = right.subgridspec(2, 1, height_ratios=(2.2 if mapped else 0.01, 1), hspace=0.36)
    if mapped:
        _draw_map(figure.add_subplot(rows[0]), vectors, names, styles, seed)
    _draw_parts(figure.add_subplot(rows[1]), timeline)
    figure.text(0.012, 0.965, title, fontsize=18, fontweight="bold", color=INK, va="center")
    figure.text(0.012, 0.932, _headline(timeline), fontsize=11.5, color=INK, va="center")
    try:
        figure.savefig(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def _figure_class() -> Any:
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


def _styles(names: Iterable[str]) -> Styles:
    sounds = sorted({name for name in names if name not in BACKGROUND})
    styles = {
        name: (
            EVENT_COLOURS[i % len(EVENT_COLOURS)],
            EVENT_MARKERS[i // len(EVENT_COLOURS) % len(EVENT_MARKERS)],
        )
        for i, name in enumerate(sounds)
    }
    return {**styles, **dict.fromkeys(BACKGROUND, ("#C9C9C9", "o"))}


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
        _draw_events(axes[0], events, styles)
    else:
        axes[0].set_axis_off()
    _draw_split(axes[1], timeline)
    _draw_latency(axes[2], timeline)
    _draw_uplink(axes[3], timeline, rates)
    _draw_curve(
        axes[4], timeline, timeline.backlog, "Windows waiting for an acknowledgement (measured)", SERVER
    )
    _draw_curve(axes[5], timeline, timeline.cpu_percent, "CPU of the whole machine, % (measured)", DEVICE)
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


def _dress(axis: Any, title: str) -> None:
    axis.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=4)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(QUIET)
    axis.tick_params(labelsize=9, colors=INK, length=3)
    axis.grid(axis="x", color="#E6E6E6", lw=0.7)
    axis.set_axisbelow(True)


def _draw_events(axis: Any, events: Sequence[Event], styles: Styles) -> None:
    kinds = sorted({event[0] for event in events}, reverse=True)
    for kind, begin_s, end_s in events:
        axis.barh(kinds.index(kind), end_s - begin_s, left=begin_s, height=0.78, color=styles[kind][0])
    axis.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axis.set_ylim(-0.6, len(kinds) - 0.4)
    _dress(axis, "What sounds (made)")
    axis.tick_params(axis="y", labelsize=8, length=0)


def _draw_split(axis: Any, timeline: Timeline) -> None:
    edges, blocks = _stairs(timeline, np.clip(timeline.split, 0, None))
    axis.fill_between(edges, 0, blocks, color=DEVICE, alpha=0.85, lw=0, label="on the device")
    axis.fill_between(
        edges, blocks, timeline.last_split, color=SERVER, alpha=0.55, lw=0, label="on the server"
    )
    axis.plot(edges, blocks, color=INK, lw=1.2)
    axis.set_ylim(0, timeline.last_split)
    axis.set_yticks(range(timeline.last_split + 1))
    _dress(axis, "Blocks of the encoder: where it is cut (measured)")
    axis.legend(
        loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=2, fontsize=9, frameon=False, handlelength=1.2
    )


def _draw_latency(axis: Any, timeline: Timeline) -> None:
    middle, latency = timeline.start_s + timeline.window_s / 2, timeline.latency_ms
    local = timeline.split >= timeline.last_split
    for chosen, colour, where in (
        (local, DEVICE, "device"),
        (~local, "#B87A00", "server"),
    ):
        if chosen.any():
            axis.scatter(middle[chosen], latency[chosen], s=9, color=colour, alpha=0.75, lw=0, label=where)
    axis.plot(
        middle,
        rolling_median(latency, SMOOTHED_WINDOWS),
        color=INK,
        lw=1.3,
        label=f"median of {SMOOTHED_WINDOWS}",
    )
    axis.set_yscale("log")
    _plain_decades(axis, (1.0, 3.0))
    axis.grid(axis="y", color="#E6E6E6", lw=0.7)
    _dress(axis, "Latency until the embedding is usable, ms (measured)")
    axis.legend(
        loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=3, fontsize=9, frameon=False, handlelength=1.2
    )


def _draw_uplink(axis: Any, timeline: Timeline, rates: Sequence[tuple[float, float]] | None) -> None:
    used = np.where(timeline.uplink_bps > 0, timeline.uplink_bps, np.nan)
    floor = float(np.nanmin(used)) / 3 if np.isfinite(used).any() else 100.0
    axis.fill_between(
        timeline.uplink_s,
        floor,
        used,
        color=LINK,
        alpha=0.55,
        lw=0,
        step="mid",
        label="all bytes on the socket (measured)",
    )
    if rates:
        when, rate = np.array(rates, np.float64).T
        axis.step(
            when,
            np.where(rate > 0, rate, np.nan),
            where="post",
            color=INK,
            lw=1.5,
            label="the link's rate (made)",
        )
    pcm = 16.0 * timeline.sample_rate_hz
    axis.axhline(pcm * timeline.clock.speed, color="#D55E00", lw=1.1, ls=(0, (4, 3)), label="PCM16 needs")
    axis.set_yscale("log")
    axis.set_ylim(bottom=floor)
    _plain_decades(axis)
    axis.grid(axis="y", color="#E6E6E6", lw=0.7)
    _dress(axis, "Uplink, bits a second")
    axis.legend(
        loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=3, fontsize=9, frameon=False, handlelength=1.6
    )


def _draw_curve(axis: Any, timeline: Timeline, values: Numbers, title: str, colour: str) -> None:
    edges, drawn = _stairs(timeline, values)
    axis.fill_between(edges, 0, drawn, color=colour, alpha=0.35, lw=0)
    axis.plot(edges, drawn, color=colour, lw=1.1)
    axis.set_ylim(0, max(1.0, 1.08 * float(np.nanmax(values))) if np.isfinite(values).any() else 1.0)
    axis.locator_params(axis="y", nbins=3, integer=True)
    _dress(axis, title)


def _draw_map(
    axis: Any, embeddings: npt.NDArray[np.float32], labels: Sequence[str], styles: Styles, seed: int
) -> None:
    points, how = place(embeddings, seed)
    names = np.array(labels)
    for name in sorted(set(labels), key=lambda name: (name not in BACKGROUND, name)):
        chosen, (colour, marker) = names == name, styles[name]
        faint = name in BACKGROUND
        axis.scatter(
            *points[chosen].T, s=16 if faint else 34, color=colour, marker=marker, lw=0 if faint else 0.4,
            edgecolor="white", alpha=0.7 if faint else 0.95, label=(name or "none").replace("_", " "),
        )  # fmt: skip
    _dress(axis, f"Embeddings (measured) by what sounded (made), {how}")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[["left", "bottom"]].set_visible(False)
    columns = min(5, len(set(labels)))
    axis.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns, fontsize=9, frameon=False,
        handletextpad=0.2, columnspacing=0.9, markerscale=1.1,
    )  # fmt: skip


def _draw_parts(axis: Any, timeline: Timeline) -> None:
    """Mean parts of the latency for each split in use: what a window waits for until its embedding is usable."""
    splits = sorted({int(split) for split in timeline.split})
    for row, split in enumerate(splits):
        chosen, begin = timeline.split == split, 0.0
        for (name, values), colour in zip(timeline.parts_ms.items(), PART_COLOURS, strict=True):
            counted = values[chosen & np.isfinite(values)]
            if split >= timeline.last_split and name not in ON_DEVICE:
                continue
            width = float(np.median(counted)) if len(counted) else 0.0
            axis.barh(row, width, left=begin, color=colour, height=0.7, label=name if row == 0 else None)
            begin += width
        axis.text(begin, row, f" {begin:.3g} ms", va="center", fontsize=9, color=INK)
    words = {-1: "audio", 0: "features", timeline.last_split: "device"}
    shown = [
        f"{words.get(split, f'split {split}')}\n{int((timeline.split == split).sum())} windows"
        for split in splits
    ]
    axis.set_yticks(range(len(splits)), shown)
    axis.margins(x=0.12)
    _dress(axis, "Where the time goes: median of each part, ms (measured)")
    axis.legend(
        loc="upper center", bbox_to_anchor=(0.46, -0.09), ncols=8, fontsize=8.5, frameon=False,
        handlelength=0.9, handletextpad=0.3, columnspacing=0.8,
    )  # fmt: skip


def rolling_median(values: Numbers, width: int) -> Numbers:
    """Median of the `width` values around each, fewer at the ends; NaN is left out."""
    half = width // 2
    around = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    kept = [part[np.isfinite(part)] for part in around]
    return np.array([np.median(part) if len(part) else np.nan for part in kept])


def _stairs(timeline: Timeline, values: Numbers) -> tuple[Numbers, Numbers]:
    """Each window's value over its whole length, as a line of corners; lost windows leave a hole."""
    begin, end = timeline.start_s, timeline.start_s + timeline.window_s
    edges, drawn = np.column_stack([begin, end]).ravel(), np.repeat(values, 2)
    holes = np.flatnonzero(begin[1:] - end[:-1] > 0.01) + 1
    return np.insert(edges, 2 * holes, begin[holes]), np.insert(drawn, 2 * holes, np.nan)


def _plain_decades(axis: Any, subs: tuple[float, ...] = (1.0,)) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=7))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(EngFormatter(sep=""))
