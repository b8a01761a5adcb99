"""Reading back what learning keeps: safetensors files with one JSON entry of metadata, named after what the file holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from streamsplit.errors import ConfigError, StorageError


@dataclass(frozen=True, slots=True)
class TensorFormat:
    """One kind of file.

    Attributes:
        entry: the metadata's name.
        version: its "format_version".
        holds: what the file is, for messages: "disagreement head".
        framework: "pt" for torch tensors, "np" for arrays.
    """

    entry: str
    version: int
    holds: str
    framework: str


def read_tensors(path: Path, kind: TensorFormat) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata and the tensors, by name. What stands in them is for the caller to check.

    Raises:
        ConfigError: another kind of file, or of another format.
        StorageError: missing, damaged or truncated.
    """
    try:
        with safe_open(path, framework=kind.framework) as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StorageError(f"{path}: not a readable {kind.holds}: {error}") from error
    if kind.entry not in metadata:
        raise ConfigError(f"{path}: expected a {kind.holds}, got another safetensors file")
    try:
        said = dict(json.loads(metadata[kind.entry]))
        version = said["format_version"]
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{path}: damaged metadata: {error}") from error
    if version != kind.version:
        raise ConfigError(f"{path}: expected {kind.holds} format {kind.version}, got {version}")
    return said, tensors


def finite(
    path: Path, arrays: Mapping[str, Any], name: str, shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    """An array of a file, as float64.

    Raises:
        KeyError: it is not there.
        StorageError: of another shape, or with numbers that are not finite.
    """
    stored = arrays[name]
    if stored.shape != shape or not np.isfinite(stored).all():
        raise StorageError(f"{path}: {name}: expected finite {shape}, got {stored.shape}")
    return np.asarray(stored, np.float64)
