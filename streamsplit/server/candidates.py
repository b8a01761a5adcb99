"""From a refined encoder to a version that may be published: settled, rounded, judged against the one that is served."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamsplit.encoders.version import Version
from streamsplit.learning.buffer import BufferedWindow, TemporalBuffer, by_kind, unpacked
from streamsplit.learning.gate import FLOORS_ALONE, GateSettings, Verdict, judge, quality
from streamsplit.learning.lessons import Judged
from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.refine import Refiner
from streamsplit.learning.upgrade import make_upgrade
from streamsplit.wire.codec import Array, Ranges

CHUNK = 64
LEAST_REMEMBERED = 64
"""Windows below which a memory would say nothing."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """What a round came to.

    Attributes:
        version: what would be published.
        difference: the message that makes it of the base.
        verdict: whether it may be.
    """

    version: Version
    difference: bytes
    verdict: Verdict


def make_candidate(
    refiner: Refiner,
    base: Version,
    calm: Sequence[BufferedWindow],
    judged: Judged,
    ranges_of: Callable[[str, int], Ranges],
    bits: int,
    gate: GateSettings | None = None,
) -> Candidate:
    """Settles, rounds and judges what the refiner has learned; its training may go on.

    Args:
        refiner: as it is now.
        base: the version that is served.
        calm: a few hundred windows, to settle batch norms and calibrate ranges on.
        judged: held-out windows.
        ranges_of: of payloads.
        bits: of the difference.
        gate: what is asked; the defaults unless told, of the first version after random weights only that it has not collapsed.

    Raises:
        ValueError: weights that are not finite.
    """
    plain = refiner.boundary(calm).cpu()
    mel = plain if refiner.frozen == 0 else None
    version, difference = make_upgrade(
        base, refiner.candidate(plain), mel, bits, note=f"refined from {base.id}"
    )
    new, old = (
        {path: quality(z, judged.stretches) for path, z in embeddings(one, judged.windows, ranges_of).items()}
        for one in (version, base)
    )
    asked = gate or (GateSettings() if base.trained else FLOORS_ALONE)
    return Candidate(version, difference, judge(new, old, asked))


@torch.inference_mode()
def embeddings(
    version: Version, windows: Sequence[BufferedWindow], ranges_of: Callable[[str, int], Ranges]
) -> dict[str, Tensor]:
    """Embeddings of windows, in their order, by every path that all of them can take: path -> [n, D]."""
    encoder = version.encoder
    made = {path: torch.zeros(len(windows), encoder.embedding_dim) for path in encoder.paths}
    embedded = dict.fromkeys(encoder.paths, 0)
    for (packed_by, split, _), places in by_kind(windows).items():
        for begin in range(0, len(places), CHUNK):
            part = places[begin : begin + CHUNK]
            spec = encoder.activation_spec(split)
            activation = unpacked([windows[place] for place in part], spec, ranges_of(packed_by, split))
            for path, z in encoder.embeddings(activation, split).items():
                made[path][part] = z
                embedded[path] += len(part)
    return {path: z for path, z in made.items() if embedded[path] == len(windows)}


def remembered(
    version: Version, buffer: TemporalBuffer, ranges_of: Callable[[str, int], Ranges]
) -> DistributionMemory | None:
    """Embeds the buffer anew and estimates the memory that goes down with this version; None with too few windows.

    Args:
        version: whose embeddings: those of the path that devices compute themselves.
        buffer: of windows that can all be embedded; they have this version's embeddings afterwards.
        ranges_of: of payloads.
    """
    path = version.encoder.path(version.encoder.last_split)

    def embed(windows: Sequence[BufferedWindow]) -> Array:
        rows: Array = embeddings(version, windows, ranges_of)[path].numpy()
        return rows

    buffer.re_embed(version.id, embed)
    rows = [
        torch.from_numpy(window.embedding)
        for window in buffer.latest_of_all(buffer.settings.windows_per_device)
        if window.embedding is not None
    ]
    if len(rows) < LEAST_REMEMBERED:
        return None
    memory = DistributionMemory(MemorySettings(dim=version.encoder.embedding_dim))
    memory.rebuild(torch.stack(rows))
    return memory


def said(verdict: Verdict) -> Mapping[str, Mapping[str, float]]:
    """A verdict's figures as plain JSON types: "candidate/PATH" and "serving/PATH" -> figure -> value."""
    told = {}
    for whose, figures in (("candidate", verdict.candidate), ("serving", verdict.serving)):
        for path, one in figures.items():
            told[f"{whose}/{path}"] = {
                "effective_rank": round(one.effective_rank, 2),
                "uniformity": round(one.uniformity, 4),
                "mean_norm": round(one.mean_norm, 4),
                "agreement": round(one.agreement, 4),
            }
    return told
