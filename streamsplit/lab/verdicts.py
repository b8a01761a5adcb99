"""The report's first two tables: ours against the rivals, and beside the paper's claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from streamsplit.lab.page import Child, Html, join, table, tag
from streamsplit.lab.systems import BEST_FIXED, EDGE_ONLY, LEARNED, ORACLE
from streamsplit.lab.wording import gap, mean_return, number, small_interval

OWN: Final = (LEARNED, EDGE_ONLY, BEST_FIXED)
"""Whose figures stand beside the paper's."""

REFERENCE_LABELS: Final = {"server_pcm": "PCM per window", "server_opus": "Opus 12k"}
"""In the order of a comparison's columns."""


def verdicts(scenarios: Mapping[str, Any]) -> Html:
    """Return of ours against the rivals."""
    rows = []
    for name, found in scenarios.items():
        systems = found["systems"]
        learned, best, greedy, oracle = (
            mean_return(systems.get(key)) for key in (LEARNED, BEST_FIXED, "greedy_profile", ORACLE)
        )
        rows.append([
            tag("a", name, href=f"#{name}"),
            number(learned, 3),
            *( gap(found["learned_against"].get(rival)) for rival in (BEST_FIXED, "greedy_profile")),
            [number(best, 3), tag("small", systems.get(BEST_FIXED, {}).get("system", ""))],
            number(greedy, 3),
            number(oracle, 3),
        ])  # fmt: skip
    heading = (
        "scenario",
        "learned",
        "less best fixed",
        "less greedy",
        "best fixed",
        "greedy",
        "oracle (modelled)",
    )
    return join([
        tag("h2", "Return per window"),
        tag(
            "p",
            "alpha A - beta latency / T_max - eta energy / E_budget, mean over windows; A by the table of qualities. Differences are window "
            "by window on the same sound and trace, with a 95 % interval over redrawn stretches of ten windows: green where all of it "
            "is above zero, red where all of it is below. The best fixed split is known only in hindsight; the oracle is simulated.",
        ),
        table(heading, rows),
    ])  # fmt: skip


def claims(paper: Mapping[str, float], scenarios: Mapping[str, Any]) -> Html:
    """The paper's claims in a row of their own, ours below."""
    rows: list[list[Child]] = [
        [
            [tag("b", "the paper"), tag("small", "against server-centric")],
            [f"{paper['latency_times_lower']:g} x", tag("small", "the most")],
            "",
            f"{paper['bytes_percent']:g} %",
            "",
            f"{paper['energy_percent']:g} %",
            "",
            f"within {paper['accuracy_points']:g}",
        ]
    ]
    rows += [
        [
            [tag("a", name, href=f"#{name}"), tag("small", compared.label)],
            *(_times(each) for each in compared.each),
            *(number(each.get("bytes_percent"), 1, " %", sign=True) for each in compared.each),
            *(number(each.get("energy_percent"), 1, " %", sign=True) for each in compared.each),
            number(compared.accuracy_points, 1, sign=True),
        ]
        for name, compared in comparisons(scenarios)
    ]
    heading = (
        "",
        *(
            [kind, tag("small", label)]
            for kind in ("latency lower by", "bytes up", "energy (modelled)")
            for label in REFERENCE_LABELS.values()
        ),
        ["accuracy, points", tag("small", "PCM per window")],
    )
    return join([
        tag("h2", "Beside the paper's claims"),
        tag(
            "p",
            "Against the two server-centric systems in the same runs: sound sent as PCM, window by window, and as Opus at 12 kbit/s. Ratio of "
            "median latencies; uplink bytes on the socket, everything included; energy beyond idle, modelled from measured processor seconds "
            "and bytes; accuracy of a probe on the embeddings that were stored, against those that the server made of PCM.",
        ),
        table(heading, rows, best=(0,)),
    ])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Compared:
    """One of ours against the references.

    Attributes:
        label: for people.
        each: of `conclusions.against`, one per reference; empty where that was not run.
        accuracy_points: against what the server makes of PCM; None where it says nothing.
    """

    label: str
    each: tuple[Mapping[str, Any], ...]
    accuracy_points: float | None


def comparisons(scenarios: Mapping[str, Any]) -> Iterator[tuple[str, Compared]]:
    """(scenario, comparison) of each of ours that was run beside a reference."""
    for name, found in scenarios.items():
        for key in OWN:
            if key == BEST_FIXED and found["best_fixed_is"] in OWN:
                continue  # is there by its own name
            system = found["systems"].get(key) or {}
            each = tuple(system.get(f"against_{reference}") or {} for reference in REFERENCE_LABELS)
            if any(each):
                points = each[0].get("accuracy_points") if found["trained"] else None
                yield name, Compared(system["label"], each, points)


def _times(compared: Mapping[str, Any]) -> Child:
    if not compared:
        return ""
    interval = small_interval(compared["latency_interval"], 2)
    return [number(compared["latency_times_lower"], 2, " x"), interval]
