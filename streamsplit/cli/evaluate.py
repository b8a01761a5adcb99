"""What weights are worth on labelled sound: ``streamsplit eval``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from streamsplit.cli.options import EncoderOption
from streamsplit.cli.terminal import app, err, out, progress_bar
from streamsplit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from streamsplit.encoders.version import Version
    from streamsplit.learning.clips import Clips

FLOORS, RANDOM = "floor", "random"
COLUMNS = {
    "probe": "probe",
    "probe_mean_std": "mean+std",
    "probe_windows": "windows",
    "knn": "5-NN",
    "precision_at_10": "P@10",
    "mean_average_precision": "mAP",
}
SPATIAL = {
    "uniformity": "uniformity",
    "alignment": "alignment",
    "effective_rank": "effective rank",
    "mean_norm": "mean norm",
}


@app.command(name="eval")
def evaluate(
    source: Annotated[
        Path,
        typer.Argument(
            help="manifest (CSV: path, label, and if there are any fold, source_id), or a folder with one folder per class"
        ),
    ],
    encoder: EncoderOption = "compact",
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            help="a file, NAME=FILE or untrained[:SEED]; may be given several times; left out: shipped weights",
        ),
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="only rows of the manifest with COLUMN=VALUE, as esc10=1")
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="folder for summary.json and pictures")] = Path(
        "out/eval"
    ),
    seed: Annotated[int, typer.Option(help="of the random encoder to compare with")] = 0,
    floors: Annotated[
        bool, typer.Option(help="also judge a random encoder and features without an encoder")
    ] = True,
    quality: Annotated[
        Path | None,
        typer.Option(
            help="also measure, for the first weights, how often each path is right by uncertainty: a table for policies goes here"
        ),
    ] = None,
    windows: Annotated[
        bool, typer.Option(help="also probe single windows, and judge uncertainty; takes longest")
    ] = True,
) -> None:
    """Judge frozen representations on labelled recordings, leaving one fold out.

    `streamsplit eval recordings/manifest.csv --weights mine=weights.safetensors`. Each of an encoder's embeddings, and the pooled
    features before it, stands beside what it has to beat: the same encoder with random weights, mean log-mel, and mel statistics, alone
    and joined to the embedding.
    """
    from streamsplit.encoders.registry import ENCODERS, resolve
    from streamsplit.lab.plots import require_matplotlib
    from streamsplit.lab.processes import make_folder
    from streamsplit.lab.summary import write_summary
    from streamsplit.learning.clips import gather_clips
    from streamsplit.learning.labelled import find_clips, track_of
    from streamsplit.learning.probe import require_sklearn
    from streamsplit.policy.measured import require_paths

    if encoder not in ENCODERS:
        raise ConfigError(f"--encoder {encoder!r}: expected one of {', '.join(ENCODERS)}")
    require_sklearn()
    require_matplotlib()
    recordings, folds = find_clips(source, where)
    versions = {name: resolve(encoder, file) for name, file in _named(weights).items()}
    if floors:
        versions[RANDOM] = resolve(encoder, f"untrained:{seed}")
    front_end = next(iter(versions.values())).front_end
    for name, version in versions.items():
        if version.front_end != front_end:
            raise ConfigError(
                f"--weights {name}: hears through another front end than the first weights: judge them apart"
            )
    if quality:
        require_paths(next(iter(versions.values())))
        make_folder(quality.parent)
    make_folder(out_dir)
    with progress_bar("listening") as update:
        tracks = [track_of(recording, front_end.sample_rate_hz) for recording in recordings]
        clips = gather_clips(tracks, front_end, folds, update)
    if clips.made_folds:
        err.print(
            f"no folds given: made {len(set(clips.folds))}, clips of one original (source_id) in one fold; "
            "a file without source_id counts as an original"
        )
    represented = _represented(versions, clips, floors)
    systems = _judged(represented, versions, clips, windows)
    measured = None
    if quality:
        name = next(iter(versions))
        measured = _measured(versions[name], represented[name], clips, _told(source, where), quality)
    summary = {
        "source": str(source),
        "where": where,
        "clips": len(clips),
        "windows": len(clips.clip),
        "classes": len(clips.classes),
        "folds": sorted(set(clips.folds)),
        "made_folds": clips.made_folds,
        "unreadable": clips.unreadable,
        "chance": round(clips.chance, 4),
        "seed": seed,
        "encoder": encoder,
        "systems": systems,
        "quality": measured,
    }
    written = write_summary(out_dir, summary)
    _draw(systems, represented, clips, out_dir)
    title = f"{len(clips)} clips, {len(clips.classes)} classes, {len(set(clips.folds))} folds, chance {100 * clips.chance:.1f} %"
    out.print(_table(systems, COLUMNS, f"{title}; % and deviation over folds"))
    out.print(_table(systems, SPATIAL, "How the windows fill their space"))
    for name, system in systems.items():
        if judged := system.get("uncertainty"):
            out.print(_uncertainty_table(name, judged))
            out.print(
                f"{name}: 1 - cos(lite, dense) is {judged['disagreement']:.3f} in the mean, predictions of it are "
                f"{judged['calibration_error']:.3f} off"
            )
    out.print(f"figures: {written}; pictures: bars.png, maps.png beside it", soft_wrap=True)


def _named(weights: list[str] | None) -> dict[str, str | None]:
    """Name -> weights, as `resolve` takes them."""
    named: dict[str, str | None] = {}
    for given in weights or []:
        name, equals, file = given.partition("=")
        if not equals:
            name, file = (given if given.startswith("untrained") else Path(given).stem), given
        if name in named or name in (FLOORS, RANDOM):
            raise ConfigError(f"--weights {given}: the name {name!r} is taken: give NAME=FILE")
        named[name] = file
    return named or {"shipped": None}


def _represented(
    versions: Mapping[str, Version], clips: Clips, with_floors: bool
) -> dict[str, dict[str, Tensor]]:
    """System -> representation -> [N, P]."""
    from streamsplit.learning import floors
    from streamsplit.learning.evaluation import joined, represent

    plain = floors.floors(clips) if with_floors else {}
    represented = {}
    for name, version in versions.items():
        with progress_bar(f"embedding: {name}") as update:
            own = represent(version.encoder, clips, update)
        if plain and name != RANDOM:
            for path in version.encoder.paths:
                own[f"{path} + mel statistics"] = joined(own[path], plain[floors.MEL_STATISTICS])
        represented[name] = own
    return represented | ({FLOORS: plain} if plain else {})


def _judged(
    represented: Mapping[str, Mapping[str, Tensor]],
    versions: Mapping[str, Version],
    clips: Clips,
    windows: bool,
) -> dict[str, Any]:
    from streamsplit.learning.evaluation import judge, judge_uncertainty

    systems: dict[str, Any] = {}
    total, done = sum(len(own) for own in represented.values()), 0
    with progress_bar("judging") as update:
        for name, own in represented.items():
            version = versions.get(name)
            systems[name] = {"version": version.id if version else None, "representations": {}}
            for kind, features in own.items():
                update(done, total)
                systems[name]["representations"][kind] = judge(features, clips, windows)
                done += 1
            if windows and name != RANDOM and {"lite", "dense"} <= set(own):
                systems[name]["uncertainty"] = judge_uncertainty(own, clips)
        update(done, total)
    return systems


def _measured(
    version: Version, own: Mapping[str, Tensor], clips: Clips, source: str, file: Path
) -> dict[str, Any]:
    """Writes the table of qualities, says what it says, and returns it with its intervals."""
    from streamsplit.policy.measured import measure_quality

    with progress_bar("measuring quality") as update:
        measured = measure_quality(version, own, clips, source, report=update)
    measured.quality.save(file)
    table = Table(
        title="Windows right, %, by path and uncertainty; gain of the server over the device",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1),
    )
    for heading in ("1 - cos", "windows", *measured.right, "gain", "from", "to"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = zip(
        measured.quality.uncertainty, measured.windows, *measured.right.values(),
        measured.gain, measured.low, measured.high, strict=True,
    )  # fmt: skip
    for knot, windows, *shares in rows:
        table.add_row(f"{knot:.3f}", str(windows), *(f"{100 * share:.1f}" for share in shares))
    out.print(table)
    out.print(f"qualities: {file}; {measured.silent} windows are silent", soft_wrap=True)
    return asdict(measured)


def _told(source: Path, where: str | None) -> str:
    """A data set's name in a table that is passed on: no path of this machine."""
    name = source.parent.resolve().name if source.suffix == ".csv" else source.resolve().name
    return f"{name}, {where}" if where else name


