"""Another sample rate, block by block, without seams.

Band-limited interpolation with a Hann-windowed sinc (J. O. Smith, *Digital Audio Resampling*), with the parameters torchaudio has by
default (6 zero crossings, roll-off 0.99), so that a stream equals ``torchaudio.transforms.Resample`` of the whole recording. It is
written in numpy because a device that captures sound should not have to import torchaudio for it.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from streamsplit.errors import ConfigError

Samples = npt.NDArray[np.float32]

_ZERO_CROSSINGS = 6
_ROLL_OFF = 0.99
_MOST_PHASES = 640
"""Output phases at most: 11,025 -> 16,000 Hz needs 640. An odder ratio is rounded to within 3 parts in a million, less than two sound
cards differ by; unrounded it would need a filter bank of gigabytes."""


class StreamResampler:
    """Converts a stream of mono blocks from one sample rate to another; one instance per stream.

    Every `orig` samples taken give `new` samples, `orig/new` being the reduced ratio of the rates. Samples are held back until what
    follows them is known: at most `orig + 2 * width` of them, a few milliseconds.

    A sample that is not finite makes those output samples NaN that it has a part in, and no others.

    >>> resampler = StreamResampler(48_000, 16_000)
    >>> pieces = [resampler.push(np.zeros(n, np.float32)) for n in (480, 1, 959)] + [resampler.finish()]
    >>> sum(len(piece) for piece in pieces)
    480
    """

    def __init__(self, from_hz: int, to_hz: int) -> None:
        if from_hz < 1 or to_hz < 1:
            raise ConfigError(f"sample rate: expected at least 1 Hz, got {from_hz} and {to_hz}")
        ratio = Fraction(from_hz, to_hz).limit_denominator(_MOST_PHASES)
        self._orig, self._new = ratio.numerator, ratio.denominator
        self._same = self._orig == self._new
        self._width, self._kernel = _filters(self._orig, self._new)
        self._taken = self._given = 0
        self._waiting: Samples = np.zeros(self._width, np.float32)

    def push(self, samples: Samples) -> Samples:
        """Takes [n] float32; returns all that can be said now at the other rate, possibly nothing."""
        if self._same:
            return samples
        self._taken += len(samples)
        self._waiting = np.concatenate([self._waiting, samples])
        return self._ready()

    def finish(self) -> Samples:
        """Ends the stream: returns its last samples, `ceil(taken * new / orig)` in all, and starts afresh."""
        if self._same:
            return np.zeros(0, np.float32)
        missing = -(-self._taken * self._new // self._orig) - self._given
        self._waiting = np.pad(self._waiting, (0, self._width + self._orig))
        last = self._ready()[:missing]
        self._taken = self._given = 0
        self._waiting = np.zeros(self._width, np.float32)
        return last

    def _ready(self) -> Samples:
        taps = self._kernel.shape[1]
        count = max(0, (len(self._waiting) - taps) // self._orig + 1)
        if count == 0:
            return np.zeros(0, np.float32)
        ready = _filtered(self._waiting, self._kernel, self._orig, count)
        self._waiting = self._waiting[count * self._orig :].copy()
        self._given += len(ready)
        return ready


def _filtered(samples: Samples, kernel: Samples, step: int, count: int) -> Samples:
    """`count` frames of all phases: [count * new]."""
    bad = ~np.isfinite(samples)
    smeared = bad.any()
    if smeared:
        samples = np.where(bad, np.float32(0), samples)
    ready = (_frames(samples, kernel.shape[1], step, count) @ kernel.T).reshape(-1)
    if smeared:
        touched = _frames(bad.astype(np.float32), kernel.shape[1], step, count) @ (kernel != 0).T.astype(
            np.float32
        )
        ready[touched.reshape(-1) > 0] = np.nan
    return ready


def _frames(samples: Samples, length: int, step: int, count: int) -> Samples:
    return np.lib.stride_tricks.sliding_window_view(samples, length)[::step][:count]


def _filters(orig: int, new: int) -> tuple[int, Samples]:
    """One low-pass filter per output phase: width W in input samples, filters [new, W + orig + W]."""
    cutoff = min(orig, new) * _ROLL_OFF
    width = math.ceil(_ZERO_CROSSINGS * orig / cutoff)
    offset = np.arange(-width, width + orig) / orig
    time = cutoff * (offset - np.arange(new)[:, None] / new)
    hann = np.cos(np.pi * time / (2 * _ZERO_CROSSINGS)) ** 2
    filters = np.where(np.abs(time) < _ZERO_CROSSINGS, np.sinc(time) * hann, 0.0) * cutoff / orig
    return width, filters.astype(np.float32)
