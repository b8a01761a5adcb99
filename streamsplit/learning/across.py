"""Several processes training one encoder: what each of them embedded is everybody's, and so is the gradient.

    embeddings --gathered--> loss over all, the same in every process --backward--> gradient of one's own rows
    gradients --summed--> the whole gradient, the same everywhere

Every process computes the whole loss, so it needs no averaging: the sum over processes of what reaches the weights is exactly the
gradient that one process with all windows would have had, but for batch norms, which see one process's windows. Without a process
group all of this does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """How many train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if processes() > 1 else 0


def gathered(own: Tensor) -> Tensor:
    """Everybody's rows in order of rank: [n, D] to [processes * n, D]. Gradients reach one's own rows; `n` is the same for all."""
    if processes() == 1:
        return own
    parts = [torch.empty_like(own) for _ in range(processes())]
    dist.all_gather(parts, own.detach().contiguous())
    parts[rank()] = own
    return torch.cat(parts)


def gathered_order(count: int) -> Tensor:
    """Where the rows of `gathered` come from if every process took rows rank, rank + processes, ... of `count`: [count] indices."""
    every = torch.arange(count)
    return torch.cat([every[first :: processes()] for first in range(processes())])


@torch.no_grad()
def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces every gradient by its sum over processes."""
    if processes() == 1:
        return
    gradients = [one.grad for one in parameters if one.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    _give(flat, gradients)


@torch.no_grad()
def average(tensors: Iterable[Tensor]) -> None:
    """Replaces tensors (of one kind) by their mean over processes: statistics of batch norms, which differ a little."""
    if processes() == 1:
        return
    own = list(tensors)
    flat = torch.cat([one.flatten() for one in own])
    dist.all_reduce(flat)
    _give(flat / processes(), own)


def all_say(fine: bool) -> bool:
    """Whether every process says so: what one of them cannot do, none begins. The group must have a backend for the CPU."""
    if processes() == 1:
        return fine
    said = torch.tensor(int(fine))
    dist.all_reduce(said, dist.ReduceOp.MIN)
    return bool(said)


def _give(flat: Tensor, to: list[Tensor]) -> None:
    for part, one in zip(torch.split(flat, [each.numel() for each in to]), to, strict=True):
        one.copy_(part.view_as(one))
