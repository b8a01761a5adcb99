"""Made worlds: devices, links, loads, outages and sounds from a seed, and the named scenarios that ship.

Every quantity wanders with memory: a first-order autoregression (on the logarithm for rates), on top of which
come fades, bursts of load, outages and events of sound, each exponentially long. Marginals and memory of the
cellular links were set beside published traces (driving LTE, EVDO and UMTS; 3G commutes), whose rates lie around
1 to 6 Mbit/s with a log-deviation of 0.4 to 1.4 and a correlation of 0.7 to 0.97 from one window to the next; no
trace is shipped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from zlib import crc32

import numpy as np

from streamsplit.policy.cost import Goals
from streamsplit.policy.observation import AUDIO_SPLIT, SKIP_SPLIT, Option
from streamsplit.policy.power import LAPTOP_LTE, PI4_3G, PI4_LTE, PI4_WIFI, PowerModel
from streamsplit.policy.profile import Profile, Timing, load_profile
from streamsplit.policy.quality import SHIPPED, Quality, assumed_quality
from streamsplit.policy.worlds import Array, Device, Flags, Timeline, Worlds, stack

PI_FACTOR = 10.0
"""A Raspberry Pi 4's core takes so many times as long as the core that the shipped profiles were measured on.
Unverified, from memory of published single-thread figures, which give 5 to 10, and of vector units of half the
width or less; training varies it from 5 to 20."""

FASTER_PI_FACTOR = 5.0
"""A Raspberry Pi 5's, or a Pi 4's if the lower of those figures is right. Unverified as well."""

LAPTOP_FACTOR = 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """A link's rate and round trip.

    Attributes:
        median_bps, log_spread: of the rate; its logarithm is normal.
        keep: its correlation from one window to the next.
        fades_per_hour, fade_s: stretches of a twentieth of the rate, and their mean length.
        rtt_ms: mean.
        rtt_spread: log-deviation.
    """

    median_bps: float
    log_spread: float
    keep: float
    fades_per_hour: float
    fade_s: float
    rtt_ms: float
    rtt_spread: float = 0.2

    def __post_init__(self) -> None:
        if self.median_bps <= 0 or not 0 <= self.keep < 1 or self.fade_s <= 0 or self.rtt_ms < 0:
            raise ValueError(f"link: expected a positive rate and length, and keep in 0..1, got {self}")


@dataclass(frozen=True, slots=True)
class Load:
    """Others' share of the processor: a wandering floor and bursts on top.

    Attributes:
        mean, spread: of the floor, 0..1.
        bursts_per_hour, burst_s, burst: how often, how long on average, and the load while it lasts.
    """

    mean: float
    spread: float
    bursts_per_hour: float = 0.0
    burst_s: float = 30.0
    burst: float = 0.9


@dataclass(frozen=True, slots=True)
class Outages:
    """The server away: how often, and for how long on average."""

    per_hour: float = 0.0
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Sound:
    """Lively stretches between quiet ones; within the lively, events, each with an uncertainty of its own.

    With the defaults uncertainty averages about 0.1 and its upper tenth begins about 0.24, as
    1 - cos(lite, dense) did with shipped weights on recordings.

    Attributes:
        quiet_s, lively_s: mean lengths of stretches.
        event_s: mean length of an event.
        median, log_spread: of the events' uncertainty.
        quiet: uncertainty of quiet stretches.
        silent: share of quiet stretches that are digital silence.
        predicted_error: deviation of what the device's own head says.
    """

    quiet_s: float = 90.0
    lively_s: float = 60.0
    event_s: float = 15.0
    median: float = 0.16
    log_spread: float = 0.7
    quiet: float = 0.03
    silent: float = 0.0
    predicted_error: float = 0.03


@dataclass(frozen=True, slots=True, eq=False)
class Scenario:
    """A kind of world; a seed makes it one.

    Attributes:
        name: for tables and seeds.
        device: made from the seed's generator; most ignore it.
        link, load, outages, sound: see there.
        battery: shares of the battery at the beginning, from and to.
    """

    name: str
    device: Callable[[np.random.Generator], Device]
    link: Link
    load: Load = Load(0.1, 0.05)
    outages: Outages = Outages()
    sound: Sound = Sound()
    battery: tuple[float, float] = (1.0, 1.0)

    def world(self, seed: int, windows: int) -> tuple[Device, Timeline]:
        """The world of one seed."""
        generator = np.random.default_rng([seed, crc32(self.name.encode())])
        device = self.device(generator)
        return device, self.timeline(generator, windows, device.profile.window_s)

    def timeline(self, generator: np.random.Generator, windows: int, hop_s: float) -> Timeline:
        """Made links, loads, outages and sounds."""
        link, load = self.link, self.load
        fade = _stretches(generator, windows, hop_s, link.fades_per_hour, link.fade_s)
        rate = link.median_bps * np.exp(link.log_spread * _wander(generator, windows, link.keep))
        burst = _stretches(generator, windows, hop_s, load.bursts_per_hour, load.burst_s)
        floor = load.mean + load.spread * _wander(generator, windows, 0.95)
        uncertainty, level = _sound(self.sound, generator, windows, hop_s)
        error = self.sound.predicted_error * generator.standard_normal(windows)
        rtt = link.rtt_ms * np.exp(link.rtt_spread * _wander(generator, windows, 0.8))
        return Timeline(
            uplink_bps=np.where(fade, rate / 20.0, rate),
            rtt_ms=np.where(fade, 2.0 * rtt, rtt),
            load=np.clip(np.where(burst, np.maximum(load.burst, floor), floor), 0.0, 0.98),
            server_up=~_stretches(generator, windows, hop_s, self.outages.per_hour, self.outages.seconds),
            uncertainty=uncertainty,
            level_dbfs=level,
            predicted=np.clip(uncertainty + error, 0.0, 1.0),
            battery=float(generator.uniform(*self.battery)),
        )


def under(scenario: Scenario, quality: Quality, encoder: str = "compact") -> Scenario:
    """The scenario with another table for devices of this encoder: the same worlds else."""

    def made(generator: np.random.Generator) -> Device:
        device = scenario.device(generator)
        mine = device.profile.version.rpartition("-")[0] == encoder
        return replace(device, quality=quality) if mine else device

    return replace(scenario, device=made)


def make_worlds(
    scenarios: Sequence[Scenario], seeds: Sequence[int], windows: int, goals: Goals | None = None
) -> Worlds:
    """One world per (scenario, seed) pair, scenario by scenario."""
    pairs = [scenario.world(seed, windows) for scenario in scenarios for seed in seeds]
    return stack([device for device, _ in pairs], [timeline for _, timeline in pairs], goals or Goals())


# Devices.


@cache
def shipped_profile(encoder: str) -> Profile:
    """Measured with the encoder's shipped or untrained weights on one desktop core; see its `device`."""
    return load_profile(SHIPPED / f"profile-{encoder}.json")


