"""Windows as a server received them: made sound, packed at a boundary by a version, of several devices."""

from __future__ import annotations

import torch

from streamsplit.audio.features import LogMel
from streamsplit.audio.window import Samples
from streamsplit.encoders.version import Version
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.wire.codec import Codec, pack

SIZE = 15_360


def received(
    version: Version, sound: Samples, split: int, devices: int = 2, windows: int = 120
) -> list[BufferedWindow]:
    """Consecutive windows of the sound, dealt to devices in runs of ten; features as int8, activations as int4."""
    codec = Codec.INT8 if split == 0 else Codec.INT4
    count = min(windows, len(sound) // SIZE)
    with torch.inference_mode():
        cut = torch.from_numpy(sound[: count * SIZE].reshape(count, SIZE))
        activation = version.encoder.head(LogMel(version.front_end)(cut), split).numpy()
    return [
        BufferedWindow(
            device=f"pi{number // 10 % devices}",
            stream="kitchen",
            sequence=number,
            start_s=0.96 * number,
            version=version.id,
            split=split,
            codec=codec,
            payload=pack(activation[number], codec, version.ranges[split]),
        )
        for number in range(count)
    ]
