"""What a simulated device lives in: itself, and everything that happens to it, as plain arrays.

    Device    figures of one machine with one encoder: its profile, options, heat, battery
    Timeline  per window: the link, the load of others, the server, the sound
    Worlds    many (device, timeline) pairs side by side, for `dynamics`

Shapes: P worlds, W windows, N option slots, Q knots of quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from streamsplit.policy.cost import Goals, device_ms
from streamsplit.policy.observation import AUDIO_SPLIT, SKIP_SPLIT, Option
from streamsplit.policy.profile import Profile
from streamsplit.policy.quality import Quality

Array = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

MOST_OPTIONS = 12
"""Slots: skipping, audio, and splits 0 to 9 (`cola` has the most)."""

QUALITY_KNOTS = np.array([0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 2.0])
"""Tables are read at these uncertainties."""


@dataclass(frozen=True, slots=True, eq=False)
class Device:
    """One machine with one encoder.

    Attributes:
        name: for tables.
        profile: as `streamsplit profile` writes it, or another's scaled.
        options: what it could ever do, local embedding included; at most `MOST_OPTIONS`.
        quality: of its encoder.
        cores: of its processor.
        ambient_c, heat_c_per_w, heat_s: temperature settles at ambient + heat x watts, by 63 % in heat_s.
        thermometer: whether it can read its temperature and throttling (a Mac cannot).
        battery_j: capacity; None: on mains.
        hold_windows: embeddings made here are usable at once, so they may wait for so many later ones, or for a
            payload that must go anyway, before they wake the radio. 0: each is sent at once.
        predicts: it knows the uncertainty of windows it embeds itself (a head predicts it); else only the
            server's answers tell.
    """

    name: str
    profile: Profile
    options: tuple[Option, ...]
    quality: Quality
    cores: int = 4
    ambient_c: float = 25.0
    heat_c_per_w: float = 8.0
    heat_s: float = 150.0
    thermometer: bool = True
    battery_j: float | None = None
    hold_windows: int = 0
    predicts: bool = True

    def __post_init__(self) -> None:
        splits = [option.split for option in self.options]
        if len(set(splits)) != len(splits) or not 0 < len(splits) <= MOST_OPTIONS:
            raise ValueError(
                f"{self.name}: expected 1 to {MOST_OPTIONS} options of different splits, got {splits}"
            )
        if self.profile.last_split not in splits:
            raise ValueError(f"{self.name}: expected split {self.profile.last_split} among {splits}")

    def ordered(self) -> list[Option]:
        """Options by split; the place in this list is the slot."""
        return sorted(self.options, key=lambda option: option.split)


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """What happens, window by window: [W] each.

    Attributes:
        uplink_bps: rate of the link, 0 in an outage.
        rtt_ms: of an empty message.
        load: others' share of the processor, 0..1.
        server_up: whether the server is there.
        uncertainty: 1 - cos(lite, dense) of the window.
        level_dbfs: its loudness.
        predicted: what the device's own head would say of its uncertainty.
        battery: share of the battery at the beginning.
        temperature_c: at the beginning; None: as its load has it.
        told: what an answer tells of the window's uncertainty; None: the truth. Quality follows the truth.
    """

    uplink_bps: Array
    rtt_ms: Array
    load: Array
    server_up: Flags
    uncertainty: Array
    level_dbfs: Array
    predicted: Array
    battery: float = 1.0
    temperature_c: float | None = None
    told: Array | None = None

    def __post_init__(self) -> None:
        windows = len(self.uplink_bps)
        for item in fields(self):
            values = getattr(self, item.name)
            if item.name in ("battery", "temperature_c") or values is None:
                continue
            if values.shape != (windows,) or not np.isfinite(values).all() or values.min() < -200:
                raise ValueError(
                    f"{item.name}: expected {windows} finite values, got shape {values.shape}"
                    f" from {values.min()} to {values.max()}"
                )
        if windows < 2 or self.uplink_bps.min() < 0 or not self.uplink_bps.any():
            raise ValueError("uplink_bps: expected two windows or more, rates from 0 up and not all 0")


@dataclass(frozen=True, slots=True, eq=False)
class Worlds:
    """Many worlds side by side, as arrays: timelines [P, W], figures of devices [P], of options [P, N].

    Attributes:
        bits: [P, W + 1] what the link has carried by the beginning of each window, the server being there.
        seen_up: [P, W] what the device believes of the server: an outage shows after `NOTICED_S`.
    """

    devices: tuple[Device, ...]
    uplink_bps: Array
    rtt_ms: Array
    load: Array
    server_up: Flags
    seen_up: Flags
    uncertainty: Array
    level_dbfs: Array
    predicted: Array
    told: Array
    battery: Array
    temperature_c: Array
    bits: Array
    figures: dict[str, Array] = field(repr=False)

    @property
    def windows(self) -> int:
        """W."""
        return int(self.uplink_bps.shape[1])

    def __len__(self) -> int:
        return len(self.devices)


NOTICED_S = 15.0
"""`ClientSettings.acknowledge_timeout_s`: how long a dead server goes unnoticed."""

RETURNED_S = 3.0
"""Until a reconnect has succeeded."""


def stack(devices: Sequence[Device], timelines: Sequence[Timeline], goals: Goals) -> Worlds:
    """Puts pairs side by side.

    Raises:
        ValueError: not one device per timeline, or timelines of different lengths.
    """
    if len(devices) != len(timelines) or not devices:
        raise ValueError(f"expected a device per timeline, got {len(devices)} and {len(timelines)}")
    if len({len(timeline.uplink_bps) for timeline in timelines}) != 1:
        raise ValueError("timelines: expected one length")
    columns = {
        name: np.stack([getattr(timeline, name) for timeline in timelines])
        for name in ("uplink_bps", "rtt_ms", "load", "server_up", "uncertainty", "level_dbfs", "predicted")
    }
    told = [timeline.uncertainty if timeline.told is None else timeline.told for timeline in timelines]
    figures = _figures(devices, goals)
    hop_s = figures["hop_s"][:, None]
    carried = np.where(columns["server_up"], columns["uplink_bps"], 0.0)
    bits = np.concatenate([np.zeros((len(devices), 1)), np.cumsum(carried * hop_s, axis=1)], axis=1)
    settled = [
        timeline.temperature_c
        if timeline.temperature_c is not None
        else device.ambient_c
        + device.heat_c_per_w
        * (
            device.profile.power.idle_w
            + device.profile.power.core_w * device.cores * float(timeline.load[:60].mean())
        )
        for device, timeline in zip(devices, timelines, strict=True)
    ]
    return Worlds(
        devices=tuple(devices),
        **columns,
        told=np.stack(told),
        seen_up=_seen(columns["server_up"], figures["hop_s"]),
        battery=np.array([timeline.battery for timeline in timelines]),
        temperature_c=np.minimum(np.array(settled, np.float64), 79.0),
        bits=bits,
        figures=figures,
    )


def _seen(server_up: Flags, hop_s: Array) -> Flags:
    """The device's belief: down once it was down for `NOTICED_S`, up again `RETURNED_S` after it came back."""
    seen = np.ones_like(server_up)
    belief = np.ones(len(server_up), bool)
    same_s = np.zeros(len(server_up))
    for window in range(server_up.shape[1]):
        differs = server_up[:, window] != belief
        same_s = np.where(differs, same_s + hop_s, 0.0)
        turned = same_s >= np.where(belief, NOTICED_S, RETURNED_S)
        belief = belief ^ turned
        same_s[turned] = 0.0
        seen[:, window] = belief
    return seen


