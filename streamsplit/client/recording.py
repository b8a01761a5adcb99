"""Recordings and made soundscapes as a source of sound, under the same contract as the microphone (`client.daemon.Source`).

What is delivered does not depend on the speed: the same recordings give the same blocks, paced or not.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from streamsplit.audio.files import Recording, read_blocks
from streamsplit.audio.synth import Soundscape
from streamsplit.audio.window import Block, Gap, Mark, Samples
from streamsplit.errors import ConfigError, RecordingError

logger = logging.getLogger(__name__)

Speed = float | Literal["real", "max"]
"""How fast recordings are played: "real" time, a factor of real time, or "max": as fast as they are taken."""

BLOCK_S = 0.96
"""Seconds of a block: a window of most encoders. Each block costs a change of threads, so shorter ones cost a device more."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A recording, or the rest of one, that could not be heard. It takes no time on the stream's clock.

    Attributes:
        source: the recording's name, as in `Mark.source`.
        reason: one line.
    """

    source: str
    reason: str


class Pace:
    """Holds a stream to a speed: sample n is not handed on before it would have been heard.

    Deadlines count from the first block, so that delays do not add up; a consumer that is too slow is not hurried and loses nothing.

    Attributes:
        unpaced_samples: that many are handed on at once: what an earlier run has played already.
    """

    def __init__(
        self,
        speed: Speed,
        sample_rate_hz: int,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if isinstance(speed, str):
            if speed not in ("real", "max"):
                raise ConfigError(f"speed: expected real, max or a factor above 0, got {speed!r}")
        elif not 0 < speed < float("inf"):
            raise ConfigError(f"speed: expected real, max or a factor above 0, got {speed}")
        self._samples_per_s = (
            None if speed == "max" else sample_rate_hz * (1.0 if speed == "real" else float(speed))
        )
        self._clock, self._sleep = clock, sleep
        self._began_s: float | None = None
        self._samples = 0
        self.unpaced_samples = 0

    async def wait(self, samples: int) -> float | None:
        """Waits until the last of the next `samples` samples is due, and says when that was; with "max" only lets others run: None."""
        if self._samples_per_s is None or self.unpaced_samples > 0:
            self.unpaced_samples -= samples
            await self._sleep(0)
            return None
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = now_s
        self._samples += samples
        due_s = self._began_s + self._samples / self._samples_per_s
        await self._sleep(max(0.0, due_s - now_s))
        return due_s


class _Played:
    """What both sources share: pacing, and an end that leaves no file open and no thread at work."""

    def __init__(self, sample_rate_hz: int, pace: Pace) -> None:
        self.sample_rate_hz = sample_rate_hz
        self._pace = pace
        self._running: AsyncGenerator[Block | Gap | Skip, None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._running is not None:
            await self._running.aclose()

    def resume_at(self, samples: int) -> None:
        """Plays the first `samples` samples as fast as they are taken; called before `items`."""
        self._pace.unpaced_samples = samples

    def items(self) -> AsyncIterator[Block | Gap | Skip]:
        """Blocks of about 0.96 s and skips, in order, from the beginning."""
        self._running = self._items()
        return self._running

    def _items(self) -> AsyncGenerator[Block | Gap | Skip, None]:
        raise NotImplementedError

    async def _paced(self, blocks: Iterator[Samples], mark: Mark | None) -> AsyncGenerator[Block, None]:
        async with aclosing(_ahead(blocks)) as ready:
            async for samples in ready:
                due_s = await self._pace.wait(len(samples))
                yield Block(samples, mark, due_s)


class RecordingSource(_Played):
    """Plays recordings one after another.

    Files are read in a thread, one block ahead. All blocks of a file share one mark; in a repeated pass (`loop`) its source carries
    the number of the pass, so that the end of a recording shows even where it follows itself. A file that cannot be read, or only in
    part, gives a `Skip` in its place, and a warning on the first pass.

    Attributes:
        sample_rate_hz: of the blocks.
        recordings: what is played, in this order.
        recordings_done: how many have been played or skipped, all passes counted.
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        sample_rate_hz: int,
        speed: Speed = "max",
        *,
        loop: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if not recordings:
            raise ConfigError("recordings: expected at least one, got none")
        super().__init__(sample_rate_hz, Pace(speed, sample_rate_hz, clock, sleep))
        self.recordings = tuple(recordings)
        self.recordings_done = 0
        self._loop = loop

    async def _items(self) -> AsyncGenerator[Block | Gap | Skip, None]:
        """Raises RecordingError, with `loop`, when a whole pass has given nothing to hear: it would go on for ever."""
        for played in itertools.count(1) if self._loop else (1,):
            heard = False
            for recording in self.recordings:
                async with aclosing(self._play(recording, played)) as items:
                    async for item in items:
                        heard = heard or isinstance(item, Block)
                        yield item
                self.recordings_done += 1
            if self._loop and not heard:
                raise RecordingError(f"none of {len(self.recordings)} recordings can be heard")

    async def _play(self, recording: Recording, played: int) -> AsyncGenerator[Block | Skip, None]:
        name = recording.source if played == 1 else f"{recording.source}#{played}"
        blocks = read_blocks(recording.path, self.sample_rate_hz, BLOCK_S)
        try:
            async with aclosing(self._paced(blocks, Mark(name, recording.label))) as paced:
                async for block in paced:
                    yield block
        except RecordingError as error:
            if played == 1:
                logger.warning("skipped: %s", error)
            yield Skip(name, str(error))


class SoundscapeSource(_Played):
    """Plays a made soundscape as one stream without marks: who wants labels asks `soundscape.label_at`."""

    def __init__(
        self,
        soundscape: Soundscape,
        speed: Speed = "real",
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        rate_hz = soundscape.settings.sample_rate_hz
        super().__init__(rate_hz, Pace(speed, rate_hz, clock, sleep))
        self.soundscape = soundscape

    async def _items(self) -> AsyncGenerator[Block | Gap | Skip, None]:
        async with aclosing(self._paced(self.soundscape.blocks(BLOCK_S), None)) as paced:
            async for block in paced:
                yield block


async def _ahead(blocks: Iterator[Samples]) -> AsyncGenerator[Samples, None]:
    """Takes blocks from an iterator in a thread, one ahead of the consumer; never two at a time."""
    coming = asyncio.create_task(asyncio.to_thread(next, blocks, None))
    try:
        while (samples := await asyncio.shield(coming)) is not None:
            coming = asyncio.create_task(asyncio.to_thread(next, blocks, None))
            yield samples
    finally:
        # A thread cannot be cancelled. The block it reads is short: wait for it, then the file can be closed.
        await asyncio.gather(coming, return_exceptions=True)
        if isinstance(blocks, Generator):
            blocks.close()
