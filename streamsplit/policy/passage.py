"""When bits have passed a link whose rate changes: traces integrated, for many worlds at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

LEAST_AFTER_BPS = 1e4
"""Beyond its end a trace goes on at its mean rate, and never slower than this."""


class Traces:
    """Links of P worlds.

    Args:
        bits: [P, W + 1] carried by the beginning of each window, as if always busy.
        hop_s: [P] length of a window.
    """

    def __init__(self, bits: Array, hop_s: Array) -> None:
        self._bits, self._hop_s, self._windows = bits, hop_s, bits.shape[1] - 1
        ends = bits[:, -1]
        # One sorted array for all worlds, each beyond the one before, so that one search serves all rows.
        self._apart = float(ends.max()) + 1e6
        self._flat = (bits + np.arange(len(bits))[:, None] * self._apart).ravel()
        self._after_bps = np.maximum(ends / (self._windows * hop_s), LEAST_AFTER_BPS)

    def carried(self, world: Rows, time_s: Array) -> Array:
        """[B] bits that the link of each row's world has carried by `time_s`, as if always busy."""
        hop_s = self._hop_s[world]
        place = np.maximum(time_s, 0.0) / hop_s
        index = np.minimum(place.astype(np.int64), self._windows - 1)
        begin, end = self._bits[world, index], self._bits[world, index + 1]
        over_s = np.maximum(place - self._windows, 0.0) * hop_s
        inside: Array = begin + np.minimum(place - index, 1.0) * (end - begin)
        return np.asarray(inside + over_s * self._after_bps[world])

    def passed_s(self, world: Rows, mark: Array) -> Array:
        """[B] when the link will have carried `mark` bits."""
        ends = self._bits[world, -1]
        inside = np.minimum(mark, ends)
        found = np.searchsorted(self._flat, inside + world * self._apart)
        index = np.clip(found - world * (self._windows + 1) - 1, 0, self._windows - 1)
        begin, end = self._bits[world, index], self._bits[world, index + 1]
        part = np.clip((inside - begin) / np.maximum(end - begin, 1e-9), 0.0, 1.0)
        within_s = (index + part) * self._hop_s[world]
        over_s = self._windows * self._hop_s[world] + (mark - ends) / self._after_bps[world]
        return np.asarray(np.where(mark > ends, over_s, within_s))