def _figures(devices: Sequence[Device], goals: Goals) -> dict[str, Array]:
    """Figures of devices [P], and of their options [P, N], by name."""
    rows = [device_figures(device, goals) for device in devices]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def device_figures(device: Device, goals: Goals) -> dict[str, Array]:
    """One device as numbers: scalars [] and options [N]; empty slots have `exists` 0."""
    machine = {
        "cores": float(device.cores),
        "ambient_c": device.ambient_c,
        "heat_c_per_w": device.heat_c_per_w,
        "heat_s": device.heat_s,
        "thermometer": float(device.thermometer),
        "battery_j": np.inf if device.battery_j is None else device.battery_j,
    }
    figures = profile_figures(device.profile, goals, device.hold_windows, device.predicts) | machine
    arrays = {name: np.asarray(value, np.float64) for name, value in figures.items()}
    options = [option_figures(device.profile, device.quality, option) for option in device.ordered()]
    for name in options[0]:
        column = np.asarray([option[name] for option in options], np.float64)
        padding = [(0, MOST_OPTIONS - len(options))] + [(0, 0)] * (column.ndim - 1)
        arrays[name] = np.pad(column, padding)
    arrays["exists"] = (np.arange(MOST_OPTIONS) < len(options)).astype(np.float64)
    return arrays


def profile_figures(profile: Profile, goals: Goals, hold_windows: int, predicts: bool) -> dict[str, float]:
    """What a decision needs of a device beside its options; for the two last see `Device`."""
    power = profile.power
    return {
        "hop_s": profile.window_s,
        "idle_w": power.idle_w,
        "core_w": power.core_w,
        "radio_j_per_byte": power.radio_j_per_byte,
        "radio_active_w": power.radio_active_w,
        "radio_tail_w": power.radio_tail_w,
        "radio_tail_s": power.radio_tail_s,
        "hold_windows": float(hold_windows),
        "predicts": float(predicts),
        "latency_limit_ms": goals.latency_limit_ms(profile.window_s),
        "energy_budget_mj": goals.energy_budget_mj(power, profile.window_s),
        "alpha": goals.alpha,
        "beta": goals.beta,
        "eta": goals.eta,
        "latest": goals.latest,
    }


def option_figures(profile: Profile, quality: Quality, option: Option) -> dict[str, Any]:
    """What a decision needs of one option; `quality` at each of `QUALITY_KNOTS`.

    Raises:
        ValueError: the profile knows nothing of it.
    """
    split = option.split
    return {
        "split": float(split),
        "payload_bytes": option.payload_bytes,
        "device_ms": sum(device_ms(profile, option)),
        "tail_ms": 0.0 if split == SKIP_SPLIT else profile.tail_ms[max(split, 0)],
        "local": float(split == profile.last_split),
        "skip": float(split == SKIP_SPLIT),
        "audio": float(split == AUDIO_SPLIT),
        "quality": quality.at(split, profile.last_split, QUALITY_KNOTS).tolist(),
    }


def curve_at(curves: Array, uncertainty: Array) -> Array:
    """Reads quality curves [..., Q] at uncertainties [...]: linear between the knots, level beyond them."""
    place = np.clip(np.searchsorted(QUALITY_KNOTS, uncertainty) - 1, 0, len(QUALITY_KNOTS) - 2)
    low, high = QUALITY_KNOTS[place], QUALITY_KNOTS[place + 1]
    part = np.clip((uncertainty - low) / (high - low), 0.0, 1.0)
    left = np.take_along_axis(curves, place[..., None], axis=-1)[..., 0]
    right = np.take_along_axis(curves, place[..., None] + 1, axis=-1)[..., 0]
    return np.asarray(left + part * (right - left))