def scaled(profile: Profile, factor: float, power: PowerModel) -> Profile:
    """The profile of a device that takes `factor` times as long; the server's tails stay."""

    def times(timing: Timing) -> Timing:
        return Timing(timing.p50 * factor, timing.p95 * factor)

    return replace(
        profile,
        device=f"{profile.device}, {factor:g} times slower",
        features_ms=times(profile.features_ms),
        head_ms={split: times(timing) for split, timing in profile.head_ms.items()},
        pack_ms={kind: spent * factor for kind, spent in profile.pack_ms.items()},
        keep_ms=profile.keep_ms * factor,
        power=power,
    )


def options_of(profile: Profile, audio: bool = False, skip: bool = False) -> tuple[Option, ...]:
    """What a client with this profile's codecs offers: splits, and audio or skipping silence where allowed."""
    offered = [
        Option(split, codec, size)
        for (split, codec), size in sorted(profile.payload_bytes.items())
        if split != AUDIO_SPLIT or audio
    ]
    return (Option(SKIP_SPLIT, "skip", 0.0), *offered) if skip else tuple(offered)


def made_device(
    name: str,
    encoder: str,
    factor: float,
    power: PowerModel,
    quality: Quality | None = None,
    audio: bool = False,
    skip: bool = False,
    **properties: float | bool | None,
) -> Device:
    """A device with a shipped profile, scaled."""
    profile = scaled(shipped_profile(encoder), factor, power)
    return Device(
        name,
        profile,
        options_of(profile, audio, skip),
        quality or assumed_quality(encoder),
        **properties,  # type: ignore[arg-type]
    )


