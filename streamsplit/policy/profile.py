"""What one device measured about itself: milliseconds of every part, bytes of every payload.

A profile belongs to one device and one encoder version, and carries a stated power model. It is measured with
one thread on an otherwise idle device; `cost` scales it to the load of the moment.
"""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamsplit.audio.features import LogMel
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, StorageError
from streamsplit.policy.observation import AUDIO_SPLIT
from streamsplit.policy.power import PI4_WIFI, PowerModel
from streamsplit.whole_file import make_folder, write_whole
from streamsplit.wire.audio import AUDIO_CODECS, audio_bytes, pack_audio
from streamsplit.wire.codec import (
    EMBEDDING_CODECS,
    TENSOR_CODECS,
    Codec,
    pack,
    pack_embedding,
)

logger = logging.getLogger(__name__)

FORMAT = 1

ByKind = dict[tuple[int, str], float]
"""(split, codec) -> figure."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds over the repeats: median and 95th percentile."""

    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Profile:
    """One device's figures for one encoder version.

    Attributes:
        device: what it was measured on, for people.
        version: the encoder version's id.
        last_split: L.
        window_s: seconds of sound in a window, and from one window to the next.
        features_ms: PCM to log-mel.
        head_ms: per split 0..L, from log-mel.
        pack_ms: median per (split, codec); split -1 is audio, L the embedding.
        payload_bytes: expected per (split, codec).
        keep_ms: packing the features that are kept for re-sending, at every split but -1 and 0.
        tail_ms: per split 0..L; 0 at L.
        tail_source: where `tail_ms` comes from: "this device, batch 1" or "acknowledgements".
        power: the power model; nothing in it is measured where it says modelled.
        repeats: behind each figure.
    """

    device: str
    version: str
    last_split: int
    window_s: float
    features_ms: Timing
    head_ms: dict[int, Timing]
    pack_ms: ByKind
    payload_bytes: ByKind
    keep_ms: float
    tail_ms: dict[int, float]
    tail_source: str
    power: PowerModel = field(default=PI4_WIFI)
    repeats: int = 0

    def save(self, path: Path) -> None:
        """Writes JSON, whole or not at all.

        Raises:
            StorageError: it cannot be written there.
        """
        record = asdict(self) | {"format": FORMAT}
        for name in ("pack_ms", "payload_bytes"):
            record[name] = {
                f"{split}/{codec}": value for (split, codec), value in sorted(record[name].items())
            }
        make_folder(path)
        write_whole(path, json.dumps(record, indent=1).encode())


def load_profile(path: Path) -> Profile:
    """Reads what `Profile.save` wrote.

    Raises:
        ConfigError: no such file, not a profile, or a figure that is missing or out of range; the message
            names it.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"profile {path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"profile {path}: expected JSON, got something else") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ConfigError(
            f"profile {path}: expected a profile of format {FORMAT} (`streamsplit profile` writes one)"
        )
    try:
        return _profile(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"profile {path}: expected the fields of format {FORMAT}, got {what}") from error


def measure_profile(
    version: Version,
    repeats: int = 50,
    power: PowerModel = PI4_WIFI,
    clock: Callable[[], float] = time.perf_counter,
) -> Profile:
    """Measures this device: every head, tail and codec in turn, `repeats` times over, on one thread.

    Going round instead of repeating one thing at a time spreads whatever else the machine does over all
    figures alike. The tails are measured here too, in batches of one: a stand-in until acknowledgements tell
    what the server takes.

    Args:
        version: the encoder version to be used.
        repeats: rounds; the first two are thrown away.
        clock: monotonic seconds.

    Raises:
        ValueError: fewer than one round.
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected 1 or more, got {repeats}")
    spent: dict[tuple[Any, ...], list[float]] = {}
    with _one_thread(), torch.inference_mode():
        for index in range(repeats + 2):
            if index == 2:
                spent.clear()
            for part, begun_s, ended_s in _round(version, index, clock):
                spent.setdefault(part, []).append((ended_s - begun_s) * 1e3)
    timings = {
        part: Timing(round(float(np.percentile(values, 50)), 5), round(float(np.percentile(values, 95)), 5))
        for part, values in spent.items()
    }
    last_split, front_end = version.encoder.last_split, version.front_end
    pack_ms = {(part[1], str(part[2])): timing.p50 for part, timing in timings.items() if part[0] == "pack"}
    return Profile(
        device=f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
        version=version.id,
        last_split=last_split,
        window_s=front_end.window_samples / front_end.sample_rate_hz,
        features_ms=timings[("features",)],
        head_ms={split: timings[("head", split)] for split in range(last_split + 1)},
        pack_ms=pack_ms,
        payload_bytes={
            (split, codec): _expected_bytes(version, split, Codec(codec)) for split, codec in pack_ms
        },
        keep_ms=pack_ms[(0, str(Codec.INT8))],
        tail_ms={split: timings[("tail", split)].p50 for split in range(last_split)} | {last_split: 0.0},
        tail_source="this device, batch 1",
        power=power,
        repeats=repeats,
    )


