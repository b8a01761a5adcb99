"""Heads in ONNX Runtime give torch's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from streamsplit.encoders.calibrate import made_mel
from streamsplit.encoders.onnx import OnnxHead, export_head
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, StorageError

pytest.importorskip("onnxruntime", reason="needs the extra `onnx`")
pytest.importorskip("onnxscript", reason="needs the extra `onnx`")


@pytest.mark.parametrize("split", [3, 4])
def test_an_exported_head_gives_the_same_numbers(compact: Version, split: int, tmp_path: Path) -> None:
    export_head(compact, split, tmp_path / "head.onnx")
    head = OnnxHead(tmp_path / "head.onnx")
    assert (head.version, head.split) == (compact.id, split)
    for mel in torch.split(made_mel(compact.front_end, 4, seed=50), 1):
        with torch.inference_mode():
            expected = compact.encoder.head(mel, split).numpy()
        np.testing.assert_allclose(head(mel.numpy()), expected, atol=1e-4, rtol=1e-4)


def test_a_split_without_a_head_is_refused(compact: Version, tmp_path: Path) -> None:
    for split in (0, 5):
        with pytest.raises(ConfigError, match=f"split: expected 1..4, got {split}"):
            export_head(compact, split, tmp_path / "head.onnx")


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    import onnx

    with pytest.raises(ConfigError, match="got nothing there"):
        OnnxHead(tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ConfigError, match="not an ONNX model"):
        OnnxHead(tmp_path / "text.onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    other = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [other])
    model = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(ConfigError, match="expected a head exported by StreamSplit"):
        OnnxHead(tmp_path / "other.onnx")


def test_a_folder_that_is_not_there_is_a_storage_error(compact: Version, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        export_head(compact, 1, tmp_path / "nowhere" / "head.onnx")