def _always(device: Device) -> Callable[[np.random.Generator], Device]:
    return lambda _: device


# Links, by what they imitate.

WIFI = Link(20e6, 0.3, 0.9, 2.0, 5.0, 5.0)
WEAK_WIFI = Link(4e6, 1.0, 0.95, 20.0, 15.0, 8.0)
LTE = Link(5e6, 0.9, 0.8, 15.0, 8.0, 60.0)
EVDO = Link(8e5, 0.9, 0.85, 20.0, 10.0, 120.0)
UMTS = Link(9e5, 0.9, 0.8, 20.0, 8.0, 100.0)
COMMUTE = Link(1.2e6, 0.6, 0.95, 40.0, 15.0, 150.0)

IDLE = Load(0.08, 0.04)
BUSY = Load(0.45, 0.15, bursts_per_hour=30.0, burst_s=40.0, burst=0.93)

HELD = 60
"""Windows that a cellular device holds embeddings it made: about a minute."""


def _shipped() -> dict[str, Scenario]:
    pi_wifi = made_device("pi4 wifi", "compact", PI_FACTOR, PI4_WIFI)
    pi_lte = made_device("pi4 lte", "compact", PI_FACTOR, PI4_LTE, hold_windows=HELD)
    pi_3g = made_device("pi4 3g", "compact", PI_FACTOR, PI4_3G, hold_windows=HELD)
    eager = made_device("pi4 lte, sends at once", "compact", PI_FACTOR, PI4_LTE)
    last = made_device("pi4 lte battery", "compact", PI_FACTOR, PI4_LTE, hold_windows=HELD, battery_j=133e3)
    cola = made_device("pi4 cola", "cola", PI_FACTOR, PI4_WIFI)
    cola_lte = made_device("pi4 cola lte", "cola", PI_FACTOR, PI4_LTE, hold_windows=HELD)
    cola_3g = made_device("pi4 cola 3g", "cola", PI_FACTOR, PI4_3G, hold_windows=HELD)
    deep_lte = made_device("pi5 resnet18 lte", "resnet18", FASTER_PI_FACTOR, PI4_LTE, hold_windows=HELD)
    deep_3g = made_device("pi5 resnet18 3g", "resnet18", FASTER_PI_FACTOR, PI4_3G, hold_windows=HELD)
    hot = made_device("pi4 resnet18, closed box", "resnet18", PI_FACTOR, PI4_WIFI, ambient_c=36.0)
    laptop = made_device(
        "laptop lte",
        "compact",
        LAPTOP_FACTOR,
        LAPTOP_LTE,
        cores=8,
        thermometer=False,
        hold_windows=HELD,
    )
    kinds = [
        Scenario("wifi-idle", _always(pi_wifi), WIFI, IDLE),
        Scenario("wifi-loaded", _always(pi_wifi), WIFI, BUSY),
        Scenario("lte", _always(pi_lte), LTE, IDLE),
        Scenario("lte-eager", _always(eager), LTE, IDLE),
        Scenario("evdo-loaded", _always(pi_3g), EVDO, BUSY),
        Scenario("umts", _always(pi_3g), UMTS, IDLE),
        Scenario("commute", _always(pi_3g), COMMUTE, IDLE, Outages(6.0, 60.0)),
        Scenario("outages", _always(pi_lte), LTE, IDLE, Outages(20.0, 60.0)),
        Scenario("battery", _always(last), LTE, IDLE, battery=(0.01, 0.018)),
        Scenario("cola-loaded", _always(cola), UMTS, BUSY),
        Scenario("cola-weak-wifi", _always(cola), WEAK_WIFI, IDLE),
        Scenario("cola-lte", _always(cola_lte), LTE, BUSY),
        Scenario("cola-commute", _always(cola_3g), COMMUTE, BUSY, Outages(6.0, 60.0)),
        Scenario("resnet18-lte", _always(deep_lte), LTE, BUSY),
        Scenario("resnet18-umts", _always(deep_3g), UMTS, BUSY),
        Scenario("resnet18-commute", _always(deep_3g), COMMUTE, BUSY, Outages(6.0, 60.0)),
        Scenario("resnet18-hot", _always(hot), COMMUTE, replace(BUSY, mean=0.55)),
        Scenario("laptop-lte", _always(laptop), LTE, Load(0.25, 0.1, 20.0, 30.0, 0.8)),
    ]
    return {scenario.name: scenario for scenario in kinds}


