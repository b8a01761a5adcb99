"""Measures what the wire needs to know of an encoder: each channel's range at each boundary, and the bytes a window costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from streamsplit.audio.features import FrontEndSettings, LogMel
from streamsplit.encoders.split import SplitEncoder
from streamsplit.wire.codec import Codec, Ranges, embedding_bytes, pack

TENSOR_CODECS: Final = (Codec.FP32, Codec.FP16, Codec.INT8, Codec.INT5, Codec.INT4, Codec.INT3)
EMBEDDING_CODECS: Final = (Codec.FP32, Codec.FP16, Codec.INT8, Codec.INT4)
PERCENTILES: Final = (0.1, 99.9)
"""Clipping the rarest 0.2 % of numbers makes every step of the quantiser finer; the embeddings agree better than with min and max."""
CHUNK: Final = 16
PACKED_WINDOWS: Final = 48
CLIP_S: Final = 5.0


def calibrate(
    encoder: SplitEncoder, mel: Tensor, packed: int = PACKED_WINDOWS
) -> tuple[dict[int, Ranges], dict[tuple[int, Codec], float]]:
    """Ranges and expected bytes of a trainable encoder.

    Args:
        encoder: in any mode; it is not changed.
        mel: [N, 1, F, T], a few hundred windows of the sound it will hear.
        packed: of how many of them bytes are counted; windows differ by a quarter, so the mean of 48 is off by 3 or 4 %.

    Returns:
        split -> ranges for every split but L, and (split, codec) -> mean bytes of a packed window for every split.
    """
    twin = encoder.for_inference()
    with one_thread(), torch.no_grad():
        ranges = calibrate_ranges(twin, mel)
        return ranges, expected_bytes(twin, ranges, mel[:: max(1, len(mel) // packed)])


def calibrate_ranges(encoder: SplitEncoder, mel: Tensor) -> dict[int, Ranges]:
    """Percentiles 0.1 and 99.9 of each channel at each boundary before L; the features' range is the front end's own."""
    ranges = {0: encoder.front_end.ranges}
    for split in range(1, encoder.last_split):
        channels = encoder.activation_spec(split).shape[0]
        parts = [
            encoder.head(part, split).transpose(0, 1).reshape(channels, -1)
            for part in torch.split(mel, CHUNK)
        ]
        low, high = np.percentile(torch.cat(parts, dim=1).numpy(), PERCENTILES, axis=1).astype(np.float32)
        ranges[split] = Ranges(
            low, np.maximum(high, low + np.float32(1e-3))
        )  # a silent channel has a range too
    return ranges


def expected_bytes(
    encoder: SplitEncoder, ranges: Mapping[int, Ranges], mel: Tensor
) -> dict[tuple[int, Codec], float]:
    """Mean bytes of a packed window by (split, codec), over the windows given; exact for embeddings."""
    bytes_of: dict[tuple[int, Codec], float] = {}
    for split in range(encoder.last_split):
        windows = (
            torch.cat([encoder.head(part, split) for part in torch.split(mel, CHUNK)]).contiguous().numpy()
        )
        for codec in TENSOR_CODECS:
            sizes = [len(pack(window, codec, ranges[split])) for window in windows]
            bytes_of[split, codec] = float(np.mean(sizes))
    for codec in EMBEDDING_CODECS:
        bytes_of[encoder.last_split, codec] = float(embedding_bytes(codec, encoder.embedding_dim))
    return bytes_of


def settle_norms(encoder: SplitEncoder, activation: Tensor, split: int = 0) -> None:
    """Sets batch norms' statistics to those of the windows given, as the plain mean over batches.

    Args:
        encoder: changed in place; left in evaluation mode.
        activation: windows at boundary `split`; log-mel at 0.
        split: batch norms of the blocks before it stay as they are.
    """
    settled = encoder.learning_from(split)
    norms = [module for part in settled for module in part.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    encoder.eval()
    for part in settled:
        part.train()
    with one_thread(), torch.no_grad():
        for windows in torch.split(activation, CHUNK):
            encoder.embeddings(windows, split)
    encoder.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def made_mel(front_end: FrontEndSettings, windows: int, seed: int = 0) -> Tensor:
    """Log-mel of made sounds, the same on every call: [N, 1, F, T] with N at most `windows`, every kind of sound in turn."""
    from streamsplit.audio.synth import EVENT_KINDS, make_clip  # only random weights need sounds to be made

    clip_s, rate_hz = max(CLIP_S, front_end.window_s), front_end.sample_rate_hz
    per_clip = int(clip_s / front_end.window_s)
    samples = []
    for index in range(-(-windows // per_clip)):
        clip = make_clip(EVENT_KINDS[index % len(EVENT_KINDS)], seed + index, clip_s, rate_hz)
        samples.append(
            clip[: per_clip * front_end.window_samples].reshape(per_clip, front_end.window_samples)
        )
    batch = torch.from_numpy(np.concatenate(samples)[:windows])
    with one_thread():
        log_mel = LogMel(front_end)
        return torch.cat([log_mel(part) for part in torch.split(batch, CHUNK)])


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs torch on one thread, so that sums have one order and made versions one name."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
