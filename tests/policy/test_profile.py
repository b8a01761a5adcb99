"""Profiles: measured whole, kept whole, and refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError
from streamsplit.policy.cost import predict_energy_mj, predict_latency_ms
from streamsplit.policy.observation import Option
from streamsplit.policy.power import POWER_MODELS
from streamsplit.policy.profile import FORMAT, Profile, load_profile, measure_profile, profile_for
from streamsplit.wire.codec import EMBEDDING_CODECS, TENSOR_CODECS
from tests.policy.device import PROFILE, observed


class Ticking:
    """A clock that moves on by one millisecond each time it is read."""

    def __init__(self) -> None:
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.reads * 1e-3


@pytest.fixture(scope="module")
def measured(compact: Version) -> Profile:
    return measure_profile(compact, repeats=3, clock=Ticking())


def test_every_option_of_the_encoder_is_measured(measured: Profile, compact: Version) -> None:
    last = compact.encoder.last_split
    kinds = {(split, str(codec)) for split in range(last) for codec in TENSOR_CODECS}
    kinds |= {(last, str(codec)) for codec in EMBEDDING_CODECS} | {(-1, "pcm16"), (-1, "flac"), (-1, "opus")}
    assert set(measured.pack_ms) == set(measured.payload_bytes) == kinds
    assert set(measured.head_ms) == set(measured.tail_ms) == set(range(last + 1))
    assert (measured.version, measured.last_split, measured.repeats) == (compact.id, last, 3)
    assert measured.window_s == pytest.approx(0.96)


def test_each_part_is_timed_by_itself(measured: Profile) -> None:
    """With a clock that ticks once a reading, every part takes one tick."""
    assert measured.features_ms.p50 == pytest.approx(1.0)
    assert measured.keep_ms == pytest.approx(1.0)
    assert [timing.p95 for timing in measured.head_ms.values()] == pytest.approx([1.0] * 5)
    assert list(measured.tail_ms.values()) == pytest.approx([1.0] * 4 + [0.0])
    assert list(measured.pack_ms.values()) == pytest.approx([1.0] * len(measured.pack_ms))


def test_expected_bytes_are_those_of_the_calibration(measured: Profile, compact: Version) -> None:
    assert measured.payload_bytes[(3, "int4")] == pytest.approx(compact.expected_bytes[(3, "int4")])
    assert measured.payload_bytes[(4, "int8")] == 130.0
    assert measured.payload_bytes[(-1, "pcm16")] == 30_720.0


def test_a_measured_profile_prices_every_option(measured: Profile) -> None:
    for (split, codec), payload_bytes in measured.payload_bytes.items():
        option = Option(split, codec, payload_bytes)
        assert predict_latency_ms(measured, option, observed()).total > 0
        assert predict_energy_mj(measured, option, observed()).total > 0


@pytest.mark.parametrize("power", POWER_MODELS.values(), ids=POWER_MODELS)
def test_what_is_saved_is_loaded(power: Any, measured: Profile, tmp_path: Path) -> None:
    for number, profile in enumerate((PROFILE, measured)):
        path = tmp_path / "new" / f"{number}.json"
        profile.save(path)
        assert load_profile(path) == profile
    assert power.modelled
    assert power.source


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 0}', "\x00\x01", json.dumps({"format": FORMAT})]
)
def test_other_files_are_refused_by_name(text: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"profile .*profile\.json: expected"):
        load_profile(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("keep_ms", None, "keep_ms = None"),
        ("keep_ms", -1.0, r"keep_ms = -1\.0"),
        ("keep_ms", float("nan"), "keep_ms = nan"),
        ("keep_ms", True, "keep_ms = True"),
        ("last_split", 2.5, "last_split = 2.5"),
        ("last_split", 7, "instead of 0 to 7"),
        ("head_ms", {"0": 3}, "subscriptable"),
        ("pack_ms", {"2/int7": 1.0}, "int7"),
        ("pack_ms", {"two/int4": 1.0}, "two"),
        ("pack_ms", {}, "different options"),
        ("power", {"name": "x"}, "power with name"),
        ("window_s", 0, "no length"),
    ],
)
def test_a_wrong_figure_is_named(name: str, value: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    PROFILE.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ConfigError, match=message):
        load_profile(path)


def test_a_missing_figure_or_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_profile(path)
    PROFILE.save(path)
    record = json.loads(path.read_text())
    del record["tail_source"]
    path.write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="no 'tail_source'"):
        load_profile(path)


def test_a_profile_is_measured_once_and_then_kept(compact: Version, tmp_path: Path) -> None:
    first = profile_for(compact, tmp_path, repeats=1)
    assert profile_for(compact, tmp_path, repeats=1) == first
    (path,) = tmp_path.iterdir()
    path.write_text("damaged")
    assert profile_for(compact, tmp_path, repeats=1).version == compact.id
    assert load_profile(path).version == compact.id


def test_a_folder_that_cannot_be_written_costs_only_the_keeping(compact: Version, tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    assert profile_for(compact, occupied / "profiles", repeats=1).version == compact.id


def test_no_rounds_measure_nothing(compact: Version) -> None:
    with pytest.raises(ValueError, match="got 0"):
        measure_profile(compact, repeats=0)
