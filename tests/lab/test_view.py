"""What a person sees of a running client."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from streamsplit.lab.view import LiveView

SIZES = [(80, 24), (100, 30), (160, 50)]


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def window(sequence: int, split: int = 3, **changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "kind": "window", "stream": "s", "sequence": sequence, "start_s": 0.96 * sequence, "level_dbfs": -23.4, "split": split,
        "label": "[bold]dog_bark[/bold]", "codec": "int4", "payload_bytes": 303, "state": "acknowledged", "duplicate": False,
        "decision": {"reason": "free CPU 82%, " * 20, "observation": {"cpu_percent": 20.0, "backlog_windows": 2}},
        "measured": {"total_ms": 52.0, "uplink_bytes": 400 * sequence, "unix_ms": 960 * sequence},
    }  # fmt: skip
    return {**record, **changes}


def fed(**settings: Any) -> LiveView:
    view = LiveView("A demo with a title that is far too long for any terminal " * 3, 100, **settings)
    view.update({"kind": "stream", "encoder": "compact", "sample_rate_hz": 16000, "window_samples": 15360})
    for sequence in range(50):
        view.update(window(sequence))
        view.status(link_bps=400e3, server_up=True)
    view.status(nearest=[("dog_bark", 0.93), ("engine", 0.71), ("quiet", -0.2), ("never shown", 0.1)])
    return view


def drawn(view: LiveView, width: int, height: int, encoding: str = "utf-8") -> list[str]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    console = Console(file=stream, width=width, height=height, force_terminal=True, color_system=None)
    console.print(view.render())
    stream.seek(0)
    return stream.read().splitlines()


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("empty", [False, True])
def test_the_picture_fits_the_terminal(width: int, height: int, empty: bool) -> None:
    lines = drawn(LiveView("empty") if empty else fed(last_split=4), width, height)
    assert len(lines) <= height - 1  # the cursor's own line
    assert {len(line) for line in lines} == {width}


def test_the_picture_names_what_is_going_on() -> None:
    text = "\n".join(drawn(fed(last_split=4), 100, 30))
    for expected in (
        "cut after block 3 of 4 · int4 · 303 B a window", "-23.4 dBFS", "p50 52 ms", "417 B/s", "1.3 % of PCM16", "400 kbit/s",
        "2 windows", "server up", "20 %", "dog bark", "0.93", "-0.20", "50 acknowledged", "50/100",
    ):  # fmt: skip
        assert expected in text
    assert "never shown" not in text


def test_labels_are_text_and_not_markup() -> None:
    assert "[bold]dog bark" in "\n".join(drawn(fed(), 160, 50))


def test_a_server_that_is_away_is_said_to_be() -> None:
    view = fed()
    view.status(server_up=False)
    assert "server away" in "\n".join(drawn(view, 100, 30))


@pytest.mark.parametrize(
    ("split", "words"), [(-1, "audio sent"), (0, "features sent"), (4, "embedded on the device")]
)
def test_the_ends_of_the_encoder_have_their_own_words(split: int, words: str) -> None:
    view = LiveView("t", last_split=4)
    view.update(window(0, split=split))
    assert words in "\n".join(drawn(view, 100, 30))


@pytest.mark.parametrize("width", [80, 160])
def test_a_terminal_without_unicode_gets_ascii(width: int) -> None:
    view = fed(last_split=4)
    view.update(window(50, label="Straßenbahn", decision={"reason": "weil …", "observation": {}}))
    for shown in (view, LiveView("nothing seen yet")):
        assert all(line.isascii() for line in drawn(shown, width, 24, "ascii"))


def test_piped_output_is_a_line_now_and_then_and_one_at_the_end() -> None:
    clock, out = Clock(), io.StringIO()
    view = LiveView("The demo", 100, last_split=4, plain_every_s=10.0, clock=clock)
    with view.live(Console(file=out, width=40, force_terminal=False)):
        for sequence in range(25):
            clock.now_s += 1.0
            view.update(window(sequence))
    lines = out.getvalue().splitlines()
    assert lines[0] == "The demo"
    assert [line.split("window ")[1].split("/")[0] for line in lines[1:]] == ["10", "20", "25"]
    assert "\x1b" not in out.getvalue()


def test_after_the_context_nothing_more_is_printed() -> None:
    clock, out = Clock(), io.StringIO()
    view = LiveView("t", clock=clock)
    with view.live(Console(file=out, force_terminal=False)):
        pass
    before = out.getvalue()
    clock.now_s += 100
    view.update(window(0))
    assert out.getvalue() == before


def test_a_terminal_is_redrawn_in_place() -> None:
    out = io.StringIO()
    view = fed(last_split=4)
    with view.live(Console(file=out, width=80, height=24, force_terminal=True)):
        view.update(window(51))
    assert "52" not in out.getvalue().splitlines()[0]
    assert out.getvalue().count("nearest known sounds") >= 1
    assert "\x1b[?25h" in out.getvalue()  # the cursor is shown again
