"""What a decision may look at: one type, live on a device, in a replay and in training."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from streamsplit.audio.window import SILENCE_DBFS as SILENCE_DBFS  # where a window may be skipped

AUDIO_SPLIT = -1
"""The split that sends (compressed) audio: all work is the server's. Only where the configuration allows it."""


SKIP_SPLIT = -2
"""Not a split: a silent window is neither processed nor sent. Only where a device offers it, and only in silence."""


LOAD_JUMP = 20.0
"""Per cent of the machine: when others' load is so far from what a decision was made on, another is due. In the simulator a jump
of 30 was worth 0.01 to 0.09 of return with ResNet-18 on cellular links and 0.11 to 0.15 with EfficientNet-B0; 15 a little more, 50
half of it or less."""


@dataclass(frozen=True, slots=True)
class Observation:
    """The device and its link just before a window is processed. None: not known, or not measurable on this device.

    Attributes:
        cpu_percent: load of the whole machine but for this client, 0..100.
        memory_percent: used memory, 0..100.
        temperature_c: hottest processor sensor.
        throttled: the processor has been slowed down for heat or under-voltage.
        battery_percent: 0..100.
        on_mains: charging or without a battery.
        uplink_bps: estimate of the uplink's rate, bits per second.
        rtt_ms: round-trip time without queueing.
        backlog_windows: windows spooled and not yet acknowledged.
        backlog_bytes: their payload bytes.
        uncertainty: last known uncertainty of this stream's embedding.
        level_dbfs: loudness of the window to decide on.
        server_available: a stream to the server is up, and it serves this device's version.
        last_split: the split in force.
        lag_s: seconds from the window's last sample until now: work that piles up shows here.
        since_send_s: seconds since anything was last sent: tells whether the radio is still up.
    """

    cpu_percent: float
    memory_percent: float
    level_dbfs: float
    server_available: bool
    backlog_windows: int = 0
    backlog_bytes: int = 0
    temperature_c: float | None = None
    throttled: bool = False
    battery_percent: float | None = None
    on_mains: bool | None = None
    uplink_bps: float | None = None
    rtt_ms: float | None = None
    uncertainty: float | None = None
    last_split: int | None = None
    lag_s: float | None = None
    since_send_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """For the journal."""
        return {
            field.name: getattr(self, field.name) for field in fields(self)
        }  # `asdict` copies deeply: 5 times slower


@dataclass(frozen=True, slots=True)
class Option:
    """One thing a device could do with a window now.

    Attributes:
        split: -2 skip silence, -1 send audio, 0 send features, k cut after block k, L embed here.
        codec: a `wire.codec.Codec` name.
        payload_bytes: expected bytes on the wire.
    """

    split: int
    codec: str
    payload_bytes: float


def piling_up(lag_s: Any, hop_s: Any) -> Any:
    """Whether work has begun to pile up: a window waits for so long that the next one is there. Numbers or arrays.

    Args:
        lag_s: see `Observation`; NaN: no.
        hop_s: from one window to the next.
    """
    return lag_s > hop_s
