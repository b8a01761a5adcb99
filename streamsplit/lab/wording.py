"""Figures as words of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamsplit.lab.page import Child, Html, tag


def mean_return(system: Mapping[str, Any] | None) -> float | None:
    """A system's mean return, measured or modelled; None of one that is not there."""
    found = (system or {}).get("return")
    value: float | None = found["mean"] if isinstance(found, Mapping) else found
    return value


def number(value: float | None, digits: int, unit: str = "", sign: bool = False) -> str:
    """Nothing for what is not known."""
    if value is None:
        return ""
    return f"{value:{'+' if sign else ''},.{digits}f}{unit}"


def small_interval(interval: Any, digits: int) -> Html | None:
    """Below a figure."""
    if not interval or interval[0] is None or interval[1] is None:
        return None
    return tag("small", f"{interval[0]:,.{digits}f} to {interval[1]:,.{digits}f}")


def gap(found: Mapping[str, Any] | None) -> Child:
    """A difference with its interval, coloured where that lies on one side of zero."""
    if not found or found["mean"] is None:
        return "not run"
    low, high = found["interval"]
    clear = "good" if low is not None and low > 0 else "bad" if high is not None and high < 0 else None
    return [tag("span", f"{found['mean']:+.3f}", class_=clear), small_interval(found["interval"], 3)]
