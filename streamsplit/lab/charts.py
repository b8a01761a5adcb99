"""Charts of the report: bars are HTML, so that words keep their size on a phone; lines are SVG without words in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from streamsplit.lab.page import Html, tag

LANE_HEIGHT: Final = 44
STRIP_HEIGHT: Final = 20
MAP_SIZE: Final = 400
MAP_COLOURS: Final = 9


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar.

    Attributes:
        name: at its left.
        value: None: no bar.
        interval: drawn as a whisker; (None, None): none.
        tick: another value of the same thing, drawn as a tick.
        other: paler: not one of ours, or modelled.
    """

    name: str
    value: float | None
    interval: tuple[float | None, float | None] = (None, None)
    tick: float | None = None
    other: bool = False


def bars(
    title: str, items: Sequence[Bar], digits: int = 0, log: bool = False, least: float | None = None
) -> Html:
    """Horizontal bars on one scale.

    Args:
        title: with the unit.
        digits: after the decimal point.
        log: logarithmic, from the power of ten below the smallest value.
        least: where a linear scale begins; None: at 0.
    """
    values = [
        value
        for item in items
        for value in (item.value, item.tick, *item.interval)
        if value is not None and (not log or value > 0)
    ]
    if not values:
        return tag("figure", tag("figcaption", f"{title}: nothing was measured"))
    scale = _Scale(min(values), max(values), log, least)
    rows = [_bar(item, scale, digits) for item in items]
    kind = " (logarithmic)" if log else "" if least is None else f" (bars begin at {scale.low:g})"
    return tag("figure", tag("figcaption", title + kind), tag("div", rows, class_="bars"))


class _Scale:
    def __init__(self, lowest: float, highest: float, log: bool, least: float | None) -> None:
        self._log = log
        if log:
            self.low = 10.0 ** math.floor(math.log10(lowest * 0.999))
            self._span = math.log10(max(highest, self.low * 10) / self.low)
        else:
            self.low = min(0.0, lowest) if least is None else least
            self._span = (highest - self.low) or 1.0

    def percent(self, value: float) -> float:
        """0..100 along the track."""
        if self._log:
            share = math.log10(max(value, self.low) / self.low) / self._span
        else:
            share = (value - self.low) / self._span
        return round(100.0 * min(1.0, max(0.0, share)), 2)


def _bar(item: Bar, scale: _Scale, digits: int) -> list[Html]:
    parts: list[Html] = []
    if item.value is not None:
        parts.append(tag("i", style=f"width:{scale.percent(item.value)}%"))
    low, high = item.interval
    if low is not None and high is not None:
        left, right = scale.percent(low), scale.percent(high)
        parts.append(tag("b", style=f"left:{left}%;width:{max(0.4, round(right - left, 2))}%"))
    if item.tick is not None:
        parts.append(tag("u", style=f"left:{scale.percent(item.tick)}%"))
    value = "-" if item.value is None else f"{item.value:,.{digits}f}"
    track = tag("span", parts, class_="track other" if item.other else "track")
    return [tag("span", item.name, class_="name"), track, tag("span", value, class_="value")]


def split_colour(split: int) -> str:
    """A CSS colour; splits beyond 9 share the last."""
    return f"var(--s{max(-1, min(9, split))})"


def split_name(split: int, last_split: int) -> str:
    """For people."""
    return {-1: "sound", 0: "split 0", last_split: "on the device"}.get(split, f"split {split}")


def split_chips(splits: Sequence[int], last_split: int) -> Html:
    """A legend."""
    chips = [
        tag("span", split_name(split, last_split), class_="chip", style=f"--c:{split_colour(split)}")
        for split in sorted(set(splits))
    ]
    return tag("div", chips, class_="chips")


def mixes(title: str, shares: Mapping[str, Mapping[int, float]], last_split: int) -> Html:
    """Per system, the shares of its splits side by side."""
    rows = []
    for name, parts in shares.items():
        cells = [
            tag(
                "span",
                style=f"--c:{split_colour(split)};width:{100 * part:.2f}%",
                title=f"{split_name(split, last_split)}: {part:.0%}",
            )
            for split, part in sorted(parts.items())
        ]
        most = max(parts, key=lambda split: parts[split]) if parts else None
        word = "" if most is None else f"{parts[most]:.0%} {split_name(most, last_split)}"
        rows += [
            tag("span", name, class_="name"),
            tag("span", cells, class_="mix"),
            tag("span", word, class_="value"),
        ]
    used = [split for parts in shares.values() for split in parts]
    return tag(
        "figure", tag("figcaption", title), split_chips(used, last_split), tag("div", rows, class_="bars")
    )


