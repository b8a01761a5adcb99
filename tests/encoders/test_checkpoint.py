"""Versions on disk: what is saved comes back to the bit, and what is not one of ours is refused in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from streamsplit.encoders.checkpoint import FORMAT, load, load_trainable, round_to_half, save
from streamsplit.encoders.version import Version, freeze
from streamsplit.errors import ConfigError, StorageError


@pytest.fixture
def path(tmp_path: Path, compact: Version) -> Path:
    file = tmp_path / "compact.safetensors"
    save(compact, file)
    return file


Said = dict[str, Any]


def contents(path: Path) -> tuple[Said, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[FORMAT]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def write(path: Path, said: Said, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path, {FORMAT: json.dumps(said)})


def test_what_was_saved_comes_back_to_the_bit(path: Path, compact: Version) -> None:
    loaded = load(path)
    assert loaded.id == compact.id
    assert loaded.front_end == compact.front_end
    assert loaded.expected_bytes == compact.expected_bytes
    assert (loaded.trained, loaded.note, loaded.name) == (compact.trained, compact.note, "compact")
    for split, bounds in compact.ranges.items():
        assert loaded.ranges[split].low.tobytes() == bounds.low.tobytes()
        assert loaded.ranges[split].high.tobytes() == bounds.high.tobytes()
    mel = torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.encoder(mel), compact.encoder(mel))


def test_training_can_go_on_from_a_file(path: Path, compact: Version) -> None:
    encoder = load_trainable(path)
    assert encoder.state_dict().keys() == compact.state.keys()
    assert all(torch.equal(tensor, compact.state[name]) for name, tensor in encoder.state_dict().items())


def test_saving_twice_gives_the_same_file(path: Path, compact: Version, tmp_path: Path) -> None:
    save(load(path), tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again.safetensors", "compact.safetensors"]


@pytest.fixture
def half(tmp_path: Path, compact: Version) -> Path:
    """A file of a version whose weights are half-precision numbers."""
    encoder = compact.trainable()
    round_to_half(encoder)
    file = tmp_path / "half.safetensors"
    save(freeze(encoder, compact.ranges, compact.expected_bytes, trained=True), file)
    return file


def test_weights_that_are_half_precision_take_half_the_bytes_and_come_back_to_the_bit(
    path: Path, half: Path, compact: Version, tmp_path: Path
) -> None:
    assert half.stat().st_size < 0.52 * path.stat().st_size
    encoder = compact.trainable()
    round_to_half(encoder)
    loaded = load(half)
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in loaded.state.items())
    assert {tensor.dtype for tensor in loaded.state.values()} == {torch.float32, torch.int64}
    save(loaded, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == half.read_bytes()
    assert contents(path)[0]["stored_as"] == "float32"


def test_a_file_from_before_half_precision_loads(path: Path, compact: Version) -> None:
    said, tensors = contents(path)
    del said["stored_as"]
    write(path, said, tensors)
    assert load(path).id == compact.id


def test_half_precision_that_is_not_announced_or_unknown_is_refused(half: Path) -> None:
    said, tensors = contents(half)
    for stored_as, message in (("float32", "got torch.float16"), ("int4", "expected float32 or float16")):
        write(half, {**said, "stored_as": stored_as}, tensors)
        with pytest.raises(StorageError, match=message):
            load(half)


def test_weights_beyond_half_precision_are_named(compact: Version) -> None:
    encoder = compact.trainable()
    with torch.no_grad():
        encoder.embedding_block.project.bias[3] = 1e6
    with pytest.raises(ValueError, match=r"compact: blocks\.3\.project\.bias: expected weights up to 65504"):
        round_to_half(encoder)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"nothing\.safetensors: expected an encoder file, got nothing there"
    ):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(ConfigError, match="got a folder"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 1_000, 100_000, -1])
def test_a_truncated_file_is_found_out(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StorageError, match="damaged or not a safetensors file") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_is_found_out(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"compact\.safetensors: "):
        load(path)


def test_a_file_that_is_no_safetensors_is_refused(path: Path) -> None:
    path.write_text("hello, this is not an encoder")
    with pytest.raises(StorageError, match="damaged or not a safetensors file"):
        load(path)


def test_a_foreign_safetensors_file_is_refused(path: Path) -> None:
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(ConfigError, match="expected a StreamSplit encoder, got another safetensors file"):
        load(path)


def drop_one(said: Said, tensors: dict[str, Tensor]) -> None:
    del tensors["weights/dense.project.weight"]


def add_one(said: Said, tensors: dict[str, Tensor]) -> None:
    tensors["weights/dense.foreign"] = torch.zeros(2)


def reshape_one(said: Said, tensors: dict[str, Tensor]) -> None:
    tensors["weights/dense.project.weight"] = torch.zeros(128, 7)


def retype_one(said: Said, tensors: dict[str, Tensor]) -> None:
    tensors["weights/dense.project.weight"] = tensors["weights/dense.project.weight"].half()


def poison_one(said: Said, tensors: dict[str, Tensor]) -> None:
    tensors["weights/dense.project.weight"][0, 0] = float("nan")


def lose_a_range(said: Said, tensors: dict[str, Tensor]) -> None:
    del tensors["ranges/2/low"]


def invert_a_range(said: Said, tensors: dict[str, Tensor]) -> None:
    tensors["ranges/2/low"], tensors["ranges/2/high"] = tensors["ranges/2/high"], tensors["ranges/2/low"]


def break_bytes(said: Said, tensors: dict[str, Tensor]) -> None:
    said["expected_bytes"] = {"1:morse": 3}


def break_front_end(said: Said, tensors: dict[str, Tensor]) -> None:
    said["front_end"] = {}


def break_options(said: Said, tensors: dict[str, Tensor]) -> None:
    said["options"] = [1]


def lose_a_field(said: Said, tensors: dict[str, Tensor]) -> None:
    del said["note"]


def rename(said: Said, tensors: dict[str, Tensor]) -> None:
    said["id"] = "compact-000000000000"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (drop_one, r"tensor dense\.project\.weight is missing \(1 in all\)"),
        (add_one, r"tensor dense\.foreign is not one of its own"),
        (reshape_one, r"expected torch\.float32 \(128, 512\), got torch\.float32 \(128, 7\)"),
        (retype_one, r"expected torch\.float32 \(128, 512\), got torch\.float16"),
        (poison_one, "expected finite numbers"),
        (lose_a_range, "ranges of split 2: expected 16 channels"),
        (invert_a_range, "ranges of split 2: expected float32 with low below high"),
        (break_bytes, "damaged metadata: 'morse' is not a valid Codec"),
        (break_front_end, "damaged metadata: front end"),
        (break_options, "damaged metadata"),
        (lose_a_field, "damaged metadata: 'note' is missing"),
        (rename, "expected compact-000000000000"),
    ],
)
def test_wrong_contents_are_named(
    path: Path, harm: Callable[[Said, dict[str, Tensor]], None], message: str
) -> None:
    said, tensors = contents(path)
    harm(said, tensors)
    write(path, said, tensors)
    with pytest.raises(StorageError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_a_newer_format_and_an_unknown_encoder_are_refused(path: Path) -> None:
    said, tensors = contents(path)
    write(path, {**said, "format_version": 2}, tensors)
    with pytest.raises(ConfigError, match="expected encoder format 1, got 2"):
        load(path)
    write(path, {**said, "name": "wav2vec"}, tensors)
    with pytest.raises(ConfigError, match="expected one of compact, cola"):
        load(path)


def test_a_folder_that_cannot_be_written_is_a_storage_error(compact: Version, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written: No such file or directory"):
        save(compact, tmp_path / "nowhere" / "x.safetensors")
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="cannot be written"):
        save(compact, tmp_path / "taken")
    assert os.listdir(tmp_path) == ["taken"]
