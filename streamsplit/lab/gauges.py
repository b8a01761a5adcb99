"""Small drawings in text: sparkline, meter, the bar that shows where an encoder is cut. No state, no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.text import Text

RAMP, ASCII_RAMP = " ▁▂▃▄▅▆▇█", " .:-=+*%@"
FULL, ASCII_FULL = "█", "#"
EMPTY, ASCII_EMPTY = "░", "."
EIGHTHS = " ▏▎▍▌▋▊▉"
DEVICE_STYLE, SERVER_STYLE, QUIET_STYLE = "bright_cyan", "bright_magenta", "grey42"
LOUDEST_DBFS, QUIETEST_DBFS = 0.0, -60.0


def amount(value: float | None, unit: str, digits: int = 3) -> str:
    """A quantity with its SI prefix: 1.25 kB/s, 400 kbit/s; a dash where it is not known.

    >>> amount(1253.0, "B/s"), amount(8e6, "bit/s"), amount(0.0, "B"), amount(None, "B")
    ('1.25 kB/s', '8 Mbit/s', '0 B', '-')
    """
    if value is None:
        return "-"
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.{digits}g} {prefix}{unit}"
    return f"{value:.{digits}g} {unit}"


def milliseconds(value: float | None) -> str:
    """A duration as short as it can be told: 0.31 ms, 52 ms, 3.2 s.

    >>> milliseconds(0.314), milliseconds(52.4), milliseconds(3210), milliseconds(None)
    ('0.31 ms', '52 ms', '3.2 s', '-')
    """
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value / 1000:.1f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.2g} ms"


def sparkline(
    values: Sequence[float | None],
    width: int,
    rows: int = 1,
    style: str = "",
    plain: bool = False,
    top: float | None = None,
) -> list[Text]:
    """The last values as columns, newest on the right, scaled from 0 to `top`.

    Args:
        values: None leaves a hole.
        width: columns.
        rows: lines of text; the first is the top.
        style: of the columns.
        plain: ASCII only.
        top: value of a full column; None: the largest shown.

    Returns:
        `rows` lines, each `width` wide.
    """
    shown = list(values)[-width:] if width > 0 else []
    if top is None:
        top = max((value for value in shown if value is not None), default=0.0)
    ramp = ASCII_RAMP if plain else RAMP
    steps = len(ramp) - 1
    heights = [_height(value, top, rows * steps) for value in shown]
    pad = " " * (max(0, width) - len(shown))
    lines = []
    for row in reversed(range(rows)):
        cells = (ramp[max(0, min(steps, height - row * steps))] for height in heights)
        lines.append(Text(pad + "".join(cells), style=style))
    return lines


def _height(value: float | None, top: float, most: int) -> int:
    if value is None:
        return 0
    return min(most, max(1, round(most * value / top))) if top > 0 else 1


def bar(share: float, width: int, style: str, plain: bool = False) -> Text:
    """A share of 0..1 as a bar, to an eighth of a column."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    if plain:
        return Text(ASCII_FULL * full, style).append(ASCII_EMPTY * (width - full), QUIET_STYLE)
    drawn = Text(FULL * full + (EIGHTHS[rest] if rest else ""), style)
    return drawn.append(" " * (width - drawn.cell_len))


def level_meter(level_dbfs: float | None, peak_dbfs: float | None, width: int, plain: bool = False) -> Text:
    """Loudness from -60 to 0 dBFS: green, from -18 dB yellow, from -6 dB red; a mark at the recent peak."""
    text = Text()
    level, peak = (_column(value, width) for value in (level_dbfs, peak_dbfs))
    for column in range(width):
        decibels = QUIETEST_DBFS + (LOUDEST_DBFS - QUIETEST_DBFS) * (column + 0.5) / width
        style = "green" if decibels < -18 else "yellow" if decibels < -6 else "red"
        if column < level:
            text.append(ASCII_FULL if plain else FULL, style)
        elif column == peak - 1:
            text.append("|" if plain else "▏", style)
        else:
            text.append(ASCII_EMPTY if plain else EMPTY, QUIET_STYLE)
    return text


def _column(decibels: float | None, width: int) -> int:
    if decibels is None:
        return 0
    share = (decibels - QUIETEST_DBFS) / (LOUDEST_DBFS - QUIETEST_DBFS)
    return round(max(0.0, min(1.0, share)) * width)


def split_bar(
    split: int | None, last_split: int, width: int, names: Sequence[str] = (), plain: bool = False
) -> Text:
    """The encoder's blocks from left to right: those the device runs, the cut, those the server runs.

    Args:
        split: cut after so many blocks; 0 and below: all on the server; None: not known yet.
        last_split: L, blocks in all.
        width: columns.
        names: of the blocks, written into them where they fit.
        plain: ASCII only.
    """
    edges = [round(index * width / last_split) for index in range(last_split + 1)]
    text = Text()
    for block, (begin, end) in enumerate(pairwise(edges)):
        on_device = split is not None and block < split
        style = QUIET_STYLE if split is None else DEVICE_STYLE if on_device else SERVER_STYLE
        body = end - begin - 1
        name = names[block] if block < len(names) and len(names[block]) + 2 <= body else ""
        filler = (ASCII_FULL if on_device else "-") if plain else ("━" if on_device else "╌")
        text.append((f" {name} " if name else "").center(max(0, body), filler), style)
        cut = split is not None and block + 1 == max(split, 0) and split < last_split
        mark = ("|" if plain else "┃") if cut else ("+" if plain else "┿" if on_device else "┼")
        text.append(mark, "bold bright_white" if cut else style)
    return text
