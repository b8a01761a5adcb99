"""One command, thin subcommands: each reads its options, calls one function of the package, and prints what a person wants to see."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from streamsplit import __version__
from streamsplit.errors import CaptureError, ConfigError, StreamSplitError
from streamsplit.policy.observation import AUDIO_SPLIT

app = typer.Typer(
    name="streamsplit",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Audio representations from an endless stream, split between a small device and a server.

Try it: `streamsplit demo`. Run it: `streamsplit server` on a workstation, `streamsplit client --server HOST:PORT` on a Raspberry Pi
or a Mac. Repeat it: `streamsplit replay FOLDER --out DIR`.""",
)
keys_app = typer.Typer(
    no_args_is_help=True, help="Make the keys that servers and devices know each other by."
)
app.add_typer(keys_app, name="keys")

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

EncoderOption = Annotated[str, typer.Option("--encoder", help="compact, cola, mobile, resnet18 or clap")]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="weights file; `untrained[:SEED]` asks for random ones; left out: shipped weights, or untrained with a warning",
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file of settings; options given here win over it")
]
CodecOption = Annotated[
    str | None, typer.Option("--codec", help="of activations: fp32, fp16, int8, int5, int4 or int3")
]
SplitOption = Annotated[
    str | None,
    typer.Option(
        "--split",
        help="always cut here: 0 features, K after block K, L on the device, `audio` (with --send-audio)",
    ),
]
DeciderOption = Annotated[str | None, typer.Option("--decider", help="heuristic, greedy-profile or fixed:K")]


def main() -> None:
    """The entry point: every error we raise on purpose is one line and status 1."""
    try:
        app(standalone_mode=False)
    except StreamSplitError as error:
        err.print(f"[bold red]streamsplit:[/] {error}", soft_wrap=True, markup=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except typer.Abort:
        raise SystemExit(130) from None
    except Exception as error:
        if not hasattr(error, "format_message"):  # click's own: a wrong option or argument
            raise
        err.print(f"[bold red]streamsplit:[/] {error.format_message()}", soft_wrap=True, markup=True)
        raise SystemExit(2) from None


@app.callback(invoke_without_command=True)
def options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="say more")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="only errors")] = False,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    """Options before every command."""
    level = logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO
    logging.basicConfig(
        level=level, format="%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr
    )
    for noisy in ("asyncio", "matplotlib", "PIL", "grpc"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if version:
        out.print(f"streamsplit {__version__}")
        raise typer.Exit


@app.command()
def server(
    config: ConfigOption = None,
    listen: Annotated[
        str | None, typer.Option(help="HOST:PORT; off loopback it needs TLS and device identities")
    ] = None,
    encoder: Annotated[
        list[str] | None, typer.Option("--encoder", help="serve this encoder; may be given again")
    ] = None,
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="its weights, in the same order")
    ] = None,
    store: Annotated[Path | None, typer.Option(help="SQLite file of embeddings")] = None,
    durability: Annotated[
        str | None, typer.Option(help="`process` survives kill -9, `power` a power cut too")
    ] = None,
    compute: Annotated[str | None, typer.Option(help="cpu, cuda or mps")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM, see `streamsplit keys server`")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM: devices must show a certificate it signed (mutual TLS)")
    ] = None,
    devices: Annotated[
        Path | None, typer.Option(help="JSON of device tokens, see `streamsplit keys token`")
    ] = None,
    max_windows_per_second: Annotated[float | None, typer.Option(help="per device")] = None,
    max_devices: Annotated[int | None, typer.Option(help="connected at once")] = None,
    port_file: Annotated[Path | None, typer.Option(help="write the port here once listening")] = None,
    stop_with_parent: Annotated[bool, typer.Option(hidden=True)] = False,
) -> None:
    """Serve devices: finish their windows, store the embeddings, answer.

    On this machine only: `streamsplit server`. For devices elsewhere: make keys with `streamsplit keys`, then
    `streamsplit server --listen 0.0.0.0:50051 --tls-certificate server.pem --tls-key server.key --devices devices.json`.
    SIGTERM drains: windows in flight are finished and acknowledged.
    """
    from streamsplit.config import ServerSettings, load
    from streamsplit.server import app as server_app

    settings = load(
        ServerSettings,
        config,
        {
            "listen": listen,
            "encoders": tuple(encoder) if encoder else None,
            "weights": tuple(weights) if weights else None,
            "store": store,
            "durability": durability,
            "compute": compute,
            "tls": _given({"certificate": tls_certificate, "key": tls_key, "client_ca": tls_client_ca}),
            "devices": devices,
            "max_windows_per_second": max_windows_per_second,
            "max_devices": max_devices,
        },
    )

    def ready(running: server_app.RunningServer) -> None:
        host = settings.listen.rpartition(":")[0]
        served = ", ".join(running.versions)
        err.print(
            f"listening on {host}:{running.port}, serving {served}, storing in {settings.store}",
            soft_wrap=True,
        )
        if port_file:
            new = port_file.with_suffix(".new")
            new.write_text(str(running.port))
            new.replace(port_file)

    server_app.run(settings, ready, stop_with_parent=stop_with_parent)


