"""Making policies: ``streamsplit train-policy``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from streamsplit.cli.terminal import app, err, out, progress_bar
from streamsplit.errors import ConfigError
from streamsplit.whole_file import write_whole

DEFAULT_STEPS, QUICK_STEPS = 400_000, 40_000
DEFAULT_ROUNDS, QUICK_ROUNDS = 8, 1


@app.command("train-policy")
def train_policy(
    out_dir: Annotated[Path, typer.Option("--out", help="folder for policy.safetensors and summary.json")],
    algorithm: Annotated[str, typer.Option(help="maskable-ppo or ppo")] = "maskable-ppo",
    steps: Annotated[
        int | None, typer.Option(help=f"decisions over all simulated devices; default: {DEFAULT_STEPS}")
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(help=f"of improvement after it, about half a minute each; default: {DEFAULT_ROUNDS}"),
    ] = None,
    seed: Annotated[int, typer.Option(help="everything random follows from it")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="a minute's worth, to see that it works")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on from what a killed training left in --out")
    ] = False,
    fleet: Annotated[str, typer.Option("--devices", help="simulated devices: any, pi or laptop")] = "any",
    profiles: Annotated[
        list[Path] | None,
        typer.Option(
            "--profile", help="a device to train for in particular: a file of `streamsplit profile`"
        ),
    ] = None,
    save_every: Annotated[int, typer.Option(help="decisions between savings of the progress")] = 200_000,
    tensorboard: Annotated[Path | None, typer.Option(help="folder for TensorBoard's events")] = None,
) -> None:
    """Train the policy that decides where to split, over simulated devices, links and sounds.

    `streamsplit train-policy --out DIR`, then `--decider learned:DIR/policy.safetensors` for client and replay. Ten minutes on one core; killed at any moment, the same command with `--resume` goes on.
    """
    try:
        from streamsplit.policy.train import PolicyTrainer
    except ImportError as error:
        raise ConfigError(
            f"train-policy: expected the extra `train` to be installed ({error.name})"
        ) from error
    from streamsplit.policy.profile import load_profile
    from streamsplit.policy.training_worlds import PolicySettings

    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out_dir}: cannot be made: {error.strerror}") from error
    out_file = out_dir / "policy.safetensors"
    settings = PolicySettings(
        algorithm=algorithm,  # type: ignore[arg-type]
        steps=(QUICK_STEPS if quick else DEFAULT_STEPS) if steps is None else steps,
        rounds=(QUICK_ROUNDS if quick else DEFAULT_ROUNDS) if rounds is None else rounds,
        seed=seed,
        fleet=fleet,  # type: ignore[arg-type]
        save_every=save_every,
    )
    began_s = time.monotonic()
    devices = tuple(load_profile(path) for path in profiles or ())
    trainer = PolicyTrainer(settings, out_file, devices, tensorboard, resume)
    if trainer.done:
        err.print(f"going on after decision {trainer.done} of {settings.steps}")
    told = f"streamsplit train-policy --algorithm {algorithm} --steps {settings.steps} --rounds {settings.rounds} --seed {seed} --devices {fleet}"
    with progress_bar("training") as update:
        figures: dict[str, Any] = trainer.run(update, told)
    figures |= {"command": told, "seconds": round(time.monotonic() - began_s, 1)}
    write_whole(out_dir / "summary.json", (json.dumps(figures, indent=2) + "\n").encode())
    out.print(
        f"{out_file}: {figures['decisions']} decisions in {figures['seconds']:.0f} s; mean reward per window on "
        f"validation worlds {figures['validation_return']:.3f}",
        soft_wrap=True,
    )
