"""What an option would cost now, in parts: milliseconds and millijoules from profile and observation.

The same arithmetic serves the greedy decider on a device and the simulator that trains a policy.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamsplit.policy.observation import AUDIO_SPLIT, Observation, Option
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
    load = min(1.0, max(0.0, observation.cpu_percent / 100.0))
    factor = 1.0 / max(1.0 - load, 1.0 / MOST_SLOWDOWN)
    return factor * THROTTLED_SLOWDOWN if observation.throttled else factor


def transfer_ms(payload_bytes: float, observation: Observation) -> float:
    """Time the uplink is busy with a message of one such payload."""
    return (payload_bytes + MESSAGE_BYTES) * 8e3 / _uplink_bps(observation)


def predict_latency_ms(profile: Profile, option: Option, observation: Observation) -> Latency:
    """Latency of the next window if it takes `option`.

    An embedding made on the device is usable at once: neither the link nor what waits for it delays it.

    Raises:
        ValueError: the profile knows nothing of the option's split and codec.
    """
    busy = slowdown(observation)
    features, head, pack = _device_ms(profile, option)
    if option.split == profile.last_split:
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
    sending_s = transfer_ms(option.payload_bytes, observation) / 1e3
    staying_s = min(power.radio_tail_s, max(0.0, profile.window_s - sending_s))
    return Energy(
        compute=power.core_w * sum(_device_ms(profile, option)),
        send=1e3
        * (
            power.radio_j_per_byte * (option.payload_bytes + MESSAGE_BYTES) + power.radio_active_w * sending_s
        ),
        tail=1e3 * power.radio_tail_w * staying_s,
    )


def _device_ms(profile: Profile, option: Option) -> tuple[float, float, float]:
    """Features, head, pack on the idle device."""
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