@app.command()
def client(
    config: ConfigOption = None,
    server: Annotated[
        str | None, typer.Option(help="HOST:PORT; left out: work alone and keep everything in the spool")
    ] = None,
    device: Annotated[str | None, typer.Option(help="this device's name; default: the host's")] = None,
    microphone: Annotated[
        str | None, typer.Option(help="index or part of the name, see `streamsplit devices`")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="compact, cola, mobile, resnet18 or clap")] = None,
    weights: WeightsOption = None,
    split: SplitOption = None,
    decider: DeciderOption = None,
    codec: CodecOption = None,
    send_audio: Annotated[
        bool | None, typer.Option("--send-audio", help="sound itself may leave this device")
    ] = None,
    audio_codec: Annotated[str | None, typer.Option(help="pcm16, flac or opus")] = None,
    profile: Annotated[Path | None, typer.Option(help="written by `streamsplit profile`")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="spool and journal")] = None,
    token_file: Annotated[Path | None, typer.Option(help="this device's token")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM of the authority to trust")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM of this device")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of this device")] = None,
) -> None:
    """Listen to a microphone: embed here or send to a server, as the decider says.

    With the server away it embeds here, keeps every window in its spool and sends them when the server is back. Each window leaves one
    line in `journal.jsonl` under the state folder.
    """
    from streamsplit.client import app as client_app
    from streamsplit.config import ClientSettings, load

    settings = load(
        ClientSettings,
        config,
        {
            "server": server,
            "device": device,
            "microphone": int(microphone) if microphone and microphone.isdecimal() else microphone,
            "encoder": encoder,
            "weights": weights,
            "decider": _decider(split, decider),
            "codec": codec,
            "send_audio": send_audio,
            "audio_codec": audio_codec,
            "profile": profile,
            "state_dir": state_dir,
            "token_file": token_file,
            "tls": _given({"ca": tls_ca, "certificate": tls_certificate, "key": tls_key}),
        },
    )
    counted = client_app.run(settings)
    err.print(
        f"{counted.windows} windows, {counted.acknowledged} acknowledged, {counted.dropped} dropped, {counted.gaps} gaps; "
        "what is unacknowledged stays in the spool"
    )


