"""One refiner in several processes: `torchrun --nproc-per-node 2 -m streamsplit refine`, with the options it has alone.

    rank 0   the refiner as it is alone: folder, lock, log, gate, publications --start, lesson, lesson, ..., wait, start, ...--> stop
    others   nothing of their own: the weights and optimiser of each start, then every step with rank 0

A lesson is drawn once, by rank 0, and told whole: the replay changes while it is read, so two would not draw alike. Each rank embeds its
part of the pairs, and InfoNCE is over the embeddings of all ranks: negatives are those of the whole batch, whatever the number of ranks.
Gradients are summed, norms' statistics averaged (`learning.across`); a batch norm normalises by its own rank's windows alone, which is all
that tells a curve of two processes from a curve of one, beside the draw of views.

Without torchrun there is nothing of this. Processes that compute on the CPU talk by gloo, on CUDA by NCCL, a GPU for each. When one
dies, torchrun ends the others, and the same command goes on from the progress. What is told is a safetensors file, JSON among its tensors:
reading it executes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor

from streamsplit.config import RefinerSettings
from streamsplit.errors import ConfigError, PayloadError, StreamSplitError
from streamsplit.learning import across
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.learning.edge_file import part
from streamsplit.learning.progress import Progress
from streamsplit.learning.refine import Lesson, Refiner
from streamsplit.server.publications import Publications
from streamsplit.server.refining_round import refiner_of
from streamsplit.wire.codec import Codec

Step = Callable[[Lesson], dict[str, float]]

PARTS = ("weights", "optimiser", "more")
"""Of a `Progress`: its tensors."""


def leads() -> bool:
    """Whether this process is the only one, or the first of those that torchrun started."""
    return not _several() or os.environ["RANK"] == "0"


@contextlib.contextmanager
def together(settings: RefinerSettings) -> Iterator[None]:
    """The process group of those that torchrun started; without torchrun nothing.

    Raises:
        ConfigError: a batch too small to share, or more processes here than GPUs.
    """
    if not _several():
        yield
        return
    many, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    if settings.batch < 2 * many:
        raise ConfigError(
            f"refiner batch: expected {2 * many} or more for {many} processes, got {settings.batch}"
        )
    on_gpu = settings.compute.startswith("cuda")
    if on_gpu:
        here = torch.cuda.device_count()
        if local >= here:
            raise ConfigError(
                f"torchrun: expected at most a process for each of {here} GPUs, got {local + 1}"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """Rank 0's work: the others stop when it is done, or when it cannot go on."""
    try:
        yield
    except StreamSplitError:
        with contextlib.suppress(RuntimeError):  # they may be gone already
            _tell({"do": "stop"})
        raise
    _tell({"do": "stop"})


def led(refiner: Refiner, base: str) -> Step:
    """Rank 0's `refiner.step`, which every other rank takes with it, from the weights and optimiser that it has now.

    Args:
        refiner: must not be changed but by these steps.
        base: id of the published version that it began from.
    """
    if across.processes() == 1:
        return refiner.step
    at = refiner.progress(base)
    state = {f"{kind}/{name}": tensor for kind in PARTS for name, tensor in getattr(at, kind).items()}
    _tell({"do": "start", "step": at.step, "settings": at.settings, "pool": base}, state)

    def step(lesson: Lesson) -> dict[str, float]:
        _tell(*_told(lesson))
        return refiner.step(lesson)

    return step


def wait(seconds: float) -> None:
    """Rank 0 waits, and tells the others, who would take a long silence for a death."""
    if across.processes() > 1:
        _tell({"do": "wait"})
    time.sleep(seconds)


def follow(publications: Publications, settings: RefinerSettings) -> None:
    """Another rank's work: steps with rank 0 until told to stop.

    Args:
        publications: read, never changed.
        settings: rank 0's.

    Raises:
        ConfigError: the settings are not rank 0's.
        StorageError: what rank 0 began from cannot be read.
    """
    refiner: Refiner | None = None
    while (heard := _hear())[0]["do"] != "stop":
        said, tensors = heard
        if said["do"] == "start":
            base = publications.load(said["pool"])
            refiner = refiner_of(base, publications, settings, said["settings"]["frozen"])
            state = {name: part(tensors, name) for name in PARTS}
            refiner.resume(Progress(said["step"], said["settings"], base.id, losses={}, **state))
        elif said["do"] == "step" and refiner is not None:
            try:
                refiner.step(_lesson(said, tensors))
            except PayloadError:  # raised in every rank: rank 0 says so, and leaves the step out, too
                refiner.done += 1


def _several() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


# What is told.


def _told(lesson: Lesson) -> tuple[dict[str, Any], dict[str, Tensor]]:
    windows = [*(window for pair in lesson.pairs for window in pair), *lesson.recent]
    keys = [[*one.key, one.start_s, one.version, one.split, str(one.codec)] for one in windows]
    payloads = {str(place): _bytes(one.payload) for place, one in enumerate(windows)}
    return {"do": "step", "pairs": len(lesson.pairs), "windows": keys}, payloads


def _lesson(said: dict[str, Any], payloads: dict[str, Tensor]) -> Lesson:
    windows = [
        BufferedWindow(
            device,
            stream,
            sequence,
            start_s,
            version,
            split,
            Codec(codec),
            payloads[str(place)].numpy().tobytes(),
        )
        for place, (device, stream, sequence, start_s, version, split, codec) in enumerate(said["windows"])
    ]
    viewed = 2 * said["pairs"]
    return Lesson(list(zip(windows[:viewed:2], windows[1:viewed:2], strict=True)), windows[viewed:])


def _tell(said: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> None:
    if across.processes() == 1:
        return
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in (tensors or {}).items()}
    content = _bytes(save({"said": _bytes(json.dumps(said).encode()), **plain}))
    dist.broadcast(torch.tensor(len(content)), 0)
    dist.broadcast(content, 0)


def _hear() -> tuple[dict[str, Any], dict[str, Tensor]]:
    size = torch.tensor(0)
    dist.broadcast(size, 0)
    content = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(content, 0)
    tensors = load(content.numpy().tobytes())
    said: dict[str, Any] = json.loads(tensors.pop("said").numpy().tobytes())
    return said, tensors


def _bytes(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
