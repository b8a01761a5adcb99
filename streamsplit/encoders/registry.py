"""Encoder versions by name: shipped, from a file, or made on the spot with random weights."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Final

import torch

from streamsplit.encoders.calibrate import calibrate, made_mel, settle_norms
from streamsplit.encoders.catalogue import ENCODERS, Builder, build
from streamsplit.encoders.checkpoint import load, load_trainable, save
from streamsplit.encoders.clap import ClapEncoder
from streamsplit.encoders.split import SplitEncoder
from streamsplit.encoders.version import Version, freeze
from streamsplit.errors import ConfigError, StorageError

__all__ = [
    "ENCODERS",
    "UNTRAINED",
    "Builder",
    "SplitEncoder",
    "Version",
    "build",
    "cache_folder",
    "freeze",
    "load",
    "load_trainable",
    "make_untrained",
    "resolve",
    "save",
]

logger = logging.getLogger(__name__)

UNTRAINED: Final = "untrained"
SHIPPED: Final = Path(__file__).parent / "weights"
CALIBRATION_WINDOWS: Final = 240
CLAP_CALIBRATION_WINDOWS: Final = 4
"""Of 10 s each; only the features' bytes and one batch norm depend on them."""


def resolve(
    name: str, weights: str | None = None, *, cache: Path | None = None, shipped: Path = SHIPPED
) -> Version:
    """The version a user named.

    Args:
        name: a key of `ENCODERS`.
        weights: a file saved by `save`; for clap also a local Hugging Face folder; "untrained" or "untrained:SEED" for random
            weights; None for the shipped ones, or, where none are shipped, random ones with a warning (never for clap).
        cache: folder in which made versions are kept; `cache_folder()` unless told.
        shipped: folder of the shipped weights.

    Raises:
        ConfigError: no such encoder or file, or a file of another encoder.
        StorageError: a damaged file.
    """
    if name not in ENCODERS:
        raise ConfigError(f"encoder: expected one of {', '.join(ENCODERS)}, got {name!r}")
    if weights is None:
        return _default(name, shipped, cache or cache_folder())
    if weights == UNTRAINED or weights.startswith(f"{UNTRAINED}:"):
        return _untrained_cached(name, _seed(weights), cache or cache_folder())
    path = Path(weights).expanduser()
    if name == "clap" and path.is_dir():
        return _clap_version(
            ClapEncoder.from_folder(path), trained=True, note=f"Hugging Face folder {path.name}"
        )
    version = load(path)
    if version.name != name:
        raise ConfigError(f"{path}: expected a {name} encoder, got {version.name}")
    return version


def make_untrained(name: str, seed: int = 0, options: dict[str, Any] | None = None) -> Version:
    """A version with random weights, batch norms and ranges calibrated on made sounds; the same seed gives the same version.

    Bit-equal between processes of one machine; another processor may round differently and so give another id.

    Args:
        name: a key of `ENCODERS`.
        seed: of the weights.
        options: as in `SplitEncoder.options`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = build(name, options=options)
    note = f"random weights, seed {seed}"
    if isinstance(encoder, ClapEncoder):
        return _clap_version(encoder, trained=False, note=note)
    mel = made_mel(encoder.front_end, CALIBRATION_WINDOWS)
    settle_norms(encoder, mel)
    return freeze(encoder, *calibrate(encoder, mel), trained=False, note=note)


def cache_folder() -> Path:
    """Where made versions are kept: $XDG_CACHE_HOME or ~/.cache, under streamsplit/encoders."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "streamsplit" / "encoders"


def _default(name: str, shipped: Path, cache: Path) -> Version:
    path = shipped / f"{name}.safetensors"
    if path.is_file():
        return load(path)
    if name == "clap":
        raise ConfigError(
            "clap: no weights are shipped: give a local Hugging Face folder (config.json, model.safetensors),"
            " or ask for random ones with weights = 'untrained'"
        )
    logger.warning(
        "%s: no trained weights are shipped: using random ones, whose embeddings mean little", name
    )
    return _untrained_cached(name, 0, cache)


def _seed(weights: str) -> int:
    digits = weights.removeprefix(UNTRAINED).removeprefix(":") or "0"
    if not digits.isdecimal():
        raise ConfigError(f"weights: expected untrained:SEED with a whole number, got {weights!r}")
    return int(digits)


def _untrained_cached(name: str, seed: int, cache: Path) -> Version:
    """Made once and kept: calibration takes seconds. Processes that make it at once write equal files, each whole."""
    path = cache / f"{name}-untrained-{seed}-{ENCODERS[name].front_end.fingerprint}.safetensors"
    if path.is_file():
        try:
            return load(path)
        except (ConfigError, StorageError) as error:
            logger.info("cached encoder is made anew: %s", error)
    version = make_untrained(name, seed)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(version, path)
    except (OSError, StorageError) as error:
        logger.warning("encoder cannot be cached, it will be made again next time: %s", error)
    return version


def _clap_version(encoder: ClapEncoder, trained: bool, note: str) -> Version:
    mel = made_mel(encoder.front_end, CLAP_CALIBRATION_WINDOWS)
    if not trained:
        settle_norms(encoder, mel)
    return freeze(encoder, *calibrate(encoder, mel), trained=trained, note=note)
