"""Files of another kind, another format or with damage are refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from streamsplit.errors import ConfigError, StorageError
from streamsplit.learning.tensor_file import TensorFormat, read_tensors

KIND = TensorFormat("streamsplit-thing", 2, "thing", "np")


def written(folder: Path, metadata: dict[str, str]) -> Path:
    path = folder / "thing.safetensors"
    path.write_bytes(save({"x": np.arange(3.0)}, metadata))
    return path


def test_metadata_and_tensors_come_back(tmp_path: Path) -> None:
    said, tensors = read_tensors(
        written(tmp_path, {KIND.entry: json.dumps({"format_version": 2, "step": 7})}), KIND
    )
    assert said["step"] == 7
    np.testing.assert_array_equal(tensors["x"], [0.0, 1.0, 2.0])


@pytest.mark.parametrize(
    ("metadata", "error", "says"),
    [
        ({}, ConfigError, "expected a thing, got another safetensors file"),
        ({KIND.entry: '{"format_version": 3}'}, ConfigError, "expected thing format 2, got 3"),
        ({KIND.entry: "{}"}, StorageError, "damaged metadata"),
        ({KIND.entry: "[1]"}, StorageError, "damaged metadata"),
        ({KIND.entry: "not JSON"}, StorageError, "damaged metadata"),
    ],
)
def test_other_contents_are_refused(
    tmp_path: Path, metadata: dict[str, str], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=rf"thing\.safetensors: {says}"):
        read_tensors(written(tmp_path, metadata), KIND)


def test_a_file_that_is_missing_or_cut_short_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="not a readable thing"):
        read_tensors(tmp_path / "none", KIND)
    path = written(tmp_path, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match="not a readable thing"):
        read_tensors(path, KIND)
