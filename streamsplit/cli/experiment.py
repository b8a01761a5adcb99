"""Experiments: ``replay``, ``demo``, ``soundscape``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from streamsplit.cli.options import (
    AudioCodecOption,
    AudioRateOption,
    CodecOption,
    ConfigOption,
    DeciderOption,
    DeviceOption,
    EmbeddingCodecOption,
    FeaturesCodecOption,
    HoldOption,
    LearnOption,
    PowerOption,
    ProfileOption,
    SendAudioOption,
    SettingsEncoderOption,
    SplitOption,
    TlsCaOption,
    TlsCertificateOption,
    TlsKeyOption,
    TokenFileOption,
    WeightsOption,
    client_settings,
)
from streamsplit.cli.terminal import app, err, out, progress_bar
from streamsplit.errors import ConfigError


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
    encoder: SettingsEncoderOption = None,
    weights: WeightsOption = None,
    split: SplitOption = None,
    decider: DeciderOption = None,
    codec: CodecOption = None,
    speed: Annotated[str, typer.Option(help="`real`, `max`, or a factor of real time")] = "max",
    seed: Annotated[int, typer.Option(help="of the made conditions, and of --shuffle")] = 0,
    shuffle: Annotated[bool, typer.Option("--shuffle", help="play the recordings in a seeded order")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first so many recordings")] = None,
    conditions: Annotated[
        str, typer.Option(help="what deciders see: `made` from the seed (repeatable) or `live`")
    ] = "made",
    emulation: Annotated[
        Path | None, typer.Option(hidden=True, help="written by `streamsplit lab`, for --conditions live")
    ] = None,
    send_audio: SendAudioOption = None,
    audio_codec: AudioCodecOption = None,
    audio_kbps: AudioRateOption = None,
    features_codec: FeaturesCodecOption = None,
    embedding_codec: EmbeddingCodecOption = None,
    profile: ProfileOption = None,
    power: PowerOption = None,
    learn: LearnOption = None,
    hold_windows: HoldOption = None,
    server_config: Annotated[
        Path | None,
        typer.Option(help="TOML file of the embedded server's settings, for example to let it refine"),
    ] = None,
    device: DeviceOption = None,
    token_file: TokenFileOption = None,
    tls_ca: TlsCaOption = None,
    tls_certificate: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
    patience: Annotated[float, typer.Option(help="seconds to wait for a silent server")] = 60.0,
    backlog: Annotated[
        int,
        typer.Option(min=1, help="windows that may wait for the server before the recordings are held back"),
    ] = 256,
) -> None:
    """Play recordings through the same client, repeatably, and sum up what happened.

    Two replays with the same seed and decider give identical decisions and embeddings; the digest at the end says so. Under made conditions
    the heuristic decides unless told otherwise: it looks at nothing that differs from machine to machine. A replay that was
    interrupted, even by kill -9, goes on where it stopped when the same command is given again. Status 0 only if nothing was lost.
    """
    from streamsplit.lab import replay as lab

    if conditions not in ("made", "live"):
        raise ConfigError(f"--conditions {conditions!r}: expected made or live")
    settings = client_settings(
        config,
        server=None if server in ("embedded", "none") else server,
        device=device,
        encoder=encoder,
        weights=weights,
        split=split,
        decider=decider,
        codec=codec,
        send_audio=send_audio,
        audio_codec=audio_codec,
        audio_kbps=audio_kbps,
        features_codec=features_codec,
        embedding_codec=embedding_codec,
        profile=profile,
        power=power,
        learn=learn,
        hold_windows=hold_windows,
        state_dir=out_dir,
        spool_max_mb=4096.0,
        journal_max_mb=65536.0,
        token_file=token_file,
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
    )
    if conditions == "made" and "decider" not in settings.model_fields_set:
        settings = settings.model_copy(update={"decider": "heuristic"})
    if server == "none":  # whatever the file says
        settings = settings.model_copy(update={"server": None})
    run = lab.ReplaySettings(
        source,
        out_dir,
        settings,
        embedded=server == "embedded",
        speed=_speed(speed),
        seed=seed,
        shuffle=shuffle,
        conditions="made" if conditions == "made" else "live",
        emulation=emulation,
        limit=limit,
        patience_s=patience,
        backlog=backlog,
        server_config=server_config,
    )
    with progress_bar("replaying") as update:
        summary = lab.replay(run, update)
    _print_summary(summary)
    if any(summary[name] for name in ("lost", "dropped", "rejected", "duplicated")):
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
    if any(summary[name] for name in ("lost", "dropped", "rejected", "duplicated")):
        raise typer.Exit(1)


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


def _print_summary(summary: dict[str, Any]) -> None:
    from streamsplit.lab.summary import table

    out.print(table(summary))
