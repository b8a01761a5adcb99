"""What an option would cost now, in parts: milliseconds and millijoules from profile and observation.

The same arithmetic serves the greedy decider on a device and the simulator that trains a policy: the functions
of plain quantities at the end take numbers or arrays alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamsplit.policy.observation import AUDIO_SPLIT, SKIP_SPLIT, Observation, Option
from streamsplit.policy.power import PowerModel
from streamsplit.policy.profile import Profile

ASSUMED_UPLINK_BPS = 1e6
"""Before the first estimate."""

ASSUMED_RTT_MS = 50.0
"""Before the first estimate."""

MESSAGE_BYTES = 100.0
"""One window beside its payload: fields of `Window` about 20, gRPC and HTTP/2 14, TLS 22, TCP/IP 40."""

THROTTLED_SLOWDOWN = 1.5
"""A Raspberry Pi 4 at its temperature limit steps from 1.5 to 1.0 GHz."""

MOST_SLOWDOWN = 20.0
"""At a load of 95 % and more: beyond it the estimate says nothing."""

MOST_LOAD = 1.0 - 1.0 / MOST_SLOWDOWN


@dataclass(frozen=True, slots=True)
class Latency:
    """From the last sample of a window to its embedding being usable on the device, milliseconds.

    Attributes:
        features, head, pack: on the device, at its present load.
        backlog: bytes already waiting for the link.
        wire: this payload, there and back.
        server: the tail.
    """

    features: float
    head: float
    pack: float
    backlog: float = 0.0
    wire: float = 0.0
    server: float = 0.0

    @property
    def total(self) -> float:
        """All parts."""
        return self.features + self.head + self.pack + self.backlog + self.wire + self.server


@dataclass(frozen=True, slots=True)
class Energy:
    """What one window adds to the device's idle consumption, millijoules, by the profile's power model.

    Attributes:
        compute: one core while it works.
        send: the radio while the payload leaves.
        tail: the radio staying up afterwards, until the next window at most.
    """

    compute: float
    send: float
    tail: float

    @property
    def total(self) -> float:
        """All parts."""
        return self.compute + self.send + self.tail


def slowdown(observation: Observation) -> float:
    """How much longer work takes on a loaded device: 1 / (1 - load), as in a processor-sharing queue.

    More while it is throttled.
    """
    load = min(MOST_LOAD, max(0.0, observation.cpu_percent / 100.0))
    return float(stretch(load, observation.throttled))


def transfer_ms(payload_bytes: float, observation: Observation) -> float:
    """Time the uplink is busy with a message of one such payload."""
    return float(1e3 * message_bits(payload_bytes) / _uplink_bps(observation))


def predict_latency_ms(profile: Profile, option: Option, observation: Observation) -> Latency:
    """Latency of the next window if it takes `option`.

    An embedding made on the device is usable at once: neither the link nor what waits for it delays it.

    Raises:
        ValueError: the profile knows nothing of the option's split and codec.
    """
    busy = slowdown(observation)
    features, head, pack = device_ms(profile, option)
    if option.split in (profile.last_split, SKIP_SPLIT):
        return Latency(features * busy, head * busy, pack * busy)
    rtt_ms = ASSUMED_RTT_MS if observation.rtt_ms is None else observation.rtt_ms
    return Latency(
        features * busy,
        head * busy,
        pack * busy,
        backlog=observation.backlog_bytes * 8e3 / _uplink_bps(observation),
        wire=transfer_ms(option.payload_bytes, observation) + rtt_ms,
        server=profile.tail_ms[max(option.split, 0)],
    )


def predict_energy_mj(profile: Profile, option: Option, observation: Observation) -> Energy:
    """Energy the next window adds if it takes `option`; modelled wherever the profile's power model is.

    Load from others stretches our work but not the energy it takes; throttling lowers the clock, and with it
    power, about as much as it lengthens the work: neither changes `compute`.

    Raises:
        ValueError: the profile knows nothing of the option's split and codec.
    """
    power = profile.power
    if option.split == SKIP_SPLIT:
        return Energy(0.0, 0.0, 0.0)
    sending_s = transfer_ms(option.payload_bytes, observation) / 1e3
    staying_s = min(power.radio_tail_s, max(0.0, profile.window_s - sending_s))
    return Energy(
        compute=power.core_w * sum(device_ms(profile, option)),
        send=float(
            send_mj(
                power.radio_j_per_byte, power.radio_active_w, message_bits(option.payload_bytes), sending_s
            )
        ),
        tail=1e3 * power.radio_tail_w * staying_s,
    )


def device_ms(profile: Profile, option: Option) -> tuple[float, float, float]:
    """Features, head, pack on the idle device, milliseconds.

    Raises:
        ValueError: the profile knows nothing of the option's split and codec.
    """
    if option.split == SKIP_SPLIT:
        return 0.0, 0.0, 0.0
    pack_ms = profile.pack_ms.get((option.split, option.codec))
    if pack_ms is None:
        known = ", ".join(f"{split}/{codec}" for split, codec in sorted(profile.pack_ms))
        raise ValueError(
            f"profile of {profile.version}: expected one of {known}, got {option.split}/{option.codec}"
        )
    if option.split == AUDIO_SPLIT:
        return 0.0, 0.0, pack_ms
    kept_ms = 0.0 if option.split == 0 else profile.keep_ms
    return profile.features_ms.p50, profile.head_ms[option.split].p50, pack_ms + kept_ms


def _uplink_bps(observation: Observation) -> float:
    return ASSUMED_UPLINK_BPS if observation.uplink_bps is None else max(observation.uplink_bps, 1.0)


@dataclass(frozen=True, slots=True)
class Goals:
    """What a window's outcome is worth: alpha A - beta Lat / T_max - eta E / E_budget, with the paper's weights.

    Attributes:
        alpha, beta, eta: as published (Table 8).
        latency_ms: T_max. None: one hop, as a result that comes after the next window is late.
        energy_mj: E_budget. None: what the device draws idle in one hop, so that a share of 1 doubles its
            consumption. It makes joules of a Pi and of a laptop comparable.
        latest: latency counts up to so many T_max: later than that, it is too late anyway.
    """

    alpha: float = 10.0
    beta: float = 5.0
    eta: float = 3.0
    latency_ms: float | None = None
    energy_mj: float | None = None
    latest: float = 4.0

    def latency_limit_ms(self, window_s: float) -> float:
        """T_max for windows of this length."""
        return 1e3 * window_s if self.latency_ms is None else self.latency_ms

    def energy_budget_mj(self, power: PowerModel, window_s: float) -> float:
        """E_budget on a device with this power model."""
        return float(1e3 * window_s * power.idle_w) if self.energy_mj is None else self.energy_mj


def reward(goals: Goals, quality: float, latency_share: float, energy_share: float) -> float:
    """Of one window.

    Args:
        quality: A, 0..1.
        latency_share: latency / T_max.
        energy_share: energy / E_budget.
    """
    late = min(latency_share, goals.latest)
    return goals.alpha * quality - goals.beta * late - goals.eta * energy_share


# Plain quantities: numbers, or numpy arrays of equal shape.


def stretch(load: Any, throttled: Any) -> Any:
    """Factor on work's time at a load of 0..`MOST_LOAD`."""
    return (1.0 + (THROTTLED_SLOWDOWN - 1.0) * throttled) / (1.0 - load)


def message_bits(payload_bytes: Any) -> Any:
    """Of one window on the link."""
    return 8.0 * (payload_bytes + MESSAGE_BYTES)


def send_mj(radio_j_per_byte: Any, radio_active_w: Any, bits: Any, sending_s: Any) -> Any:
    """The radio's energy for so many bits that keep the link busy for so long."""
    return 1e3 * (radio_j_per_byte * bits / 8.0 + radio_active_w * sending_s)
