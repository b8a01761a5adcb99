"""The microphone as a source of sound (`client.daemon.Source`), through PortAudio.

Two threads meet in the `Inbox`. PortAudio's callback only copies a block into it; the event loop takes blocks out, resamples them and
hands them on. What is lost on the way is a `Gap` of the right length: blocks that found the inbox full, samples PortAudio dropped
("overrun"), and the time without a device ("device lost"). A device that has worked once is waited for without end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from streamsplit.audio.resample import StreamResampler
from streamsplit.audio.window import Block, Gap, Samples
from streamsplit.client.audio_system import (
    AudioSystem,
    DeviceInfo,
    Hear,
    Heard,
    Inbox,
    OpenDevice,
    find_device,
)
from streamsplit.errors import CaptureError, ConfigError

logger = logging.getLogger(__name__)

PATIENCE_S: Final = 3.0
"""Seconds without a block after which a device counts as lost."""
RETRY_S: Final = 1.0
"""Seconds between attempts to open a lost device again."""
GAP_EVERY_S: Final = 60.0
"""Seconds after which a gap that still lasts is handed on in part, so that it shows in the journal before it ends."""
_POLL_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class MicrophoneSettings:
    """Which microphone, and how it is read.

    Attributes:
        device: index, or part of the name (any case; the first that has it), or None for the default.
        sample_rate_hz: wanted; the device runs at its native rate and is resampled.
        block_ms: length of a block, 10..1000.
        queue_s: seconds of sound that may wait for a slow consumer before blocks are dropped, at least two blocks.
    """

    device: str | int | None = None
    sample_rate_hz: int = 16_000
    block_ms: int = 100
    queue_s: float = 10.0

    def __post_init__(self) -> None:
        if self.sample_rate_hz < 1:
            raise ConfigError(f"microphone sample_rate_hz: expected at least 1, got {self.sample_rate_hz}")
        if not 10 <= self.block_ms <= 1_000:
            raise ConfigError(f"microphone block_ms: expected 10..1000, got {self.block_ms}")
        if not 2 * self.block_ms <= self.queue_s * 1_000 <= 600_000:
            raise ConfigError(f"microphone queue_s: expected {self.block_ms / 500}..600, got {self.queue_s}")


class PortAudio:
    """sounddevice, imported when first needed: machines without sound can use everything else."""

    def __init__(self) -> None:
        try:
            import sounddevice
        except (ImportError, OSError) as error:
            raise CaptureError(f"no audio library: {error}; on Debian: apt install libportaudio2") from error
        self._library: Any = sounddevice

    def devices(self) -> list[DeviceInfo]:
        """See `AudioSystem`."""
        try:
            default = self._library.default.device[0]
            found = list(self._library.query_devices())
        except self._library.PortAudioError as error:
            raise CaptureError(f"cannot list audio devices: {_one_line(error)}") from error
        return [
            DeviceInfo(
                item["index"],
                item["name"],
                item["max_input_channels"],
                round(item["default_samplerate"]),
                item["index"] == default,
            )
            for item in found
            if item["max_input_channels"] > 0
        ]

    def rescan(self) -> None:
        """See `AudioSystem`. PortAudio lists devices only when it starts."""
        try:
            self._library._terminate()
            self._library._initialize()
        except self._library.PortAudioError as error:
            raise CaptureError(f"cannot restart PortAudio: {_one_line(error)}") from error

    def open(self, device: DeviceInfo, block_samples: int, hear: Hear) -> OpenDevice:
        """See `AudioSystem`. One channel where the device offers one, else the mean of all."""

        def callback(data: Samples, frames: int, when: Any, status: Any) -> None:
            mono = data[:, 0].copy() if data.shape[1] == 1 else data.mean(axis=1, dtype=np.float32)
            hear(mono, when.inputBufferAdcTime, status.input_overflow)

        stream = None
        try:
            stream = self._library.InputStream(
                device=device.index,
                channels=self._channels(device),
                samplerate=device.sample_rate_hz,
                blocksize=block_samples,
                dtype="float32",
                latency="high",
                callback=callback,
            )
            stream.start()
        except self._library.PortAudioError as error:
            if stream is not None:
                stream.close(ignore_errors=True)
            raise CaptureError(f"microphone {device.name!r} cannot be opened: {_one_line(error)}") from error
        return _PortAudioDevice(stream, self._library.PortAudioError)

    def _channels(self, device: DeviceInfo) -> int:
        try:
            self._library.check_input_settings(
                device=device.index, channels=1, dtype="float32", samplerate=device.sample_rate_hz
            )
        except self._library.PortAudioError:
            return device.channels
        return 1


@dataclass(frozen=True, slots=True)
class _PortAudioDevice:
    stream: Any
    failure: type[Exception]

    @property
    def alive(self) -> bool:
        try:
            return bool(self.stream.active)
        except self.failure:
            return False

    def close(self) -> None:
        self.stream.abort(ignore_errors=True)
        self.stream.close(ignore_errors=True)


def list_devices(system: AudioSystem | None = None) -> list[DeviceInfo]:
    """The devices that can record, default first.

    Raises:
        CaptureError: there is no audio library.
    """
    return sorted((system or PortAudio()).devices(), key=lambda device: (not device.default, device.index))


class MicrophoneSource:
    """Listens to a microphone.

    Attributes:
        sample_rate_hz: of the blocks.
        device: what is (or was last) listened to; None before the source is entered.
        lost: the device is gone, and is being waited for.
    """

    def __init__(
        self,
        settings: MicrophoneSettings,
        system: AudioSystem | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.sample_rate_hz = settings.sample_rate_hz
        self.device: DeviceInfo | None = None
        self.lost = False
        self._settings, self._system, self._clock, self._sleep = settings, system, clock, sleep
        self._recording: _Recording | None = None
        self._past_overruns = 0
        self._accounted_s = 0.0  # blocks and gaps handed on reach to here
        self._running: AsyncGenerator[Block | Gap, None] | None = None

    @property
    def overruns(self) -> int:
        """How often sound was lost because nobody took it in time."""
        return self._past_overruns + (self._recording.inbox.overruns if self._recording else 0)

    async def __aenter__(self) -> Self:
        """Opens the device.

        Raises:
            CaptureError: there is none like it, or it cannot be opened; the message names the devices there are.
        """
        await asyncio.to_thread(self._open, self._settings.device)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._running is not None:
            await self._running.aclose()
        await asyncio.to_thread(self._close)

    def items(self) -> AsyncIterator[Block | Gap]:
        """Blocks of about `block_ms`, and gaps, without end."""
        self._running = self._items()
        return self._running

    async def _items(self) -> AsyncGenerator[Block | Gap, None]:
        while True:
            if self._recording is not None:
                async for item in self._listen(self._recording):
                    yield item
                if not self.lost:
                    logger.warning("microphone %r is lost; trying again every %g s", self._name, RETRY_S)
                self.lost = True
                await asyncio.to_thread(self._close)
            await self._sleep(RETRY_S)
            if self._clock() - self._accounted_s >= GAP_EVERY_S:
                yield self._lost_until(self._clock())
            try:
                await asyncio.to_thread(self._open_again)
            except CaptureError as error:
                logger.debug("%s", error)

    async def _listen(self, recording: _Recording) -> AsyncGenerator[Block | Gap, None]:
        """Blocks and gaps until the device is lost."""
        device_hz = recording.device.sample_rate_hz
        resampler = StreamResampler(device_hz, self.sample_rate_hz)
        while (heard := await self._next(recording)) is not None:
            began_s = heard.arrived_s - len(heard.samples) / device_hz
            if self.lost:
                self.lost = False
                logger.info("microphone %r is back", self._name)
                yield self._lost_until(began_s)
            if heard.lost:
                yield Block(resampler.finish(), captured_s=heard.arrived_s)
                yield Gap(round(heard.lost * self.sample_rate_hz / device_hz), "overrun")
            ready = resampler.push(heard.samples)
            self._accounted_s = heard.arrived_s
            if len(ready):
                yield Block(ready, captured_s=heard.arrived_s)

    async def _next(self, recording: _Recording) -> Heard | None:
        """The next block; None once the device has stopped or been silent for too long."""
        since_s = self._clock()
        while self._clock() - since_s < PATIENCE_S:
            heard = await asyncio.to_thread(recording.inbox.get, _POLL_S)
            if heard is not None:
                return heard
            if not recording.opened.alive:
                return None
        return None

    def _lost_until(self, now_s: float) -> Gap:
        samples = max(0, round((now_s - self._accounted_s) * self.sample_rate_hz))
        self._accounted_s = max(now_s, self._accounted_s)
        return Gap(samples, "device lost")

    @property
    def _name(self) -> str:
        return self.device.name if self.device else str(self._settings.device)

    def _open(self, wanted: str | int | None) -> None:
        if self._system is None:
            self._system = PortAudio()
        device = find_device(self._system.devices(), wanted)
        block_samples = max(1, round(device.sample_rate_hz * self._settings.block_ms / 1_000))
        blocks = max(2, round(self._settings.queue_s * 1_000 / self._settings.block_ms))
        inbox = Inbox(device.sample_rate_hz, blocks, self._clock)
        try:
            opened = self._system.open(device, block_samples, inbox.put)
        except CaptureError as error:
            names = ", ".join(f"{other.index} {other.name!r}" for other in self._system.devices())
            raise CaptureError(f"{error}; there are: {names}") from error
        if self.device is None:
            self._accounted_s = self._clock()
            logger.info("listening to %r at %d Hz", device.name, device.sample_rate_hz)
        self.device = device
        self._recording = _Recording(device, opened, inbox)

    def _open_again(self) -> None:
        """An index is a place in a list that may have changed: a lost device is looked for by its name."""
        if self._system is not None:
            self._system.rescan()
        self._open(self._name if isinstance(self._settings.device, int) else self._settings.device)

    def _close(self) -> None:
        if self._recording is not None:
            self._past_overruns += self._recording.inbox.overruns
            self._recording.opened.close()
            self._recording = None


@dataclass(frozen=True, slots=True)
class _Recording:
    device: DeviceInfo
    opened: OpenDevice
    inbox: Inbox


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
