"""The report: whole, escaped, and asking nothing of the network."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from streamsplit.lab.charts import Bar, bars, lane, strip
from streamsplit.lab.page import VOID, document, table, tag

EVIL = "<script>alert(\"1\")</script> & 'more'"


class Checker(HTMLParser):
    """Sees to it that every element is closed in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(page: str) -> list[str]:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    return checker.seen


def test_text_is_escaped_wherever_it_stands() -> None:
    page = document(
        EVIL,
        tag("p", EVIL, title=EVIL),
        table((EVIL,), ((EVIL,), (None,))),
        bars(EVIL, [Bar(EVIL, 1.0)]),
        lane(EVIL, EVIL, [1.0, 2.0]),
        strip(EVIL, [0, 1], 4),
    )
    assert "<script" not in page
    assert "script" not in check(page)
    assert page.count("&lt;script&gt;") >= 8


def test_a_page_asks_nothing_of_the_network() -> None:
    page = document("t", tag("p", "x"))
    assert not re.search(r"https?://|src=|@import|url\(", page)
    assert "prefers-color-scheme:dark" in page
    assert "width=device-width" in page


@pytest.mark.parametrize("log", [True, False])
def test_bars_stand_any_values(log: bool) -> None:
    items = [Bar("none", None), Bar("zero", 0.0), Bar("some", 5.0, (1.0, 9.0), 12.0), Bar("less", -3.0)]
    picture = bars("t", items, log=log)
    check(picture)
    widths = [float(width) for width in re.findall(r"width:([\d.]+)%", picture)]
    assert widths
    assert all(0.0 <= width <= 100.0 for width in widths)
    assert "nothing was measured" in bars("t", [Bar("none", None)], log=log)


def test_a_line_has_gaps_where_nothing_is_known_and_a_strip_one_piece_per_stretch() -> None:
    assert lane("t", "", [1.0, None, 2.0, 3.0]).count("<polyline") == 2
    assert "<svg" not in lane("t", "", [None, None])
    picture = strip("t", [1, 1, None, 4, 4, 4, 1], 4)
    assert re.findall(r'<rect x="(\d+)" y="0" width="(\d+)"', picture) == [("0", "2"), ("3", "3"), ("6", "1")]