def profile_for(version: Version, folder: Path | None = None, repeats: int = 15) -> Profile:
    """This device's profile of `version`: measured once, then kept.

    Args:
        folder: where it is kept; None: the user's cache, ``$XDG_CACHE_HOME/streamsplit/profiles``.
        repeats: rounds, if it has to be measured now.
    """
    base = (
        folder
        or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamsplit" / "profiles"
    )
    path = base / re.sub(r"[^A-Za-z0-9._-]", "-", f"{platform.node() or 'device'}-{version.id}.json")
    if path.exists():
        try:
            return load_profile(path)
        except ConfigError as error:
            logger.warning("%s; measuring again", error)
    logger.info("measuring this device with %s, %d rounds", version.id, repeats)
    profile = measure_profile(version, repeats)
    try:
        profile.save(path)
    except StorageError as error:
        logger.warning("%s; it will be measured again next time", error)
    return profile


def _round(
    version: Version, index: int, clock: Callable[[], float]
) -> Iterator[tuple[tuple[Any, ...], float, float]]:
    """Every part once: (part, begun, ended)."""
    encoder, front_end = version.encoder, version.front_end
    samples = _sound(front_end.window_samples, seed=index)
    log_mel = LogMel(front_end)
    begun = clock()
    mel = log_mel(torch.from_numpy(samples)[None])
    yield ("features",), begun, clock()
    for codec in AUDIO_CODECS:
        begun = clock()
        pack_audio(samples, codec, front_end.sample_rate_hz)
        yield ("pack", AUDIO_SPLIT, codec), begun, clock()
    for split in range(encoder.last_split + 1):
        begun = clock()
        activation = encoder.head(mel, split)
        yield ("head", split), begun, clock()
        last = split == encoder.last_split
        tensor = np.ascontiguousarray(activation[0].numpy())
        for codec in EMBEDDING_CODECS if last else TENSOR_CODECS:
            begun = clock()
            if last:
                pack_embedding(tensor, codec)
            else:
                pack(tensor, codec, version.ranges[split])
            yield ("pack", split, codec), begun, clock()
        if not last:
            begun = clock()
            encoder.tail(activation, split)
            yield ("tail", split), begun, clock()


def _sound(samples: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Noise whose loudness wanders: as hard to compress as a lively street."""
    generator = np.random.default_rng(seed)
    loudness = np.interp(np.arange(samples), np.linspace(0, samples, 12), generator.uniform(-50.0, -10.0, 12))
    noise: np.ndarray[Any, np.dtype[np.float32]] = generator.standard_normal(samples, dtype=np.float32)
    return np.clip(noise * np.float32(10.0) ** (loudness / 20.0), -1.0, 1.0).astype(np.float32)


def _expected_bytes(version: Version, split: int, codec: Codec) -> float:
    """What the version expects of a window; for audio what recordings took on average."""
    if split == AUDIO_SPLIT:
        front_end = version.front_end
        return audio_bytes(codec, front_end.sample_rate_hz, front_end.window_samples)
    return version.packed_bytes(split, codec)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _profile(record: Mapping[str, Any]) -> Profile:
    last_split = _whole(record, "last_split")
    profile = Profile(
        device=str(record["device"]),
        version=str(record["version"]),
        last_split=last_split,
        window_s=_figure(record["window_s"], "window_s"),
        features_ms=_timing(record["features_ms"], "features_ms"),
        head_ms={
            int(split): _timing(timing, f"head_ms {split}") for split, timing in record["head_ms"].items()
        },
        pack_ms=_by_kind(record, "pack_ms"),
        payload_bytes=_by_kind(record, "payload_bytes"),
        keep_ms=_figure(record["keep_ms"], "keep_ms"),
        tail_ms={
            int(split): _figure(value, f"tail_ms {split}") for split, value in record["tail_ms"].items()
        },
        tail_source=str(record["tail_source"]),
        power=_power(record["power"]),
        repeats=_whole(record, "repeats"),
    )
    for name, known in (("head_ms", profile.head_ms), ("tail_ms", profile.tail_ms)):
        if sorted(known) != list(range(last_split + 1)):
            raise ValueError(f"{name} for splits {sorted(known)} instead of 0 to {last_split}")
    if profile.pack_ms.keys() != profile.payload_bytes.keys() or profile.window_s == 0.0:
        raise ValueError("pack_ms and payload_bytes of different options, or windows of no length")
    return profile


def _figure(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} = {value!r} where a number from 0 up belongs")
    return float(value)


def _whole(record: Mapping[str, Any], name: str) -> int:
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{name} = {value!r} where a whole number from 0 up belongs")
    return value


def _timing(record: Mapping[str, Any], name: str) -> Timing:
    return Timing(_figure(record["p50"], f"{name} p50"), _figure(record["p95"], f"{name} p95"))


def _by_kind(record: Mapping[str, Any], name: str) -> ByKind:
    kinds: ByKind = {}
    for key, value in record[name].items():
        split, _, codec = key.partition("/")
        kinds[(int(split), str(Codec(codec)))] = _figure(value, f"{name} {key}")
    return kinds


def _power(record: Mapping[str, Any]) -> PowerModel:
    known = {item.name for item in fields(PowerModel)}
    if set(record) != known:
        raise ValueError(f"power with {', '.join(sorted(record))} instead of {', '.join(sorted(known))}")
    figures = {name: value for name, value in record.items() if name not in ("name", "source", "modelled")}
    return PowerModel(
        name=str(record["name"]),
        source=str(record["source"]),
        modelled=bool(record["modelled"]),
        **{name: _figure(value, f"power {name}") for name, value in figures.items()},
    )
