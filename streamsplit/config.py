"""Settings of client and server: one frozen model each, read once from TOML, environment and command line, validated once.

Later sources win: defaults, the TOML file, ``STREAMSPLIT_CLIENT_*`` / ``STREAMSPLIT_SERVER_*`` environment variables (nested with
``__``), then what the command line says. A bad value ends in one `ConfigError` that names the key, the value and what is legal.
"""

from __future__ import annotations

import os
import re
import socket
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from streamsplit.errors import ConfigError

NAME_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")
LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")


def _check_name(value: str) -> str:
    if not NAME_PATTERN.fullmatch(value):
        raise ValueError("expected 1 to 64 characters of letters, digits, '.', '_' and '-'")
    return value


def split_address(address: str) -> tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port".

    >>> split_address("[::1]:50051")
    ('::1', 50051)
    """
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise ConfigError(f"address {address!r}: expected HOST:PORT, for example 127.0.0.1:50051")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _check_address(value: str) -> str:
    split_address(value)
    return value


Name = Annotated[str, AfterValidator(_check_name)]
Address = Annotated[str, AfterValidator(_check_address)]


def _default_device() -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "device"


def default_state_dir(component: str) -> Path:
    """Where a component keeps what must survive a restart: $XDG_STATE_HOME/streamsplit/COMPONENT."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "streamsplit" / component


class ClientTls(BaseModel):
    """How a device trusts the server and proves itself.

    Attributes:
        ca: PEM of the authority that signed the server's certificate; None: the system's authorities.
        certificate, key: PEM pair of this device, for mutual TLS.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class ServerTls(BaseModel):
    """The server's PEM pair, and the authority of the devices' certificates for mutual TLS."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    certificate: Path
    key: Path
    client_ca: Path | None = None


class _Settings(BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_nested_delimiter="__")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings


class LearnerSettings(BaseModel):
    """What a device learns of what it hears, and what it exchanges with its server about that.

    Attributes:
        mode: "off"; "memory": keep the distribution memory and the uncertainty's predictor; "train": train the encoder, too.
        objective: what training minimises, see `streamsplit.learning.objectives`.
        batch: windows of a micro-batch.
        front: training changes the front, too; False: the lite tail alone.
        core_share: of one core that training may take.
        cpu_percent: load of the machine, this client's own left out, from which on it pauses.
        temperature_c, battery_percent: likewise; on battery alone.
        pieces_per_window: None: train in the background, as the budget allows; a number: so many pieces of work for every window
            heard, in step with the stream (experiments that repeat).
        memory_windows: windows between two exchanges of the memory with the server (T_sync); 0: never.
        difference_windows: windows between two uploads of what was learned; 0: never.
        take_versions: take the versions that the server publishes.
        sync: "allowed": only on mains or with a battery above `battery_percent`, below `cpu_percent`; "always".
        seed: of draws and views.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    mode: Literal["off", "memory", "train"] = "memory"
    objective: str = "reservoir"
    batch: int = Field(default=8, ge=1, le=256)
    front: bool = True
    core_share: float = Field(default=0.25, gt=0, le=1)
    cpu_percent: float = Field(default=80.0, gt=0, le=100)
    temperature_c: float = Field(default=75.0, gt=0, lt=150)
    battery_percent: float = Field(default=50.0, ge=0, le=100)
    pieces_per_window: float | None = Field(default=None, gt=0, le=64)
    memory_windows: int = Field(default=1000, ge=0)
    difference_windows: int = Field(default=500, ge=0)
    take_versions: bool = True
    sync: Literal["allowed", "always"] = "allowed"
    seed: int = Field(default=0, ge=0, lt=2**31)


class ClientSettings(_Settings):
    """Everything a device is told.

    Attributes:
        device: this device's name; must match its credentials where it has any.
        server: HOST:PORT; None: work alone and keep everything in the spool.
        encoder, weights: registry name, and a weights file (None: shipped or cached; "untrained[:SEED]": random, in so many words).
        decider: "heuristic", "greedy-profile", "greedy-profile:energy", "linucb", "learned", "learned:FILE", "fixed:K" or,
            as a baseline, "random:SHARE[:SEED]".
        codec: for activations; "int4" is right for `compact`.
        embedding_codec: for embeddings made here.
        features_codec: for features (split 0).
        audio_codec: for audio, if `send_audio`.
        audio_kbps: of Opus, kbit/s; pcm16 and flac take what they take.
        microphone: index or part of a name; None: the default device.
        send_audio: raw or compressed audio may leave this device.
        profile: file written by ``streamsplit profile``; None: a decider that wants one has this device measured once, and kept.
        power: what a device measured so draws, by the name of a stated model; a file says it itself.
        state_dir: spool and journal live here.
        spool_max_mb, journal_max_mb: bounds on disk.
        threads: torch threads.
        acknowledge_timeout_s: a window unanswered for so long means that the link is dead.
        connect_timeout_s: to reach the server and be welcomed.
        keepalive_s: pings on a quiet link; a dead one is found within keepalive_s + 10 s.
        hold_windows: an embedding made here may wait for so many later ones, so that a cellular radio wakes up once for all of them;
            0: sent at once. A window that the server must finish takes the waiting ones along.
        learn: whether and how this device learns.
    """

    model_config = SettingsConfigDict(
        env_prefix="STREAMSPLIT_CLIENT_", frozen=True, extra="forbid", env_nested_delimiter="__"
    )
    device: Name = Field(default_factory=_default_device)
    server: Address | None = None
    encoder: str = "compact"
    weights: str | None = None
    decider: str = "learned"
    codec: Literal["fp32", "fp16", "int8", "int5", "int4", "int3"] = "int4"
    embedding_codec: Literal["fp32", "fp16", "int8", "int4"] = "int8"
    features_codec: Literal["fp32", "fp16", "int8", "int5", "int4", "int3"] = "int8"
    audio_codec: Literal["pcm16", "flac", "opus"] = "opus"
    audio_kbps: float = Field(12.0, ge=6, le=256)
    microphone: str | int | None = None
    send_audio: bool = False
    profile: Path | None = None
    power: Literal["pi4-wifi", "pi4-lte", "pi4-3g", "laptop-wifi", "laptop-lte"] = "pi4-wifi"
    state_dir: Path = Field(default_factory=lambda: default_state_dir("client"))
    spool_max_mb: float = Field(256.0, gt=0)
    journal_max_mb: float = Field(64.0, gt=0)
    threads: int = Field(1, ge=1, le=64)
    acknowledge_timeout_s: float = Field(15.0, gt=0)
    connect_timeout_s: float = Field(10.0, gt=0)
    keepalive_s: float = Field(20.0, ge=1)
    hold_windows: int = Field(0, ge=0, le=1000)
    learn: LearnerSettings = Field(default_factory=LearnerSettings)
    tls: ClientTls | None = None
    token_file: Path | None = None


class RefinerSettings(BaseModel):
    """How the server refines the first of its encoders from what devices send.

    Attributes:
        state_dir: published versions, progress, log, status and the inbox of devices' differences.
        replay_mb: windows kept to learn from, on disk.
        compute: torch device of the training.
        threads: torch threads.
        nice: the process' niceness: it yields to everything that answers devices.
        front: whether the blocks before the last learn too, which needs features: "train", "freeze", or "auto": where at least half of
            the replay is features.
        batch: pairs of windows a step, from all devices.
        learning_rate: after the warm-up.
        spread_weight, smoothness_weight: of the Hybrid terms.
        round_steps: steps between two candidates.
        least_windows: windows in the replay before the first round.
        new_windows: windows that must arrive between rounds.
        judged_windows: held-out windows that candidates are judged by, at most; fewer than 48 never judge anything.
        checkpoint_steps: steps that a kill can cost.
        difference_bits: of published differences, 3 to 8.
        most_difference: a device's difference is clipped to this share of the weights' norm.
        seed: of draws and views.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    state_dir: Path = Field(default_factory=lambda: default_state_dir("server") / "refiner")
    replay_mb: float = Field(default=256.0, ge=1, le=1e6)
    compute: str = "cpu"
    threads: int = Field(default=1, ge=1, le=64)
    nice: int = Field(default=10, ge=0, le=19)
    front: Literal["auto", "train", "freeze"] = "auto"
    batch: int = Field(default=64, ge=2, le=4096)
    learning_rate: float = Field(default=5e-4, gt=0, lt=1)
    spread_weight: float = Field(default=0.1, ge=0, lt=1e6)
    smoothness_weight: float = Field(default=0.01, ge=0, lt=1e6)
    round_steps: int = Field(default=200, ge=1)
    least_windows: int = Field(default=1000, ge=64)
    new_windows: int = Field(default=500, ge=1)
    judged_windows: int = Field(default=512, ge=48, le=8192)
    checkpoint_steps: int = Field(default=50, ge=1)
    difference_bits: int = Field(default=4, ge=3, le=8)
    most_difference: float = Field(default=0.2, gt=0, le=1)
    seed: int = Field(default=0, ge=0, lt=2**31)