def lane(
    title: str,
    note: str,
    values: Sequence[float | None],
    log: bool = False,
    rule: float | None = None,
    area: bool = True,
) -> Html:
    """A line over the windows of a run; gaps where there is no value.

    Args:
        rule: a dashed line at this value.
    """
    known = [value for value in values if value is not None and (not log or value > 0)]
    if not known:
        return tag("div", tag("div", tag("span", title), tag("span", note)), class_="lane")
    low = min(known) if log else 0.0
    high = max([*known, *([rule] if rule is not None else [])])
    span = (math.log(high / low) if log else high - low) or 1.0

    def height(value: float) -> float:
        share = math.log(max(value, low) / low) / span if log else (value - low) / span
        return round(LANE_HEIGHT - 2 - (LANE_HEIGHT - 4) * share, 2)

    parts: list[Html] = []
    for stretch in _stretches(values, log):
        points = " ".join(f"{place + 0.5:g},{height(value)}" for place, value in stretch)
        if area:
            first, last = stretch[0][0] + 0.5, stretch[-1][0] + 0.5
            outline = f"M{first:g},{LANE_HEIGHT} L{points.replace(' ', ' L')} L{last:g},{LANE_HEIGHT} Z"
            parts.append(tag("path", d=outline, class_="area"))
        parts.append(tag("polyline", points=points, class_="line"))
    if rule is not None and (not log or rule >= low):
        parts.append(tag("line", x1=0, x2=len(values), y1=height(rule), y2=height(rule), class_="rule"))
    return tag(
        "div", tag("div", tag("span", title), tag("span", note)), _svg(parts, len(values)), class_="lane"
    )


def strip(title: str, splits: Sequence[int | None], last_split: int) -> Html:
    """The split of every window as a coloured strip; nothing where a window was lost."""
    parts, begin = [], 0
    for place in range(1, len(splits) + 1):
        if place == len(splits) or splits[place] != splits[begin]:
            split = splits[begin]
            if split is not None:
                parts.append(
                    tag(
                        "rect",
                        x=begin,
                        y=0,
                        width=place - begin,
                        height=LANE_HEIGHT,
                        style=f"fill:{split_colour(split)}",
                    )
                )
            begin = place
    legend = split_chips([split for split in splits if split is not None], last_split)
    return tag(
        "div", tag("div", tag("span", title)), _svg(parts, len(splits), STRIP_HEIGHT), legend, class_="lane"
    )


def embedding_map(x: Sequence[float], y: Sequence[float], labels: Sequence[str | None], title: str) -> Html:
    """A point per window, coloured by its label; the most frequent ones have colours."""
    if len(x) < 3:
        return Html("")
    left, top = min(x), min(y)
    span = max(max(x) - left, max(y) - top) or 1.0
    names = [label or "?" for label in labels]
    ranked = sorted(set(names), key=lambda name: (-names.count(name), name))[:MAP_COLOURS]
    colour = {name: f"var(--s{place})" for place, name in enumerate(ranked)}
    points = [
        tag(
            "circle",
            cx=round(10 + (MAP_SIZE - 20) * (a - left) / span, 1),
            cy=round(10 + (MAP_SIZE - 20) * (b - top) / span, 1),
            r=4,
            style=f"fill:{colour.get(name, 'var(--line)')}",
            fill_opacity=0.8,
        )
        for a, b, name in zip(x, y, names, strict=True)
    ]
    picture = tag(
        "svg", points, viewBox=f"0 0 {MAP_SIZE} {MAP_SIZE}", class_="map", role="img", aria_label=title
    )
    chips = [
        tag("span", name.replace("_", " "), class_="chip", style=f"--c:{colour[name]}") for name in ranked
    ]
    return tag("figure", tag("figcaption", title), tag("div", chips, class_="chips"), picture)


def _stretches(values: Sequence[float | None], log: bool) -> list[list[tuple[int, float]]]:
    found: list[list[tuple[int, float]]] = [[]]
    for place, value in enumerate(values):
        if value is None or (log and value <= 0):
            found.append([])
        else:
            found[-1].append((place, value))
    return [stretch for stretch in found if stretch]


def _svg(parts: Sequence[Html], width: int, height: int = LANE_HEIGHT) -> Html:
    return tag(
        "svg",
        parts,
        viewBox=f"0 0 {max(1, width)} {LANE_HEIGHT}",
        preserveAspectRatio="none",
        height=height,
        role="img",
    )
