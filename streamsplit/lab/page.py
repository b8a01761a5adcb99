"""Small pieces of HTML: everything that is text is escaped, and a page asks nothing of the network.

>>> str(tag("p", "a < b & ", tag("b", "c"), title='"'))
'<p title="&quot;">a &lt; b &amp; <b>c</b></p>'
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Final

VOID: Final = ("meta", "br", "rect", "line", "path", "circle", "polyline")


class Html(str):
    """Text that is HTML already: never escaped again."""

    __slots__ = ()


Child = str | int | float | None | Iterable["Child"]


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Html:
    """An element. Children that are plain text are escaped, lists are joined, None is nothing.

    Attributes: `class_` is ``class``; underscores become hyphens; None leaves one out.
    """
    said = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID and not children:
        return Html(f"<{name}{said}>" if name in ("meta", "br") else f"<{name}{said}/>")
    return Html(f"<{name}{said}>{join(children)}</{name}>")


def join(children: Child) -> Html:
    """Children as HTML."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, str | int | float):
        return Html(html.escape(str(children)))
    return Html("".join(join(child) for child in children))


def table(heading: Sequence[Child], rows: Iterable[Sequence[Child]], best: Iterable[int] = ()) -> Html:
    """A table that scrolls sideways on its own where it is too wide; numbers are everything but the first column.

    Args:
        best: numbers of rows to set off.
    """
    marked = set(best)
    body = [
        tag(
            "tr",
            [
                tag("th" if place == 0 else "td", cell, scope="row" if place == 0 else None)
                for place, cell in enumerate(row)
            ],
            class_="best" if number in marked else None,
        )
        for number, row in enumerate(rows)
    ]
    head = tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in heading]))
    return tag("div", tag("table", head, tag("tbody", body)), class_="scroll", tabindex="0")


def document(title: str, *children: Child) -> str:
    """A whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(CSS)),
    )
    return "<!doctype html>\n" + tag("html", head, tag("body", tag("main", *children)), lang="en") + "\n"


CSS: Final = """
:root{--ink:#1d2329;--soft:#5b6670;--line:#d9dee3;--ground:#fff;--card:#f6f8f9;--mark:#e8f3ec;--accent:#0b6e99;--bad:#b3261e;
--s-1:#7a5195;--s0:#2f6fb7;--s1:#2a9d8f;--s2:#8ab17d;--s3:#e9a23b;--s4:#e76f51;--s5:#b5838d;--s6:#6d597a;--s7:#a44a3f;--s8:#577590;--s9:#4d4d4d}
@media (prefers-color-scheme:dark){:root{--ink:#e6eaee;--soft:#9aa6b1;--line:#36404a;--ground:#13181d;--card:#1b2229;--mark:#1d3328;--accent:#5fb8dd;--bad:#ff897d;
--s-1:#b493d3;--s0:#6ea8e8;--s1:#4fc7b8;--s2:#a9d19b;--s3:#f2bb66;--s4:#f08d74;--s5:#d9a7b0;--s6:#a58fb8;--s7:#d9786c;--s8:#86a9c2;--s9:#9a9a9a}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1100px;margin:0 auto;padding:16px}
h1{font-size:1.6rem;margin:.4em 0 .1em;line-height:1.2}h2{font-size:1.25rem;margin:2em 0 .4em;padding-top:.6em;border-top:1px solid var(--line);line-height:1.25}
h3{font-size:1.02rem;margin:1.4em 0 .4em}p{margin:.5em 0;max-width:46em}.soft,figcaption,caption{color:var(--soft);font-size:.9rem}
code{font:.9em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:.6em -16px;padding:0 16px}
table{border-collapse:separate;border-spacing:0;font-size:.88rem;font-variant-numeric:tabular-nums;min-width:100%}
th,td{padding:.32em .6em;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;vertical-align:top}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom;white-space:normal;line-height:1.2}
tr>:first-child{text-align:left;position:sticky;left:-16px;padding-left:16px;background:var(--ground);white-space:normal;min-width:9.5em;max-width:17em}
tbody th{font-weight:500}.best>*{background:var(--mark)}.best>:first-child{background:var(--mark)}
small{color:var(--soft);font-size:.86em;display:block;line-height:1.2}
.good{color:#1a7f4b;font-weight:600}.bad{color:var(--bad);font-weight:600}
@media (prefers-color-scheme:dark){.good{color:#6fd49b}}
figure{margin:.8em 0 1.4em}figcaption{margin-bottom:.5em}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:8px 28px}
.bars{display:grid;grid-template-columns:minmax(6.5em,10.5em) 1fr auto;gap:5px 10px;align-items:center;font-size:.84rem;font-variant-numeric:tabular-nums}
.bars .name{line-height:1.15}.bars .value{text-align:right;white-space:nowrap}
.track{position:relative;height:14px;background:var(--card);border-radius:3px}
.track i{position:absolute;top:0;bottom:0;left:0;border-radius:3px;background:var(--accent);opacity:.75}
.track.other i{opacity:.38}
.track b{position:absolute;top:6px;height:2px;background:var(--ink)}
.track u{position:absolute;top:3px;bottom:3px;width:2px;background:var(--ink);opacity:.55}
.chips{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:.84rem;margin:.3em 0}
.chip::before{content:"";display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em;vertical-align:-.05em;background:var(--c)}
.mix{display:flex;height:14px;border-radius:3px;overflow:hidden;background:var(--card)}.mix span{background:var(--c)}
.lane{margin:.15em 0 .5em}.lane .chips{justify-content:flex-start;gap:4px 14px}.lane svg{display:block;width:100%;background:var(--card);border-radius:3px}
.lane div{display:flex;justify-content:space-between;font-size:.8rem;color:var(--soft);gap:1em}
.axis{display:flex;justify-content:space-between;font-size:.78rem;color:var(--soft)}
svg .area{fill:var(--accent);opacity:.35}svg .line{fill:none;stroke:var(--accent);stroke-width:1.5;vector-effect:non-scaling-stroke}
svg .rule{stroke:var(--bad);stroke-width:1;stroke-dasharray:4 4;vector-effect:non-scaling-stroke}
.map{width:100%;max-width:520px;background:var(--card);border-radius:4px}
dl{display:grid;grid-template-columns:minmax(5em,auto) 1fr;gap:.15em 1em;font-size:.9rem;margin:.6em 0}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
details{margin:.6em 0}summary{cursor:pointer;color:var(--accent);padding:.35em 0}
@media (min-width:800px){tr>:first-child{min-width:15em}.bars{grid-template-columns:11.5em 1fr auto}}
nav{display:flex;flex-wrap:wrap;gap:.3em 1em;margin:.8em 0}a{color:var(--accent)}
"""
