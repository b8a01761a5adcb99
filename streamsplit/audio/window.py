"""Windows: the unit of work. Blocks of PCM of any length go in, windows of fixed length and recorded gaps come out.

Time is counted in samples of the stream's own clock, gaps included: ``start_sample / sample_rate_hz`` is the window's time since the
stream began, however much was lost before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

SILENCE_DBFS = -80.0
"""At this level and below a window is silent: digital silence, not a quiet room. Neither machine learns from such windows (all alike, they
would only be false negatives of each other), and a policy may skip them."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a stretch of sound comes from, for people and evaluation; the system never learns from it.

    Attributes:
        source: what was playing, e.g. the recording's path as its manifest names it.
        label: the recording's label, if its manifest has one.
    """

    source: str
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """PCM as a source delivers it: float32 mono in [-1, 1], at the sample rate the source was opened with, any length.

    Attributes:
        samples: [n] float32.
        mark: what this is, if the source knows. A change of mark ends a recording: the window it cuts is padded with zeros if
            at least half of it is there (or if it would be the recording's only window), and left out and counted otherwise.
        captured_s: monotonic time at which its last sample was there to be taken; None: the source does not know, and who takes it
            says.
    """

    samples: Samples
    mark: Mark | None = None
    captured_s: float | None = None


@dataclass(frozen=True, slots=True)
class Gap:
    """Samples that should have been heard and were not.

    Attributes:
        start_sample: where on the stream's clock; 0 as delivered by a source, filled in by the assembler.
        samples: how many, at the stream's rate.
        reason: "overrun", "device lost", "unreadable: ..." ...
    """

    samples: int
    reason: str
    start_sample: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """One window of sound.

    Attributes:
        stream: the stream's name, unique per device.
        sequence: 0, 1, 2, ... without holes: a gap moves `start_sample`, not `sequence`.
        start_sample: first sample on the stream's clock, gaps included.
        samples: [S] float32 mono in [-1, 1], finite.
        mark: what it is, if the source knows.
        captured_s: monotonic time at which its last sample arrived, for latency.
        level_dbfs: root-mean-square level in dB below full scale; -120 for digital silence.
    """

    stream: str
    sequence: int
    start_sample: int
    samples: Samples
    mark: Mark | None = None
    captured_s: float = 0.0
    level_dbfs: float = field(init=False)

    def __post_init__(self) -> None:
        power = float(np.dot(self.samples, self.samples)) / max(1, len(self.samples))
        object.__setattr__(self, "level_dbfs", max(-120.0, 10.0 * math.log10(power + 1e-12)))


@dataclass(slots=True)
class WindowAssembler:
    """Cuts blocks into windows of `window_samples`, hop = window (overlap bought nothing in our measurements).

    A gap ends the window being filled: its samples are counted as lost with the gap, because half a window joined to what came
    later would be a sound nobody heard. NaN and infinite samples are a gap of their own ("not finite").

    >>> assembler = WindowAssembler("s", window_samples=4)
    >>> [type(item).__name__ for item in assembler.push(Block(np.zeros(9, np.float32)))]
    ['Window', 'Window']
    >>> assembler.push_gap(Gap(7, "overrun"))          # one sample was waiting: it is lost with the gap
    Gap(samples=8, reason='overrun', start_sample=8)
    >>> [window.start_sample for window in assembler.push(Block(np.zeros(4, np.float32)))]
    [16]
    """

    stream: str
    window_samples: int
    next_sequence: int = 0
    next_sample: int = 0
    skipped_samples: int = 0
    _pending: list[Samples] = field(default_factory=list)
    _pending_samples: int = 0
    _mark: Mark | None = None
    _windows_of_mark: int = 0

    def push(self, block: Block, captured_s: float = 0.0) -> Iterator[Window | Gap]:
        """Takes a block; yields the windows it completes, and a gap where its samples are not finite."""
        return iter(list(self._push(block, captured_s)))

    def push_gap(self, gap: Gap) -> Gap:
        """Takes a gap; returns it placed on the stream's clock, with the partial window it cost."""
        lost = self._pending_samples + gap.samples
        placed = Gap(lost, gap.reason, self.next_sample)
        self._clear()
        self.next_sample += lost
        return placed

    def finish(self, captured_s: float = 0.0) -> Iterator[Window]:
        """Ends the recording: yields its last window, zero-padded, if enough of it is there (see `Block.mark`)."""
        return iter(list(self._end_of_mark(captured_s)))

    def _push(self, block: Block, captured_s: float) -> Iterator[Window | Gap]:
        if block.mark != self._mark:
            yield from self._end_of_mark(captured_s)
            self._mark = block.mark
        if not math.isfinite(
            np.dot(block.samples, block.samples)
        ):  # ten times quicker than asking every sample
            yield self.push_gap(Gap(len(block.samples), "not finite"))
            return
        self._pending.append(block.samples)
        self._pending_samples += len(block.samples)
        if self._pending_samples < self.window_samples:
            return
        waiting = self._pending[0] if len(self._pending) == 1 else np.concatenate(self._pending)
        whole = len(waiting) // self.window_samples
        for index in range(whole):
            yield self._window(
                waiting[index * self.window_samples : (index + 1) * self.window_samples], captured_s
            )
        rest = waiting[whole * self.window_samples :].copy()
        self._pending, self._pending_samples = [rest], len(rest)

    def _end_of_mark(self, captured_s: float) -> Iterator[Window]:
        enough = 2 * self._pending_samples >= self.window_samples or (
            self._windows_of_mark == 0 and self._pending_samples > 0
        )
        if enough:
            rest = np.concatenate(self._pending)
            yield self._window(np.pad(rest, (0, self.window_samples - len(rest))), captured_s)
        else:
            self.skipped_samples += self._pending_samples
            self.next_sample += self._pending_samples
        self._clear()
        self._windows_of_mark = 0

    def _window(self, samples: Samples, captured_s: float) -> Window:
        window = Window(self.stream, self.next_sequence, self.next_sample, samples, self._mark, captured_s)
        self.next_sequence += 1
        self.next_sample += self.window_samples
        self._windows_of_mark += 1
        return window

    def _clear(self) -> None:
        self._pending, self._pending_samples = [], 0