def _draw(
    systems: Mapping[str, Any], represented: Mapping[str, Mapping[str, Tensor]], clips: Clips, folder: Path
) -> None:
    from streamsplit.lab.comparison import bars_png, maps_png

    bars = {
        f"{name}: {kind}": (figures["probe"]["mean"], figures["probe"]["spread"])
        for name, system in systems.items()
        for kind, figures in system["representations"].items()
    }
    bars_png(bars, folder / "bars.png", "Linear probe of clip means, one fold left out", clips.chance)
    maps = {
        f"{name}: {kind}": clips.mean(features).numpy()
        for name, own in represented.items()
        for kind, features in own.items()
        if "pooled" not in kind and "+" not in kind
    }
    maps_png(maps, clips.labels, folder / "maps.png", f"{len(clips)} clips of {len(clips.classes)} classes")


def _table(systems: Mapping[str, Any], columns: Mapping[str, str], title: str) -> Table:
    table = Table("", *columns.values(), title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1))
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    table.columns[0].overflow = "fold"
    for name, system in systems.items():
        table.add_row(Text(name, style="bold"))
        for kind, figures in system["representations"].items():
            table.add_row(f" {kind}", *(_cell(figures.get(key)) for key in columns))
    return table


def _cell(figure: Mapping[str, Any] | float | None) -> str:
    if figure is None:
        return ""
    if isinstance(figure, Mapping):
        return f"{100 * figure['mean']:.1f} ±{100 * figure['spread']:.0f}"
    return f"{figure:.2f}"


