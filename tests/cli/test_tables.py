"""What the commands draw for people: at 80 columns every figure stands there whole."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from streamsplit.cli.evaluate import COLUMNS
from streamsplit.cli.evaluate import _table as judged_table
from streamsplit.cli.lab import _table as lab_table
from streamsplit.cli.look import _profile_table
from streamsplit.encoders.table import EncoderTable, SplitRow, render
from streamsplit.policy.power import PI4_WIFI
from streamsplit.policy.profile import Profile, Timing
from streamsplit.server.query import Found
from streamsplit.server.search import Neighbour, SourceMatch
from streamsplit.wire.audio import AUDIO_CODECS
from streamsplit.wire.codec import EMBEDDING_CODECS, Codec

CUT = "…"
WIDTHS = (80, 120)
SIZES = {
    "fp32": 196_608.4,
    "fp16": 98_304.0,
    "int8": 49_152.0,
    "int5": 30_720.0,
    "int4": 24_576.0,
    "int3": 18_432.0,
}


def drawn(table: Table, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    return text


@pytest.fixture(scope="module")
def profile() -> Profile:
    """A heavy encoder's: the widest figures that occur."""
    last = 9
    payload_bytes = {(split, codec): size for split in range(last) for codec, size in SIZES.items()}
    payload_bytes |= {(last, str(codec)): 512.0 for codec in EMBEDDING_CODECS}
    payload_bytes |= {(-1, str(codec)): 30_720.0 for codec in AUDIO_CODECS}
    return Profile(
        device="aarch64 Linux, 4 cores",
        version="compact-0123456789ab",
        last_split=last,
        window_s=0.96,
        features_ms=Timing(1.25, 2.0),
        head_ms={split: Timing(1234.4, 2000.0) for split in range(last + 1)},
        pack_ms=dict.fromkeys(payload_bytes, 0.1),
        payload_bytes=payload_bytes,
        keep_ms=0.1,
        tail_ms=dict.fromkeys(range(last), 1234.4) | {last: 0.0},
        tail_source="this device, batch 1",
        power=PI4_WIFI,
        repeats=3,
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_a_profile_is_readable(profile: Profile, width: int) -> None:
    text = drawn(_profile_table(profile), width)
    assert CUT not in text
    assert text.count("196,608") == 9
    assert text.count("18,432") == 9
    assert text.count("1,234") == 9 + 10
    assert "pcm16 30,720" in text


def test_a_profile_shows_only_what_it_holds(profile: Profile) -> None:
    few = {kind: size for kind, size in profile.payload_bytes.items() if kind[1] in ("int8", "opus")}
    text = drawn(_profile_table(replace(profile, payload_bytes=few, pack_ms=few)), 80)
    assert text.count("49,152") == 9
    assert "fp32" not in text
    assert "pcm16" not in text


@pytest.mark.parametrize("width", WIDTHS)
def test_an_encoder_is_readable(width: int) -> None:
    row = SplitRow(
        split=7,
        name="embedding",
        path="squeezed",
        shape=(32, 32, 48),
        raw_bytes={Codec.INT8: 49_152, Codec.INT4: 24_576},
        expected_bytes={},
        head_macs=212_500_000,
        tail_macs=212_500_000,
        head_ms=1234.4,
        tail_ms=1234.4,
        tail_batch_ms=1234.4,
    )
    text = drawn(render(EncoderTable("compact", "compact-0", True, 10**6, "16 kHz", (row, row))), width)
    assert CUT not in text
    assert text.count("~49,152") == 2
    assert text.count("1,234") == 6


@pytest.mark.parametrize("width", WIDTHS)
def test_neighbours_are_readable_however_long_their_names(width: int) -> None:
    long = "a-recording-with-a-name-that-nobody-shortened/" * 2
    near = Neighbour(1234567, 0.987, "a-device-in-the-far-garden", long, 7, 86_400.5, long, "chirping_birds")
    windows = drawn(Found("7", "compact-0", windows=(near,)).table(), width)
    sources = drawn(Found("7", "compact-0", sources=(SourceMatch(long, 0.987, 123, near),)).table(), width)
    for text in (windows, sources):
        assert CUT not in text
        assert "0.987" in text
    assert "1234567" in windows
    assert "86400.5 s" in windows
    assert "123" in sources


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_of_systems_is_readable(width: int) -> None:
    system = {
        "label": "everything to the server as PCM",
        "return": {"mean": -12.345},
        "latency_ms": {"p50": 12_345.6, "p95": 65_432.1, "p99": 76_543.2},
        "uplink_bytes_per_s": 32_123.4,
        "energy_mj": {"mean": 12_345.6},
        "accuracy": {"mean": 0.789},
        "lost": 0,
    }
    found = {"title": "LTE", "encoder": "compact", "seeds": [0, 1], "systems": {"server_pcm": system}}
    text = drawn(lab_table("lte-idle", found), width)
    assert CUT not in text
    for figure in ("-12.345", "12,345.6", "65,432.1", "76,543.2", "32,123", "12,346", "78.9"):
        assert figure in text


@pytest.mark.parametrize("width", WIDTHS)
def test_judged_representations_are_readable_however_long_a_checkpoints_name(width: int) -> None:
    share = {"mean": 0.853, "spread": 0.12}
    figures = dict.fromkeys(COLUMNS, share)
    name = str(Path("/srv") / ("a-long-folder/" * 8) / "weights.pt")
    text = drawn(judged_table({name: {"representations": {"dense pooled": figures}}}, COLUMNS, "%"), width)
    assert CUT not in text
    assert text.count("85.3 ±12") == len(COLUMNS)
