"""What cannot be run: the oracle, which knows the trace, and PCM that is streamed while it is captured. All of it says "modelled".

The simulator of `policy.dynamics` is given the scenario's own trace, load, outages, loudness and true uncertainty, window by
window, and the device's measured profile. Its best plan, and what each decider would have got in it, go beside what was measured:
how far the two are apart for the systems that were both run and simulated tells how far to trust the oracle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from streamsplit.errors import ConfigError
from streamsplit.lab.figures import finite
from streamsplit.lab.hearing import Heard
from streamsplit.lab.rows import LEAST_RATE_BPS, Row, Run, window_reward
from streamsplit.lab.scenario import Scenario
from streamsplit.lab.schedule import Schedule
from streamsplit.lab.systems import EDGE_ONLY, LEARNED, ORACLE
from streamsplit.policy.cost import message_bits
from streamsplit.policy.decide import Decider, FixedSplit, make_decider
from streamsplit.policy.profile import Profile

LEAST_WINDOWS = 2
LAST_S = 0.02


def simulate(
    scenario: Scenario, schedule: Schedule, heard: Heard, profile: Profile, names: Sequence[str], quality: Any
) -> dict[str, dict[str, Any]]:
    """Returns and their parts in the simulator, by system; the oracle's with them.

    Args:
        profile: of the emulated device.
        names: systems to simulate; those that the simulator does not know (sound sent) are left out.
        quality: the table.
    """
    from streamsplit.policy.evaluate import Result, fly, fly_oracle
    from streamsplit.policy.worlds import Device, Timeline, stack

    hop_s, windows = profile.window_s, len(heard.start_s)
    if windows < LEAST_WINDOWS:
        return {}
    middle_s = heard.start_s + 0.5 * hop_s
    rates = [_mean_rate(schedule, float(start_s), hop_s) for start_s in heard.start_s]
    rtt_ms = 2.0 * scenario.link.delay_ms + scenario.link.jitter_ms + 2.0
    cut = np.array([any(begin <= at < end for begin, end, _ in schedule.outages) for at in middle_s])
    timeline = Timeline(
        uplink_bps=np.maximum(np.array(rates), LEAST_RATE_BPS),
        rtt_ms=np.full(windows, rtt_ms),
        load=np.array([schedule.load_at(float(at)) / 100.0 for at in middle_s]),
        server_up=~cut,
        uncertainty=heard.uncertainty,
        level_dbfs=heard.level_dbfs,
        predicted=heard.uncertainty,
    )
    held = scenario.device.hold_windows
    device = Device(
        scenario.device.name,
        profile,
        _options(profile),
        quality,
        cores=1,
        thermometer=False,
        hold_windows=held,
        predicts=False,
    )
    worlds = stack([device], [timeline], scenario.reward_goals)
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        decider = _decider(name, profile, held)
        if decider is not None:
            found[name] = _figures(fly(lambda _, made=decider: made, worlds))  # type: ignore[misc]
    result: Result = fly_oracle(worlds)
    found[ORACLE] = _figures(result)
    return found


def streamed(rows: Sequence[Row], run: Run) -> list[Row]:
    """PCM sent while it is captured, from the runs that sent it window by window: only what the link could not take
    during the capture is left to send after the last sample.

    The client does not do this: modelled. Bytes and energy are taken as they were.
    """  # fmt: skip
    result = []
    for row in rows:
        if row.latency_ms is None:
            result.append(row)
            continue
        # The window's own transfer overlaps its capture; the last 20 ms of sound leave after it, there and back.
        took_ms = 1e3 * message_bits(row.payload_bytes) / max(row.link_bps, LEAST_RATE_BPS)
        after = LAST_S / run.window_s
        least_ms = 2.0 * run.scenario.link.delay_ms + took_ms * after
        saved_ms = min(
            took_ms * (1.0 - after), 1e3 * (run.window_s - LAST_S), max(0.0, row.link_ms - least_ms)
        )
        latency_ms = row.latency_ms - saved_ms
        result.append(
            replace(
                row,
                latency_ms=latency_ms,
                link_ms=row.link_ms - saved_ms,
                reward=window_reward(run, row.quality, latency_ms, row.energy_mj),
            )
        )
    return result


def apart(measured: Mapping[str, float | None], simulated: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """How far simulated returns are from measured ones, over the systems that have both."""
    gaps = [
        simulated[name]["return"] - value
        for name, value in measured.items()
        if value is not None and name in simulated and simulated[name]["return"] is not None
    ]
    if not gaps:
        return {"systems": 0, "median_error": None, "largest_error": None}
    return {
        "systems": len(gaps),
        "median_error": finite(np.median(np.abs(gaps))),
        "largest_error": finite(max(gaps, key=abs)),
    }


def _decider(name: str, profile: Profile, held: int) -> Decider | None:
    if name == EDGE_ONLY:
        return FixedSplit(profile.last_split)
    if name.startswith("split_"):
        return FixedSplit(int(name.removeprefix("split_")))
    known = {
        "heuristic": "heuristic",
        "greedy_profile": "greedy-profile",
        "linucb": "linucb",
        LEARNED: "learned",
    }
    if name not in known:
        return None
    try:
        return make_decider(known[name], profile, profile.last_split, hold_windows=held)
    except ConfigError:
        return None  # no policy is shipped for it


def _options(profile: Profile) -> tuple[Any, ...]:
    """What a client with default codecs offers."""
    from streamsplit.policy.observation import Option

    codecs = {0: "int8", profile.last_split: "int8"}
    return tuple(
        Option(split, codec := codecs.get(split, "int4"), profile.payload_bytes[split, codec])
        for split in range(profile.last_split + 1)
    )


def _mean_rate(schedule: Schedule, start_s: float, hop_s: float, points: int = 8) -> float:
    return float(
        np.mean([schedule.rate_at(start_s + (place + 0.5) * hop_s / points) for place in range(points)])
    )


def _figures(result: Any) -> dict[str, Any]:
    return {
        "return": finite(result.returns.mean()),
        "quality": finite(result.quality),
        "latency_ms": {
            f"p{level}": finite(value) for level, value in zip((50, 95, 99), result.latency_ms, strict=True)
        },
        "energy_mj": finite(result.energy_mj),
        "uplink_bytes_per_s": finite(result.uplink_bytes_per_s),
        "splits": {str(split): round(value, 4) for split, value in result.splits.items()},
        "modelled": True,
    }
