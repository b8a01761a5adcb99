"""A system's figures from its rows, with intervals: each statistic is also taken of many redrawn runs.

Windows that follow each other are alike (one decision holds for ten, a fade for more), so whole stretches of ten are redrawn, within
each seed's run. Two systems are compared on the same stretches: they heard the same sound over the same trace.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamsplit.lab.rows import Row

Array = npt.NDArray[np.float64]
Runs = Mapping[int, Sequence[Row]]
"""Rows of one system, by seed."""

BLOCK: Final = 10
DRAWS: Final = 400
LEVEL: Final = 0.95

NEVER_MS: Final = float("inf")
"""Latency of a window that never came: it counts in percentiles."""


def figures(
    runs: Runs, window_s: float, downlink_bytes: float | None, client_cpu_s: float | None
) -> dict[str, Any]:
    """One system over its seeds, in plain JSON types; None where nothing was measured.

    Args:
        runs: its rows.
        window_s: seconds of sound in a window.
        downlink_bytes: over all seeds.
        client_cpu_s: measured on this machine, over all seeds.
    """
    rows = [row for seed in sorted(runs) for row in runs[seed]]
    came = [row for row in rows if row.latency_ms is not None]
    sound_s = window_s * len(rows)
    judged = [row for row in rows if row.right is not None]
    latency = column(runs, latency_ms)
    return {
        "windows": len(rows),
        "lost": len(rows) - len(came),
        "return": mean_of(runs, lambda row: row.reward),
        "latency_ms": {
            **{f"p{level}": finite(percentile(np.concatenate(latency), level)) for level in (50, 95, 99)},
            "interval": interval(latency, median),
        },
        "parts_ms": {
            name: finite(np.median([getattr(row, f"{name}_ms") for row in came])) if came else None
            for name in ("own", "link", "server", "late")
        },
        "late_share": share(row.latency_ms is None or row.latency_ms > 1e3 * window_s for row in rows),
        "uplink_bytes_per_s": finite(sum(row.uplink_bytes for row in rows) / sound_s),
        "downlink_bytes_per_s": None if downlink_bytes is None else finite(downlink_bytes / sound_s),
        "energy_mj": {**mean_of(runs, lambda row: row.energy_mj), "modelled": True},
        "compute_mj": finite(np.mean([row.compute_mj for row in rows])),
        "radio_mj": finite(np.mean([row.radio_mj for row in rows])),
        "quality": finite(np.mean([row.quality for row in rows])),
        "prediction": prediction_error(came),
        "accuracy": None
        if not judged
        else {
            "mean": share(row.right is True for row in judged),
            "interval": interval(column(runs, lambda row: float(row.right is True)), np.mean),
            "windows": len(judged),
        },
        "splits": {
            str(split): round(count / len(rows), 4)
            for split, count in sorted(
                Counter(row.split for row in came).items(), key=lambda item: item[0] or 0
            )
        },
        "client_cpu_ms_per_s": None if client_cpu_s is None else finite(1e3 * client_cpu_s / sound_s),
    }


def prediction_error(rows: Sequence[Row]) -> dict[str, Any] | None:
    """How far the cost model was from what came, window by window: medians of the differences' sizes, shares of what came.

    None where nothing was expected. `latency_bias_ms` is the median of expected less came.
    """
    known = [row for row in rows if row.predicted_ms is not None and row.latency_ms and row.uplink_bytes]
    if not known:
        return None
    expected = np.array([[row.predicted_ms, row.predicted_bytes] for row in known], np.float64)
    came = np.array([[row.latency_ms, row.uplink_bytes] for row in known], np.float64)
    shares = np.median(np.abs(expected - came) / came, axis=0)
    return {
        "windows": len(known),
        "latency_error": finite(shares[0]),
        "latency_error_ms": finite(np.median(np.abs(expected - came)[:, 0])),
        "latency_bias_ms": finite(np.median((expected - came)[:, 0])),
        "bytes_error": finite(shares[1]),
    }


def latency_ms(row: Row) -> float:
    """Infinite for a window that never came."""
    return NEVER_MS if row.latency_ms is None else row.latency_ms


def column(runs: Runs, value: Callable[[Row], float]) -> list[Array]:
    """One array per seed, seeds in order."""
    return [np.array([value(row) for row in runs[seed]], np.float64) for seed in sorted(runs)]


def mean_of(runs: Runs, value: Callable[[Row], float]) -> dict[str, Any]:
    """A mean and its interval."""
    values = column(runs, value)
    return {"mean": finite(np.concatenate(values).mean()), "interval": interval(values, np.mean)}


def interval(values: Sequence[Array], statistic: Callable[[Array], Any], seed: int = 0) -> list[float | None]:
    """Bounds that hold `LEVEL` of the statistic's values over redrawn runs.

    >>> interval([np.full(50, 3.0)], np.mean)
    [3.0, 3.0]
    """
    drawn = [
        float(statistic(np.concatenate(parts))) for parts in _redrawn([values], seed, lambda taken: taken[0])
    ]
    return bounds(drawn)


def ratio_interval(
    values: Sequence[Array], others: Sequence[Array], statistic: Callable[[Array], Any], seed: int = 0
) -> list[float | None]:
    """Of statistic(values) / statistic(others), both on the same stretches."""
    drawn = []
    for left, right in _redrawn([values, others], seed, lambda taken: taken):
        below = float(statistic(np.concatenate(right)))
        drawn.append(float(statistic(np.concatenate(left))) / below if below else float("nan"))
    return bounds(drawn)


def difference(runs: Runs, others: Runs, value: Callable[[Row], float]) -> dict[str, Any]:
    """Mean of a value less another system's, window by window, over the seeds that both have; and its interval."""
    seeds = sorted(set(runs) & set(others))
    left, right = ({seed: each[seed] for seed in seeds} for each in (runs, others))
    pairs = [
        a[: len(b)] - b[: len(a)] for a, b in zip(column(left, value), column(right, value), strict=True)
    ]
    if not pairs:
        return {"mean": None, "interval": [None, None]}
    return {"mean": finite(np.concatenate(pairs).mean()), "interval": interval(pairs, np.mean)}


