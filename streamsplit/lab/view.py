"""A running client at a glance: where the encoder is cut, how long windows take, what the link carries, what is heard.

Fed by journal records and by what the caller knows of link and server, nothing else. On a terminal it is redrawn in place; where
output is piped it says one line now and then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from streamsplit.lab import gauges
from streamsplit.lab.vitals import Vitals, newest

TALL = 28
NEAREST_ROWS = 3
NAME_WIDTH, VALUE_WIDTH = 9, 35
COUNTS = ("acknowledged", "local", "dropped", "rejected", "duplicate", "gaps", "skips")
ALARMING = ("dropped", "rejected", "gaps")

AWAY = "server away"


class _Curve(NamedTuple):
    """One line of figures: a value now, a note beside it, and how it came about."""

    name: str
    value: str
    note: str
    series: Iterable[float | None]
    style: str
    top: float | None = None
    tall: bool = True


class LiveView:
    """The picture of a running client. Records and drawing may come from different threads.

    Args:
        title: shown on top.
        total_windows: for the progress bar; None: an endless stream.
        last_split: L of the encoder; None: as the stream's record says, else the deepest split seen.
        plain_every_s: seconds between the lines where there is no terminal.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        title: str,
        total_windows: int | None = None,
        last_split: int | None = None,
        plain_every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.title, self.total_windows = title, total_windows
        self._plain_every_s, self._clock = plain_every_s, clock
        self._began_s = self._said_s = clock()
        self._vitals = Vitals(last_split=last_split)
        self._plain_to: Console | None = None
        self._lock = Lock()

    def update(self, record: Mapping[str, Any]) -> None:
        """Takes one journal record, of any kind, with whatever fields it has."""
        with self._lock:
            self._vitals.take(record)
        self._say_now_and_then()

    def status(
        self,
        link_bps: float | None = None,
        server_up: bool | None = None,
        nearest: Sequence[tuple[str, float]] | None = None,
    ) -> None:
        """Takes what the journal does not say; what is left out stays as it was.

        Args:
            link_bps: the link's true rate now, where somebody knows it.
            server_up: a connection to the server is open.
            nearest: the known sounds nearest to the last window: (label, cosine), best first.
        """
        with self._lock:
            if link_bps is not None:
                self._vitals.link_bps.append(link_bps)
            if server_up is not None:
                self._vitals.server_up = server_up
            if nearest is not None:
                self._vitals.nearest = list(nearest)
        self._say_now_and_then()

    def render(self) -> RenderableType:
        """The picture; it fits itself to the terminal it is drawn on."""
        return self

    @contextmanager
    def live(self, console: Console) -> Iterator[LiveView]:
        """Shows the view while the context is open; without a terminal, a line every `plain_every_s` and one at the end."""
        if console.is_terminal and not console.is_dumb_terminal:
            with Live(self, console=console, refresh_per_second=8, vertical_overflow="crop"):
                yield self
            return
        self._plain_to = console
        self._say(self.title)
        try:
            yield self
        finally:
            self._say(self.plain_line())
            self._plain_to = None

    def plain_line(self) -> str:
        """The state on one line, for logs."""
        with self._lock:
            seen, (_, p50, p95) = self._vitals, self._vitals.percentiles_ms
            total = f"/{self.total_windows}" if self.total_windows else ""
            return (
                f"{self._clock() - self._began_s:5.0f} s  window {seen.windows}{total}  {self._where()}  "
                f"p50 {gauges.milliseconds(p50)}  p95 {gauges.milliseconds(p95)}  "
                f"{gauges.amount(newest(seen.bytes_per_s), 'B/s')}  backlog {newest(seen.backlog) or 0:.0f}  "
                f"{_server_word(seen.server_up)}"
            )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draws the panel as wide as it may be."""
        with self._lock:
            yield self._panel(max(50, options.max_width), console.height >= TALL, options.ascii_only)

    def _say_now_and_then(self) -> None:
        if self._plain_to is not None and self._clock() - self._said_s >= self._plain_every_s:
            self._said_s = self._clock()
            self._say(self.plain_line())

    def _say(self, line: str) -> None:
        if self._plain_to is not None:
            self._plain_to.print(line, soft_wrap=True, highlight=False, markup=False)

    def _where(self) -> str:
        split, last_split = self._vitals.split, self._vitals.last_split
        if split is None:
            return "no window yet"
        if split <= 0:
            return "audio sent" if split < 0 else "features sent"
        if split == last_split:
            return "embedded on the device"
        return f"cut after block {split}" + (f" of {last_split}" if last_split else "")

    def _panel(self, width: int, tall: bool, plain: bool) -> Panel:
        inside = width - 4
        parts: list[RenderableType] = [
            self._sound(inside, plain),
            *self._split(inside, plain),
            _rule("", plain),
            self._curves(inside, 2 if tall else 1, plain),
            _rule("nearest known sounds", plain),
            *self._nearest(inside, plain),
            _rule("", plain),
            self._counts(inside),
            self._progress(inside, plain),
        ]
        return Panel(
            Group(*parts),
            title=Text(f" {_shown(self.title, plain)} ", "bold", overflow="crop" if plain else "ellipsis"),
            title_align="left",
            subtitle=Text(f" {self._vitals.encoder} ") if self._vitals.encoder else None,
            subtitle_align="right",
            border_style=gauges.QUIET_STYLE,
            box=box.ASCII if plain else box.ROUNDED,
            width=width,
        )

    def _sound(self, width: int, plain: bool) -> Text:
        levels, label = self._vitals.level_dbfs, self._vitals.last.get("label")
        now, peak = (levels[-1], max(levels)) if levels else (None, None)
        text = _name("sound").append_text(gauges.level_meter(now, peak, width - NAME_WIDTH - 35, plain))
        text.append("       -     " if now is None else f"{now:>7.1f} dBFS ")
        text.append(f"  {_shown(label, plain)}" if label else "", "italic")
        text.truncate(width, overflow="crop" if plain else "ellipsis")
        return text

    def _split(self, width: int, plain: bool) -> tuple[Text, Text]:
        seen = self._vitals
        bar = gauges.split_bar(seen.split, seen.deepest, width - NAME_WIDTH - 14, seen.block_names, plain)
        first = _name("split").append("device ", gauges.DEVICE_STYLE).append_text(bar)
        first.append(" server", gauges.SERVER_STYLE)
        second = _name("").append(self._where(), "bold")
        if seen.split is not None:
            payload = gauges.amount(float(seen.last.get("payload_bytes", 0)), "B")
            dot = "-" if plain else "·"
            second.append(f" {dot} {seen.last.get('codec')} {dot} {payload} a window")
            reason = (seen.last.get("decision") or {}).get("reason")
            second.append(f" {dot} {_shown(reason, plain)}" if reason else "", gauges.QUIET_STYLE)
        second.truncate(width, overflow="crop" if plain else "ellipsis")
        return first, second

    def _curves(self, width: int, rows: int, plain: bool) -> Table:
        room = width - NAME_WIDTH - VALUE_WIDTH
        table = Table.grid(padding=0)
        for column_width in (NAME_WIDTH, VALUE_WIDTH, room):
            table.add_column(width=column_width, no_wrap=True)
        for curve in self._curve_list():
            tall = rows if curve.tall else 1
            drawn = gauges.sparkline(list(curve.series), room, tall, curve.style, plain, curve.top)
            note = Text(curve.note, gauges.QUIET_STYLE if curve.note != AWAY else "bold red")
            value = Text().append(f"{curve.value:<12}", "bold")
            table.add_row(_name(curve.name), value if tall > 1 else value.append_text(note), drawn[0])
            if tall > 1:
                table.add_row("", note, drawn[1])
        return table

    def _curve_list(self) -> list[_Curve]:
        seen, (last_ms, p50, p95) = self._vitals, self._vitals.percentiles_ms
        split = (
            "-" if seen.split is None else "audio" if seen.split < 0 else f"{seen.split} of {seen.deepest}"
        )
        share = "" if seen.share_of_pcm is None else f"{100 * seen.share_of_pcm:.2g} % of PCM16"
        percentiles = f"p50 {gauges.milliseconds(p50)}  p95 {gauges.milliseconds(p95)}"
        rate, link = (
            gauges.amount(newest(seen.bytes_per_s), "B/s"),
            gauges.amount(newest(seen.link_bps), "bit/s"),
        )
        backlog, cpu = _whole(newest(seen.backlog), "windows"), _whole(newest(seen.cpu_percent), "%")
        return [
            _Curve(
                "blocks",
                split,
                "run on the device",
                seen.splits,
                "bright_white",
                float(seen.deepest),
                tall=False,
            ),
            _Curve("latency", gauges.milliseconds(last_ms), percentiles, seen.latency_ms, "bright_yellow"),
            _Curve("uplink", rate, share, seen.bytes_per_s, "bright_green"),
            _Curve("link", link, "", seen.link_bps, "bright_blue"),
            _Curve("backlog", backlog, _server_word(seen.server_up), seen.backlog, "bright_red"),
            _Curve("CPU", cpu, "of others", seen.cpu_percent, "bright_cyan", 100.0),
        ]

    def _nearest(self, width: int, plain: bool) -> list[Text]:
        lines = []
        for label, score in list(self._vitals.nearest)[:NEAREST_ROWS]:
            line = Text(f"{_shown(label, plain):<18.18} ")
            line.append_text(gauges.bar(score, width - 26, gauges.SERVER_STYLE, plain))
            lines.append(line.append(f"  {score:5.2f}"))
        return lines + [
            Text("-" if not lines and row == 0 else "") for row in range(NEAREST_ROWS - len(lines))
        ]

    def _counts(self, width: int) -> Text:
        counts = self._vitals.counts
        text = Text()
        for name in COUNTS:
            if not counts[name] and name in ("local", "skips"):
                continue
            style = (
                "bold red"
                if counts[name] and name in ALARMING
                else "bold"
                if counts[name]
                else gauges.QUIET_STYLE
            )
            text.append(f"{counts[name]} ", style).append(f"{name}   ", gauges.QUIET_STYLE)
        text.truncate(width, overflow="ellipsis")
        return text

    def _progress(self, width: int, plain: bool) -> Text:
        seen = self._vitals
        heard = f"{seen.seconds:.0f} s of sound in {self._clock() - self._began_s:.0f} s"
        if not self.total_windows:
            return Text(f"window {seen.windows}   {heard}")
        tail = f"  {seen.windows}/{self.total_windows}   {heard}"
        share = seen.windows / self.total_windows
        return gauges.bar(share, max(4, width - len(tail)), "bright_white", plain).append(tail)


def _name(text: str) -> Text:
    return Text().append(f"{text:<{NAME_WIDTH}}", gauges.QUIET_STYLE)


def _shown(text: object, plain: bool) -> str:
    """A label, a reason or a title as a person reads it."""
    words = str(text).replace("_", " ")
    return words.encode("ascii", "replace").decode() if plain else words


def _whole(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.0f} {unit}"


def _server_word(up: bool | None) -> str:
    return {True: "server up", False: AWAY, None: ""}[up]


def _rule(title: str, plain: bool) -> Rule:
    return Rule(title, style=gauges.QUIET_STYLE, align="left", characters="-" if plain else "─")
