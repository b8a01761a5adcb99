"""The windows training draws from: log-mel as bytes, in memory, in segments of neighbouring windows.

A window is 6 KiB (F x T bytes, the wire's uint8 range), so 32,768 of them are 200 MB. Where there is more sound than fits, segments are
kept by reservoir sampling: every segment of the whole has the same chance to be there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamsplit.audio.features import FrontEndSettings, LogMel
from streamsplit.errors import ConfigError, RecordingError
from streamsplit.learning.sources import Samples, Track

logger = logging.getLogger(__name__)

SEGMENT_WINDOWS = 8
HOP_SHARE = 0.5
"""Windows overlap by half: neighbours within 1.5 s are then up to three hops away, at 0.48, 0.96 and 1.44 s."""
NEIGHBOUR_SHARE = 0.75
"""Of pairs. Neighbours teach what stays of a sound, so that a clip is found again half a window later; but a second later there may be
nothing left of a short one to know it by."""
FEWEST_SEGMENTS = 8
AUDIBLE = 0.1
"""A window is silent if its loudest feature is less than this above the features of digital silence, in standard deviations: 2 dB.
Silent windows are all alike: as each other's negatives they would teach nonsense."""

Bytes = npt.NDArray[np.uint8]
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, eq=False)
class WindowPool:
    """Windows in memory.

    Attributes:
        front_end: how they were made.
        features: [N, F, T] uint8 over the front end's feature range.
        first, count: [segments] place of each segment's first window, and its length.
        at_hop: [N] each window's time within its segment, in hops.
        track: [N] number of the track it is from.
        labels, groups: of each track.
        heard: windows there were, kept or not.
        silent: of those looked at, how many were left out as silent.
        unreadable: tracks that could not be read, or not to their end.
    """

    front_end: FrontEndSettings
    features: Bytes
    first: Tensor
    count: Tensor
    at_hop: Tensor
    track: Tensor
    labels: tuple[str | None, ...]
    groups: tuple[str, ...]
    heard: int
    silent: int
    unreadable: int

    def __len__(self) -> int:
        return len(self.features)

    @property
    def segments(self) -> int:
        """How many segments there are: the most windows a draw may have."""
        return len(self.first)

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits over what is in it."""
        digest = hashlib.sha256(self.front_end.fingerprint.encode())
        for part in (self.features, self.first.numpy(), self.at_hop.numpy()):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()[:12]

    def mel(self, windows: Tensor) -> Tensor:
        """Standardised log-mel of windows [n]: [n, 1, F, T] float32."""
        low, high = self.front_end.feature_low, self.front_end.feature_high
        chosen = torch.from_numpy(self.features[windows.numpy()])
        return chosen.float().mul_((high - low) / 255.0).add_(low).unsqueeze_(1)

    def draw(self, batch: int, neighbour_s: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random windows, each of another segment, and a partner for each: mostly a neighbour, else itself.

        Args:
            batch: at most `segments`.
            neighbour_s: how far apart partners may begin.
            generator: on the CPU.

        Returns:
            Window numbers, [batch] twice.
        """
        if not 1 <= batch <= self.segments:
            raise ValueError(f"draw: expected 1..{self.segments} windows, got {batch}")
        segment = torch.randperm(self.segments, generator=generator)[:batch]
        first, count = self.first[segment], self.count[segment]
        window = first + (torch.rand(batch, generator=generator) * count).long()
        reach = int(neighbour_s / (HOP_SHARE * self.front_end.window_s) + 1e-6)
        step = torch.randint(-reach, reach + 1, (batch,), generator=generator)
        partner = torch.minimum(torch.maximum(window + step, first), first + count - 1)
        near = (self.at_hop[partner] - self.at_hop[window]).abs() <= reach  # silent ones between are left out
        near &= torch.rand(batch, generator=generator) < NEIGHBOUR_SHARE
        return window, torch.where(near, partner, window)

    def sample(self, windows: int) -> Tensor:
        """Window numbers spread evenly over everything, at most `windows`, always the same."""
        return torch.linspace(0, len(self) - 1, min(windows, len(self))).round().long()


