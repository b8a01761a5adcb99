"""A learner that a kill cannot undo: everything it holds, in one training file (`progress`), to the same bits.

Progress.pool is the id of the served version it learns from. "more/" holds counters, recent/..., gradient/NAME of the optimiser step at
hand, held/NAME and drawn/NAME of its forward-only part, sent/NAME, memory/NAME, slow/NAME and inbox/....
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from streamsplit.learning.edge_settings import EdgeCounters, EdgeSettings
from streamsplit.learning.kept import KeptWindows
from streamsplit.learning.progress import Progress

if TYPE_CHECKING:
    from streamsplit.learning.edge import EdgeLearner

_COUNTERS = tuple(item.name for item in fields(EdgeCounters))


def progress_of(learner: EdgeLearner) -> Progress:
    """All of it. Its tensors are the learner's own, not copies."""
    shadow = learner.shadow
    more = {f"held/{name}": tensor for name, tensor in learner.held.items()}
    more |= {f"drawn/{name}": tensor for name, tensor in learner.pairs.drawn.items()}
    more |= {f"sent/{name}": tensor for name, tensor in learner.sent.items()}
    more["counters"] = torch.tensor([getattr(learner.counters, name) for name in _COUNTERS])
    more["recent/heard"] = torch.tensor(learner.recent.heard)
    more["recent/codes"] = learner.recent.codes
    more["recent/start_s"] = learner.recent.start_s
    if isinstance(learner.recent, KeptWindows):
        more["recent/order"] = learner.recent.order
    for name, parameter in shadow.parameters().items():
        if parameter.grad is not None:
            more[f"gradient/{name}"] = parameter.grad
    if learner.memory is not None:
        more |= {f"memory/{name}": tensor for name, tensor in learner.memory.tensors().items()}
    if learner.slow is not None:
        own = learner.slow.encoder.state_dict()
        more |= {f"slow/{name}": own[name] for name in shadow.tensors()}
    # Another thread may append meanwhile, which iterating would not survive.
    waiting = [learner.inbox[place] for place in range(len(learner.inbox))]
    if waiting:
        more["inbox/codes"] = torch.from_numpy(np.stack([codes for codes, _ in waiting]))
        more["inbox/start_s"] = torch.tensor([start_s for _, start_s in waiting], dtype=torch.float64)
    return Progress(
        step=learner.counters.updates,
        settings=told(learner.settings),
        pool=learner.version.id,
        weights=shadow.tensors(),
        optimiser=moments(learner),
        losses={},
        more=more,
    )


@torch.no_grad()
def take(learner: EdgeLearner, saved: Progress) -> None:
    """Gives a learner what `progress_of` returned of one with equal settings and version.

    Raises:
        KeyError, RuntimeError: a tensor is missing or of another shape.
    """
    for name, tensor in learner.shadow.tensors().items():
        tensor.copy_(saved.weights[name])
    take_moments(learner, saved.optimiser)
    gradients = part(saved.more, "gradient")
    for name, parameter in learner.shadow.parameters().items():
        gradient = gradients.get(name)
        # In the parameter's own memory order: norms are summed in it.
        parameter.grad = None if gradient is None else torch.empty_like(parameter).copy_(gradient)
    if learner.memory is not None:
        mine, theirs = learner.memory.tensors(), part(saved.more, "memory")
        for name, tensor in mine.items():
            if theirs[name].shape != tensor.shape:
                raise RuntimeError(
                    f"memory {name}: expected {list(tensor.shape)}, got {list(theirs[name].shape)}"
                )
        for name, tensor in mine.items():
            tensor.copy_(theirs[name])
    if learner.slow is not None:
        own = learner.slow.encoder.state_dict()
        for name, tensor in part(saved.more, "slow").items():
            own[name].copy_(tensor)
    learner.held, learner.pairs.drawn = part(saved.more, "held"), part(saved.more, "drawn")
    learner.sent = part(saved.more, "sent")
    learner.recent.codes.copy_(saved.more["recent/codes"])
    learner.recent.start_s.copy_(saved.more["recent/start_s"])
    learner.recent.heard = int(saved.more["recent/heard"])
    if isinstance(learner.recent, KeptWindows):
        learner.recent.order = saved.more["recent/order"]
    for name, value in zip(_COUNTERS, saved.more["counters"].tolist(), strict=True):
        setattr(learner.counters, name, value)
    learner.inbox.clear()
    if "inbox/codes" in saved.more:
        codes, start_s = saved.more["inbox/codes"].numpy(), saved.more["inbox/start_s"].tolist()
        learner.inbox.extend(zip(codes, start_s, strict=True))


def moments(learner: EdgeLearner) -> dict[str, Tensor]:
    """The optimiser's state: "PARAMETER/STATE" -> tensor."""
    names = list(learner.shadow.parameters())
    state = learner.optimiser.state_dict()["state"]
    return {f"{names[place]}/{key}": value for place, own in state.items() for key, value in own.items()}


def take_moments(learner: EdgeLearner, saved: Mapping[str, Tensor]) -> None:
    """Gives the optimiser what `moments` returned."""
    parameters = learner.shadow.parameters()
    places = {name: place for place, name in enumerate(parameters)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in saved.items():
        name, _, entry = key.rpartition("/")
        own = torch.empty_like(parameters[name]).copy_(value) if value.ndim else value
        state.setdefault(places[name], {})[entry] = own
    learner.optimiser.load_state_dict({**learner.optimiser.state_dict(), "state": state})


def told(settings: EdgeSettings) -> dict[str, object]:
    """The settings in plain JSON types."""
    said: dict[str, object] = json.loads(json.dumps(asdict(settings)))
    return said


def part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Those named "NAME/...", by what follows."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