@app.command()
def replay(
    source: Annotated[
        Path,
        typer.Argument(
            help="a recording, a folder of recordings, or a manifest (CSV: path, label, fold, source_id)"
        ),
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="folder for journal, store and summary.json")] = Path(
        "out/replay"
    ),
    server: Annotated[
        str, typer.Option(help="HOST:PORT, `embedded` (one of its own, for this run) or `none`")
    ] = "embedded",
    config: ConfigOption = None,
    encoder: Annotated[str | None, typer.Option(help="compact, cola, mobile, resnet18 or clap")] = None,
    weights: WeightsOption = None,
    split: SplitOption = None,
    decider: DeciderOption = None,
    codec: CodecOption = None,
    speed: Annotated[str, typer.Option(help="`real`, `max`, or a factor of real time")] = "max",
    seed: Annotated[int, typer.Option(help="of the made conditions, and of --shuffle")] = 0,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="play the recordings in a seeded order")] = False,
    limit: Annotated[int | None, typer.Option(help="only the first so many recordings")] = None,
    conditions: Annotated[
        str, typer.Option(help="what deciders see: `made` from the seed (repeatable) or `live`")
    ] = "made",
    send_audio: Annotated[bool | None, typer.Option("--send-audio", help="sound itself may be sent")] = None,
    audio_codec: Annotated[str | None, typer.Option(help="pcm16, flac or opus")] = None,
    features_codec: Annotated[str | None, typer.Option(help="of split 0")] = None,
    embedding_codec: Annotated[str | None, typer.Option(help="of split L: fp32, fp16, int8 or int4")] = None,
    profile: Annotated[Path | None, typer.Option(help="written by `streamsplit profile`")] = None,
    device: Annotated[
        str | None, typer.Option(help="name; must match the credentials where there are any")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="this device's token")] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="PEM of the authority to trust")] = None,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM of this device")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM of this device")] = None,
    patience: Annotated[float, typer.Option(help="seconds to wait for a silent server")] = 60.0,
) -> None:
    """Play recordings through the same client, repeatably, and sum up what happened.

    Two replays with the same seed and decider give identical decisions and embeddings; the digest at the end says so. A replay that was
    interrupted, even by kill -9, goes on where it stopped when the same command is given again. Status 0 only if nothing was lost.
    """
    from streamsplit.config import ClientSettings, load
    from streamsplit.lab import replay as lab

    if conditions not in ("made", "live"):
        raise ConfigError(f"--conditions {conditions!r}: expected made or live")
    settings = load(
        ClientSettings,
        config,
        {
            "server": None if server in ("embedded", "none") else server,
            "device": device,
            "encoder": encoder,
            "weights": weights,
            "decider": _decider(split, decider),
            "codec": codec,
            "send_audio": send_audio,
            "audio_codec": audio_codec,
            "features_codec": features_codec,
            "embedding_codec": embedding_codec,
            "profile": profile,
            "state_dir": out_dir,
            "spool_max_mb": 4096.0,
            "journal_max_mb": 65536.0,
            "token_file": token_file,
            "tls": _given({"ca": tls_ca, "certificate": tls_certificate, "key": tls_key}),
        },
    )
    run = lab.ReplaySettings(
        source,
        out_dir,
        settings,
        embedded=server == "embedded",
        speed=_speed(speed),
        seed=seed,
        shuffle=shuffle,
        conditions="made" if conditions == "made" else "live",
        limit=limit,
        patience_s=patience,
    )
    with _progress("replaying") as update:
        summary = lab.replay(run, update)
    _print_summary(summary)
    if summary["lost"] or summary["dropped"] or summary["rejected"]:
        raise typer.Exit(1)


@app.command()
def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="folder for everything the demo makes")] = Path(
        "out/demo"
    ),
    seed: Annotated[int, typer.Option(help="of the soundscape and the link")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="a quarter of the length")] = False,
) -> None:
    """Server and client as two processes, a made soundscape between them, a link whose rate changes: watch it, then look at the picture.

    Needs no microphone, no network and no recordings; takes under two minutes.
    """
    from streamsplit.lab import demo as lab

    summary = lab.demo(lab.DemoSettings(out_dir, seed, quick), err)
    _print_summary(summary)
    out.print(
        f"picture: {out_dir / 'demo.png'}\njournal: {out_dir / 'client' / 'journal.jsonl'}", soft_wrap=True
    )
    if summary["lost"] or summary["dropped"] or summary["rejected"]:
        raise typer.Exit(1)


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

    with _progress("exporting") as update:
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
) -> None:
    """Measure this device: milliseconds per block, bytes per split; for `--decider greedy-profile --profile FILE`."""
    from streamsplit.encoders.registry import resolve
    from streamsplit.policy.profile import measure_profile

    measured = measure_profile(resolve(encoder, weights), repeats=repeats)
    measured.save(out_file)
    out.print(_profile_table(measured))
    out.print(f"written to {out_file}", soft_wrap=True)


@app.command()
def devices() -> None:
    """List the microphones `streamsplit client --microphone` can choose from."""
    from streamsplit.client.capture import list_devices

    found = list_devices()
    if not found:
        raise CaptureError("no microphone: the system's sound library knows no device that records")
    table = Table("index", "name", "channels", "native rate", "default")
    for each in found:
        rate = f"{each.sample_rate_hz:.0f} Hz"
        table.add_row(str(each.index), each.name, str(each.channels), rate, "yes" if each.default else "")
    out.print(table)