@cache
def shipped_scenarios() -> Mapping[str, Scenario]:
    """By name."""
    return _shipped()


# Processes with memory.


def _wander(generator: np.random.Generator, windows: int, keep: float) -> Array:
    """A stationary first-order autoregression of variance 1, [W]."""
    steps = generator.standard_normal(windows)
    scale = float(np.sqrt(1.0 - keep**2))
    value, values = float(steps[0]), np.empty(windows)
    for index, step in enumerate(steps.tolist()):
        value = value if index == 0 else keep * value + scale * step
        values[index] = value
    return values


def _stretches(
    generator: np.random.Generator, windows: int, hop_s: float, per_hour: float, mean_s: float
) -> Flags:
    """True within stretches of exponential length that begin so many times an hour, [W]."""
    inside = np.zeros(windows, bool)
    if per_hour <= 0:
        return inside
    at_s, end_s = float(generator.exponential(3600.0 / per_hour)), windows * hop_s
    while at_s < end_s:
        length_s = max(float(generator.exponential(mean_s)), hop_s)
        inside[int(at_s / hop_s) : int((at_s + length_s) / hop_s) + 1] = True
        at_s += length_s + float(generator.exponential(3600.0 / per_hour))
    return inside


def _sound(sound: Sound, generator: np.random.Generator, windows: int, hop_s: float) -> tuple[Array, Array]:
    """Uncertainty and loudness, [W] each."""
    uncertainty, level = np.empty(windows), np.empty(windows)
    at, lively = 0, bool(generator.random() < sound.lively_s / (sound.lively_s + sound.quiet_s))
    while at < windows:
        mean_s = sound.lively_s if lively else sound.quiet_s
        end = min(windows, at + 1 + int(generator.exponential(mean_s) / hop_s))
        silent = not lively and generator.random() < sound.silent
        while at < end:
            stop = min(end, at + 1 + int(generator.exponential(sound.event_s) / hop_s))
            centre = (
                sound.median * float(np.exp(sound.log_spread * generator.standard_normal()))
                if lively
                else sound.quiet
            )
            spread = np.exp(0.3 * generator.standard_normal(stop - at))
            uncertainty[at:stop] = np.clip(centre * spread, 0.0, 0.8)
            loud = float(generator.uniform(-40.0, -15.0)) if lively else -120.0 if silent else -60.0
            level[at:stop] = loud if silent else loud + generator.standard_normal(stop - at)
            at = stop
        lively = not lively
    return uncertainty, level
