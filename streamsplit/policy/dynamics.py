"""The simulator: what choices do to queues, radio, heat and battery, window by window, for many worlds at once.

    work      waits for the processor, takes device_ms x stretch(load, throttled); what does not fit the hop piles up
    payload   waits for the link behind all before it, leaves as fast as the link's trace allows
    radio     stays up for radio_tail_s after the last bit, and draws for it
    heat      settles at ambient + heat_c_per_w x watts; above 80 C the clock is lowered until 75 C
    battery   is emptied by all of it; empty ends the world

Latencies and energies are the formulas of `cost`, applied to what really happens instead of to an estimate. What
the device sees is what a live one sees: the load of the window before, a rate estimated from its own sends only
(nothing sent, nothing learned), a dead server after 15 s, the uncertainty of a window after its answer came.
Nothing here is random: chance is in the worlds.

Simplifications: the rate is constant within a window; the radio has no promotion delay; energy of a transfer
counts when its window is processed.

Shapes: B rows (simulated devices), each in one of the worlds; N option slots.
"""

from __future__ import annotations

from enum import IntEnum, auto
from typing import Final

import numpy as np
import numpy.typing as npt

from streamsplit.audio.window import SILENCE_DBFS
from streamsplit.policy.cost import MOST_LOAD, message_bits, send_mj, stretch
from streamsplit.policy.passage import Traces
from streamsplit.policy.seen import Outcome, Seen
from streamsplit.policy.worlds import Array, Flags, Worlds, curve_at

HOT_C: Final = 80.0
COOLED_C: Final = 75.0
THROTTLED_POWER: Final = 0.7
"""Of a core's power at the lowered clock."""

MOST_WAIT_S: Final = 10.0
"""Work that would wait longer for the processor is dropped, as capture's bounded queue does."""

TIMED_S: Final = 0.01
"""Passages shorter than this tell nothing of the rate but a lower bound; see `client.link_estimator`."""

STALLED_S: Final = 1.0
"""A send that waits longer bounds the rate, as in `client.link_estimator`."""

HALF_LIFE_S: Final = 10.0
"""Of the rate's estimate, as in `client.link_estimator`."""

IN_FLIGHT: Final = 32
"""Sends remembered to count those unanswered."""


class _At(IntEnum):
    """Rows of the state."""

    WINDOW = 0
    BATTERY_J = auto()
    TEMPERATURE_C = auto()
    THROTTLED = auto()
    FREE_S = auto()  # processor free, relative to the window's end
    MARK_BITS = auto()  # of the trace: everything sent so far has left when the link has carried so much
    LEAVES_S = auto()  # when that is
    BUSY_S = auto()  # since when the link has been busy without a break
    RADIO_S = auto()  # the radio stays up until then
    SENT_S = auto()  # last send
    HELD = auto()
    HELD_BITS = auto()
    KNOWN = auto()  # uncertainty; NaN: not known
    RATE_BITS = auto()
    RATE_S = auto()
    SPLIT = auto()  # last choice; NaN: none
    ANSWERS_S = auto()  # first of `IN_FLIGHT` rows


