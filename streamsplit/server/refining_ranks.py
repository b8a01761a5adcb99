"""One refiner in several processes: `torchrun --nproc-per-node 2 -m streamsplit refine`, with the options it has alone.

    rank 0   the refiner as it is alone: folder, lock, log, gate, publications --start, lesson, lesson, ..., wait, start, ...--> stop
    others   nothing of their own: the weights and optimiser of each start, then every step with rank 0

A lesson is drawn once, by rank 0, and told whole: the replay changes while it is read, so two would not draw alike. Each rank embeds its
part of the pairs, and InfoNCE is over the embeddings of all ranks: negatives are those of the whole batch, whatever the number of ranks.
Gradients are summed, norms' statistics averaged (`learning.across`); a batch norm normalises by its own rank's windows alone, which is all
that tells a curve of two processes from a curve of one, beside the draw of views.

Without torchrun there is nothing of this. Processes that compute on the CPU talk by gloo, on CUDA by NCCL, a GPU for each. When one
dies, torchrun ends the others, and the same command goes on from the progress. What is told is plain types and tensors: reading it
executes nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist

from streamsplit.config import RefinerSettings
from streamsplit.errors import ConfigError, PayloadError, StreamSplitError
from streamsplit.learning import across
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.learning.progress import Progress
from streamsplit.learning.refine import Lesson, Refiner
from streamsplit.server.publications import Publications
from streamsplit.server.refining_round import refiner_of
from streamsplit.wire.codec import Codec

Step = Callable[[Lesson], dict[str, float]]


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
    state = {name: getattr(at, name) for name in ("weights", "optimiser", "more")}
    _tell({"do": "start", "step": at.step, "settings": at.settings, "pool": base, "tensors": state})

    def step(lesson: Lesson) -> dict[str, float]:
        _tell({"do": "step", **_told(lesson)})
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
    while (said := _hear())["do"] != "stop":
        if said["do"] == "start":
            base = publications.load(said["pool"])
            refiner = refiner_of(base, publications, settings, said["settings"]["frozen"])
            refiner.resume(Progress(said["step"], said["settings"], base.id, losses={}, **said["tensors"]))
        elif said["do"] == "step" and refiner is not None:
            try:
                refiner.step(_lesson(said))
            except PayloadError:  # raised in every rank: rank 0 says so, and leaves the step out, too
                refiner.done += 1


def _several() -> bool:
    return dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1


# What is told.


def _told(lesson: Lesson) -> dict[str, Any]:
    windows = [*(window for pair in lesson.pairs for window in pair), *lesson.recent]
    return {
        "pairs": len(lesson.pairs),
        "windows": [
            (*one.key, one.start_s, one.version, one.split, str(one.codec), one.payload) for one in windows
        ],
    }


def _lesson(said: dict[str, Any]) -> Lesson:
    windows = [
        BufferedWindow(device, stream, sequence, start_s, version, split, Codec(codec), payload)
        for device, stream, sequence, start_s, version, split, codec, payload in said["windows"]
    ]
    viewed = 2 * said["pairs"]
    return Lesson(list(zip(windows[:viewed:2], windows[1:viewed:2], strict=True)), windows[viewed:])


def _tell(said: dict[str, Any]) -> None:
    if across.processes() == 1:
        return
    written = io.BytesIO()
    torch.save(said, written)
    content = torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)
    dist.broadcast(torch.tensor(len(content)), 0)
    dist.broadcast(content, 0)


def _hear() -> dict[str, Any]:
    size = torch.tensor(0)
    dist.broadcast(size, 0)
    content = torch.empty(int(size), dtype=torch.uint8)
    dist.broadcast(content, 0)
    said: dict[str, Any] = torch.load(
        io.BytesIO(content.numpy().tobytes()), map_location="cpu", weights_only=True
    )
    return said
