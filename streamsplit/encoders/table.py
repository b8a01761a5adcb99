"""What an encoder costs at each split: shapes, bytes on the wire, multiply-accumulates and measured milliseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from rich import box
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from streamsplit.encoders.calibrate import EMBEDDING_CODECS, TENSOR_CODECS, one_thread
from streamsplit.encoders.split import SplitEncoder
from streamsplit.encoders.version import Version
from streamsplit.wire.codec import Codec, embedding_bytes, most_packed_bytes

TAIL_BATCH: Final = 16
"""Windows per batch in the server's measurement."""
LEAST_REPEATS: Final = 3


@dataclass(frozen=True, slots=True)
class SplitRow:
    """One split of one encoder.

    Attributes:
        split: 0 features, k after block k, L embedding.
        name: the boundary's.
        path: which embedding a window cut here ends in.
        shape: of the activation, without batch.
        raw_bytes: codec -> bytes before compression.
        expected_bytes: codec -> mean packed bytes, where they were measured.
        head_macs: multiply-accumulates on the device, per window.
        tail_macs: likewise on the server.
        head_ms: median milliseconds of the head, one window, one thread.
        tail_ms: median milliseconds of the tail, one window, one thread.
        tail_batch_ms: likewise per window in batches of `TAIL_BATCH`, uncertainty included.
    """

    split: int
    name: str
    path: str
    shape: tuple[int, ...]
    raw_bytes: Mapping[Codec, int]
    expected_bytes: Mapping[Codec, float]
    head_macs: int
    tail_macs: int
    head_ms: float
    tail_ms: float
    tail_batch_ms: float


@dataclass(frozen=True, slots=True)
class EncoderTable:
    """One encoder version.

    Attributes:
        name: of the encoder.
        version: its id.
        trained: False for random weights.
        parameters: numbers that training changes, all paths together.
        front_end: one line.
        splits: rows 0..L.
    """

    name: str
    version: str
    trained: bool
    parameters: int
    front_end: str
    splits: tuple[SplitRow, ...]


def measure(
    version: Version, budget_s: float = 0.2, clock: Callable[[], float] = time.perf_counter
) -> EncoderTable:
    """Counts and measures a version on this machine.

    Args:
        version: any encoder's.
        budget_s: seconds spent on each timing, after three repeats that are always made.
        clock: monotonic seconds.
    """
    trainable, own = version.trainable(), version.front_end
    generator = torch.Generator().manual_seed(0)
    mel = torch.randn(TAIL_BATCH, *own.spec.shape, generator=generator)
    with one_thread(), torch.inference_mode():
        rows = tuple(
            _row(version, trainable, split, mel, _Stopwatch(budget_s, clock))
            for split in range(version.encoder.last_split + 1)
        )
    return EncoderTable(
        name=version.name,
        version=version.id,
        trained=version.trained,
        parameters=sum(parameter.numel() for parameter in trainable.parameters()),
        front_end=f"{own.sample_rate_hz / 1000:g} kHz, {own.window_s:g} s, {own.mel_bins} x {own.frames} log-mel",
        splits=rows,
    )


def render(table: EncoderTable, codecs: tuple[Codec, ...] = (Codec.INT8, Codec.INT4)) -> Table:
    """For a terminal of 80 columns or more: one row per split; expected bytes where known, else the raw ones with a tilde."""
    weights = "trained" if table.trained else "UNTRAINED"
    title = f"{table.name}  {table.version}  {weights}  {table.parameters / 1e6:.2f} M parameters  {table.front_end}"
    drawn = Table(
        title=title,
        caption="bytes: ~ before compression; MMAC: million multiply-accumulates\n"
        f"ms: a window, one thread; of {TAIL_BATCH}: the tail in batches of {TAIL_BATCH}",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE,
        padding=0,
        show_edge=False,
    )
    for heading in ("split", "cut after", "path", "shape"):
        drawn.add_column(heading, no_wrap=True)
    headings = [f"{codec}\nbytes" for codec in codecs]
    headings += ["head\nMMAC", "tail\nMMAC", "head\nms", "tail\nms", f"of {TAIL_BATCH}\nms"]
    for heading in headings:
        drawn.add_column(heading, justify="right", no_wrap=True)
    for row in table.splits:
        drawn.add_row(
            str(row.split),
            row.name,
            row.path,
            "x".join(map(str, row.shape)),
            *(_bytes(row, codec) for codec in codecs),
            f"{row.head_macs / 1e6:.1f}",
            f"{row.tail_macs / 1e6:.1f}",
            milliseconds(row.head_ms),
            milliseconds(row.tail_ms),
            milliseconds(row.tail_batch_ms),
        )
    return drawn


def milliseconds(value: float) -> str:
    """As a column five wide shows it: no hundredths from 100 ms on.

    >>> milliseconds(0.314), milliseconds(99.99), milliseconds(1234.5)
    ('0.31', '99.99', '1,234')
    """
    return f"{value:.2f}" if value < 99.995 else f"{value:,.0f}"


class _Stopwatch:
    """Median time of a call."""

    def __init__(self, budget_s: float, clock: Callable[[], float]) -> None:
        self._budget_s = budget_s
        self._clock = clock

    def median_ms(self, call: Callable[[], object]) -> float:
        call()  # the first one allocates
        spent: list[float] = []
        while len(spent) < LEAST_REPEATS or sum(spent) < self._budget_s:
            began = self._clock()
            call()
            spent.append(self._clock() - began)
        return statistics.median(spent) * 1e3


def _row(
    version: Version, trainable: SplitEncoder, split: int, mel: torch.Tensor, watch: _Stopwatch
) -> SplitRow:
    encoder = version.encoder
    one = mel[:1]
    activations = encoder.head(mel, split).contiguous()
    activation = activations[:1]
    is_last = split == encoder.last_split
    spec = encoder.activation_spec(split)
    raw = (
        {codec: embedding_bytes(codec, encoder.embedding_dim) for codec in EMBEDDING_CODECS}
        if is_last
        else {codec: most_packed_bytes(spec, codec) for codec in TENSOR_CODECS}
    )
    return SplitRow(
        split=split,
        name=("features", *encoder.block_names)[split],
        path=encoder.path(split),
        shape=spec.shape,
        raw_bytes=raw,
        expected_bytes={codec: size for (at, codec), size in version.expected_bytes.items() if at == split},
        head_macs=_macs(lambda: trainable.head(one, split)),
        tail_macs=_macs(lambda: trainable.tail(activation, split)),
        head_ms=watch.median_ms(lambda: encoder.head(one, split)),
        tail_ms=watch.median_ms(lambda: encoder.tail(activation, split)),
        tail_batch_ms=watch.median_ms(lambda: encoder.tail_and_own(activations, split)) / len(mel),
    )


def _macs(call: Callable[[], object]) -> int:
    """Multiply-accumulates of convolutions and matrix products; the rest is not counted."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) // 2


def _bytes(row: SplitRow, codec: Codec) -> str:
    if codec in row.expected_bytes:
        return f"{row.expected_bytes[codec]:,.0f}"
    return f"~{row.raw_bytes[codec]:,}" if codec in row.raw_bytes else "-"
