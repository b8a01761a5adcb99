"""Heads for ONNX Runtime: the device's part of one window, up to any boundary or to its own embedding. Optional extra `onnx`.

Same numbers as torch within 1e-4. On one thread of a busy machine `compact` took 0.07 ms to b2 against 0.27-0.35 ms in eager torch, and
0.15 ms to its embedding against 0.5 ms.
"""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from streamsplit.encoders.folding import plain
from streamsplit.encoders.split import SplitEncoder
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError
from streamsplit.whole_file import write_whole
from streamsplit.wire.codec import Array

INPUT, OUTPUT = "mel", "activation"
VERSION_KEY, SPLIT_KEY = "streamsplit_version", "streamsplit_split"
NOISY: Final = ("torch.onnx", "onnxscript", "onnx_ir")


class _Head(nn.Module):
    def __init__(self, encoder: SplitEncoder, split: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.split = split

    def forward(self, mel: Tensor) -> Tensor:
        return self.encoder.head(mel, self.split)


def export_head(version: Version, split: int, path: Path) -> None:
    """Writes `head(mel, split)` of a version for batches of one window; L writes the whole edge path, to the embedding.

    Args:
        version: whose head.
        split: 1..L.
        path: of the .onnx file, written whole.

    Raises:
        ConfigError: the extra is not installed, or the split has no head.
        StorageError: the file cannot be written.
    """
    if not 1 <= split <= version.encoder.last_split:
        raise ConfigError(
            f"onnx: {version.name}: split: expected 1..{version.encoder.last_split}, got {split}"
        )
    onnx = _library("onnx")
    _library("onnxscript")
    head = _Head(plain(version.encoder), split).eval()
    example = torch.zeros(1, *version.front_end.spec.shape)
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            head, (example,), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
        )
        model = program.model_proto
    onnx.helper.set_model_props(model, {VERSION_KEY: version.id, SPLIT_KEY: str(split)})
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    write_whole(path, buffer.getvalue())


class OnnxHead:
    """A head exported by `export_head`, run by ONNX Runtime on one thread.

    Attributes:
        version: id of the encoder version it belongs to.
        split: where it ends.

    Raises:
        ConfigError: the extra is not installed, or the file is missing or not one of ours.
    """

    def __init__(self, path: Path) -> None:
        runtime = _library("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not path.is_file():
            raise ConfigError(f"{path}: expected an ONNX file, got nothing there")
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except _load_errors() as error:
            raise ConfigError(f"{path}: not an ONNX model: {str(error).splitlines()[0]}") from error
        properties = self._session.get_modelmeta().custom_metadata_map
        if VERSION_KEY not in properties or SPLIT_KEY not in properties:
            raise ConfigError(f"{path}: expected a head exported by StreamSplit, got another ONNX model")
        self.version: str = properties[VERSION_KEY]
        self.split = int(properties[SPLIT_KEY])

    def __call__(self, mel: Array) -> Array:
        """[1, 1, F, T] float32 to the activation [1, C, H, W], or the embedding [1, D] at L."""
        result: Array = np.asarray(self._session.run([OUTPUT], {INPUT: mel})[0])
        return result


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"onnx: needs the optional packages: pip install 'streamsplit[onnx]' ({name})"
        ) from error


def _load_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a file that is no model: classes of its own, with nothing but Exception in common."""
    state = _library("onnxruntime.capi.onnxruntime_pybind11_state")
    names = (
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NotImplemented",
        "RuntimeException",
    )
    return tuple(getattr(state, name) for name in names)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress notes, and torch's warnings about its own deprecated calls, to itself."""
    loggers = [logging.getLogger(name) for name in NOISY]
    levels = [noisy.level for noisy in loggers]
    for noisy in loggers:
        noisy.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            warnings.simplefilter("ignore", category=DeprecationWarning)
            yield
    finally:
        for noisy, level in zip(loggers, levels, strict=True):
            noisy.setLevel(level)
