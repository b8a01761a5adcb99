"""The two sides: ``streamsplit server`` and ``streamsplit client``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamsplit.cli.options import (
    AudioCodecOption,
    AudioRateOption,
    CodecOption,
    ConfigOption,
    DeciderOption,
    DeviceOption,
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
    given,
)
from streamsplit.cli.terminal import app, err
from streamsplit.whole_file import write_whole


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
    refine: Annotated[
        bool | None,
        typer.Option("--refine", help="learn from what devices send, in a process of its own; see `status`"),
    ] = None,
    refiner_dir: Annotated[Path | None, typer.Option(help="where the refiner keeps its state")] = None,
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
            "tls": given({"certificate": tls_certificate, "key": tls_key, "client_ca": tls_client_ca}),
            "devices": devices,
            "max_windows_per_second": max_windows_per_second,
            "max_devices": max_devices,
            "refine": refine,
            "refiner": given({"state_dir": refiner_dir}),
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
            write_whole(port_file, str(running.port).encode())

    server_app.run(settings, ready, stop_with_parent=stop_with_parent)


@app.command()
def client(
    config: ConfigOption = None,
    server: Annotated[
        str | None, typer.Option(help="HOST:PORT; left out: work alone and keep everything in the spool")
    ] = None,
    device: DeviceOption = None,
    microphone: Annotated[
        str | None, typer.Option(help="index or part of the name, see `streamsplit devices`")
    ] = None,
    encoder: SettingsEncoderOption = None,
    weights: WeightsOption = None,
    split: SplitOption = None,
    decider: DeciderOption = None,
    codec: CodecOption = None,
    send_audio: SendAudioOption = None,
    audio_codec: AudioCodecOption = None,
    audio_kbps: AudioRateOption = None,
    profile: ProfileOption = None,
    power: PowerOption = None,
    learn: LearnOption = None,
    hold_windows: HoldOption = None,
    state_dir: Annotated[Path | None, typer.Option(help="spool and journal")] = None,
    token_file: TokenFileOption = None,
    tls_ca: TlsCaOption = None,
    tls_certificate: TlsCertificateOption = None,
    tls_key: TlsKeyOption = None,
) -> None:
    """Listen to a microphone: embed here or send to a server, as the decider says.

    With the server away it embeds here, keeps every window in its spool and sends them when the server is back. Each window leaves one
    line in `journal.jsonl` under the state folder.
    """
    from streamsplit.client import app as client_app

    settings = client_settings(
        config,
        server=server,
        device=device,
        microphone=int(microphone) if microphone and microphone.isdecimal() else microphone,
        encoder=encoder,
        weights=weights,
        split=split,
        decider=decider,
        codec=codec,
        send_audio=send_audio,
        audio_codec=audio_codec,
        audio_kbps=audio_kbps,
        profile=profile,
        power=power,
        learn=learn,
        hold_windows=hold_windows,
        state_dir=state_dir,
        token_file=token_file,
        tls_ca=tls_ca,
        tls_certificate=tls_certificate,
        tls_key=tls_key,
    )
    counted = client_app.run(settings)
    err.print(
        f"{counted.windows} windows, {counted.acknowledged} acknowledged, {counted.dropped} dropped, {counted.gaps} gaps; "
        "what is unacknowledged stays in the spool"
    )
