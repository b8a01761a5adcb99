"""What a learned decider looks at: features of the moment and of each option, from an `Observation` and a device.

One formula for both uses: numbers on a device (`PLAIN`), arrays of many simulated devices in training (`ARRAYS`).
Every option is described by what `cost` expects of it in shares of the reward's limits, so one set of weights
serves any device, encoder and number of splits. What is not known is filled in, and a flag says so.

Shapes: G features of the moment, K features of an option.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from streamsplit.policy.cost import (
    ASSUMED_RTT_MS,
    ASSUMED_UPLINK_BPS,
    MOST_LOAD,
    Goals,
    message_bits,
    send_mj,
    stretch,
)
from streamsplit.policy.observation import Observation, Option
from streamsplit.policy.profile import Profile
from streamsplit.policy.quality import Quality
from streamsplit.policy.seen import Seen
from streamsplit.policy.worlds import QUALITY_KNOTS, option_figures, profile_figures

LAYOUT: Final = "streamsplit-policy-features-1"
"""Changes with any change of the features below; a policy of another layout is refused."""

MOMENT: Final = (
    "cpu",
    "throttled",
    "lag",
    "temperature_known",
    "temperature",
    "battery_powered",
    "battery",
    "rate_known",
    "rate",
    "rtt_known",
    "rtt",
    "backlog",
    "backlog_windows",
    "uncertainty_known",
    "uncertainty",
    "server",
    "radio_up",
    "radio_tail",
    "radio_power",
    "held",
    "predicts",
    "loudness",
)

PER_OPTION: Final = (
    "skip",
    "audio",
    "local",
    "work",
    "way",
    "compute",
    "send",
    "tail",
    "wake",
    "quality",
    "loss",
    "expected",
    "kept",
    "occupied",
)

EXPECTED: Final = PER_OPTION.index("expected")

ASSUMED_UNCERTAINTY: Final = 0.1
"""Where none is known: the mean of made sounds, and of recordings with shipped weights."""

UNTIMED_UPLINK_BPS: Final = 1e7
"""Where answers came but no rate is known; before the first answer `cost.ASSUMED_UPLINK_BPS`."""

MOST_KEPT: Final = 64
"""Options whose figures a `Describer` keeps."""

_KNOTS: Final = tuple(QUALITY_KNOTS.tolist())


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """The few functions that numbers and arrays do not share."""

    least: Callable[[Any, Any], Any]
    most: Callable[[Any, Any], Any]
    log: Callable[[Any], Any]
    known: Callable[[Any], Any]
    filled: Callable[[Any, Any], Any]
    place: Callable[[Any], Any]
    read: Callable[[Any, Any], Any]


def _place(value: float) -> int:
    return min(max(bisect_left(_KNOTS, value) - 1, 0), len(_KNOTS) - 2)


def _places(values: Any) -> Any:
    return np.clip(np.searchsorted(QUALITY_KNOTS, values) - 1, 0, len(_KNOTS) - 2)


PLAIN: Final = Arithmetic(
    least=min,
    most=max,
    log=math.log,
    known=lambda value: 1.0 if value == value else 0.0,
    filled=lambda value, default: value if value == value else default,
    place=_place,
    read=lambda curve, place: curve[place],
)

ARRAYS: Final = Arithmetic(
    least=np.minimum,
    most=np.maximum,
    log=np.log,
    known=lambda values: (~np.isnan(values)).astype(np.float64),
    filled=lambda values, default: np.where(np.isnan(values), default, values),
    place=_places,
    read=lambda curve, place: np.take_along_axis(curve, place[:, None], axis=1)[:, 0],
)


def describe(
    seen: Seen, device: Mapping[str, Any], options: Sequence[Mapping[str, Any]], do: Arithmetic
) -> tuple[list[Any], list[list[Any]]]:
    """Features of the moment (G) and of each option (K each), about -4 to 4.

    Args:
        seen: numbers, or arrays [B]; NaN where not known.
        device: its figures, see `worlds.device_figures`.
        options: figures of each.
        do: `PLAIN` or `ARRAYS`.
    """
    hop_s, limit_ms, budget_mj = device["hop_s"], device["latency_limit_ms"], device["energy_budget_mj"]
    # No rate although there were answers: nothing ever took long enough to be timed, so the link is fast.
    unknown = ASSUMED_UPLINK_BPS + do.known(seen.rtt_ms) * (UNTIMED_UPLINK_BPS - ASSUMED_UPLINK_BPS)
    rate = do.most(do.filled(seen.uplink_bps, unknown), 1e3)
    rtt_ms = do.filled(seen.rtt_ms, ASSUMED_RTT_MS)
    waiting_s = 8.0 * seen.backlog_bytes / rate
    uncertainty = do.filled(seen.uncertainty, ASSUMED_UNCERTAINTY)
    slowed = stretch(do.least(seen.cpu, MOST_LOAD), seen.throttled)
    tail_s = device["radio_tail_s"]
    up_s = do.most(tail_s - do.filled(seen.since_send_s, 1e9), 0.0)
    hop_mj = 1e3 * device["radio_tail_w"] * do.least(tail_s, hop_s)
    wake_mj = 1e3 * device["radio_tail_w"] * (tail_s - up_s)
    moment = [
        seen.cpu,
        seen.throttled,
        do.least(do.filled(seen.lag_s, 0.0) / hop_s, 8.0),
        do.known(seen.temperature_c),
        (do.filled(seen.temperature_c, 60.0) - 60.0) / 20.0,
        do.known(seen.battery),
        do.least(do.filled(seen.battery, 0.2) * 5.0, 1.0),
        do.known(seen.uplink_bps),
        (do.log(rate) - 13.8) / 2.3,
        do.known(seen.rtt_ms),
        do.least(rtt_ms / 200.0, 4.0),
        do.least(waiting_s / hop_s, 4.0),
        do.log(1.0 + seen.backlog_windows) / 2.0,
        do.known(seen.uncertainty),
        do.least(uncertainty, 1.0) * 5.0,
        seen.available,
        up_s / do.most(tail_s, 1e-3),
        do.log(do.most(tail_s, 0.05)),
        hop_mj / budget_mj,
        do.least(device["hold_windows"] / 60.0, 2.0),
        device["predicts"],
        do.most(seen.level_dbfs, -120.0) / 60.0 + 1.0,
    ]
    place = do.place(uncertainty)
    low = np.take(QUALITY_KNOTS, place) if do is ARRAYS else _KNOTS[place]
    high = np.take(QUALITY_KNOTS, place + 1) if do is ARRAYS else _KNOTS[place + 1]
    part = do.most(do.least((uncertainty - low) / (high - low), 1.0), 0.0)
    qualities = []
    best: Any = 0.0
    for option in options:
        left = do.read(option["quality"], place)
        quality = left + part * (do.read(option["quality"], place + 1) - left)
        qualities.append(quality)
        best = do.most(best, quality)
    described = []
    for option, quality in zip(options, qualities, strict=True):
        local, skip = option["local"], option["skip"]
        away = 1.0 - local - skip
        sends = away + local * (device["hold_windows"] < 1.0)
        bits = message_bits(option["payload_bytes"])
        leaving_s = bits / rate
        work = option["device_ms"] * slowed / limit_ms
        way = away * (1e3 * (waiting_s + leaving_s) + rtt_ms + option["tail_ms"]) / limit_ms
        compute = device["core_w"] * option["device_ms"] / budget_mj
        send = (
            sends * send_mj(device["radio_j_per_byte"], device["radio_active_w"], bits, leaving_s) / budget_mj
        )
        late = do.least(work + way, device["latest"])
        energy = compute + send + sends * hop_mj / budget_mj
        expected = device["alpha"] * quality - device["beta"] * late - device["eta"] * energy
        described.append(
            [
                skip,
                option["audio"],
                local,
                do.least(work, 4.0),
                do.least(way, 4.0),
                do.least(compute, 4.0),
                do.least(send, 4.0),
                sends * hop_mj / budget_mj,
                do.least(sends * wake_mj / budget_mj, 15.0) / 5.0,
                quality,
                do.least(10.0 * (best - quality), 4.0),
                expected / 10.0,
                (seen.split == option["split"]) * 1.0,
                do.least(away * leaving_s / hop_s, 4.0),
            ]
        )
    return moment, described


class Describer:
    """Features of live observations on one device.

    Args:
        profile: the device's.
        quality: of its encoder.
        goals: the reward's.
        hold_windows, predicts: see `worlds.Device`.
    """

    def __init__(
        self,
        profile: Profile,
        quality: Quality,
        goals: Goals,
        hold_windows: int = 0,
        predicts: bool = False,
    ) -> None:
        self._profile, self._quality = profile, quality
        self._device = profile_figures(profile, goals, hold_windows, predicts)
        self._options: dict[Option, dict[str, Any]] = {}

    def describe(
        self, observation: Observation, options: Sequence[Option]
    ) -> tuple[list[float], list[list[float]]]:
        """Of the moment, and of each option.

        Raises:
            ValueError: an option the profile has not measured.
        """
        last = observation.last_split
        seen = Seen(
            observation.cpu_percent / 100.0,
            float(observation.throttled),
            _number(observation.temperature_c),
            _number(observation.battery_percent, 0.01),
            _number(observation.uplink_bps),
            _number(observation.rtt_ms),
            float(observation.backlog_windows),
            float(observation.backlog_bytes),
            _number(observation.uncertainty),
            observation.level_dbfs,
            float(observation.server_available),
            math.nan if last is None else float(last),
            _number(observation.lag_s),
            _number(observation.since_send_s),
        )
        return describe(seen, self._device, [self._figures(option) for option in options], PLAIN)

    def _figures(self, option: Option) -> dict[str, Any]:
        known = self._options.get(option)
        if known is None:
            if len(self._options) >= MOST_KEPT:
                self._options.clear()
            known = self._options[option] = option_figures(self._profile, self._quality, option)
        return known


def _number(value: float | None, scale: float = 1.0) -> float:
    return math.nan if value is None else scale * value
