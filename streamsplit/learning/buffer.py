"""What the server learns from: the last windows of every device, in true time, and a bounded ring of many more on disk.

    window committed -> TemporalBuffer (memory: the Hybrid Loss's W windows per device)
                     -> FeatureReplay  (disk: everything that fits, for the task and against forgetting)

Both keep what can be *recomputed*: packed features or activations at a boundary whose blocks are frozen, a few hundred bytes a window.
From embeddings alone no gradient would reach the encoder. Neither assumes that windows come in order, evenly or at all.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from streamsplit.errors import ConfigError
from streamsplit.wire.codec import Array, Codec, Ranges, TensorSpec, unpack_many

WINDOW = 100
"""W: windows of one device that the Hybrid Loss looks at."""

Kind = tuple[str, int, Codec]
"""Version, split and codec: windows of one kind are unpacked together."""


@dataclass(frozen=True, slots=True, eq=False)
class BufferedWindow:
    """One window as the server keeps it for learning.

    Attributes:
        device: who heard it.
        stream: on which of its streams.
        sequence: number within the stream.
        start_s: its time on the device's own clock, seconds: the stream's start plus `start_sample / sample_rate_hz`. Times of two
            devices are never compared.
        version: encoder version whose head and ranges made the payload.
        split: boundary of the payload; 0 features.
        codec: how it is packed.
        payload: as it came.
        embedding: [D] float32 unit norm, or None if not known.
        embedded_by: version that made the embedding.
    """

    device: str
    stream: str
    sequence: int
    start_s: float
    version: str
    split: int
    codec: Codec
    payload: bytes
    embedding: Array | None = None
    embedded_by: str | None = None

    @property
    def kind(self) -> Kind:
        """What it can be unpacked together with."""
        return self.version, self.split, self.codec

    @property
    def key(self) -> tuple[str, str, int]:
        """What no two windows share."""
        return self.device, self.stream, self.sequence


@dataclass(frozen=True, slots=True)
class BufferSettings:
    """Bounds of the temporal buffer.

    Attributes:
        windows_per_device: kept of each device, at least `WINDOW` for a full Hybrid Loss.
        devices: kept at once.

    Raises:
        ConfigError: a bound below 1.
    """

    windows_per_device: int = 4 * WINDOW
    devices: int = 256

    def __post_init__(self) -> None:
        for name in ("windows_per_device", "devices"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")


class TemporalBuffer:
    """The last windows of each device by true time, however late they arrived.

    Overflow: a full device loses its earliest window in time (which may be the one that just came); with too many devices the one not
    heard of for longest loses all of its windows. Both are counted in `dropped`. For one thread at a time.

    Attributes:
        settings: its bounds.
        dropped: windows lost to a bound since it was made.
        duplicates: windows that were there already, and were not taken again.
    """

    def __init__(self, settings: BufferSettings | None = None) -> None:
        self.settings = settings or BufferSettings()
        self.dropped = 0
        self.duplicates = 0
        self._devices: OrderedDict[str, list[BufferedWindow]] = OrderedDict()
        self._keys: set[tuple[str, str, int]] = set()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def devices(self) -> tuple[str, ...]:
        """Those with windows here, the one heard of last at the end."""
        return tuple(self._devices)

    @property
    def payload_bytes(self) -> int:
        """Bytes of all payloads."""
        return sum(len(window.payload) for windows in self._devices.values() for window in windows)

    def insert(self, window: BufferedWindow) -> bool:
        """Takes a window to its place in time.

        Returns:
            Whether it is here now: not if it was here already, or is earlier than everything a full device keeps.

        Raises:
            ValueError: its time is not finite.
        """
        if not np.isfinite(window.start_s):
            raise ValueError(f"window {window.sequence}: expected a finite time, got {window.start_s}")
        if window.key in self._keys:
            self.duplicates += 1
            return False
        windows = self._devices.setdefault(window.device, [])
        self._devices.move_to_end(window.device)
        insort(windows, window, key=_in_time)
        self._keys.add(window.key)
        if len(windows) > self.settings.windows_per_device:
            self._drop([windows.pop(0)])
        if len(self._devices) > self.settings.devices:
            self._drop(self._devices.popitem(last=False)[1])
        return window.key in self._keys

    def latest(self, device: str, count: int = WINDOW) -> list[BufferedWindow]:
        """The device's last `count` windows by true time, earliest first; fewer or none if it has no more."""
        return self._devices.get(device, [])[-count:] if count > 0 else []

    def latest_of_all(self, count: int = WINDOW) -> list[BufferedWindow]:
        """The last `count` windows of every device, device after device."""
        return [window for device in self._devices for window in self.latest(device, count)]

    def re_embed(self, version: str, embed: Callable[[Sequence[BufferedWindow]], Array]) -> int:
        """Gives every window the embedding of a new version, where it has another's or none.

        Args:
            version: that makes the embeddings.
            embed: windows of one kind to [n, D]; asked once per kind and device.

        Returns:
            How many windows were embedded.
        """
        done = 0
        for windows in self._devices.values():
            stale = [window for window in windows if window.embedded_by != version]
            for places in by_kind(stale).values():
                group = [stale[place] for place in places]
                for window, embedding in zip(group, embed(group), strict=True):
                    at = bisect_left(windows, _in_time(window), key=_in_time)
                    windows[at] = replace(window, embedding=embedding, embedded_by=version)
                done += len(group)
        return done

    def _drop(self, windows: Iterable[BufferedWindow]) -> None:
        for window in windows:
            self._keys.discard(window.key)
            self.dropped += 1


def by_kind(windows: Sequence[BufferedWindow]) -> dict[Kind, list[int]]:
    """Where the windows of each kind stand among those given, in order."""
    places: dict[Kind, list[int]] = {}
    for place, window in enumerate(windows):
        places.setdefault(window.kind, []).append(place)
    return places


def unpacked(windows: Sequence[BufferedWindow], spec: TensorSpec, ranges: Ranges | None) -> Tensor:
    """What windows of one kind carry, ready for `SplitEncoder.tail`: [n, *spec.shape] float32.

    Args:
        windows: of one kind, at least one.
        spec: the boundary's, from `activation_spec(split)`.
        ranges: of the version and split that packed them; None for the float codecs.

    Raises:
        ValueError: none, or of several kinds.
        PayloadError: a payload does not decode to that shape.
    """
    kinds = by_kind(windows)
    if len(kinds) != 1:
        raise ValueError(f"unpacking: expected windows of one kind, got {len(kinds)} kinds")
    return torch.from_numpy(
        unpack_many([window.payload for window in windows], windows[0].codec, spec, ranges)
    )


def places_in_time(windows: Sequence[BufferedWindow]) -> tuple[Tensor, Tensor]:
    """What `hybrid.hybrid_loss` asks about windows: [N] float64 times, [N] int64 numbers of their (device, stream)."""
    numbers: dict[tuple[str, str], int] = {}
    stream = [numbers.setdefault((window.device, window.stream), len(numbers)) for window in windows]
    start_s = [window.start_s for window in windows]
    return torch.tensor(start_s, dtype=torch.float64), torch.tensor(stream, dtype=torch.int64)


def _in_time(window: BufferedWindow) -> tuple[float, str, int]:
    return window.start_s, window.stream, window.sequence
