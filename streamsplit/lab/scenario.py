"""A scenario of the lab: which sound, over which link, on which device, under which load. Read from TOML, checked once."""

from __future__ import annotations

import hashlib
import math
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from streamsplit.config import Name, describe
from streamsplit.errors import ConfigError
from streamsplit.policy.cost import Goals
from streamsplit.policy.power import POWER_MODELS, PowerModel

SHIPPED = Path(__file__).parent / "scenarios"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SoundPart(_Part):
    """What the device hears.

    Attributes:
        kind: "made": a soundscape of our own, labelled; "recordings": a recording, folder or manifest at `path`.
        path: of recordings; relative to the scenario's file.
        seconds: length of a made soundscape; the most that is played of recordings.
        seed: of the made soundscape, or of the recordings' order; the run's own seed is added.
        events_per_minute, quiet_share: of a made soundscape.
        fold: of a manifest: play only this one, and let the accuracy probe learn from the others.
        probe_seconds: of other made sound that the accuracy probe learns from; 0: no probe.
    """

    kind: Literal["made", "recordings"] = "made"
    path: Path | None = None
    seconds: Annotated[float, Field(ge=4, le=86_400)] = 96.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    events_per_minute: Annotated[float, Field(ge=0, le=600)] = 12.0
    quiet_share: Annotated[float, Field(ge=0, le=1)] = 0.35
    fold: int | None = None
    probe_seconds: Annotated[float, Field(ge=0, le=86_400)] = 480.0

    @model_validator(mode="after")
    def _has_path(self) -> Self:
        if (self.kind == "recordings") != (self.path is not None):
            raise ValueError('expected `path` with kind = "recordings", and only then')
        return self


