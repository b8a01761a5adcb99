"""What capture needs of a computer's audio system, and the queue between its thread and ours. Nothing here knows PortAudio."""

from __future__ import annotations

import queue
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from streamsplit.audio.window import Samples
from streamsplit.errors import CaptureError


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device that can record.

    Attributes:
        index: PortAudio's number; it changes when devices come and go.
        name: as the system calls it.
        channels: input channels, at least 1.
        sample_rate_hz: its native rate.
        default: the system's default for recording.
    """

    index: int
    name: str
    channels: int
    sample_rate_hz: int
    default: bool


Hear = Callable[[Samples, float, bool], None]
"""Called for each block from a thread of the audio system: [n] mono; when its first sample was converted, in seconds of the device's
clock (0: unknown); whether samples were dropped before it. It returns at once."""


class OpenDevice(Protocol):
    """A device that is recording."""

    @property
    def alive(self) -> bool:
        """False once the audio system knows that it has stopped."""

    def close(self) -> None:
        """Stops it; never raises."""


class AudioSystem(Protocol):
    """What capture needs of PortAudio; tests bring their own."""

    def devices(self) -> list[DeviceInfo]:
        """Devices that can record. Raises CaptureError where there is no audio system."""

    def rescan(self) -> None:
        """Looks for devices that were plugged in since; nothing may be open."""

    def open(self, device: DeviceInfo, block_samples: int, hear: Hear) -> OpenDevice:
        """Starts recording at the native rate. Raises CaptureError."""


def find_device(devices: list[DeviceInfo], wanted: str | int | None) -> DeviceInfo:
    """The device that `MicrophoneSettings.device` means.

    Raises:
        CaptureError: there is none; the message names those there are.
    """
    if not devices:
        raise CaptureError(
            "no microphone found: expected a device that can record, the audio system lists none"
        )
    if isinstance(wanted, str) and wanted.isdecimal():
        wanted = int(wanted)
    if wanted is None:
        return next((device for device in devices if device.default), devices[0])
    for device in devices:
        if device.index == wanted if isinstance(wanted, int) else wanted.casefold() in device.name.casefold():
            return device
    names = ", ".join(f"{device.index} {device.name!r}" for device in devices)
    raise CaptureError(f"microphone {wanted!r}: no such device; there are: {names}")


@dataclass(frozen=True, slots=True)
class Heard:
    """One block as it was recorded.

    Attributes:
        samples: [n] mono at the device's rate.
        lost: samples that were lost just before it.
        arrived_s: monotonic time at which it came.
    """

    samples: Samples
    lost: int
    arrived_s: float


class Inbox:
    """Bounded queue from the audio thread to the event loop.

    Overflow rule: a block that finds it full is dropped and counted; its length goes before the next block that finds room.

    Attributes:
        overruns: how often sound was lost: blocks that found no room, and losses the audio system reported.
    """

    def __init__(self, sample_rate_hz: int, blocks: int, clock: Callable[[], float]) -> None:
        self._rate_hz, self._clock = sample_rate_hz, clock
        self._queue: queue.Queue[Heard] = queue.Queue(blocks)
        self._lost = 0
        self._expected_s = 0.0
        self.overruns = 0

    def put(self, samples: Samples, converted_s: float, overflowed: bool) -> None:
        """The audio thread's side: see `Hear`."""
        if overflowed:
            self.overruns += 1
            self._lost += self._missing(len(samples), converted_s)
        self._expected_s = converted_s + len(samples) / self._rate_hz if converted_s else 0.0
        try:
            self._queue.put_nowait(Heard(samples, self._lost, self._clock()))
        except queue.Full:
            self.overruns += 1
            self._lost += len(samples)
        else:
            self._lost = 0

    def get(self, timeout_s: float) -> Heard | None:
        """The consumer's side: the next block, or None when none came in time."""
        try:
            return self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _missing(self, block: int, converted_s: float) -> int:
        """Samples PortAudio dropped: it does not say how many, but its clock does. Without a clock, a block is assumed."""
        if not converted_s or not self._expected_s:
            return block
        return min(max(0, round((converted_s - self._expected_s) * self._rate_hz)), 60 * self._rate_hz)
