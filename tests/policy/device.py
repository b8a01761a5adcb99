"""A made device whose figures can be followed by hand."""

from __future__ import annotations

from streamsplit.policy.observation import Observation, Option
from streamsplit.policy.power import PowerModel
from streamsplit.policy.profile import Profile, Timing

OPTIONS = [
    Option(3, "int8", 130.0),
    Option(0, "int8", 4000.0),
    Option(1, "int4", 900.0),
    Option(2, "int4", 300.0),
]

POWER = PowerModel("made", 2.0, 1.0, 1e-6, 0.5, 0.25, 0.1, "made for tests")

PROFILE = Profile(
    device="made",
    version="made-1",
    last_split=3,
    window_s=0.96,
    features_ms=Timing(1.0, 2.0),
    head_ms={0: Timing(0.0, 0.0), 1: Timing(4.0, 5.0), 2: Timing(6.0, 7.0), 3: Timing(40.0, 50.0)},
    pack_ms={(-1, "opus"): 30.0, (0, "int8"): 0.5, (1, "int4"): 0.2, (2, "int4"): 0.1, (3, "int8"): 0.0},
    payload_bytes={
        (-1, "opus"): 1300.0,
        (0, "int8"): 4000.0,
        (1, "int4"): 900.0,
        (2, "int4"): 300.0,
        (3, "int8"): 130.0,
    },
    keep_ms=0.5,
    tail_ms={0: 3.0, 1: 2.0, 2: 1.0, 3: 0.0},
    tail_source="made",
    power=POWER,
    repeats=1,
)


def observed(
    cpu_percent: float = 0.0,
    uplink_bps: float | None = 8e6,
    rtt_ms: float | None = 10.0,
    server_available: bool = True,
    throttled: bool = False,
    backlog_bytes: int = 0,
    lag_s: float | None = None,
    uncertainty: float | None = None,
) -> Observation:
    """An idle device on a good link, unless told otherwise."""
    return Observation(
        cpu_percent=cpu_percent,
        memory_percent=50.0,
        level_dbfs=-30.0,
        server_available=server_available,
        backlog_bytes=backlog_bytes,
        lag_s=lag_s,
        throttled=throttled,
        uplink_bps=uplink_bps,
        rtt_ms=rtt_ms,
        uncertainty=uncertainty,
    )