class LinkPart(_Part):
    """The link; everything in the device's own time.

    Attributes:
        trace: of the uplink, a file below the folder that ``--traces`` names; used where it is there.
        made: otherwise: a constant rate ("20M") or ``walk:SEED:SECONDS:LOW:HIGH``; the run's seed is added to SEED.
        start_s: where in the trace a run begins; seed n begins n sound lengths later.
        downlink: rate of the way back, as `made`; None: no limit.
        delay_ms, jitter_ms: one way, in each direction; extra delay up to.
        outages: (from, to, "cut" or "freeze") in seconds of the sound.
    """

    trace: str | None = None
    made: str
    start_s: NotNegative = 0.0
    downlink: str | None = None
    delay_ms: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    jitter_ms: Annotated[float, Field(ge=0, le=10_000)] = 0.0
    outages: tuple[tuple[NotNegative, Positive, Literal["cut", "freeze"]], ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        for begin_s, end_s, _ in self.outages:
            if begin_s >= end_s:
                raise ValueError(
                    f"outage: expected a beginning before its end, got {begin_s:g} to {end_s:g} s"
                )
        return self


class DevicePart(_Part):
    """The device.

    Attributes:
        name: for tables.
        slowdown: its core takes so many times as long as this machine's.
        source: where that figure comes from; wanted for any but 1.
        power: a power model's name.
        hold_windows: embeddings made on the device wait for so many later ones, so that a cellular radio wakes up once for all; 0: none.
    """

    name: Name = "this-machine"
    slowdown: Annotated[float, Field(ge=1, le=100)] = 1.0
    source: str = ""
    power: Literal["pi4-wifi", "pi4-lte", "pi4-3g", "laptop-wifi", "laptop-lte"] = "pi4-wifi"
    hold_windows: Annotated[int, Field(ge=0, le=1000)] = 0

    @model_validator(mode="after")
    def _explained(self) -> Self:
        if self.slowdown != 1 and not self.source:
            raise ValueError("a slowdown wants its `source`: where does the figure come from?")
        return self

    @property
    def power_model(self) -> PowerModel:
        """By its name."""
        return POWER_MODELS[self.power]


class LoadPart(_Part):
    """What else the device's core has to do.

    Attributes:
        kind: "none", "constant" (`percent`), "trace" (a column of a CSV below ``--traces``; where it is not there, or
            with no `trace`, a made walk between `percent` / 3 and 95).
        percent: of the core.
        trace: the file.
        step_s: how long each of its rows lasts here; only its shape is used.
        processes: that share the load: a busy one takes a fair share of the core, two take two.
    """

    kind: Literal["none", "constant", "trace"] = "none"
    percent: Annotated[float, Field(ge=0, le=100)] = 0.0
    trace: str | None = None
    step_s: Positive = 4.0
    processes: Annotated[int, Field(ge=1, le=8)] = 2


class GoalsPart(_Part):
    """The reward's constants; see `policy.cost.Goals`."""

    alpha: NotNegative = 10.0
    beta: NotNegative = 5.0
    eta: NotNegative = 3.0
    latency_ms: Positive | None = None
    energy_mj: Positive | None = None


class Scenario(_Part):
    """One scenario.

    Attributes:
        name: of its folder and tables.
        title: one line for people.
        encoder, weights: as `streamsplit replay` takes them.
        speed: of the sound; times are reported in the device's time, see docs/lab.md.
        seeds: each makes another sound, another part of the trace and another order of the systems.
    """

    name: Name
    title: str
    encoder: Literal["compact", "cola", "mobile", "resnet18", "clap"] = "compact"
    weights: str | None = None
    speed: Annotated[float, Field(gt=0, le=50)] = 1.0
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**20)], ...] = (0,)
    sound: SoundPart = SoundPart()
    link: LinkPart
    device: DevicePart = DevicePart()
    load: LoadPart = LoadPart()
    goals: GoalsPart = GoalsPart()

    @model_validator(mode="after")
    def _seeds_differ(self) -> Self:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds: expected at least one and no two alike, got {list(self.seeds)}")
        return self

    @property
    def quota(self) -> float:
        """Share of this machine's core that the client gets, 0..1: what is left to slow down beyond the sound's speed."""
        return min(1.0, self.speed / self.device.slowdown)

    @property
    def compute_factor(self) -> float:
        """Device time per measured time of the client's own work: `quota` has stretched it already, the rest is this."""
        return min(self.speed, self.device.slowdown)

    @property
    def reward_goals(self) -> Goals:
        """For `policy.cost.reward`."""
        return Goals(**self.goals.model_dump())

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes a result; not with the list of seeds."""
        text = self.model_dump_json(exclude={"seeds", "title"})
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def shipped() -> list[str]:
    """Names of the scenarios that come with the project, sorted."""
    return sorted(path.stem for path in SHIPPED.glob("*.toml"))


def load(name: str, **changes: Any) -> Scenario:
    """A scenario by its shipped name, or from a TOML file.

    Args:
        name: a shipped scenario's name, or a path that ends in .toml.
        changes: other values than the file's: `speed`, `seeds`, `encoder`, `weights`, `seconds` (of the sound); None: the file's.

    Raises:
        ConfigError: no such scenario, or a key that is unknown or out of range; the message names it.
    """
    path = Path(name) if name.endswith(".toml") else SHIPPED / f"{name}.toml"
    try:
        described = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"scenario {name!r}: expected a .toml file or one of {', '.join(shipped())}"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"scenario {path}: cannot be read: {error}") from error
    return parse(described, str(path), path.parent, **changes)


def parse(described: dict[str, Any], where: str, folder: Path = Path(), **changes: Any) -> Scenario:
    """A scenario from a dictionary; arguments and errors as `load`."""
    said = {key: value for key, value in changes.items() if value is not None}
    seconds = said.pop("seconds", None)
    described = {**described, **said}
    if seconds is not None and isinstance(described.get("sound", {}), dict):
        described["sound"] = {**described.get("sound", {}), "seconds": seconds}
    try:
        scenario = Scenario.model_validate(described)
    except ValidationError as error:
        raise ConfigError(f"scenario {where}: {describe(error)}") from None
    path = scenario.sound.path
    if path is None or path.is_absolute():
        return scenario
    sound = scenario.sound.model_copy(update={"path": (folder / path).resolve()})
    return scenario.model_copy(update={"sound": sound})


def window_s(scenario: Scenario) -> float:
    """Length of the encoder's window, seconds of the device's time."""
    from streamsplit.encoders.registry import ENCODERS

    front_end = ENCODERS[scenario.encoder].front_end
    length = front_end.window_samples / front_end.sample_rate_hz
    assert math.isfinite(length)
    return length
