"""Looking at things: ``search``, ``export``, ``encoders``, ``profile``, ``devices``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from streamsplit.cli.options import EncoderOption, PowerOption, WeightsOption
from streamsplit.cli.terminal import app, out, progress_bar
from streamsplit.errors import CaptureError, ConfigError

if TYPE_CHECKING:
    from streamsplit.policy.profile import Profile


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="a recording, or the number of a stored embedding")],
    store: Annotated[Path | None, typer.Option(help="the server's SQLite file")] = None,
    encoder: EncoderOption = "compact",
    weights: WeightsOption = None,
    version: Annotated[
        str | None, typer.Option(help="only embeddings of this version; default: the query's")
    ] = None,
    neighbours: Annotated[int, typer.Option("--neighbours", "-k", min=1, help="how many to show")] = 10,
    same_stream: Annotated[
        bool, typer.Option("--same-stream", help="with a number: also neighbours from its own stream")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Find the stored windows nearest to a clip, or to a stored window."""
    from streamsplit.config import ServerSettings, load
    from streamsplit.server.query import Query, search_store

    asked = Query(query, encoder, weights, version, neighbours, same_stream)
    found = search_store(store or load(ServerSettings).store, asked)
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
    else:
        out.print(found.table())


@app.command()
def export(
    out_file: Annotated[Path, typer.Argument(help="the Parquet file to write")],
    store: Annotated[Path | None, typer.Option(help="the server's SQLite file")] = None,
    version: Annotated[str | None, typer.Option(help="only this encoder version")] = None,
    device: Annotated[str | None, typer.Option(help="only this device")] = None,
) -> None:
    """Write stored embeddings and their metadata to Parquet."""
    from streamsplit.config import ServerSettings, load
    from streamsplit.server.export import export_parquet

    with progress_bar("exporting") as update:
        rows = export_parquet(
            store or load(ServerSettings).store, out_file, version=version, device=device, progress=update
        )
    out.print(f"{rows} embeddings in {out_file}", soft_wrap=True)


@app.command()
def encoders(
    names: Annotated[list[str] | None, typer.Argument(help="which; default: all but clap")] = None,
    weights: WeightsOption = None,
    budget: Annotated[float, typer.Option(min=0.0, help="seconds spent on each timing")] = 0.2,
    as_json: Annotated[bool, typer.Option("--json", help="for machines")] = False,
) -> None:
    """Print each encoder's parameters, MACs, and per split: shape, bytes per codec, milliseconds on this machine."""
    from streamsplit.encoders import table
    from streamsplit.encoders.registry import ENCODERS, resolve

    wanted = names or [name for name in ENCODERS if name != "clap"]
    for name in wanted:
        measured = table.measure(resolve(name, weights), budget_s=budget)
        if as_json:
            typer.echo(json.dumps(asdict(measured)))
        else:
            out.print(table.render(measured))


@app.command()
def profile(
    out_file: Annotated[Path, typer.Option("--out", help="where to write it")] = Path("profile.json"),
    encoder: EncoderOption = "compact",
    weights: WeightsOption = None,
    repeats: Annotated[int, typer.Option(min=3, help="timing repeats per part")] = 50,
    power: PowerOption = None,
) -> None:
    """Measure this device: milliseconds per block, bytes per split; for `--profile FILE` of a client that decides by them."""
    from streamsplit.encoders.registry import resolve
    from streamsplit.policy.power import PI4_WIFI, POWER_MODELS
    from streamsplit.policy.profile import measure_profile

    model = POWER_MODELS.get(power or PI4_WIFI.name)
    if model is None:
        raise ConfigError(f"--power {power!r}: expected {', '.join(POWER_MODELS)}")
    measured = measure_profile(resolve(encoder, weights), repeats, model)
    measured.save(out_file)
    out.print(_profile_table(measured))
    out.print(f"written to {out_file}", soft_wrap=True)


def _profile_table(measured: Profile) -> Table:
    """Milliseconds and bytes by split; narrow enough for 80 columns, and no figure is ever cut."""
    from streamsplit.encoders.table import milliseconds
    from streamsplit.wire.audio import AUDIO_CODECS
    from streamsplit.wire.codec import TENSOR_CODECS

    sizes = measured.payload_bytes
    audio = [f"{codec} {sizes[-1, codec]:,.0f}" for codec in AUDIO_CODECS if (-1, codec) in sizes]
    codecs = [codec for codec in TENSOR_CODECS if any(codec == known for _, known in sizes)]
    table = Table(
        title=f"{measured.version} on {measured.device}; features {measured.features_ms.p50:.2f} ms",
        caption=f"bytes a window by codec; audio: {', '.join(audio)}\ntail: batches of one, on this device",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=(0, 1),
    )
    for heading in ("split", "head\nms", "tail\nms", *codecs):
        table.add_column(heading, justify="right", no_wrap=True)
    for split, head in sorted(measured.head_ms.items()):
        table.add_row(
            str(split),
            milliseconds(head.p50),
            milliseconds(measured.tail_ms[split]) if split < measured.last_split else "",
            *(f"{sizes[split, codec]:,.0f}" if (split, codec) in sizes else "" for codec in codecs),
        )
    return table


@app.command()
def devices() -> None:
    """List the microphones `streamsplit client --microphone` can choose from."""
    from streamsplit.client.capture import list_devices

    found = list_devices()
    if not found:
        raise CaptureError("no microphone: the system's sound library knows no device that records")
    table = Table()
    for heading in ("index", "name", "channels", "native rate", "default"):
        table.add_column(heading, no_wrap=heading != "name", overflow="fold")
    for each in found:
        rate = f"{each.sample_rate_hz:.0f} Hz"
        table.add_row(str(each.index), each.name, str(each.channels), rate, "yes" if each.default else "")
    out.print(table)
