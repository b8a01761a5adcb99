"""Making weights: ``streamsplit train``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from streamsplit.cli.terminal import app, err, out, progress_bar
from streamsplit.errors import ConfigError

QUICK_STEPS, QUICK_WINDOWS = 60, 4096
DEFAULT_STEPS = 800
PROGRESS, EVENTS, CURVES = "progress.safetensors", "events", "curves.png"
MOST_DRAWN = 4000
"""Steps of a curve; of more, some by chance."""


@app.command()
def train(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...", help="recordings, folders or manifests, or `synth:HOURS` for made sound"
        ),
    ],
    out_dir: Annotated[
        Path,
        typer.Option(
            "--out", help="folder for ENCODER.safetensors, summary.json, curves.png, progress and events"
        ),
    ] = Path("out/train"),
    encoder: Annotated[str, typer.Option(help="compact, cola, mobile or resnet18")] = "compact",
    steps: Annotated[
        int | None, typer.Option(help=f"of 128 windows in two views; default: {DEFAULT_STEPS}")
    ] = None,
    seed: Annotated[int, typer.Option(help="everything random follows from it")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="a minute's worth, to see that it works")] = False,
    most_windows: Annotated[
        int, typer.Option(min=64, help="kept in memory, 6 KiB each; of more sound a random part")
    ] = 65_536,
    checkpoint_steps: Annotated[int, typer.Option(help="steps between savings of the progress")] = 50,
    learning_rate: Annotated[float, typer.Option(help="at its highest")] = 2e-3,
    compute: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Train an encoder on unlabelled sound: your recordings make weights that fit your sounds.

    `streamsplit train FOLDER --out DIR`, then `--weights DIR/compact.safetensors` for every other command. Killed at any moment, the same
    command goes on to the same weights; a finished training in the folder is replaced. DIR/curves.png shows the losses; TensorBoard reads
    them in DIR/events, while it trains, too.
    """
    from streamsplit.encoders.catalogue import ENCODERS
    from streamsplit.encoders.checkpoint import save
    from streamsplit.lab.summary import write_summary
    from streamsplit.learning.pool import gather
    from streamsplit.learning.pretrain import Trainer, TrainSettings
    from streamsplit.learning.report import summary
    from streamsplit.learning.sources import find_tracks

    if encoder not in ENCODERS or encoder == "clap":
        raise ConfigError(f"--encoder {encoder!r}: expected compact, cola, mobile or resnet18")
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
    weights, progress = _claimed(out_dir, encoder)
    with progress_bar("listening") as update:
        pool = gather(tracks, front_end, QUICK_WINDOWS if quick else most_windows, seed, update)
    trainer = Trainer(pool, settings, device)
    if progress.exists():
        trainer.resume(progress)
        err.print(f"going on after step {trainer.done} of {settings.steps}")
    with progress_bar("training") as update, _events(out_dir / EVENTS, trainer.done) as log:

        def report(done: int, total: int, terms: Mapping[str, float]) -> None:
            update(done, total)
            log(done, terms)

        trainer.run(report, progress)
    said = f"streamsplit train {' '.join(sources)} --encoder {encoder} --steps {settings.steps} --seed {seed}"
    trained = trainer.finish(f"{said} --quick" if quick else said)
    save(trained.version, weights)
    figures = {"encoder": encoder, "weights": weights.name, "quick": quick}
    figures |= summary(trainer, trained, time.monotonic() - began_s)
    write_summary(out_dir, figures)
    _draw(out_dir, f"{trained.version.id}: losses of {said}")
    progress.unlink(missing_ok=True)
    out.print(_told(figures, weights), soft_wrap=True)


def _claimed(out_dir: Path, encoder: str) -> tuple[Path, Path]:
    """Weights and progress of the training in a folder; where none is to be gone on with, an earlier one's events are removed.

    Raises:
        ConfigError: the folder's weights are of no training.
        StorageError: it cannot be made.
    """
    from streamsplit.lab.processes import make_folder

    weights, progress = out_dir / f"{encoder}.safetensors", out_dir / PROGRESS
    if out_dir.suffix == weights.suffix:
        raise ConfigError(f"--out {out_dir}: expected a folder, in which {weights.name} will be made")
    make_folder(out_dir)
    if not progress.exists():
        if weights.exists() and not (out_dir / "summary.json").exists():
            raise ConfigError(
                f"{out_dir} holds {weights.name}, which no training left there; give another --out"
            )
        for events in (out_dir / EVENTS).glob("events.out.tfevents.*"):
            events.unlink()
    return weights, progress


def _device(compute: str) -> str:
    import torch

    if compute == "cpu" or (compute == "cuda" and torch.cuda.is_available()):
        return compute
    raise ConfigError(f"--compute {compute}: expected cpu, or cuda on a machine that has it")


@contextlib.contextmanager
def _events(folder: Path, done: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Writes losses where TensorBoard reads them, after `done` steps; nothing where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        err.print("losses are not kept for TensorBoard: that wants the extra `train`")
        yield lambda step, terms: None
        return
    writer = SummaryWriter(str(folder), purge_step=done + 1)

    def log(step: int, terms: Mapping[str, float]) -> None:
        for name, value in terms.items():
            writer.add_scalar(f"loss/{name}", value, step)

    try:
        yield log
    finally:
        writer.close()


def _draw(out_dir: Path, title: str) -> None:
    """The losses in DIR/events as a picture; nothing where what reads or draws them is not installed."""
    from streamsplit.lab.curves import curves_png

    try:
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator
    except ImportError:
        return
    events = EventAccumulator(str(out_dir / EVENTS), size_guidance={SCALARS: MOST_DRAWN}).Reload()
    kept = {name: events.Scalars(name) for name in events.Tags()[SCALARS]}
    curves = {name: ([one.step for one in own], [one.value for one in own]) for name, own in kept.items()}
    try:
        curves_png(curves, out_dir / CURVES, title)
    except ConfigError as error:
        err.print(str(error))


def _told(figures: Mapping[str, Any], weights: Path) -> str:
    ranks = ", ".join(f"{path} {rank}" for path, rank in figures["effective_rank"].items())
    told = (
        f"{figures['version']} in {weights}: {figures['steps']} steps over {figures['windows']} windows in "
        f"{figures['seconds']:.0f} s; loss {figures['loss']['total']:.2f}, effective rank {ranks}, agreement {figures['agreement']:.2f}"
    )
    if "knn" in figures:
        told += "; 5-NN " + ", ".join(f"{path} {100 * share:.1f} %" for path, share in figures["knn"].items())
    return told
