"""The report's first two tables: ours against the rivals, and beside the paper's claims."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from streamsplit.lab.page import Child, Html, join, table, tag
from streamsplit.lab.systems import BEST_FIXED, LEARNED, ORACLE
from streamsplit.lab.wording import gap, mean_return, number, small_interval

OWN: Final = (LEARNED, BEST_FIXED)
"""Whose claims stand beside the paper's: the first that was run."""

REFERENCE_LABELS: Final = {"server_pcm": "PCM per window", "server_opus": "Opus 12k"}


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
            f"{paper['latency_times_lower']:g} x",
            f"{paper['bytes_percent']:g} %",
            f"{paper['energy_percent']:g} %",
            f"within {paper['accuracy_points']:g}",
            "",
        ]
    ]
    for name, found in scenarios.items():
        system = next((each for each in OWN if each in found["systems"]), None)
        for reference, label in REFERENCE_LABELS.items():
            compared = (found["systems"].get(system) or {}).get(f"against_{reference}") if system else None
            if compared:
                word = found["systems"][system]["label"] if system else ""
                rows.append(
                    [
                        [tag("a", name, href=f"#{name}"), tag("small", f"{word}, against {label}")],
                        [
                            number(compared["latency_times_lower"], 2, " x"),
                            small_interval(compared["latency_interval"], 2),
                        ],
                        number(compared["bytes_percent"], 1, " %", sign=True),
                        number(compared["energy_percent"], 1, " %", sign=True),
                        number(compared["accuracy_points"], 1, sign=True),
                        number(compared["quality_points"], 1, sign=True),
                    ]
                )
    heading = (
        "",
        "latency lower by",
        "bytes up",
        "energy (modelled)",
        "accuracy, points",
        "table's quality, points",
    )
    return join([
        tag("h2", "Beside the paper's claims"),
        tag(
            "p",
            "Ratio of median latencies; uplink bytes on the socket, everything included; energy beyond idle, modelled from measured "
            "processor seconds and bytes; accuracy of a probe on the embeddings that were stored.",
        ),
        table(heading, rows, best=(0,)),
    ])  # fmt: skip