class ServerSettings(_Settings):
    """Everything a server is told.

    Attributes:
        listen: HOST:PORT; port 0 takes a free one. Anything but loopback needs `tls` and (`tls.client_ca` or `devices`).
        encoders: registry names to serve, each with the weights of the same place in `weights` (or its default).
        weights: files or "untrained[:SEED]".
        store: SQLite file of embeddings.
        durability: "process" survives kill -9 (the operating system may hold the last commits back over a power cut);
            "power" also survives a power cut, at one disk flush per batch.
        compute: torch device of the tails.
        max_devices: devices connected at once.
        max_streams_per_device: connections of one device at once.
        max_windows_per_second: per device, averaged over a few seconds.
        max_message_kb: largest message accepted.
        max_in_flight: unacknowledged windows per connection.
        max_queue: windows waiting for compute over all devices; beyond it the server answers busy.
        max_batch: windows per micro-batch.
        threads: torch threads.
        drain_s: grace on SIGTERM.
        devices: JSON file of device tokens (``streamsplit keys token``).
        refine: keep what devices send and learn from it, in a process of its own.
        refiner: how.
    """

    model_config = SettingsConfigDict(
        env_prefix="STREAMSPLIT_SERVER_", frozen=True, extra="forbid", env_nested_delimiter="__"
    )
    listen: Address = "127.0.0.1:50051"
    encoders: tuple[str, ...] = Field(default=("compact",), min_length=1)
    weights: tuple[str, ...] = ()
    store: Path = Field(default_factory=lambda: default_state_dir("server") / "embeddings.db")
    durability: Literal["process", "power"] = "process"
    compute: str = "cpu"
    max_devices: int = Field(256, ge=1)
    max_streams_per_device: int = Field(4, ge=1)
    max_windows_per_second: float = Field(1000.0, gt=0)
    max_message_kb: int = Field(4096, ge=1)
    max_in_flight: int = Field(64, ge=1)
    max_queue: int = Field(4096, ge=1)
    max_batch: int = Field(32, ge=1)
    threads: int = Field(1, ge=1)
    drain_s: float = Field(5.0, ge=0)
    tls: ServerTls | None = None
    devices: Path | None = None
    refine: bool = False
    refiner: RefinerSettings = Field(default_factory=RefinerSettings)


AnySettings = TypeVar("AnySettings", bound=_Settings)


def load(
    kind: type[AnySettings], file: Path | None = None, overrides: Mapping[str, Any] | None = None
) -> AnySettings:
    """Reads and checks the settings of one component.

    Args:
        kind: `ClientSettings` or `ServerSettings`.
        file: TOML file, or None.
        overrides: what the command line said; None values do not count.

    Raises:
        ConfigError: naming file, key, value and what is legal.
    """
    from_file = _read_toml(file) if file else {}
    from_environment = _environment(kind)
    said = {key: value for key, value in (overrides or {}).items() if value is not None}
    try:
        return kind(**_over(_over(from_file, from_environment), said))
    except ValidationError as error:
        raise ConfigError(f"{file or 'settings'}: {describe(error)}") from None


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The upper table's values where it has any, group by group.

    >>> _over({"learn": {"mode": "off", "seed": 1}, "device": "pi"}, {"learn": {"mode": "train"}})
    {'learn': {'mode': 'train', 'seed': 1}, 'device': 'pi'}
    """
    both = dict(below)
    for key, value in above.items():
        under = both.get(key)
        both[key] = (
            _over(under, value) if isinstance(under, Mapping) and isinstance(value, Mapping) else value
        )
    return both


def _environment(kind: type[AnySettings]) -> dict[str, Any]:
    try:
        return kind().model_dump(exclude_unset=True)
    except ValidationError as error:
        raise ConfigError(f"environment: {describe(error)}") from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from None


def describe(error: ValidationError) -> str:
    """One line for all that is wrong: key, value, what was expected."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'])} = {problem.get('input')!r}: {problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors()
    )
