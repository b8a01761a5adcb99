"""Training that a kill cannot undo: weights, optimiser and losses so far in one safetensors file that is replaced as a whole.

Metadata: one entry, "streamsplit-training", a JSON object with format_version (1), step, settings and pool (the fingerprint of the
windows). Tensors: "weights/NAME", "optimiser/PARAMETER/STATE" and "losses/TERM" [steps]. Nothing in it is ever executed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from streamsplit.errors import ConfigError, StorageError

FORMAT: Final = "streamsplit-training"
FORMAT_VERSION: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """Where a training stands after so many steps.

    Attributes:
        step: steps done.
        settings: the trainer's, as plain JSON types; training goes on only under equal ones.
        pool: fingerprint of the windows it learns from.
        weights: by name.
        optimiser: "PARAMETER/STATE" -> tensor.
        losses: term -> [step] of each step so far.
    """

    step: int
    settings: Mapping[str, Any]
    pool: str
    weights: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    losses: Mapping[str, Tensor]


def save_progress(progress: Progress, path: Path) -> None:
    """Writes it; the file appears whole or not at all.

    Raises:
        StorageError: the folder is missing, read-only or full.
    """
    parts = {"weights": progress.weights, "optimiser": progress.optimiser, "losses": progress.losses}
    tensors = {
        f"{part}/{name}": tensor.detach().cpu().contiguous()
        for part, named in parts.items()
        for name, tensor in named.items()
    }
    said = {
        "format_version": FORMAT_VERSION,
        "step": progress.step,
        "settings": dict(progress.settings),
        "pool": progress.pool,
    }
    content = to_bytes(tensors, {FORMAT: json.dumps(said, sort_keys=True)})
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror}") from error


def load_progress(path: Path) -> Progress:
    """Reads it back.

    Raises:
        ConfigError: not a training of ours, or of another format.
        StorageError: missing, damaged or truncated.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path}: not a readable training: {error}") from error
    if FORMAT not in metadata:
        raise ConfigError(f"{path}: expected a training in progress, got another safetensors file")
    try:
        said = json.loads(metadata[FORMAT])
        if said["format_version"] != FORMAT_VERSION:
            raise ConfigError(
                f"{path}: expected training format {FORMAT_VERSION}, got {said['format_version']}"
            )
        return Progress(
            int(said["step"]),
            dict(said["settings"]),
            str(said["pool"]),
            _part(tensors, "weights/"),
            _part(tensors, "optimiser/"),
            _part(tensors, "losses/"),
        )
    except (KeyError, TypeError) as error:
        raise StorageError(f"{path}: damaged metadata: {error}") from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