class Simulator:
    """Rows of simulated devices.

    Args:
        worlds: where they live.
        rows: [B] the world of each row.
        start: [B] its first window.
    """

    def __init__(
        self, worlds: Worlds, rows: npt.NDArray[np.int64], start: npt.NDArray[np.int64] | None = None
    ) -> None:
        self.worlds = worlds
        self.world = np.asarray(rows, np.int64)
        self._figures = {name: values[self.world] for name, values in worlds.figures.items()}
        self._traces = Traces(worlds.bits, worlds.figures["hop_s"])
        self._state = np.zeros((_At.ANSWERS_S + IN_FLIGHT, len(self.world)))
        begin = np.zeros(len(self.world), np.int64) if start is None else np.asarray(start, np.int64)
        self.restart(np.arange(len(self.world)), self.world, begin)

    def restart(
        self,
        rows: npt.NDArray[np.int64],
        worlds: npt.NDArray[np.int64],
        start: npt.NDArray[np.int64],
    ) -> None:
        """Puts rows into worlds at windows, all queues empty."""
        self.world[rows] = worlds
        for name, values in self.worlds.figures.items():
            self._figures[name][rows] = values[worlds]
        state = np.zeros((len(self._state), len(rows)))
        state[_At.WINDOW] = start
        state[_At.BATTERY_J] = np.where(
            np.isinf(self.worlds.figures["battery_j"][worlds]),
            np.inf,
            self.worlds.battery[worlds] * np.minimum(self.worlds.figures["battery_j"][worlds], 1e12),
        )
        state[_At.TEMPERATURE_C] = self.worlds.temperature_c[worlds]
        state[_At.LEAVES_S] = state[_At.RADIO_S] = state[_At.SENT_S] = state[_At.ANSWERS_S :] = -1e9
        state[_At.KNOWN] = state[_At.SPLIT] = np.nan
        self._state[:, rows] = state

    def fork(self, rows: npt.NDArray[np.int64]) -> Simulator:
        """Another simulator whose rows continue from these, each on its own."""
        other = object.__new__(Simulator)
        other.worlds, other.world = self.worlds, self.world[rows]
        other._figures = {name: values[rows] for name, values in self._figures.items()}
        other._traces = self._traces
        other._state = self._state[:, rows]
        return other

    def __len__(self) -> int:
        return len(self.world)

    @property
    def window(self) -> npt.NDArray[np.int64]:
        """[B] the window each row is about to process."""
        return np.asarray(self._state[_At.WINDOW], np.int64)

    @property
    def ended(self) -> Flags:
        """[B] the timeline is over: a truncation."""
        return np.asarray(self._state[_At.WINDOW] >= self.worlds.windows)

    @property
    def empty(self) -> Flags:
        """[B] the battery is: a termination."""
        return np.asarray(self._state[_At.BATTERY_J] <= 0.0)

    @property
    def battery_j(self) -> Array:
        """[B] left; infinite on mains."""
        return np.asarray(self._state[_At.BATTERY_J])

    @property
    def figures(self) -> dict[str, Array]:
        """Each row's device: [B] and [B, N]; see `worlds.device_figures`."""
        return self._figures

    def seen(self) -> Seen:
        """What the devices observe before their next window."""
        state, worlds, figures = self._state, self.worlds, self._figures
        window = np.minimum(self.window, worlds.windows - 1)
        before = np.maximum(window - 1, 0)
        now_s = state[_At.WINDOW] * figures["hop_s"]
        # What still waits for the processor does not wait for the link yet.
        reached_s = np.maximum(now_s, state[_At.SENT_S])
        waiting_bits = np.maximum(state[_At.MARK_BITS] - self._traces.carried(self.world, reached_s), 0.0)
        waiting_bits = np.where(state[_At.LEAVES_S] > now_s, waiting_bits, 0.0)
        battery_j, thermometer = figures["battery_j"], figures["thermometer"] > 0
        with np.errstate(invalid="ignore"):
            battery = np.where(np.isinf(battery_j), np.nan, state[_At.BATTERY_J] / battery_j)
        return Seen(
            cpu=worlds.load[self.world, before],
            throttled=np.where(thermometer, state[_At.THROTTLED], 0.0),
            temperature_c=np.where(thermometer, state[_At.TEMPERATURE_C], np.nan),
            battery=battery,
            uplink_bps=self._estimate(now_s, waiting_bits),
            rtt_ms=np.where(state[_At.SENT_S] < 0, np.nan, worlds.rtt_ms[self.world, before]),
            backlog_windows=(state[_At.ANSWERS_S :] > now_s).sum(axis=0) + state[_At.HELD],
            backlog_bytes=np.rint(waiting_bits / 8.0),
            uncertainty=state[_At.KNOWN],
            level_dbfs=worlds.level_dbfs[self.world, window],
            available=worlds.seen_up[self.world, window].astype(np.float64),
            split=state[_At.SPLIT],
            lag_s=np.maximum(state[_At.FREE_S], 0.0),
            since_send_s=np.where(state[_At.SENT_S] < 0, np.nan, np.maximum(now_s - state[_At.SENT_S], 0.0)),
        )

    def possible(self, seen: Seen) -> Flags:
        """[B, N] what `decide.mask` would leave."""
        figures = self._figures
        exists, local, skip = (figures[name] > 0 for name in ("exists", "local", "skip"))
        silent = skip & (seen.level_dbfs <= SILENCE_DBFS)[:, None]
        working = exists & ~skip
        payload = np.where(working, figures["payload_bytes"], np.inf)
        with np.errstate(invalid="ignore"):
            over = payload > (seen.uplink_bps * figures["hop_s"] / 8.0)[:, None]
        fits = working & ~over
        least = np.arange(payload.shape[1]) == payload.argmin(axis=1)[:, None]
        fits |= least & ~fits.any(axis=1)[:, None]
        return np.asarray(silent | np.where(seen.available[:, None] > 0, fits, local))

    def apply(self, slots: npt.NDArray[np.int64], active: Flags | None = None) -> Outcome:
        """Processes one window in every active row with the option in its slot, possible or not.

        Args:
            slots: [B].
            active: [B] rows that move on; None: all.
        """
        old, worlds, figures = self._state, self.worlds, self._figures
        rows = np.arange(len(self.world))
        new = old.copy()
        window = np.minimum(self.window, worlds.windows - 1)
        hop_s, now_s = figures["hop_s"], old[_At.WINDOW] * figures["hop_s"]
        work_ms = figures["device_ms"][rows, slots]
        skip, local = figures["skip"][rows, slots] > 0, figures["local"][rows, slots] > 0
        load = worlds.load[self.world, window]

        wait_s = np.maximum(old[_At.FREE_S], 0.0)
        lost = (wait_s > MOST_WAIT_S) & ~skip
        work_ms = np.where(lost, 0.0, work_ms)
        service_s = work_ms / 1e3 * stretch(np.minimum(load, MOST_LOAD), old[_At.THROTTLED])
        done_s = np.where(skip, 0.0, wait_s + service_s)
        new[_At.FREE_S] = np.maximum(np.where(skip, wait_s, done_s) - hop_s, 0.0)

        offload = ~(skip | local | lost)
        bits = self._send(new, slots, offload, local & ~lost, now_s, done_s)
        here_ms = 1e3 * done_s
        there_ms = (
            1e3 * (new[_At.LEAVES_S] - now_s)
            + worlds.rtt_ms[self.world, window]
            + figures["tail_ms"][rows, slots]
        )
        limit_ms = figures["latency_limit_ms"]
        latency_ms = np.where(offload, there_ms, np.where(lost, figures["latest"] * limit_ms, here_ms))
        new[_At.ANSWERS_S + self.window % IN_FLIGHT, rows] = np.where(offload, now_s + latency_ms / 1e3, -1e9)

        answered = offload & (latency_ms <= 1e3 * hop_s)
        predicted = local & ~lost & (figures["predicts"] > 0)
        new[_At.KNOWN] = np.where(
            answered,
            worlds.told[self.world, window],
            np.where(predicted, worlds.predicted[self.world, window], old[_At.KNOWN]),
        )
        quality = np.where(lost, 0.0, self._quality(rows, slots, worlds.uncertainty[self.world, window]))
        energy_mj = self._energy(old, new, work_ms, bits, now_s, done_s)
        self._learn_rate(old, new, now_s, done_s)
        self._warm(new, load, work_ms, energy_mj)
        new[_At.SPLIT] = figures["split"][rows, slots]
        new[_At.WINDOW] += 1.0
        score = (
            figures["alpha"] * quality
            - figures["beta"] * np.minimum(latency_ms / limit_ms, figures["latest"])
            - figures["eta"] * energy_mj / figures["energy_budget_mj"]
        )
        outcome = (score, quality, latency_ms, energy_mj, bits / 8.0, lost.astype(np.float64))
        if active is None:
            self._state = new
            return Outcome(*outcome)
        self._state = np.where(active, new, old)
        return Outcome(*(np.where(active, values, 0.0) for values in outcome))

    def signature(self) -> Array:
        """[S, B] the state in coarse steps: rows with equal columns will fare nearly alike."""
        state, hop_s = self._state, self._figures["hop_s"]
        now_s = state[_At.WINDOW] * hop_s
        return np.stack(
            [
                np.rint(np.maximum(state[_At.FREE_S], 0.0) / hop_s * 4.0),
                np.rint(np.maximum(state[_At.LEAVES_S] - now_s, 0.0) / hop_s * 2.0),
                np.rint(np.maximum(state[_At.RADIO_S] - now_s, 0.0) / hop_s),
                np.rint(state[_At.HELD] / 6.0),
                np.rint(state[_At.TEMPERATURE_C]),
                state[_At.THROTTLED],
                np.floor(np.minimum(state[_At.BATTERY_J], 1e9) / 20.0),
            ]
        )

    # The parts of a window.

    def _send(
        self,
        new: Array,
        slots: npt.NDArray[np.int64],
        offload: Flags,
        local: Flags,
        now_s: Array,
        done_s: Array,
    ) -> Array:
        """Queues payloads on the link; embeddings made here wait for company. Returns the bits sent."""
        figures, rows = self._figures, np.arange(len(self.world))
        bits = np.where(offload | local, message_bits(figures["payload_bytes"][rows, slots]), 0.0)
        held_bits = new[_At.HELD_BITS] + np.where(local, bits, 0.0)
        held = new[_At.HELD] + local
        window = np.minimum(self.window, self.worlds.windows - 1)
        there = self.worlds.seen_up[self.world, window]
        flush = offload | (there & (held > figures["hold_windows"]))
        sent = np.where(flush, held_bits + np.where(offload, bits, 0.0), 0.0)
        ready_s = now_s + done_s
        mark = np.maximum(new[_At.MARK_BITS], self._traces.carried(self.world, ready_s)) + sent
        new[_At.MARK_BITS] = np.where(flush, mark, new[_At.MARK_BITS])
        leaves_s = np.maximum(self._traces.passed_s(self.world, mark), ready_s)
        new[_At.BUSY_S] = np.where(flush & (new[_At.LEAVES_S] <= ready_s), ready_s, new[_At.BUSY_S])
        new[_At.LEAVES_S] = np.where(flush, leaves_s, new[_At.LEAVES_S])
        new[_At.SENT_S] = np.where(flush, ready_s, new[_At.SENT_S])
        new[_At.HELD] = np.where(flush, 0.0, held)
        new[_At.HELD_BITS] = np.where(flush, 0.0, held_bits)
        return sent

    def _energy(
        self, old: Array, new: Array, work_ms: Array, bits: Array, now_s: Array, done_s: Array
    ) -> Array:
        """Of this window: compute, what is sent, and the radio's staying up within this hop, millijoules."""
        figures = self._figures
        sent, hop_s = bits > 0, figures["hop_s"]
        leaves_at = np.clip((new[_At.LEAVES_S] / hop_s).astype(np.int64), 0, self.worlds.windows - 1)
        rate_bps = np.maximum(self.worlds.uplink_bps[self.world, leaves_at], 1e4)
        sending_s = np.where(sent, bits / rate_bps, 0.0)
        new[_At.RADIO_S] = np.where(
            sent, np.maximum(old[_At.RADIO_S], new[_At.LEAVES_S] + figures["radio_tail_s"]), old[_At.RADIO_S]
        )
        end_s = now_s + hop_s
        up_before_s = np.clip(old[_At.RADIO_S] - now_s, 0.0, hop_s)
        woken_s = np.where(
            sent, np.minimum(new[_At.RADIO_S], end_s) - np.maximum(now_s + done_s, old[_At.RADIO_S]), 0.0
        )
        up_s = np.maximum(up_before_s + np.clip(woken_s, 0.0, hop_s) - sending_s, 0.0)
        send = send_mj(figures["radio_j_per_byte"], figures["radio_active_w"], bits, sending_s)
        energy: Array = figures["core_w"] * work_ms + send + 1e3 * figures["radio_tail_w"] * up_s
        return energy

    def _learn_rate(self, old: Array, new: Array, now_s: Array, done_s: Array) -> None:
        """What passed within this hop, if it took long enough to be timed, joins the estimate."""
        waiting = old[_At.LEAVES_S] > now_s
        began_s = np.where(waiting, now_s, now_s + done_s)
        ended_s = np.minimum(new[_At.LEAVES_S], now_s + self._figures["hop_s"])
        seconds = np.maximum(ended_s - began_s, 0.0)
        bits = np.maximum(
            self._traces.carried(self.world, ended_s) - self._traces.carried(self.world, began_s), 0.0
        )
        timed = seconds >= TIMED_S
        known = old[_At.RATE_S] > 0
        quick = ~timed & (seconds > 0) & known & (bits * old[_At.RATE_S] > TIMED_S * old[_At.RATE_BITS])
        seconds = np.where(quick, TIMED_S, seconds)
        decay = 0.5 ** (self._figures["hop_s"] / HALF_LIFE_S)
        counts = timed | quick
        new[_At.RATE_BITS] = np.where(counts, old[_At.RATE_BITS] * decay + bits, old[_At.RATE_BITS])
        new[_At.RATE_S] = np.where(counts, old[_At.RATE_S] * decay + seconds, old[_At.RATE_S])

    def _estimate(self, now_s: Array, waiting_bits: Array) -> Array:
        """The rate a device believes in; NaN while nothing has told it."""
        state, hop_s = self._state, self._figures["hop_s"]
        known = state[_At.RATE_S] > 0
        rate = np.where(known, state[_At.RATE_BITS] / np.where(known, state[_At.RATE_S], 1.0), np.nan)
        # What has waited a second bounds it from above: by as much as left in the last hop.
        passing = np.maximum(
            (self._traces.carried(self.world, now_s) - self._traces.carried(self.world, now_s - hop_s))
            / hop_s,
            1e3,
        )
        stalled = (waiting_bits > 0) & (now_s - state[_At.BUSY_S] >= STALLED_S)
        return np.where(stalled, np.fmin(rate, passing), rate)

    def _warm(self, new: Array, load: Array, work_ms: Array, energy_mj: Array) -> None:
        """Heat and battery after this window."""
        figures = self._figures
        throttled, hop_s = new[_At.THROTTLED], figures["hop_s"]
        others_w = figures["core_w"] * figures["cores"] * load
        own_w = figures["core_w"] * work_ms / 1e3 / hop_s
        dynamic_w = (others_w + own_w) * np.where(throttled > 0, THROTTLED_POWER, 1.0)
        settles_c = figures["ambient_c"] + figures["heat_c_per_w"] * (figures["idle_w"] + dynamic_w)
        part = 1.0 - np.exp(-hop_s / figures["heat_s"])
        warm_c = new[_At.TEMPERATURE_C] + part * (settles_c - new[_At.TEMPERATURE_C])
        new[_At.TEMPERATURE_C] = warm_c
        new[_At.THROTTLED] = (warm_c > HOT_C) | ((throttled > 0) & (warm_c > COOLED_C))
        new[_At.BATTERY_J] -= (figures["idle_w"] + others_w) * hop_s + energy_mj / 1e3

    def _quality(
        self, rows: npt.NDArray[np.int64], slots: npt.NDArray[np.int64], uncertainty: Array
    ) -> Array:
        return curve_at(self._figures["quality"][rows, slots], uncertainty)