def bounds(drawn: Sequence[float]) -> list[float | None]:
    """The middle `LEVEL` of them."""
    known = np.array([value for value in drawn if not np.isnan(value)])
    if not len(known):
        return [None, None]
    tail = 50.0 * (1.0 - LEVEL)
    return [finite(percentile(known, tail)), finite(percentile(known, 100.0 - tail))]


def median(values: Array) -> float:
    """Also of infinities."""
    return percentile(values, 50.0)


def percentile(values: Array, level: float) -> float:
    """As numpy's, but infinities may be among the values: towards one, the next value counts whole.

    >>> percentile(np.array([1.0, 2.0, np.inf]), 25.0), percentile(np.array([1.0, 2.0, np.inf]), 75.0)
    (1.5, inf)
    """
    ordered = np.sort(values)
    place = level / 100.0 * (len(ordered) - 1)
    low, high = ordered[int(np.floor(place))], ordered[int(np.ceil(place))]
    share_above = place - np.floor(place)
    if not np.isfinite(high):
        return float(high if share_above > 0 else low)
    return float(low + share_above * (high - low))


def share(flags: Any) -> float:
    """Of those that are true; 0 of none."""
    listed = [bool(flag) for flag in flags]
    return round(sum(listed) / len(listed), 4) if listed else 0.0


def finite(value: Any) -> float | None:
    """For JSON: None where a number is infinite or none."""
    number = float(value)
    return round(number, 4) if np.isfinite(number) else None


def _redrawn(columns: Sequence[Sequence[Array]], seed: int, shape: Callable[[list[list[Array]]], Any]) -> Any:
    generator = np.random.default_rng(seed)
    for _ in range(DRAWS):
        taken: list[list[Array]] = [[] for _ in columns]
        for parts in zip(*columns, strict=True):
            length = min(len(part) for part in parts)
            block = min(BLOCK, length)
            starts = generator.integers(length - block + 1, size=-(-length // block))
            index = (starts[:, None] + np.arange(block)).ravel()[:length]
            for column_taken, part in zip(taken, parts, strict=True):
                column_taken.append(part[index])
        yield shape(taken)
