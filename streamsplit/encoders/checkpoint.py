"""Encoder versions on disk: one safetensors file with the unfolded weights, the ranges, and all the rest as metadata.

Metadata: one entry, "streamsplit-encoder", a JSON object with format_version (1), id, name, front_end, options, expected_bytes
("split:codec" -> bytes), stored_as, trained and note. (One entry, because safetensors writes several in random order: equal versions
are equal files.) Tensors: "weights/NAME", and "ranges/SPLIT/low" and ".../high". Nothing in it is ever executed. The name in `id` is
recomputed on loading, so a damaged file is found out.

`stored_as` is "float32", or "float16" where every weight is a half-precision number (see `round_to_half`): half the bytes, and the same
float32 weights come back to the bit. Files without it are "float32"; a reader that does not know it refuses float16 files by their
tensors' type.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from streamsplit.audio.features import FrontEndSettings
from streamsplit.encoders.catalogue import build
from streamsplit.encoders.split import SplitEncoder
from streamsplit.encoders.version import Version, freeze
from streamsplit.errors import ConfigError, StorageError
from streamsplit.whole_file import write_whole
from streamsplit.wire.codec import Codec, Ranges

FORMAT: Final = "streamsplit-encoder"
FORMAT_VERSION: Final = 1
WEIGHTS, RANGES = "weights/", "ranges/"


@dataclass(frozen=True, slots=True)
class _Described:
    id: str
    name: str
    front_end: FrontEndSettings
    options: dict[str, Any]
    expected_bytes: dict[tuple[int, Codec], float]
    stored_as: str
    trained: bool
    note: str


@torch.no_grad()
def round_to_half(encoder: SplitEncoder) -> None:
    """Rounds every weight to the nearest half-precision number, in place: its version then takes half the bytes on disk.

    Do it before calibrating: ranges and id are then those of the file.

    Raises:
        ValueError: a weight is beyond half precision (65,504).
    """
    for name, tensor in encoder.state_dict().items():
        if tensor.dtype == torch.float32:
            tensor.copy_(tensor.half())
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{encoder.name}: {name}: expected weights up to 65504, got more")


def save(version: Version, path: Path) -> None:
    """Writes a version so that training can go on from it; the file appears whole or not at all.

    Raises:
        StorageError: the folder is missing, read-only or full.
    """
    halves = all(_is_half(tensor) for tensor in version.state.values())
    tensors = {
        WEIGHTS + name: (tensor.half() if halves and tensor.dtype == torch.float32 else tensor).contiguous()
        for name, tensor in version.state.items()
    }
    for split, bounds in version.ranges.items():
        tensors[f"{RANGES}{split}/low"] = torch.from_numpy(bounds.low)
        tensors[f"{RANGES}{split}/high"] = torch.from_numpy(bounds.high)
    description = {
        "format_version": FORMAT_VERSION,
        "id": version.id,
        "name": version.name,
        "front_end": json.loads(version.front_end.to_json()),
        "options": version.encoder.options,
        "expected_bytes": {
            f"{split}:{codec}": size for (split, codec), size in version.expected_bytes.items()
        },
        "stored_as": "float16" if halves else "float32",
        "trained": version.trained,
        "note": version.note,
    }
    write_whole(path, to_bytes(tensors, {FORMAT: json.dumps(description, sort_keys=True)}))


def load(path: Path) -> Version:
    """Reads a version, ready for inference.

    Raises:
        ConfigError: no such file, or not one of ours, or of a newer format.
        StorageError: damaged or truncated.
    """
    text, tensors = _read(path)
    described = _parse(path, text)
    with torch.random.fork_rng(devices=[]):
        encoder = build(described.name, described.front_end, described.options)
    _fill(path, encoder, _restored(tensors, described.stored_as))
    ranges = _ranges(path, encoder, tensors)
    version = freeze(encoder, ranges, described.expected_bytes, described.trained, described.note)
    if version.id != described.id:
        raise StorageError(f"{path}: damaged: its contents are {version.id}, expected {described.id}")
    return version


def load_trainable(path: Path) -> SplitEncoder:
    """Reads the unfolded encoder, to train it further. Raises as `load` does."""
    return load(path).trainable()


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    if not path.is_file():
        raise ConfigError(
            f"{path}: expected an encoder file, got {'a folder' if path.is_dir() else 'nothing there'}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            if FORMAT not in metadata:
                raise ConfigError(f"{path}: expected a StreamSplit encoder, got another safetensors file")
            return metadata[FORMAT], {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise StorageError(f"{path}: damaged or not a safetensors file: {error}") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parse(path: Path, text: str) -> _Described:
    try:
        said = json.loads(text)
        if said["format_version"] == FORMAT_VERSION:
            return _Described(
                id=str(said["id"]),
                name=str(said["name"]),
                front_end=FrontEndSettings.from_json(json.dumps(said["front_end"])),
                options=dict(said["options"]),
                expected_bytes=_expected_bytes(said["expected_bytes"]),
                stored_as=_stored_as(said.get("stored_as", "float32")),
                trained=said["trained"] is True,
                note=str(said["note"]),
            )
    except KeyError as error:
        raise StorageError(f"{path}: damaged metadata: {error} is missing") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise StorageError(f"{path}: damaged metadata: {error}") from error
    raise ConfigError(f"{path}: expected encoder format {FORMAT_VERSION}, got {said['format_version']}")


def _expected_bytes(said: Mapping[str, float]) -> dict[tuple[int, Codec], float]:
    sizes = {}
    for key, size in said.items():
        split, _, codec = key.partition(":")
        sizes[int(split), Codec(codec)] = float(size)
    return sizes


def _stored_as(said: str) -> str:
    if said not in ("float32", "float16"):
        raise ValueError(f"stored_as: expected float32 or float16, got {said!r}")
    return said


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype != torch.float32 or torch.equal(tensor.half().float(), tensor)


def _restored(tensors: Mapping[str, Tensor], stored_as: str) -> dict[str, Tensor]:
    """The tensors with half-precision weights as float32 again, if the file says they are stored so."""
    if stored_as == "float32":
        return dict(tensors)
    return {
        key: tensor.float() if key.startswith(WEIGHTS) and tensor.dtype == torch.float16 else tensor
        for key, tensor in tensors.items()
    }


def _fill(path: Path, encoder: SplitEncoder, tensors: Mapping[str, Tensor]) -> None:
    """Loads weights after checking that each is there, of the right shape and type, and finite."""
    weights = {
        key.removeprefix(WEIGHTS): tensor for key, tensor in tensors.items() if key.startswith(WEIGHTS)
    }
    expected = encoder.state_dict()
    if missing := sorted(expected.keys() - weights.keys()):
        raise StorageError(f"{path}: {encoder.name}: tensor {missing[0]} is missing ({len(missing)} in all)")
    if foreign := sorted(weights.keys() - expected.keys()):
        raise StorageError(
            f"{path}: {encoder.name}: tensor {foreign[0]} is not one of its own ({len(foreign)} in all)"
        )
    for name, want in expected.items():
        got = weights[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            raise StorageError(
                f"{path}: {name}: expected {want.dtype} {tuple(want.shape)}, got {got.dtype} {tuple(got.shape)}"
            )
        if not torch.isfinite(got).all():
            raise StorageError(f"{path}: {name}: expected finite numbers, got NaN or infinity")
    encoder.load_state_dict(weights)


def _ranges(path: Path, encoder: SplitEncoder, tensors: Mapping[str, Tensor]) -> dict[int, Ranges]:
    ranges = {}
    for split in range(encoder.last_split):
        bounds = [tensors.get(f"{RANGES}{split}/{side}") for side in ("low", "high")]
        channels = (encoder.activation_spec(split).shape[0],)
        low, high = bounds
        if low is None or high is None or low.shape != channels or high.shape != channels:
            raise StorageError(
                f"{path}: ranges of split {split}: expected {channels[0]} channels, low and high"
            )
        if low.dtype != torch.float32 or high.dtype != torch.float32 or not bool((low < high).all()):
            raise StorageError(f"{path}: ranges of split {split}: expected float32 with low below high")
        ranges[split] = Ranges(low.numpy(), high.numpy())
    return ranges
