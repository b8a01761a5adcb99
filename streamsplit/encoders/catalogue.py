"""The encoders there are, by name, and how each is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from streamsplit.audio.features import CLAP_FRONT_END, COMPACT_FRONT_END, FrontEndSettings
from streamsplit.encoders.clap import ClapEncoder
from streamsplit.encoders.cola import ColaEncoder
from streamsplit.encoders.compact import CompactEncoder
from streamsplit.encoders.mobile import MobileEncoder
from streamsplit.encoders.resnet import ResNetEncoder
from streamsplit.encoders.split import SplitEncoder
from streamsplit.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Builder:
    """How one kind of encoder is made.

    Attributes:
        make: called with the front end and the encoder's options (`SplitEncoder.options`) by keyword.
        front_end: the one it is meant for.
        summary: one line for tables and help.
    """

    make: Callable[..., SplitEncoder]
    front_end: FrontEndSettings
    summary: str


ENCODERS: Final[Mapping[str, Builder]] = {
    "compact": Builder(CompactEncoder, COMPACT_FRONT_END, "narrow boundaries, a lite tail and a dense one"),
    "cola": Builder(ColaEncoder, COMPACT_FRONT_END, "EfficientNet-B0"),
    "mobile": Builder(MobileEncoder, COMPACT_FRONT_END, "MobileNetV3-Small"),
    "resnet18": Builder(ResNetEncoder, COMPACT_FRONT_END, "ResNet-18, the paper's reference"),
    "clap": Builder(ClapEncoder, CLAP_FRONT_END, "CLAP's audio tower (HTS-AT), audio or local only"),
}


def build(
    name: str, front_end: FrontEndSettings | None = None, options: Mapping[str, Any] | None = None
) -> SplitEncoder:
    """A fresh encoder that can be trained, its weights drawn from torch's global generator.

    Args:
        name: a key of `ENCODERS`.
        front_end: another than the usual one.
        options: as in `SplitEncoder.options`.

    Raises:
        ConfigError: no such encoder or option.
    """
    builder = ENCODERS.get(name)
    if builder is None:
        raise ConfigError(f"encoder: expected one of {', '.join(ENCODERS)}, got {name!r}")
    try:
        return builder.make(builder.front_end if front_end is None else front_end, **dict(options or {}))
    except TypeError as error:
        raise ConfigError(f"encoder {name}: options {dict(options or {})}: {error}") from error
