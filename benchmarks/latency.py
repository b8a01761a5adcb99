"""Latency of a window, by part, at one client on loopback: how much is compute, and how much is everything else.

Overhead is what remains of the time from a window's last sample to its usable embedding after features, head, packing and tail: waiting,
spool, gRPC, queues, the store's commit. Target: median <= 2 ms, p99 <= 10 ms.

Two ways, interleaved: as the processes come, and each of the two held to a core of its own, as `taskset` does. Between windows both sleep;
what waking up costs is the machine's, and differs from hour to hour on a shared one: a bare gRPC round trip at the same pace stands beside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import echo
from benchmarks.runs import made_sound, percentiles, replay
from benchmarks.server import CORES
from streamsplit.lab.processes import on_cores, server_process

COMPUTE = ("features_ms", "head_ms", "pack_ms", "tail_ms")
PARTS = (
    *COMPUTE,
    "late_ms",
    "wait_ms",
    "spool_ms",
    "queue_ms",
    "wire_ms",
    "server_queue_ms",
    "store_ms",
    "total_ms",
)
SPLITS = (0, 1, 2, 3, 4)
SPEED = 8
WINDOW_S = 0.96


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Every split in turn, the same sound at eight times real time; rounds interleave the splits and the two ways."""
    source = made_sound(folder, 60.0 if quick else 120.0, seed)
    return asyncio.run(_run(folder, source, seed, rounds=1 if quick else 3))


async def _run(folder: Path, source: Path, seed: int, rounds: int) -> dict[str, Any]:
    ways = {"as they come": (None, None)}
    if len(CORES) >= 2:
        ways["a core each"] = ([CORES[0]], [CORES[1]])
    measured: dict[str, dict[int, list[dict[str, float]]]] = {
        way: {split: [] for split in SPLITS} for way in ways
    }
    bare = []
    for attempt in range(rounds):
        for way, (server_cores, client_cores) in ways.items():
            at = folder / f"{way.replace(' ', '-')}-{attempt}"
            at.mkdir(parents=True, exist_ok=True)
            for stale in at.glob("embeddings.db*"):
                stale.unlink()
            async with server_process(
                ["--store", str(at / "embeddings.db")], at, cores=server_cores
            ) as server:
                for split in SPLITS:
                    arguments = ["--server", server.address, "--split", str(split), "--speed", str(SPEED)]
                    out = at / f"split-{split}"
                    arguments += ["--device", out.name, "--seed", str(seed)]
                    _, records = await asyncio.to_thread(_replay, client_cores, source, out, arguments)
                    measured[way][split] += [
                        record["measured"] for record in records if "total_ms" in record["measured"]
                    ]
        bare.append(await echo.measure(folder, WINDOW_S / SPEED, 60))
    figures = {way: _figures(by_split) for way, by_split in measured.items()}
    return {
        "ways": figures,
        "bare_grpc_round_trip_ms": bare,
        "windows_per_s": SPEED / WINDOW_S,
        "overhead_ms": {way: figure["overhead_ms"] for way, figure in figures.items()},
        "targets": {"overhead_p50_ms": 2.0, "overhead_p99_ms": 10.0},
    }


def _replay(
    cores: Sequence[int] | None, source: Path, out: Path, arguments: Sequence[str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with on_cores(cores):
        return replay(source, out, *arguments)


def _figures(measured: dict[int, list[dict[str, float]]]) -> dict[str, Any]:
    by_split = {}
    for split, windows in measured.items():
        # How late its source's timer handed a window on is the recording's doing, not the product's.
        overhead = [
            window["total_ms"] - sum(window.get(part, 0.0) for part in ("late_ms", *COMPUTE))
            for window in windows
        ]
        by_split[str(split)] = {
            "overhead_ms": percentiles(overhead),
            **{part: percentiles([window[part] for window in windows if part in window]) for part in PARTS},
        }
    offloaded = [by_split[str(split)]["overhead_ms"] for split in SPLITS[:-1]]
    return {
        "splits": by_split,
        "overhead_ms": {
            "p50": max(part["p50"] for part in offloaded),
            "p99": max(part["p99"] for part in offloaded),
            "of": "the worst of splits 0 to 3",
        },
    }
