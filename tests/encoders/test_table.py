"""The cost table counts what is there and measures every split."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from streamsplit.encoders.table import EncoderTable, measure, render
from streamsplit.encoders.version import Version
from streamsplit.wire.codec import Codec, most_packed_bytes


class Ticks:
    """A clock that advances one millisecond at each look."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1e-3
        return self.now_s


@pytest.fixture(scope="module")
def table(compact: Version) -> EncoderTable:
    return measure(compact, budget_s=0.0, clock=Ticks())


def test_every_split_has_its_row(table: EncoderTable, compact: Version) -> None:
    assert [row.split for row in table.splits] == [0, 1, 2, 3, 4]
    assert [row.name for row in table.splits] == ["features", "b0", "b1", "b2", "lite"]
    assert [row.path for row in table.splits] == ["dense"] * 3 + ["squeezed", "lite"]
    assert (table.name, table.version, table.trained) == ("compact", compact.id, False)
    for row in table.splits[:4]:
        spec = compact.encoder.activation_spec(row.split)
        assert row.shape == spec.shape
        assert row.raw_bytes[Codec.INT4] == most_packed_bytes(spec, Codec.INT4)
        assert row.expected_bytes[Codec.INT4] == compact.expected_bytes[row.split, Codec.INT4]
    assert table.splits[4].raw_bytes[Codec.INT8] == 130


def test_multiply_accumulates_are_those_of_the_layers(table: EncoderTable) -> None:
    b0 = 16 * 25 * 32 * 48 + 32 * 16 * 9 * 16 * 24 + 12 * 32 * 16 * 24
    assert table.splits[1].head_macs == b0
    assert table.splits[0].head_macs == table.splits[4].tail_macs == 0
    whole = table.splits[0].tail_macs
    assert all(row.head_macs + row.tail_macs == whole for row in table.splits[:3])
    trunk = 256 * 128 * 9 * 4 * 6 + 256 * 256 * 9 * 4 * 6 + 256 * 128 * 4 * 6 + 512 * 128
    door = 128 * 16 * 9 * 8 * 12
    assert table.splits[2].tail_macs == table.splits[3].tail_macs == door + trunk
    lite = 128 * 16 * 9 * 2 * 6 + 256 * 128
    assert table.splits[4].head_macs == table.splits[3].head_macs + lite


def test_times_are_medians_of_the_clock(table: EncoderTable) -> None:
    assert all(row.head_ms == pytest.approx(1.0) for row in table.splits)
    assert all(row.tail_batch_ms == pytest.approx(1 / 16) for row in table.splits)


def test_parameters_are_counted_once(table: EncoderTable, compact: Version) -> None:
    assert table.parameters == sum(parameter.numel() for parameter in compact.trainable().parameters())


def test_the_table_can_be_drawn(table: EncoderTable) -> None:
    file = io.StringIO()
    Console(file=file, width=200).print(render(table, (Codec.INT4, Codec.INT3)))
    drawn = file.getvalue()
    assert "UNTRAINED" in drawn
    assert "16x4x12" in drawn
    assert "~48" not in drawn
    assert "int4" in drawn
