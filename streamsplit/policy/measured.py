"""A quality table from labelled recordings: how often each path is right, by how far the two paths' embeddings lie apart.

    window -> lite embedding -----------------> probe -> right?   "device"
           -> dense embedding ----------------> probe -> right?   "server"
           -> boundary, 4 bits, dense tail ---> probe -> right?   "1", "2", ...
    in bins of 1 - cos(lite, dense)

Each path has a probe of its own, which judges the fold that it has not learned from: what a path is worth to whoever learns from the
embeddings it stores. Windows of one clip are alike, so intervals are drawn over clips. A difference between two paths whose interval
holds 0 is none: a policy would send windows after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError
from streamsplit.learning.clips import Clips
from streamsplit.learning.evaluation import CHUNK, probe_windows
from streamsplit.policy.quality import DEVICE, SERVER, SKIP, Quality
from streamsplit.policy.worlds import Array
from streamsplit.wire.codec import Codec, pack, unpack_many

LITE, DENSE = "lite", "dense"
BINS: Final = 8
DRAWN: Final = 1000
"""Resamplings of clips behind an interval."""

Numbers = npt.NDArray[np.int64]
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A table and how sure it is.

    Attributes:
        quality: the table; its knots are the bins' mean uncertainties, its differences those that are beyond doubt.
        right: path -> [Q] share right as it was counted.
        windows: [Q] in each bin.
        gain: [Q] share right on the server less share right on the device.
        low, high: [Q] 95 % bootstrap interval of the gain over clips.
        silent: windows in which nothing is heard: those that `skip` is measured on.
    """

    quality: Quality
    right: Mapping[str, tuple[float, ...]]
    windows: tuple[int, ...]
    gain: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    silent: int


def measure_quality(
    version: Version,
    represented: Mapping[str, Tensor],
    clips: Clips,
    source: str,
    codec: Codec = Codec.INT4,
    report: Report | None = None,
) -> Measured:
    """Measures the table of one encoder version.

    Args:
        version: with the paths "lite" and "dense".
        represented: of `evaluation.represent`: [N, D] by path.
        clips: labelled, whose windows they are.
        source: the data's name, for the table.
        codec: of boundaries between features and embedding.
        report: called with (probes done, probes in all).

    Raises:
        ConfigError: the encoder has one path only, so its split does not change the embedding.
    """
    require_paths(version)
    lite, dense = represented[LITE], represented[DENSE]
    paths = {DEVICE: lite, SERVER: dense}
    last = version.encoder.last_split
    right: dict[str, Array] = {}
    for done, name in enumerate([DEVICE, SERVER, *map(str, range(1, last))]):
        if report:
            report(done, last + 1)
        embedded = paths[name] if name in paths else coded(version, clips, int(name), codec)
        probed = probe_windows(embedded, clips)
        right[name] = probed.right.double().numpy()
        if name == DEVICE:
            verdict = probed.verdict
    kept, silent = _kept(verdict, clips)
    apart = (1.0 - (lite * dense).sum(1)).clamp(0.0, 2.0).double().numpy().round(4)
    bins = _bins(apart)
    sizes = np.bincount(bins)

    def means(values: Array) -> tuple[float, ...]:
        return tuple(np.round(np.bincount(bins, values) / sizes, 4).tolist())

    def beyond_doubt(gain: Array) -> tuple[Array, Array, Array]:
        low, high = _interval(gain, bins, clips.clip.numpy(), len(clips))
        return np.where((low > 0) | (high < 0), np.bincount(bins, gain) / sizes, 0.0), low, high

    gain = right[SERVER] - right[DEVICE]
    certain, low, high = beyond_doubt(gain)
    told = {DEVICE: np.bincount(bins, right[DEVICE]) / sizes}
    told[SERVER] = told[DEVICE] + certain
    for name in right.keys() - told.keys():
        told[name] = told[SERVER] + beyond_doubt(right[name] - right[SERVER])[0]
    quality = Quality(
        f"measured: {source}: {len(clips)} clips, {len(clips.clip)} windows, {len(clips.classes)} classes; share of single windows that a "
        f"linear probe of each path's embedding gets right, one fold of {len(set(clips.folds))} left out; splits between at {codec.value}; "
        f"differences between paths only where their 95 % interval over clips does not hold 0; weights {version.id}",
        True,
        tuple(np.round(np.bincount(bins, apart) / sizes, 5).tolist()),
        {name: tuple(np.round(np.clip(told[name], 0.0, 1.0), 4).tolist()) for name in right}
        | {SKIP: (round(kept, 4),) * len(sizes)},
    )
    return Measured(
        quality,
        {name: means(values) for name, values in right.items()},
        tuple(sizes.tolist()),
        means(gain),
        tuple(low.tolist()),
        tuple(high.tolist()),
        silent,
    )


