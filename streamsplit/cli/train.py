"""Making weights: ``streamsplit train``."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from streamsplit.cli.terminal import app, err, out, progress_bar
from streamsplit.errors import ConfigError

QUICK_STEPS, QUICK_WINDOWS = 60, 4096
DEFAULT_STEPS = 800


@app.command()
def train(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="recordings, folders or manifests, or `synth:HOURS` for made sound"
        ),
    ],
    out_file: Annotated[Path, typer.Option("--out", help="the weights; summary.json appears beside them")],
    encoder: Annotated[str, typer.Option(help="compact, cola, mobile or resnet18")] = "compact",
    steps: Annotated[
        int | None, typer.Option(help=f"of 128 windows in two views; default: {DEFAULT_STEPS}")
    ] = None,
    seed: Annotated[int, typer.Option(help="everything random follows from it")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="a minute's worth, to see that it works")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from what a killed training left beside --out")
    ] = False,
    most_windows: Annotated[
        int, typer.Option(help="kept in memory, 6 KiB each; of more sound a random part")
    ] = 65_536,
    checkpoint_steps: Annotated[int, typer.Option(help="steps between savings of the progress")] = 50,
    learning_rate: Annotated[float, typer.Option(help="at its highest")] = 2e-3,
    compute: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    tensorboard: Annotated[Path | None, typer.Option(help="folder for TensorBoard's events")] = None,
) -> None:
    """Train an encoder on unlabelled sound: your recordings make weights that fit your sounds.

    `streamsplit train FOLDER --out weights.safetensors`, then `--weights weights.safetensors` for every other command. Killed at any
    moment, the same command with `--resume` goes on to the same weights.
    """
    from streamsplit.encoders.catalogue import ENCODERS
    from streamsplit.encoders.checkpoint import save
    from streamsplit.learning.pool import gather
    from streamsplit.learning.pretrain import Trainer, TrainSettings
    from streamsplit.learning.report import summary
    from streamsplit.learning.sources import find_tracks

    if encoder not in ENCODERS or encoder == "clap":
        raise ConfigError(f"--encoder {encoder!r}: expected compact, cola, mobile or resnet18")
    if not out_file.parent.is_dir():
        raise ConfigError(f"--out {out_file}: {out_file.parent} is no folder")
    settings = TrainSettings(
        encoder=encoder,
        steps=(QUICK_STEPS if quick else DEFAULT_STEPS) if steps is None else steps,
        seed=seed,
        learning_rate=learning_rate,
        checkpoint_steps=checkpoint_steps,
    )
    device = _device(compute)
    began_s = time.monotonic()
    front_end = ENCODERS[encoder].front_end
    tracks = find_tracks(sources, front_end.sample_rate_hz, seed)
    with progress_bar("listening") as update:
        pool = gather(tracks, front_end, QUICK_WINDOWS if quick else most_windows, seed, update)
    trainer = Trainer(pool, settings, device)
    unfinished = out_file.with_name(f"{out_file.name}.unfinished")
    if resume and unfinished.exists():
        trainer.resume(unfinished)
        err.print(f"going on after step {trainer.done} of {settings.steps}")
    with progress_bar("training") as update, _events(tensorboard) as log:

        def report(done: int, total: int, terms: Mapping[str, float]) -> None:
            update(done, total)
            log(done, terms)

        trainer.run(report, unfinished)
    trained = trainer.finish(
        f"streamsplit train {' '.join(sources)} --encoder {encoder} --steps {settings.steps} --seed {seed}"
    )
    save(trained.version, out_file)
    figures = summary(trainer, trained, time.monotonic() - began_s)
    (out_file.parent / "summary.json").write_text(json.dumps(figures, indent=2) + "\n")
    unfinished.unlink(missing_ok=True)
    out.print(_told(figures, out_file), soft_wrap=True)


def _device(compute: str) -> str:
    import torch

    if compute == "cpu" or (compute == "cuda" and torch.cuda.is_available()):
        return compute
    raise ConfigError(f"--compute {compute}: expected cpu, or cuda on a machine that has it")


@contextlib.contextmanager
def _events(folder: Path | None) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Writes losses where TensorBoard reads them; nothing without a folder."""
    if folder is None:
        yield lambda step, terms: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "--tensorboard: expected the extra `train` to be installed (tensorboard)"
        ) from error
    writer = SummaryWriter(str(folder))

    def log(step: int, terms: Mapping[str, float]) -> None:
        for name, value in terms.items():
            writer.add_scalar(f"loss/{name}", value, step)

    try:
        yield log
    finally:
        writer.close()


def _told(figures: Mapping[str, Any], out_file: Path) -> str:
    ranks = ", ".join(f"{path} {rank}" for path, rank in figures["effective_rank"].items())
    told = (
        f"{figures['version']} in {out_file}: {figures['steps']} steps over {figures['windows']} windows in "
        f"{figures['seconds']:.0f} s; loss {figures['loss']['total']:.2f}, effective rank {ranks}, agreement {figures['agreement']:.2f}"
    )
    if "knn" in figures:
        told += "; 5-NN " + ", ".join(f"{path} {100 * share:.1f} %" for path, share in figures["knn"].items())
    return told