@app.command()
def soundscape(
    out_file: Annotated[Path, typer.Argument(help="WAV to write; labels go beside it as CSV")],
    seconds: Annotated[float, typer.Option(min=1.0, help="length")] = 300.0,
    seed: Annotated[int, typer.Option(help="everything follows from it")] = 0,
) -> None:
    """Make a soundscape with labelled events, to try things with."""
    from streamsplit.audio.synth import Soundscape, SoundscapeSettings

    made = Soundscape(SoundscapeSettings(seconds=seconds, seed=seed))
    made.write(out_file, out_file.with_suffix(".csv"))
    out.print(
        f"{len(made.events)} events in {seconds:g} s: {out_file} and {out_file.with_suffix('.csv')}",
        soft_wrap=True,
    )


@keys_app.command("ca")
def keys_ca(folder: Annotated[Path, typer.Argument(help="where to put ca.pem and ca.key")]) -> None:
    """Make an authority. Keep its key off every device."""
    from streamsplit.server import keys

    _print_paths(keys.make_ca(folder))


@keys_app.command("server")
def keys_server(
    folder: Annotated[Path, typer.Argument(help="the authority's folder")],
    names: Annotated[list[str], typer.Argument(help="host names and addresses devices will use")],
) -> None:
    """Make a server's certificate, signed by the authority in the folder."""
    from streamsplit.server import keys

    _print_paths(keys.make_server_key(folder, names))


@keys_app.command("device")
def keys_device(
    folder: Annotated[Path, typer.Argument(help="the authority's folder")],
    device: Annotated[str, typer.Argument(help="the device's name")],
) -> None:
    """Make a device's certificate for mutual TLS, signed by the authority in the folder."""
    from streamsplit.server import keys

    _print_paths(keys.make_device_key(folder, device))


@keys_app.command("token")
def keys_token(
    devices: Annotated[Path, typer.Argument(help="the server's JSON of devices; it keeps only a hash")],
    device: Annotated[str, typer.Argument(help="the device's name")],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="write the token here; default: DEVICE.token")
    ] = None,
) -> None:
    """Make a device's token: copy the token file to the device, the server keeps a hash of it."""
    from streamsplit.server import keys

    _print_paths(keys.make_token(devices, device, out_file or Path(f"{device}.token")))


def _profile_table(measured: Any) -> Table:
    codecs = sorted({codec for _, codec in measured.payload_bytes})
    splits = sorted({split for split, _ in measured.payload_bytes})
    table = Table(
        "split",
        "head ms",
        "tail ms (batch 1)",
        *codecs,
        title=f"{measured.version} on {measured.device}: features {measured.features_ms.p50:.2f} ms; bytes a window by codec",
    )
    for split in splits:
        head, tail = measured.head_ms.get(split), measured.tail_ms.get(split)
        table.add_row(
            {-1: "audio", measured.last_split: f"{measured.last_split} (here)"}.get(split, str(split)),
            f"{head.p50:.2f}" if head else "",
            f"{tail:.2f}" if tail else "",
            *(
                f"{measured.payload_bytes[split, codec]:.0f}"
                if (split, codec) in measured.payload_bytes
                else ""
                for codec in codecs
            ),
        )
    return table


def _given(values: dict[str, Any]) -> dict[str, Any] | None:
    given = {key: value for key, value in values.items() if value is not None}
    return given or None


def _decider(split: str | None, decider: str | None) -> str | None:
    if split is None:
        return decider
    if decider is not None:
        raise ConfigError(f"--split {split} and --decider {decider}: give one of them")
    return f"fixed:{AUDIO_SPLIT if split == 'audio' else split}"


def _speed(text: str) -> Any:
    if text in ("real", "max"):
        return text
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if factor <= 0:
        raise ConfigError(f"--speed {text!r}: expected real, max, or a positive factor of real time")
    return factor


def _print_paths(paths: Any) -> None:
    for path in paths:
        out.print(f"wrote {path}", soft_wrap=True)


def _print_summary(summary: dict[str, Any]) -> None:
    from streamsplit.lab.summary import table

    out.print(table(summary))


@contextlib.contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the terminal's error stream; nothing where that is no terminal."""
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
