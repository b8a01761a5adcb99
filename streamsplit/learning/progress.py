"""Training that a kill cannot undo: weights, optimiser and losses so far in one safetensors file that is replaced as a whole.

Metadata: one entry, "streamsplit-training", a JSON object with format_version (1), step, settings and pool (the fingerprint of the
windows). Tensors: "weights/NAME", "optimiser/PARAMETER/STATE", "losses/TERM" [steps] and, where a trainer has more to keep, "more/NAME".
Nothing in it is ever executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from streamsplit.errors import ConfigError, StorageError
from streamsplit.learning.tensor_file import TensorFormat, read_tensors
from streamsplit.whole_file import write_whole

FORMAT: Final = "streamsplit-training"
FORMAT_VERSION: Final = 1
KIND: Final = TensorFormat(FORMAT, FORMAT_VERSION, "training in progress", "pt")


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
        more: whatever else the trainer keeps, by name.
    """

    step: int
    settings: Mapping[str, Any]
    pool: str
    weights: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor]
    losses: Mapping[str, Tensor]
    more: Mapping[str, Tensor] = field(default_factory=dict)


def optimiser_tensors(module: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's state by the names of the parameters it trains: "PARAMETER/STATE" -> tensor.

    Args:
        module: all of whose parameters that ask for gradients the optimiser was given, in their order.
        optimiser: with tensors for its state.
    """
    names = _trained(module)
    state = optimiser.state_dict()["state"]
    return {f"{names[place]}/{key}": value for place, own in state.items() for key, value in own.items()}


def restore_optimiser(
    module: nn.Module, optimiser: torch.optim.Optimizer, saved: Mapping[str, Tensor]
) -> None:
    """Gives an optimiser what `optimiser_tensors` returned.

    Raises:
        ConfigError: a parameter that this module does not train.
    """
    places = {name: place for place, name in enumerate(_trained(module))}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        name, _, entry = key.rpartition("/")
        if name not in places:
            raise ConfigError(f"progress: expected the state of parameters trained here, got that of {name}")
        state.setdefault(places[name], {})[entry] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def _trained(module: nn.Module) -> list[str]:
    return [name for name, parameter in module.named_parameters() if parameter.requires_grad]


def save_progress(progress: Progress, path: Path) -> None:
    """Writes it; the file appears whole or not at all.

    Raises:
        StorageError: the folder is missing, read-only or full.
    """
    parts = {
        "weights": progress.weights,
        "optimiser": progress.optimiser,
        "losses": progress.losses,
        "more": progress.more,
    }
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
    write_whole(path, to_bytes(tensors, {FORMAT: json.dumps(said, sort_keys=True)}))


def load_progress(path: Path) -> Progress:
    """Reads it back.

    Raises:
        ConfigError: not a training of ours, or of another format.
        StorageError: missing, damaged or truncated.
    """
    said, tensors = read_tensors(path, KIND)
    try:
        return Progress(
            int(said["step"]),
            dict(said["settings"]),
            str(said["pool"]),
            _part(tensors, "weights/"),
            _part(tensors, "optimiser/"),
            _part(tensors, "losses/"),
            _part(tensors, "more/"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path}: damaged metadata: {error}") from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
