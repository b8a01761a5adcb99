"""The command line of the benchmarks."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import typer
from rich.console import Console
from rich.text import Text

from benchmarks import (
    ablation,
    client,
    endurance,
    latency,
    learning,
    learning_steps,
    memory,
    novelty,
    policy,
    server,
    two_devices,
    uplink,
)
from streamsplit import __version__
from streamsplit.errors import StreamSplitError
from streamsplit.lab.processes import make_folder

BENCHMARKS: dict[str, Callable[..., dict[str, Any]]] = {
    "latency": latency.run,
    "uplink": uplink.run,
    "client": client.run,
    "server": server.run,
    "memory": memory.run,
    "learning": learning.run,
    "learning_steps": learning_steps.run,
    "ablation": ablation.run,
    "novelty": novelty.run,
    "endurance": endurance.run,
    "two_devices": two_devices.run,
    "policy": policy.run,
}

console = Console(stderr=True)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "streamsplit": __version__,
        "commit": commit(),
    }


def commit() -> str | None:
    """What is checked out here, "-dirty" where files were changed; None where that cannot be told."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def main(
    names: Annotated[list[str], typer.Argument(help=f"{', '.join(BENCHMARKS)}, or all")],
    out: Annotated[Path, typer.Option(help="folder for summary.json")] = Path("out/bench"),
    seed: Annotated[int, typer.Option(help="of made sound and loads")] = 0,
    quick: Annotated[
        bool, typer.Option("--quick", help="a quarter of the length or less: to see that it works")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            help="learning and what follows it: manifest of labelled recordings; left out: made sound"
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="learning, ablation, two_devices: how many, from --seed on")
    ] = 3,
    traces: Annotated[
        Path | None, typer.Option(help="policy: folder of link traces, Mahimahi *.up and Norway 3G")
    ] = None,
    policy_files: Annotated[
        list[Path] | None,
        typer.Option(
            "--policy", help="policy: another than the shipped one, beside it; may be given several times"
        ),
    ] = None,
    quality: Annotated[
        Path | None, typer.Option(help="policy: a table of `eval --quality` for compact, not the assumed one")
    ] = None,
    journals: Annotated[
        list[Path] | None,
        typer.Option(
            "--journal", help="policy: of a replay with a memory, for real uncertainty; several times"
        ),
    ] = None,
    systems: Annotated[
        list[str] | None,
        typer.Option(
            "--system", help="learning, ablation, two_devices, policy: only these systems or scenarios"
        ),
    ] = None,
) -> None:
    """Run benchmarks and write their figures."""
    wanted = list(BENCHMARKS) if names == ["all"] else names
    unknown = [name for name in wanted if name not in BENCHMARKS]
    if unknown:
        console.print(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
        raise typer.Exit(2)
    for name in wanted:
        folder = out / name if len(wanted) > 1 else out
        console.print(f"[bold]{name}[/] ...")
        state, began_s = machine(), time.monotonic()
        try:
            make_folder(folder)
            more: dict[str, Any] = {}
            if name in ("learning", "ablation", "two_devices"):
                more = {"data": data, "seeds": seeds, "only": systems or ()}
            elif name == "novelty":
                more = {"data": data, "seeds": seeds}
            elif name == "endurance":
                more = {"data": data}
            elif name == "policy":
                more = {"traces": traces, "policies": policy_files or ()}
                more |= {"only": systems or (), "journals": journals or (), "quality": quality}
            figures = BENCHMARKS[name](folder, seed, quick, **more)
        except StreamSplitError as error:
            console.print(Text(f"{name}: {error}", style="red"))
            raise typer.Exit(1) from None
        summary = {"benchmark": name, "quick": quick, "seed": seed, "machine": state, **figures}
        summary["wall_s"] = round(time.monotonic() - began_s, 1)
        (folder / "summary.json").write_text(json.dumps(summary, indent=1))
        typer.echo(json.dumps({key: value for key, value in summary.items() if key != "machine"}, indent=1))


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command()(main)
    app(prog_name="python -m benchmarks")
