"""Options that several commands take, each said once, and what they make of a client's settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamsplit.errors import ConfigError
from streamsplit.policy.observation import AUDIO_SPLIT

if TYPE_CHECKING:
    from streamsplit.config import ClientSettings

_ENCODER = typer.Option("--encoder", help="compact, cola, mobile, resnet18 or clap")
EncoderOption = Annotated[str, _ENCODER]
SettingsEncoderOption = Annotated[str | None, _ENCODER]
"""Of commands whose settings may come from a file: left out, the file's word counts."""
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
DeciderOption = Annotated[
    str | None,
    typer.Option("--decider", help="learned, learned:FILE, greedy-profile, linucb, heuristic or fixed:K"),
]
SendAudioOption = Annotated[
    bool | None, typer.Option("--send-audio", help="sound itself may leave this device")
]
AudioCodecOption = Annotated[str | None, typer.Option("--audio-codec", help="pcm16, flac or opus")]
AudioRateOption = Annotated[
    float | None, typer.Option("--audio-kbps", help="of Opus, 6 to 256 kbit/s; 12 unless told")
]
FeaturesCodecOption = Annotated[str | None, typer.Option("--features-codec", help="of split 0, as --codec")]
EmbeddingCodecOption = Annotated[
    str | None, typer.Option("--embedding-codec", help="of split L: fp32, fp16, int8 or int4")
]
ProfileOption = Annotated[
    Path | None,
    typer.Option("--profile", help="written by `streamsplit profile`; left out: measured once, where wanted"),
]
PowerOption = Annotated[
    str | None,
    typer.Option(
        "--power",
        help="what this device and its radio draw (modelled): pi4-wifi, pi4-lte, pi4-3g, laptop-wifi or laptop-lte",
    ),
]
DeviceOption = Annotated[
    str | None,
    typer.Option("--device", help="this device's name; must match its credentials where it has any"),
]
TokenFileOption = Annotated[Path | None, typer.Option("--token-file", help="this device's token")]
TlsCaOption = Annotated[Path | None, typer.Option("--tls-ca", help="PEM of the authority to trust")]
TlsCertificateOption = Annotated[Path | None, typer.Option("--tls-certificate", help="PEM of this device")]
HoldOption = Annotated[
    int | None,
    typer.Option(
        "--hold-windows",
        help="an embedding made here may wait for so many later ones: kinder to a cellular radio",
    ),
]
LearnOption = Annotated[
    str | None,
    typer.Option(
        "--learn",
        help="off; memory: keep a distribution of what was heard; train: train the encoder, too. More in the group learn of --config",
    ),
]
TlsKeyOption = Annotated[Path | None, typer.Option("--tls-key", help="PEM of this device")]


def given(values: dict[str, Any]) -> dict[str, Any] | None:
    """The options of a group that were given; None if none were."""
    return {key: value for key, value in values.items() if value is not None} or None


def decider_name(split: str | None, decider: str | None) -> str | None:
    """The decider that ``--split`` or ``--decider`` names; None if neither is given."""
    if split is None:
        return decider
    if decider is not None:
        raise ConfigError(f"--split {split} and --decider {decider}: give one of them")
    return f"fixed:{AUDIO_SPLIT if split == 'audio' else split}"


def client_settings(
    config: Path | None,
    *,
    split: str | None,
    decider: str | None,
    tls_ca: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    learn: str | None = None,
    **said: Any,
) -> ClientSettings:
    """A client's settings: those of the file, and over them what the command line said.

    Args:
        config: TOML file, or None.
        split: of ``--split``, which is a decider too.
        decider: of ``--decider``.
        tls_ca: of the group `tls`, as are the next two.
        tls_certificate: likewise.
        tls_key: likewise.
        learn: of ``--learn``, which is `learn.mode`.
        said: other keys of `ClientSettings`; None where nothing was said.

    Raises:
        ConfigError: naming key, value and what is legal.
    """
    from streamsplit.config import ClientSettings, load

    tls = given({"ca": tls_ca, "certificate": tls_certificate, "key": tls_key})
    mode = {"mode": learn} if learn else None
    return load(
        ClientSettings,
        config,
        {**said, "decider": decider_name(split, decider), "tls": tls, "learn": mode},
    )