def require_paths(version: Version) -> None:
    """Raises ConfigError unless the encoder has a path for the device and one for the server."""
    if not {LITE, DENSE} <= set(version.encoder.paths):
        raise ConfigError(
            f"a quality table: expected an encoder with the paths {LITE} and {DENSE}, got {version.name}, whose split does not change the "
            "embedding"
        )


@torch.no_grad()
def coded(version: Version, clips: Clips, split: int, codec: Codec) -> Tensor:
    """[N, D] what the server makes of windows cut at `split` and packed."""
    encoder, ranges = version.encoder, version.ranges[split]
    spec, made = encoder.activation_spec(split), []
    for begin in range(0, len(clips.clip), CHUNK):
        activation = encoder.head(clips.mel(slice(begin, begin + CHUNK)), split)
        payloads = [pack(np.ascontiguousarray(one), codec, ranges) for one in activation.numpy()]
        made.append(encoder.tail(torch.from_numpy(unpack_many(payloads, codec, spec, ranges)), split))
    return torch.cat(made)


def _bins(apart: Array) -> Numbers:
    """[N] number of each window's bin, from 0; about equal sizes, equal values in one bin."""
    edges = np.unique(np.quantile(apart, np.linspace(0.0, 1.0, BINS + 1)[1:-1]))
    _, bins = np.unique(np.searchsorted(edges, apart, side="right"), return_inverse=True)
    return bins.astype(np.int64)


def _kept(verdict: Tensor, clips: Clips) -> tuple[float, int]:
    """Share right of silent windows if each takes the answer of the window before it; of all windows, where none is silent.

    Silent are those whose features are all alike: recordings' own zeros. A device asks for less (`SILENCE_DBFS`).
    """
    flat = clips.features.reshape(len(clips.features), -1)
    silent = torch.from_numpy(flat.min(axis=1) == flat.max(axis=1))
    follows = torch.zeros(len(verdict), dtype=torch.bool)
    follows[1:] = clips.clip[1:] == clips.clip[:-1]
    right = torch.roll(verdict, 1) == clips.label_numbers[clips.clip]
    asked: Tensor = follows & silent if bool((follows & silent).any()) else follows
    return (float(right[asked].double().mean()) if bool(asked.any()) else 0.0), int(silent.sum())


def _interval(gain: Array, bins: Numbers, clip: Numbers, clips: int) -> tuple[Array, Array]:
    """95 % of each bin's mean gain, clips drawn with replacement; the mean itself where a draw leaves a bin empty."""
    place = clip * (int(bins.max()) + 1) + bins
    shape = clips, int(bins.max()) + 1
    sums = np.bincount(place, gain, shape[0] * shape[1]).reshape(shape)
    sizes = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    chosen = np.random.default_rng(0).multinomial(clips, np.full(clips, 1.0 / clips), DRAWN)
    drawn = chosen @ sizes
    whole = sums.sum(axis=0) / sizes.sum(axis=0)
    means = np.where(drawn > 0, (chosen @ sums) / np.maximum(drawn, 1), whole)
    low, high = np.percentile(means, [2.5, 97.5], axis=0).round(4)
    return low, high
