"""The panels of the picture of a run: each draws one thing on one pair of axes and says whether it was measured or made.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; where there are more sounds than colours, marker
shapes go on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamsplit.lab.maps import place
from streamsplit.lab.series import ON_DEVICE, Numbers, Timeline

DEVICE, SERVER, LINK, INK, QUIET = "#0072B2", "#E69F00", "#009E73", "#222222", "#8A8A8A"
EVENT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#A39400", "#5D3A9B")
EVENT_MARKERS = ("o", "^", "s", "D")
PART_COLOURS = ("#56B4E9", "#0072B2", "#0B3C5D", "#C8C8C8", "#009E73", "#F0E442", "#E69F00", "#D55E00")
BACKGROUND = ("quiet", "background", "none", "")
SMOOTHED_WINDOWS = 9

Event = tuple[str, float, float]
"""What sounded, from which second to which."""
Styles = Mapping[str, tuple[str, str]]
"""Colour and marker of each sound."""


def styles_of(names: Iterable[str]) -> Styles:
    """A colour and a marker for each sound, the same for the same set of them; background is grey."""
    sounds = sorted({name for name in names if name not in BACKGROUND})
    styles = {
        name: (
            EVENT_COLOURS[i % len(EVENT_COLOURS)],
            EVENT_MARKERS[i // len(EVENT_COLOURS) % len(EVENT_MARKERS)],
        )
        for i, name in enumerate(sounds)
    }
    return {**styles, **dict.fromkeys(BACKGROUND, ("#C9C9C9", "o"))}


def dress(axis: Any, title: str) -> None:
    """Title, spines and grid as in every panel."""
    axis.set_title(title, loc="left", fontsize=10.5, fontweight="bold", color=INK, pad=4)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(QUIET)
    axis.tick_params(labelsize=9, colors=INK, length=3)
    axis.grid(axis="x", color="#E6E6E6", lw=0.7)
    axis.set_axisbelow(True)


def draw_events(axis: Any, events: Sequence[Event], styles: Styles) -> None:
    """A row per sound, a bar wherever it sounds."""
    kinds = sorted({event[0] for event in events}, reverse=True)
    for kind, begin_s, end_s in events:
        axis.barh(kinds.index(kind), end_s - begin_s, left=begin_s, height=0.78, color=styles[kind][0])
    axis.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
    axis.set_ylim(-0.6, len(kinds) - 0.4)
    dress(axis, "What sounds (made)")
    axis.tick_params(axis="y", labelsize=8, length=0)


def draw_split(axis: Any, timeline: Timeline) -> None:
    """Which blocks run where, over time."""
    edges, blocks = _stairs(timeline, np.clip(timeline.split, 0, None))
    axis.fill_between(edges, 0, blocks, color=DEVICE, alpha=0.85, lw=0, label="on the device")
    axis.fill_between(
        edges, blocks, timeline.last_split, color=SERVER, alpha=0.55, lw=0, label="on the server"
    )
    axis.plot(edges, blocks, color=INK, lw=1.2)
    axis.set_ylim(0, timeline.last_split)
    axis.set_yticks(range(timeline.last_split + 1))
    dress(axis, "Blocks of the encoder: where it is cut (measured)")
    axis.legend(
        loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=2, fontsize=9, frameon=False, handlelength=1.2
    )


def draw_latency(axis: Any, timeline: Timeline) -> None:
    """A point per window, and their running median."""
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
    dress(axis, "Latency until the embedding is usable, ms (measured)")
    axis.legend(
        loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=3, fontsize=9, frameon=False, handlelength=1.2
    )


def draw_uplink(axis: Any, timeline: Timeline, rates: Sequence[tuple[float, float]] | None) -> None:
    """What the link carried, what it could have carried, and what PCM would need."""
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
    dress(axis, "Uplink, bits a second")
    axis.legend(
        loc="lower right", bbox_to_anchor=(1.0, 0.97), ncols=3, fontsize=9, frameon=False, handlelength=1.6
    )


def draw_curve(axis: Any, timeline: Timeline, values: Numbers, title: str, colour: str) -> None:
    """One figure per window, from 0."""
    edges, drawn = _stairs(timeline, values)
    axis.fill_between(edges, 0, drawn, color=colour, alpha=0.35, lw=0)
    axis.plot(edges, drawn, color=colour, lw=1.1)
    axis.set_ylim(0, max(1.0, 1.08 * float(np.nanmax(values))) if np.isfinite(values).any() else 1.0)
    axis.locator_params(axis="y", nbins=3, integer=True)
    dress(axis, title)


def draw_map(
    axis: Any, embeddings: npt.NDArray[np.float32], labels: Sequence[str], styles: Styles, seed: int
) -> None:
    """Embeddings on a plane, coloured by what truly sounded."""
    points, how = place(embeddings, seed)
    names = np.array(labels)
    for name in sorted(set(labels), key=lambda name: (name not in BACKGROUND, name)):
        chosen, (colour, marker) = names == name, styles[name]
        faint = name in BACKGROUND
        axis.scatter(
            *points[chosen].T, s=16 if faint else 34, color=colour, marker=marker, lw=0 if faint else 0.4,
            edgecolor="white", alpha=0.7 if faint else 0.95, label=(name or "none").replace("_", " "),
        )  # fmt: skip
    dress(axis, f"Embeddings (measured) by what sounded (made), {how}")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[["left", "bottom"]].set_visible(False)
    columns = min(5, len(set(labels)))
    axis.legend(
        loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns, fontsize=9, frameon=False,
        handletextpad=0.2, columnspacing=0.9, markerscale=1.1,
    )  # fmt: skip


def draw_parts(axis: Any, timeline: Timeline) -> None:
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
    dress(axis, "Where the time goes: median of each part, ms (measured)")
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
