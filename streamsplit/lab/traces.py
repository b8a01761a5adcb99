"""How fast a link is at each moment: a piecewise-constant rate, read from published traces or made.

Three kinds of file are read: **Mahimahi** (`.up`/`.down`: one integer a line, the millisecond at which one 1500-byte packet may leave;
repeats from its last line; Winstein et al., NSDI 2013), **Norway 3G** (seconds and Mbit/s; Riiser et al., MMSys 2013) and **CSV** with
the header ``seconds,bits_per_second``.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from streamsplit.errors import ConfigError

PACKET_BITS = 1500 * 8
CSV_HEADER = "seconds,bits_per_second"


@dataclass(frozen=True, slots=True)
class Trace:
    """A rate over time. Time counts in seconds from the trace's beginning; before it there is nothing.

    >>> trace = Trace.steps([(0, 1_000_000), (2, 500_000)])
    >>> trace.rate_at(1.0), trace.rate_at(3.0), trace.finish_s(1.5, 1_000_000)
    (1000000.0, 500000.0, 3.0)

    Attributes:
        starts_s: when each piece begins: strictly rising, the first is 0.
        rates_bps: bits per second of each piece; 0 is an outage.
        period_s: after this the trace repeats; None holds its last rate for ever.
        name: for reports.
    """

    starts_s: tuple[float, ...]
    rates_bps: tuple[float, ...]
    period_s: float | None = None
    name: str = "trace"
    _bits: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.starts_s, self.starts_s[1:], strict=False))
        if (
            not self.starts_s
            or self.starts_s[0] != 0
            or not rising
            or len(self.starts_s) != len(self.rates_bps)
        ):
            raise ConfigError(f"{self.name}: expected one rate per piece and starts rising from 0 s")
        if any(not math.isfinite(rate) or rate < 0 for rate in self.rates_bps):
            raise ConfigError(
                f"{self.name}: expected finite rates of 0 bit/s or more, got {min(self.rates_bps)}"
            )
        if self.period_s is not None and not self.starts_s[-1] < self.period_s < math.inf:
            raise ConfigError(
                f"{self.name}: expected a period above {self.starts_s[-1]} s, got {self.period_s}"
            )
        ends = (*self.starts_s[1:], *(() if self.period_s is None else (self.period_s,)))
        pieces = zip(self.starts_s, ends, self.rates_bps, strict=False)
        sums = accumulate(((end - start) * rate for start, end, rate in pieces), initial=0.0)
        object.__setattr__(self, "_bits", tuple(sums))

    @property
    def mean_bps(self) -> float:
        """Mean rate over one period; of a trace that does not repeat, its last rate."""
        return self.rates_bps[-1] if self.period_s is None else self._bits[-1] / self.period_s

    def rate_at(self, time_s: float) -> float:
        """Bits per second at `time_s`."""
        within_s = time_s if self.period_s is None else time_s % self.period_s
        return float(self.rates_bps[max(0, bisect_right(self.starts_s, within_s) - 1)])

    def bits_between(self, start_s: float, end_s: float) -> float:
        """Bits that pass from `start_s` to `end_s`."""
        return max(0.0, self._bits_until(end_s) - self._bits_until(start_s))

    def finish_s(self, start_s: float, bits: float) -> float:
        """When the last of `bits`, begun at `start_s`, has passed; infinity if never."""
        target, base_s = self._bits_until(start_s) + bits, 0.0
        if self.period_s is not None:
            if self._bits[-1] == 0:
                return start_s if bits <= 0 else math.inf
            cycles, target = divmod(target, self._bits[-1])
            base_s = cycles * self.period_s
        index = min(max(0, bisect_left(self._bits, target) - 1), len(self.rates_bps) - 1)
        left, rate = target - self._bits[index], self.rates_bps[index]
        if left <= 0:
            return max(start_s, base_s + self.starts_s[index])
        return max(start_s, base_s + self.starts_s[index] + left / rate) if rate > 0 else math.inf

    def _bits_until(self, time_s: float) -> float:
        cycles, within_s = (0.0, time_s) if self.period_s is None else divmod(time_s, self.period_s)
        index = max(0, bisect_right(self.starts_s, within_s) - 1)
        whole = cycles * self._bits[-1] if cycles else 0.0
        return whole + self._bits[index] + (within_s - self.starts_s[index]) * self.rates_bps[index]

    @classmethod
    def constant(cls, rate_bps: float) -> Trace:
        """One rate for ever."""
        return cls((0.0,), (float(rate_bps),), name=f"constant {rate_bps:g} bit/s")

    @classmethod
    def steps(cls, pieces: Sequence[tuple[float, float]], period_s: float | None = None) -> Trace:
        """Pieces of (start in seconds, bits per second)."""
        starts, rates = tuple(float(start) for start, _ in pieces), tuple(float(rate) for _, rate in pieces)
        return cls(starts, rates, period_s, "steps")

    @classmethod
    def walk(cls, seed: int, seconds: float, low_bps: float, high_bps: float, step_s: float = 1.0) -> Trace:
        """A made trace: a reflected random walk on the logarithm of the rate, as fading looks from far; repeats.

        Args:
            seed: equal seeds make equal traces.
            seconds: length of one period.
            low_bps: lowest rate, above 0.
            high_bps: highest rate.
            step_s: length of a piece.
        """
        if not 0 < low_bps <= high_bps or not 0 < step_s <= seconds:
            raise ConfigError(
                f"walk: expected 0 < low <= high and 0 < step <= length, got {low_bps}..{high_bps} bit/s, {step_s} s"
            )
        generator, span = random.Random(seed), math.log(high_bps / low_bps)
        position, rates = generator.uniform(0, span), []
        for _ in range(math.ceil(seconds / step_s)):
            rates.append(low_bps * math.exp(position))
            position = abs(position + generator.gauss(0, 0.25 * span))
            position = max(0.0, 2 * span - position) if position > span else position
        starts = tuple(index * step_s for index in range(len(rates)))
        return cls(starts, tuple(rates), len(rates) * step_s, f"walk {seed}")

    @classmethod
    def read(cls, path: Path, bin_s: float = 0.1) -> Trace:
        """A trace file; its kind is told by its first line.

        Args:
            path: the file.
            bin_s: width of the pieces that a Mahimahi trace's packets are counted in; every packet is kept.

        Raises:
            ConfigError: the file cannot be read or is none of the three kinds.
        """
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"trace {path}: cannot be read: {error}") from error
        try:
            if lines and lines[0].replace(" ", "") == CSV_HEADER:
                return _from_samples([_pair(line.split(",")) for line in lines[1:]], path.name)
            if lines and len(lines[0].split()) == 2:
                mbit = [_pair(line.split()) for line in lines]
                return _from_samples([(second, 1e6 * rate) for second, rate in mbit], path.name)
            return _from_packets([int(line) for line in lines], bin_s, path.name)
        except ValueError as error:
            kinds = f"milliseconds (Mahimahi), 'seconds Mbit/s' (Norway 3G) or '{CSV_HEADER}'"
            raise ConfigError(f"trace {path}: expected lines of {kinds}: {error}") from error

    @classmethod
    def parse(cls, text: str) -> Trace:
        """A trace as the command line names it: a rate (``2M``, ``300k``, ``64000``), ``START:RATE,START:RATE,...``,
        ``walk:SEED:SECONDS:LOW:HIGH`` or a file's path.
        """  # fmt: skip
        try:
            if text.startswith("walk:"):
                seed, seconds, low, high = text.removeprefix("walk:").split(":")
                return cls.walk(int(seed), float(seconds), _rate(low), _rate(high))
            if not Path(text).is_file():
                pieces = [piece.rpartition(":") for piece in text.split(",")]
                return cls.steps([(float(start or 0), _rate(rate)) for start, _, rate in pieces])
        except ConfigError:
            raise
        except ValueError as error:
            forms = "2M, 300k, 0:2M,5:200k, walk:SEED:SECONDS:LOW:HIGH or a trace file"
            raise ConfigError(f"trace {text!r}: expected {forms}") from error
        return cls.read(Path(text))


def _rate(text: str) -> float:
    scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1:], 1.0)
    return float(text[:-1] if text[-1:] in "kMG" else text) * scale


def _pair(parts: list[str]) -> tuple[float, float]:
    first, second = parts
    return float(first), float(second)


def _from_samples(samples: list[tuple[float, float]], name: str) -> Trace:
    """Each rate holds until the next sample's time; the last for as long as the mean gap. Repeats."""
    starts = [second - samples[0][0] for second, _ in samples] if samples else []
    gap_s = starts[-1] / (len(starts) - 1) if len(starts) > 1 else 1.0
    period_s = starts[-1] + gap_s if starts else None
    return Trace(tuple(starts), tuple(rate for _, rate in samples), period_s, name)


def _from_packets(packets_ms: list[int], bin_s: float, name: str) -> Trace:
    if not packets_ms or min(packets_ms) < 0 or max(packets_ms) == 0:
        raise ValueError("expected at least one packet after 0 ms and none before")
    period_s = max(packets_ms) / 1000.0
    bins = max(1, math.ceil(period_s / bin_s))
    counts = Counter(min(bins - 1, int(ms / 1000.0 / bin_s)) for ms in packets_ms)
    starts = tuple(index * bin_s for index in range(bins))
    widths = [min(period_s, (index + 1) * bin_s) - start for index, start in enumerate(starts)]
    rates = tuple(counts[index] * PACKET_BITS / width for index, width in enumerate(widths))
    return Trace(starts, rates, period_s, name)
