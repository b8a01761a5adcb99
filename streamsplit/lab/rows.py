"""From a run's journal to one row per window, in the device's own time: latency, bytes, energy, quality, reward.

Time. Sound and link ran `speed` times as fast as the device's life, and its own work was stretched by a quota (see
`lab.quota`). A measured millisecond of the link counts `speed` device milliseconds, one of the client's own work and of the software
between the sockets (see `lab.software`) `compute_factor`, one of the server's (as acknowledgements tell) one. Sound that a device could not take in time waits in the
replay's source, where a microphone would lose it: that lateness is added to the latency.

Energy is modelled: the measured processor seconds of the client and the bytes measured on its socket, times a stated power
model. Each window gets the share of the processor time that its measured parts took; the radio's tail lasts until the next send.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from streamsplit.lab.hearing import Heard
from streamsplit.lab.scenario import Scenario
from streamsplit.lab.schedule import Schedule
from streamsplit.lab.summary import DONE
from streamsplit.policy.cost import device_ms, message_bits, predict_latency_ms, reward, send_mj
from streamsplit.policy.observation import Observation, Option
from streamsplit.policy.power import PowerModel
from streamsplit.policy.profile import Profile
from streamsplit.policy.quality import Quality

OWN: Final = ("features_ms", "head_ms", "pack_ms", "wait_ms", "spool_ms")
LINK: Final = ("queue_ms", "wire_ms")
SERVER: Final = ("server_queue_ms", "tail_ms", "store_ms")

LATE_MS: Final = 2.0
"""Capture that comes less late than this, in this machine's time, is the jitter of timers."""

LEAST_RATE_BPS: Final = 1e4


@dataclass(frozen=True, slots=True)
class Row:
    """One window of one run. Milliseconds, millijoules and seconds are the device's; None: not known or never came.

    Attributes:
        sequence, start_s, label, level_dbfs: which window.
        state: "acknowledged", "dropped", "rejected" or "missing".
        split, codec, payload_bytes: how it was sent.
        uplink_bytes: its share of what was measured on the socket.
        latency_ms: from its last sample to the usable embedding; with lateness.
        own_ms, link_ms, server_ms, late_ms: parts of it.
        energy_mj, compute_mj, radio_mj: beyond idle, modelled.
        uncertainty: true, 1 - cosine of the two paths.
        quality: by the quality table.
        right: whether the probe told its label from the embedding that was stored.
        reward: of the window.
        link_bps, load_percent: of the schedule at its end.
        seen_cpu_percent, seen_uplink_bps, seen_rtt_ms, seen_uncertainty: what the decider saw.
        reason: of the decision.
        predicted_ms, predicted_bytes: what the cost model expects of this window's split, from the device's profile and what was
            observed just before; None: nothing was observed.
    """

    sequence: int
    start_s: float
    label: str | None
    level_dbfs: float
    state: str
    split: int | None
    codec: str | None
    payload_bytes: int
    uplink_bytes: float
    latency_ms: float | None
    own_ms: float
    link_ms: float
    server_ms: float
    late_ms: float
    energy_mj: float
    compute_mj: float
    radio_mj: float
    uncertainty: float
    quality: float
    right: bool | None
    reward: float
    link_bps: float
    load_percent: float
    seen_cpu_percent: float | None
    seen_uplink_bps: float | None
    seen_rtt_ms: float | None
    seen_uncertainty: float | None
    reason: str | None
    predicted_ms: float | None = None
    predicted_bytes: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Run:
    """What the rows of a run are made from, beside its journal.

    Attributes:
        scenario, schedule, heard, quality: of the scenario.
        last_split: L.
        window_s: of the encoder.
        right: by sequence, what the probe says of the stored embeddings.
        client_cpu_s: of the client; None: not known, the measured parts stand for it.
        uplink_bytes: on the socket; None: only payloads are known.
        profile: of the emulated device: its parts never count less than this says, for a quota does not slow short work down.
        software_ms: of `wire_ms`, what is not the link's but takes this long without one.
    """

    scenario: Scenario
    schedule: Schedule
    heard: Heard
    quality: Quality
    last_split: int
    window_s: float
    right: Mapping[int, bool | None]
    client_cpu_s: float | None
    uplink_bytes: float | None
    profile: Profile | None = None
    software_ms: float = 0.0