def _uncertainty_table(name: str, judged: Mapping[str, Any]) -> Table:
    """What offloading by each signal brings, windows judged by probes and by the product's own heads."""
    judges = {"probes": judged} | ({"heads": judged["heads"]} if judged["heads"] else {})
    table = Table(
        title=Text(
            f"{name}: what offloading its {100 * judged['offloaded']:.0f} % most uncertain windows recovers of the dense path's gain"
        ),
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1),
    )
    table.add_column("")
    for judge in judges:
        table.add_column(f"AUROC,\n{judge}", justify="right", no_wrap=True)
        table.add_column(f"recovered,\n{judge}, %", justify="right", no_wrap=True)
    for path in ("lite", "dense"):
        shares = (f"{100 * by[path]['mean']:.1f}" for by in judges.values())
        table.add_row(f"{path}: windows right, %", *(cell for share in shares for cell in ("", share)))
    for signal in judged["signals"]:
        said = [by["signals"][signal] for by in judges.values()]
        table.add_row(signal, *(cell for one in said for cell in (_or_none(one["auroc"]), _recovered(one))))
    return table


def _recovered(said: Mapping[str, float | None]) -> str:
    spread = f" ± {_or_none(said['spread'], 100)}" if said.get("spread") is not None else ""
    return _or_none(said["recovered"], 100) + spread


def _or_none(value: float | None, scale: float = 1.0) -> str:
    return "-" if value is None else f"{scale * value:.0f}" if scale > 1 else f"{value:.2f}"