def gather(
    tracks: Sequence[Track],
    front_end: FrontEndSettings,
    most_windows: int,
    seed: int,
    report: Report | None = None,
) -> WindowPool:
    """Listens to every track once and keeps at most `most_windows` windows.

    Args:
        tracks: what to listen to.
        front_end: how to make log-mel of it.
        most_windows: bounds the memory, at 6 KiB each for 64 x 96.
        seed: of what is kept where there is more.
        report: called with (tracks done, tracks in all).

    Raises:
        ConfigError: less sound than FEWEST_SEGMENTS segments of 4 s.
    """
    kept = _Reservoir(front_end, max(FEWEST_SEGMENTS, most_windows // SEGMENT_WINDOWS), seed)
    unreadable = 0
    for number, track in enumerate(tracks):
        try:
            for windows in _segments(track.listen(), front_end):
                kept.offer(windows, number)
        except RecordingError as error:
            unreadable += 1
            log = logger.warning if unreadable == 1 else logger.debug
            log("left out from there on: %s", error)
        if report:
            report(number + 1, len(tracks))
    if len(kept.segments) < FEWEST_SEGMENTS:
        raise ConfigError(
            f"sounds to learn from: expected at least {FEWEST_SEGMENTS} stretches of"
            f" {(SEGMENT_WINDOWS + 1) * HOP_SHARE * front_end.window_s:.1f} s, got {len(kept.segments)} that are not silent"
            f" in {len(tracks)} recordings ({unreadable} unreadable)"
        )
    return kept.pool(tracks, unreadable)


class _Reservoir:
    """Algorithm R over segments. Features are only made of segments that go in."""

    def __init__(self, front_end: FrontEndSettings, capacity: int, seed: int) -> None:
        self.front_end, self.capacity = front_end, capacity
        self.segments: list[tuple[Bytes, npt.NDArray[np.int64], int]] = []
        self.heard = self.silent = 0
        self._log_mel = LogMel(front_end)
        self._silence = float(self._log_mel(torch.zeros(1, front_end.window_samples)).max())
        self._offered = 0
        self._rng = np.random.default_rng((seed, 5))

    def offer(self, windows: Samples, track: int) -> None:
        """Takes a segment [n, S] or not."""
        self.heard += len(windows)
        place = int(self._rng.integers(self._offered + 1))
        if place >= self.capacity and len(self.segments) == self.capacity:
            self._offered += 1
            return
        mel = self._log_mel(torch.from_numpy(np.array(windows)))[:, 0]
        audible = mel.amax((1, 2)) >= self._silence + AUDIBLE
        self.silent += int((~audible).sum())
        if not audible.any():
            return
        self._offered += 1
        low, high = self.front_end.feature_low, self.front_end.feature_high
        features = ((mel[audible] - low) * (255.0 / (high - low))).round_().clamp_(0, 255).byte().numpy()
        segment = (features, np.flatnonzero(audible.numpy()), track)
        if len(self.segments) < self.capacity:
            self.segments.append(segment)
        else:
            self.segments[place] = segment

    def pool(self, tracks: Sequence[Track], unreadable: int) -> WindowPool:
        counts = np.array([len(features) for features, _, _ in self.segments])
        return WindowPool(
            front_end=self.front_end,
            features=np.concatenate([features for features, _, _ in self.segments]),
            first=torch.from_numpy(np.cumsum(counts) - counts),
            count=torch.from_numpy(counts),
            at_hop=torch.from_numpy(np.concatenate([hops for _, hops, _ in self.segments])),
            track=torch.from_numpy(np.repeat([track for _, _, track in self.segments], counts)),
            labels=tuple(track.label for track in tracks),
            groups=tuple(track.group for track in tracks),
            heard=self.heard,
            silent=self.silent,
            unreadable=unreadable,
        )


def _segments(blocks: Iterator[Samples], front_end: FrontEndSettings) -> Iterator[Samples]:
    """A track in segments of up to SEGMENT_WINDOWS overlapping windows, [n, S]; shorter than a window: completed with zeros.

    Samples that are not finite count as silence.
    """
    size = front_end.window_samples
    hop = int(HOP_SHARE * size)
    whole = (SEGMENT_WINDOWS - 1) * hop + size
    waiting, heard = np.zeros(0, np.float32), 0
    for block in blocks:
        waiting = np.concatenate([waiting, np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)])
        while len(waiting) >= whole:
            yield np.lib.stride_tricks.sliding_window_view(waiting[:whole], size)[::hop]
            waiting, heard = waiting[SEGMENT_WINDOWS * hop :], heard + 1
    if heard == 0 and 0 < len(waiting) < size:
        waiting = np.pad(waiting, (0, size - len(waiting)))
    if len(waiting) >= size:
        yield np.lib.stride_tricks.sliding_window_view(waiting, size)[::hop]