def make_rows(run: Run, records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row for every window there was to hear, in order; windows that the journal does not name are "missing"."""
    told = {record["sequence"]: record for record in records if record.get("kind") == "window"}
    done = {sequence: record for sequence, record in told.items() if record["state"] in DONE}
    late_ms = lateness_ms(done)
    compute = _compute_mj(run, done)
    extra = _extra_bytes(run, done)
    radio = _radio_mj(run, done, late_ms, extra)
    rows = []
    for sequence in range(len(run.heard.start_s)):
        record = done.get(sequence)
        if record is None:
            rows.append(_missing(run, sequence, str(told.get(sequence, {}).get("state", "missing"))))
        else:
            energy = (compute[sequence], radio[sequence])
            rows.append(_row(run, record, late_ms[sequence], energy, record["payload_bytes"] + extra))
    return rows


def parts_ms(
    scenario: Scenario, measured: Mapping[str, float], software_ms: float = 0.0
) -> tuple[float, float, float]:
    """(own, link, server) in device milliseconds, of a journal's `measured`.

    >>> slow = Scenario.model_validate({"name": "s", "title": "", "speed": 2, "link": {"made": "1M"},
    ...                                 "device": {"slowdown": 10, "source": "a guess"}})
    >>> parts_ms(slow, {"head_ms": 30.0, "wire_ms": 40.0, "tail_ms": 3.0})
    (60.0, 80.0, 3.0)
    """
    own, link, server = (
        sum(float(measured.get(part, 0.0)) for part in group) for group in (OWN, LINK, SERVER)
    )
    software = min(software_ms, float(measured.get("wire_ms", 0.0)))
    link_ms = (link - software) * scenario.speed + software * scenario.compute_factor
    return own * scenario.compute_factor, link_ms, server


def lateness_ms(done: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    """How much later than due each window was taken from the source, in this machine's milliseconds.

    Args:
        done: journal records by sequence.
    """
    late = {sequence: float(record["measured"].get("late_ms", 0.0)) for sequence, record in done.items()}
    return {sequence: value if value > LATE_MS else 0.0 for sequence, value in late.items()}


def _row(
    run: Run, record: Mapping[str, Any], late_ms: float, energy: tuple[float, float], uplink_bytes: float
) -> Row:
    scenario, sequence, split = run.scenario, record["sequence"], record["split"]
    own_ms, link_ms, server_ms = parts_ms(scenario, record["measured"], run.software_ms)
    own_ms += _unslowed_ms(run, record)
    late_ms *= scenario.speed
    local = split == run.last_split
    if local:  # usable before it is sent
        own_ms -= float(record["measured"].get("spool_ms", 0.0)) * scenario.compute_factor
        link_ms = server_ms = 0.0
    latency_ms = own_ms + link_ms + server_ms + late_ms
    uncertainty = float(run.heard.uncertainty[sequence])
    quality = float(run.quality.at(split, run.last_split, uncertainty))
    seen = (record.get("decision") or {}).get("observation") or {}
    end_s = float(run.heard.start_s[sequence]) + run.window_s
    return Row(
        sequence=sequence,
        start_s=float(run.heard.start_s[sequence]),
        label=run.heard.labels[sequence],
        level_dbfs=float(run.heard.level_dbfs[sequence]),
        state=record["state"],
        split=split,
        codec=record["codec"],
        payload_bytes=record["payload_bytes"],
        uplink_bytes=uplink_bytes,
        latency_ms=latency_ms,
        own_ms=own_ms,
        link_ms=link_ms,
        server_ms=server_ms,
        late_ms=late_ms,
        energy_mj=sum(energy),
        compute_mj=energy[0],
        radio_mj=energy[1],
        uncertainty=uncertainty,
        quality=quality,
        right=run.right.get(sequence),
        reward=window_reward(run, quality, latency_ms, sum(energy)),
        link_bps=run.schedule.rate_at(end_s),
        load_percent=run.schedule.load_at(end_s),
        seen_cpu_percent=seen.get("cpu_percent"),
        seen_uplink_bps=seen.get("uplink_bps"),
        seen_rtt_ms=seen.get("rtt_ms"),
        seen_uncertainty=seen.get("uncertainty"),
        reason=(record.get("decision") or {}).get("reason"),
        **predicted(run.profile, record),
    )


def predicted(profile: Profile | None, record: Mapping[str, Any]) -> dict[str, float | None]:
    """Latency and bytes on the link that `policy.cost` expects of a journal's window, headers included."""
    decision = record.get("decision") or {}
    payload_bytes = (decision.get("expected") or {}).get("payload_bytes")
    if profile is None or payload_bytes is None or not decision.get("observation"):
        return {"predicted_ms": None, "predicted_bytes": None}
    option = Option(record["split"], record["codec"], payload_bytes)
    latency = predict_latency_ms(profile, option, Observation(**decision["observation"]))
    return {"predicted_ms": latency.total, "predicted_bytes": message_bits(payload_bytes) / 8.0}


def _unslowed_ms(run: Run, record: Mapping[str, Any]) -> float:
    """What a quota, which hands out time in slices, left the parts of a window too short by; 0 without a quota."""
    profile, scenario = run.profile, run.scenario
    if profile is None or scenario.quota >= 1.0:
        return 0.0
    option = Option(record["split"], record["codec"], 0.0)
    took_ms = sum(float(record["measured"].get(part, 0.0)) for part in OWN[:3]) * scenario.compute_factor
    return max(0.0, sum(device_ms(profile, option)) - took_ms)


def _missing(run: Run, sequence: int, state: str) -> Row:
    """A window that never came to an embedding: as late as can be, and worth nothing."""
    goals = run.scenario.reward_goals
    end_s = float(run.heard.start_s[sequence]) + run.window_s
    worth = window_reward(run, 0.0, goals.latest * goals.latency_limit_ms(run.window_s), 0.0)
    return Row(
        sequence, float(run.heard.start_s[sequence]), run.heard.labels[sequence],
        float(run.heard.level_dbfs[sequence]), state, None, None, 0, 0.0, None, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0,
        float(run.heard.uncertainty[sequence]), 0.0, None, worth, run.schedule.rate_at(end_s),
        run.schedule.load_at(end_s), None, None, None, None, None,
    )  # fmt: skip


def window_reward(run: Run, quality: float, latency_ms: float, energy_mj: float) -> float:
    """alpha A - beta Lat / T_max - eta E / E_budget, as `policy.cost` has it."""
    goals, power = run.scenario.reward_goals, run.scenario.device.power_model
    latency_share = latency_ms / goals.latency_limit_ms(run.window_s)
    energy_share = energy_mj / goals.energy_budget_mj(power, run.window_s)
    return float(reward(goals, quality, latency_share, energy_share))


def _compute_mj(run: Run, done: Mapping[int, Mapping[str, Any]]) -> dict[int, float]:
    """The run's processor time on the device, shared out by what each window's parts took."""
    scenario, core_w = run.scenario, run.scenario.device.power_model.core_w
    spent = {
        sequence: sum(float(record["measured"].get(part, 0.0)) for part in OWN[:3])
        for sequence, record in done.items()
    }
    total_ms = sum(spent.values())
    if run.client_cpu_s is None:
        return {sequence: core_w * value * scenario.compute_factor for sequence, value in spent.items()}
    device_s = run.client_cpu_s * scenario.device.slowdown
    return {
        sequence: 1e3 * core_w * device_s * (value / total_ms if total_ms > 0 else 1.0 / len(spent))
        for sequence, value in spent.items()
    }


def _extra_bytes(run: Run, done: Mapping[int, Mapping[str, Any]]) -> float:
    """Bytes on the socket beyond a window's payload: headers, greetings, acknowledgements, shared equally."""
    if run.uplink_bytes is None or not done:
        return 0.0
    payload = sum(float(record["payload_bytes"]) for record in done.values())
    return max(0.0, run.uplink_bytes - payload) / len(done)


def _radio_mj(
    run: Run, done: Mapping[int, Mapping[str, Any]], late_ms: Mapping[int, float], extra: float
) -> dict[int, float]:
    """What sending each window costs, with the radio's tail until the next."""
    power, sends = run.scenario.device.power_model, []
    for sequence, record in done.items():
        own_ms, link_ms, _ = parts_ms(run.scenario, record["measured"], run.software_ms)
        queue_ms = float(record["measured"].get("queue_ms", 0.0)) * run.scenario.speed
        begin_s = float(run.heard.start_s[sequence]) + run.window_s
        begin_s += (own_ms + queue_ms + late_ms[sequence] * run.scenario.speed) / 1e3
        bits = 8.0 * (record["payload_bytes"] + extra)
        rate_bps = max(run.schedule.rate_at(begin_s), LEAST_RATE_BPS)
        sending_s = min(bits / rate_bps, max(link_ms - queue_ms, 1.0) / 1e3)
        sends.append((begin_s, sending_s, bits, sequence))
    sends.sort()
    # Of the last one only what falls before another send would have come: a run's end is no reason to let the radio up.
    last_held = bool(sends) and done[sends[-1][3]]["split"] == run.last_split
    held = run.scenario.device.hold_windows if last_held else 0
    return _with_tails(power, sends, (1.0 + held) * run.window_s)


def _with_tails(
    power: PowerModel, sends: Sequence[tuple[float, float, float, int]], again_s: float
) -> dict[int, float]:
    """(begin, length, bits, sequence) in order of time to millijoules per sequence; the next send would come `again_s` after the last."""
    energy = {}
    for place, (begin_s, sending_s, bits, sequence) in enumerate(sends):
        end_s = begin_s + sending_s
        next_s = sends[place + 1][0] if place + 1 < len(sends) else begin_s + again_s
        tail_s = min(power.radio_tail_s, max(0.0, next_s - end_s))
        energy[sequence] = float(
            send_mj(power.radio_j_per_byte, power.radio_active_w, bits, sending_s)
            + 1e3 * power.radio_tail_w * tail_s
        )
    return energy
