"""What a window sent takes between the sockets without any link: gRPC at both ends, the link's process, waking up.

At `speed` times real time this software is no faster than in real time, so that its milliseconds must not count `speed` times as the
link's do. It is measured once per results folder, with the same client, server and link process, on a link of no delay and a rate
that nothing waits for.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from streamsplit.errors import ConfigError
from streamsplit.lab.results import FORMAT, read_json, write_json
from streamsplit.lab.scenario import LinkPart, LoadPart
from streamsplit.lab.schedule import make_schedule
from streamsplit.lab.summary import DONE
from streamsplit.lab.systems import all_systems
from streamsplit.lab.trial import Bench, run_trial

logger = logging.getLogger(__name__)

NO_LINK: Final = LinkPart(made="1000M")


async def software_ms(bench: Bench, version: str, last_split: int, folder: Path, kept: Path) -> float:
    """Median over windows of what they took on a link that takes no time, milliseconds of this machine; 0 in real time.

    Args:
        bench: of the scenario; its link and load are left out.
        version: of the encoder.
        last_split: L; the deepest split that sends something to the server's tail is tried.
        folder: of the trial.
        kept: folder of what was measured once; read where it is there.
    """
    scenario = bench.scenario
    if scenario.compute_factor == scenario.speed:
        return 0.0
    slowdown = scenario.device.slowdown  # with the speed, it makes the quota that the software runs under
    path = kept / f"software-{version}-{scenario.speed:g}-{slowdown:g}.json"
    if path.exists():
        return _read(path)
    bare = scenario.model_copy(update={"link": NO_LINK, "load": LoadPart()})
    trial = replace(bench, scenario=bare, schedule=make_schedule(bare, bench.seed, None))
    outcome = await run_trial(trial, all_systems(last_split)[f"split_{last_split - 1}"], folder, name="bare")
    took_ms = median_wire_ms(outcome.records)
    if took_ms is None:
        logger.warning("no window came over a link of no delay: its software counts as link")
        return 0.0
    write_json(
        path, {"format": FORMAT, "software_ms": took_ms, "speed": scenario.speed, "slowdown": slowdown}
    )
    return took_ms


def median_wire_ms(records: list[dict[str, Any]]) -> float | None:
    """Of a journal's windows that were sent and acknowledged."""
    took = [
        float(record["measured"]["wire_ms"])
        for record in records
        if record.get("kind") == "window" and record["state"] in DONE and "wire_ms" in record["measured"]
    ]
    return float(np.median(took)) if took else None


def _read(path: Path) -> float:
    value = read_json(path).get("software_ms")
    if not isinstance(value, int | float) or not 0.0 <= value < 1e4:
        raise ConfigError(f"{path}: expected software_ms of 0 to 10,000, got {value!r}; delete it")
    return float(value)
