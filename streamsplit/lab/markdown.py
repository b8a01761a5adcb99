"""The report's tables as Markdown, for documents: every system of every scenario, beside the paper's claims, and the cost model's errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from streamsplit.lab.systems import BEST_FIXED, LEARNED, ORACLE
from streamsplit.lab.verdicts import REFERENCE_LABELS, comparisons
from streamsplit.lab.wording import mean_return, number
from streamsplit.whole_file import write_whole

TABLES_FILE: Final = "tables.md"

FIGURES: Final = (
    "system",
    "return",
    "latency p50, ms",
    "p95",
    "p99",
    "uplink, B/s",
    "energy*, mJ",
    "accuracy, %",
)


def write_tables(out: Path, summary: Mapping[str, Any]) -> Path:
    """Writes DIR/tables.md.

    Raises:
        StorageError: it cannot be written.
    """
    path = out / TABLES_FILE
    write_whole(path, render(summary).encode())
    return path


def render(summary: Mapping[str, Any]) -> str:
    """All tables."""
    scenarios: Mapping[str, Any] = summary["scenarios"]
    parts = [
        "\\* per window beyond idle, modelled; so is everything of the rows that say so.\n",
        *(figures(name, found) for name, found in scenarios.items()),
        "### Beside the paper's claims\n",
        claims(summary["paper"], scenarios),
        "### Who wins\n",
        returns(scenarios),
        "### The cost model against what came\n",
        predictions(scenarios),
    ]
    return "\n".join(parts)


def figures(name: str, found: Mapping[str, Any]) -> str:
    """One scenario's systems."""
    seeds = ", ".join(map(str, found["seeds"]))
    rows = []
    for key, each in found["systems"].items():
        if key == BEST_FIXED:
            continue
        latency, accuracy = each["latency_ms"], (each.get("accuracy") or {}).get("mean")
        rows.append([
            "; ".join([each["label"], *(each.get("notes") or [])]),
            number(mean_return(each), 3),
            *(_latency(latency[level], each) for level in ("p50", "p95", "p99")),
            number(each["uplink_bytes_per_s"], 0),
            number(each["energy_mj"]["mean"], 0),
            number(None if accuracy is None or not found["trained"] else 100.0 * accuracy, 1),
        ])  # fmt: skip
    version = f"`{found['version']}`" if found["trained"] else "random weights, so accuracy means nothing"
    return f"**{name}**: {found['title']}; {version}; seeds {seeds}.\n\n{_table(FIGURES, rows)}"


def claims(paper: Mapping[str, float], scenarios: Mapping[str, Any]) -> str:
    """The paper's claims in a row of their own, ours below."""
    kinds = ("latency lower by", "bytes up", "energy*")
    heading = [
        "scenario",
        "system",
        *(f"{kind}, {label}" for kind in kinds for label in REFERENCE_LABELS.values()),
    ]
    rows = [
        ["**the paper**", "against server-centric", f"**{paper['latency_times_lower']:g} x**", "", f"**{paper['bytes_percent']:g} %**",
         "", f"**{paper['energy_percent']:g} %**", "", f"**within {paper['accuracy_points']:g}**"]
    ]  # fmt: skip
    for name, compared in comparisons(scenarios):
        rows.append([
            name,
            compared.label,
            *(number(each.get("latency_times_lower"), 2, " x") for each in compared.each),
            *(number(each.get("bytes_percent"), 1, " %", sign=True) for each in compared.each),
            *(number(each.get("energy_percent"), 1, " %", sign=True) for each in compared.each),
            number(compared.accuracy_points, 1, sign=True),
        ])  # fmt: skip
    return _table([*heading, "accuracy, points"], rows)


def returns(scenarios: Mapping[str, Any]) -> str:
    """The best measured system of each scenario, and the learned policy against its rivals."""
    rows = []
    for name, found in scenarios.items():
        measured = {
            each["label"]: value
            for key, each in found["systems"].items()
            if key not in (BEST_FIXED, ORACLE)
            and not each.get("modelled")
            and (value := mean_return(each)) is not None
        }
        best = max(measured, key=lambda label: measured[label], default="")
        rows.append([
            name if found["trained"] else f"{name} (random weights)",
            f"{best} ({number(measured.get(best), 3)})",
            number(mean_return(found["systems"].get(LEARNED)), 3),
            *(_gap(found["learned_against"].get(rival)) for rival in (BEST_FIXED, "greedy_profile")),
            number(mean_return(found["systems"].get(ORACLE)), 3),
        ])  # fmt: skip
    return _table(
        (
            "scenario",
            "best return measured",
            "learned",
            "less best fixed",
            "less greedy",
            "oracle (modelled)",
        ),
        rows,
    )


def predictions(scenarios: Mapping[str, Any]) -> str:
    """Median errors of the cost model, window by window, and of the simulator's returns."""
    rows = []
    for name, found in scenarios.items():
        error, simulated = found["prediction_error"] or {}, found["simulator_error"]
        rows.append([
            name,
            number(_percent(error.get("latency_error")), 1, " %"),
            number(error.get("latency_error_ms"), 1),
            number(error.get("latency_bias_ms"), 1, sign=True),
            number(_percent(error.get("bytes_error")), 1, " %"),
            number(simulated["median_error"], 3),
        ])  # fmt: skip
    heading = ("scenario", "latency", "in ms", "expected less came, ms", "bytes", "simulator's return")
    return _table(heading, rows)


def _latency(value: float | None, system: Mapping[str, Any]) -> str:
    return number(value, 1) if value is not None else "never" if system.get("lost") else ""


def _percent(share: float | None) -> float | None:
    return None if share is None else 100.0 * share


def _gap(found: Mapping[str, Any] | None) -> str:
    if not found or found["mean"] is None:
        return ""
    low, high = found["interval"]
    return f"{found['mean']:+.3f}" + ("" if low is None else f" [{low:+.3f}, {high:+.3f}]")


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (heading, ["---"] * len(heading), *rows)]
    return "\n".join(lines) + "\n"
