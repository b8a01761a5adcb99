"""The lab: ``lab list``, ``lab run``, ``lab report``, ``lab check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from streamsplit.cli.terminal import app, err, out
from streamsplit.errors import ConfigError

lab_app = typer.Typer(
    no_args_is_help=True,
    help="""Compare ways of splitting the work: real client and server processes, a shaped link, an emulated device.

Try it: `streamsplit lab run wifi-idle --quick --out out/lab`, then `streamsplit lab report out/lab`.""",
)
app.add_typer(lab_app, name="lab")

QUICK_SECONDS, QUICK_SPEED = 24.0, 4.0

OutOption = Annotated[
    Path, typer.Option("--out", help="results folder; goes on with what is unfinished in it")
]
TracesOption = Annotated[
    Path | None,
    typer.Option("--traces", help="folder of real traces, as the scenarios name them; without it, made ones"),
]
SpeedOption = Annotated[float | None, typer.Option(help="of the sound, instead of the scenario's own")]
SecondsOption = Annotated[float | None, typer.Option(help="of sound, instead of the scenario's own")]


@lab_app.command("list")
def list_() -> None:
    """Show the scenarios that come with the project."""
    from streamsplit.lab import scenario as lab

    table = Table(box=None)
    table.add_column("scenario", no_wrap=True)
    for heading in ("what", "link", "device", "load"):
        table.add_column(heading, overflow="fold")
    table.add_column("speed", justify="right", no_wrap=True)
    for name in lab.shipped():
        each = lab.load(name)
        link = each.link.trace or each.link.made
        slower = "" if each.device.slowdown == 1 else f", {each.device.slowdown:g} times slower"
        load = each.load.kind if each.load.kind == "none" else f"{each.load.percent:g} %, {each.load.kind}"
        table.add_row(
            name, escape(each.title), escape(link), each.device.name + slower, load, f"{each.speed:g}"
        )
    out.print(table)
    out.print("A scenario of your own: copy one of these files and give its path.")
    out.print(str(lab.SHIPPED), soft_wrap=True)


@lab_app.command()
def run(
    scenarios: Annotated[list[str], typer.Argument(help="names (see `lab list`), TOML files, or `all`")],
    out_dir: OutOption = Path("out/lab"),
    systems: Annotated[
        list[str] | None,
        typer.Option(
            "--systems", help="server_pcm, split_1, heuristic, ... separated by commas; default: all"
        ),
    ] = None,
    traces: TracesOption = None,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help=f"{QUICK_SECONDS:g} s of sound at {QUICK_SPEED:g} times its speed, one seed"
        ),
    ] = False,
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help="so many, from 0 on")] = None,
    speed: SpeedOption = None,
    seconds: SecondsOption = None,
    encoder: Annotated[str | None, typer.Option(help="instead of the scenario's own")] = None,
    weights: Annotated[str | None, typer.Option(help="as for `replay`")] = None,
    quality: Annotated[
        Path | None, typer.Option(help="table of qualities for the reward; default: the shipped one")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="keep each run's journal, logs, sound and store")
    ] = False,
) -> None:
    """Run scenarios: every system hears the same sound over the same link, one after another.

    Each run is a real client and a real server; the link is a proxy that follows a trace, the device a share of one core. A run that
    is finished is never repeated: stop the command whenever you like, and give it again.
    """
    from streamsplit.lab import campaign as lab
    from streamsplit.lab import scenario as lab_scenario

    names = lab_scenario.shipped() if scenarios == ["all"] else scenarios
    changes = {
        "speed": speed or (QUICK_SPEED if quick else None),
        "seconds": seconds or (QUICK_SECONDS if quick else None),
        "seeds": tuple(range(seeds)) if seeds else ((0,) if quick else None),
        "encoder": encoder,
        "weights": weights,
    }
    loaded = tuple(lab_scenario.load(name, **changes) for name in names)
    if len({each.name for each in loaded}) != len(loaded):
        raise ConfigError(
            f"scenarios: expected different names, got {', '.join(each.name for each in loaded)}"
        )
    if traces is not None and not traces.is_dir():
        raise ConfigError(f"--traces {traces}: no such folder")
    chosen = tuple(name for text in systems or [] for name in text.split(",") if name)
    settings = lab.CampaignSettings(loaded, out_dir, chosen, traces, quality, keep)
    with _progress() as progress:
        bar = progress.add_task("", total=None)

        def told(what: str, share: float, done: int, total: int) -> None:
            progress.update(bar, description=escape(what), completed=done + share, total=total, done=done)

        summary = lab.run_campaign(settings, told)
    for name, found in summary["scenarios"].items():
        out.print(_table(name, found))
    out.print(f"results: {out_dir}; `streamsplit lab report {out_dir}` makes the report", soft_wrap=True)


@lab_app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="results folder of `lab run`")],
) -> None:
    """Write DIR/report.html (one file, for any browser), tables.md, summary.json and windows.parquet from what is finished."""
    from streamsplit.lab.campaign import summarise_folder
    from streamsplit.lab.markdown import write_tables
    from streamsplit.lab.report import write_report

    summary = summarise_folder(folder)
    path = write_report(folder, summary)
    write_tables(folder, summary)
    for name, found in summary["scenarios"].items():
        out.print(_table(name, found))
    out.print(f"report: {path}", soft_wrap=True)


@lab_app.command()
def check(
    scenario: Annotated[str, typer.Argument(help="a shipped name or a TOML file")] = "lte-idle",
    out_dir: OutOption = Path("out/lab-check"),
    traces: TracesOption = None,
    speed: Annotated[float, typer.Option(help="to compare with real time")] = 4.0,
    seconds: Annotated[float, typer.Option(min=8.0, help="of sound")] = 24.0,
) -> None:
    """Run a scenario at real time and faster, and say whether the figures agree. Status 0 if they do."""
    from streamsplit.lab.agreement import check_agreement

    with _progress() as progress:
        bar = progress.add_task("", total=None)

        def told(what: str, share: float, done: int, total: int) -> None:
            progress.update(bar, description=escape(what), completed=done + share, total=total)

        found = check_agreement(scenario, out_dir, traces, speed, seconds, told)
    table = Table(box=None)
    for heading in ("system", "figure", "real time", f"{speed:g} times", "apart", "allowed", ""):
        table.add_column(heading, no_wrap=heading not in ("system", "figure"), overflow="fold")
    for line in found:
        verdict = "agree" if line.agrees else "APART"
        table.add_row(
            line.system,
            line.figure,
            f"{line.real:,.4g}",
            f"{line.fast:,.4g}",
            line.apart,
            line.allowed,
            verdict,
        )
    out.print(table)
    if not all(line.agrees for line in found):
        raise typer.Exit(1)


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)


def _table(name: str, found: dict[str, Any]) -> Table:
    """A scenario's systems, a line each."""
    seeds = len(found["seeds"])
    table = Table(
        title=escape(f"{name}: {found['title']} ({found['encoder']}, {seeds} seed{'s' if seeds > 1 else ''})"),
        caption="bytes up; * per window, modelled from measured processor time and bytes", title_justify="left", box=None,
    )  # fmt: skip
    table.add_column("system", overflow="fold")
    for heading in ("return", "p50 ms", "p95", "p99", "bytes/s", "mJ*", "acc. %", "lost"):
        table.add_column(heading, justify="right", no_wrap=True)
    for system in found["systems"].values():
        value = system["return"]
        if isinstance(value, dict):
            value = value["mean"]
        accuracy, latency = (system.get("accuracy") or {}).get("mean"), system["latency_ms"]
        table.add_row(
            escape(system["label"]),
            _number(value, 3),
            *(_number(latency[level], 1) for level in ("p50", "p95", "p99")),
            _number(system["uplink_bytes_per_s"], 0),
            _number(system["energy_mj"]["mean"], 0),
            _number(None if accuracy is None else 100 * accuracy, 1),
            str(system.get("lost", "")),
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
