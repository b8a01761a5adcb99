"""Uncertainty as it really went: sequences from a device's journal, to be laid under made worlds.

A journal written with windows cut before the last block and a memory (``replay --split 3 --learn memory``) holds, window by window, the
true uncertainty that the server returned and what the device knew at the time: its own prediction of it, and the entropy of its
memory's posterior, which the paper takes for uncertainty.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from streamsplit.errors import ConfigError
from streamsplit.policy.worlds import Array, Timeline

Signal = Literal["disagreement", "entropy", "calibrated"]
FEWEST = 100
BINS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Heard:
    """W windows in a row of one or several streams, those left out of which something is not known.

    Attributes:
        level_dbfs: [W] loudness.
        uncertainty: [W] 1 - cos(lite, dense), as the server found it.
        predicted: [W] what the device expected of it before it was told.
        entropy: [W] of the memory's tempered posterior, over its greatest value: 0..1.
    """

    level_dbfs: Array
    uncertainty: Array
    predicted: Array
    entropy: Array

    @classmethod
    def of(cls, records: Iterable[Mapping[str, Any]]) -> Heard:
        """From a journal's records, see docs/journal.md.

        Raises:
            ConfigError: fewer than `FEWEST` windows have all of it.
        """
        windows: dict[tuple[Any, Any], tuple[float, float]] = {}
        signals: dict[tuple[Any, Any], tuple[float, float]] = {}
        for record in records:
            stream = record.get("stream")
            if record.get("kind") == "window" and record.get("uncertainty") is not None:
                windows[stream, record["sequence"]] = record["level_dbfs"], record["uncertainty"]
            elif record.get("kind") == "signals":
                said = (record["sequences"], record["disagreement"], record["posterior_entropy"])
                if None in said:
                    continue
                for sequence, predicted, entropy in zip(*said, strict=True):
                    if predicted is not None and entropy is not None:
                        signals[stream, sequence] = predicted, entropy
        rows = [(*windows[key], *signals[key]) for key in windows if key in signals]
        if len(rows) < FEWEST:
            raise ConfigError(
                f"journal: expected {FEWEST} windows or more with uncertainty and signals (a split before the last, --learn memory), "
                f"got {len(rows)}"
            )
        return cls(*np.asarray(rows, np.float64).T)

    def __len__(self) -> int:
        return len(self.uncertainty)

    def calibrated(self) -> Array:
        """[W] the mean truth among the windows whose entropy is alike, in `BINS` bins of equal size.

        As much as entropy can tell of uncertainty by any curve, rising or not; fitted to these very windows, which flatters it.
        """
        told = np.empty(len(self))
        for part in np.array_split(np.argsort(self.entropy, kind="stable"), BINS):
            told[part] = self.uncertainty[part].mean()
        return told

    def under(self, timeline: Timeline, start: int, signal: Signal = "disagreement") -> Timeline:
        """A timeline with this sound, from a window on and from the beginning again at its end.

        Args:
            timeline: all else.
            start: window of the journal that comes first.
            signal: what the device is told: the truth in answers and its own prediction ("disagreement"), or in both places the
                entropy as it is, or `calibrated`. Quality follows the truth in any case.
        """
        places = (start + np.arange(len(timeline.uplink_bps))) % len(self)
        told = self.calibrated() if signal == "calibrated" else self.entropy
        return replace(
            timeline,
            uncertainty=self.uncertainty[places],
            level_dbfs=self.level_dbfs[places],
            predicted=(self.predicted if signal == "disagreement" else told)[places],
            told=None if signal == "disagreement" else told[places],
        )
