"""What one device has learned as a message, made on the device and read by the server."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from streamsplit.encoders.version import Version
from streamsplit.errors import PayloadError
from streamsplit.learning.averaging import DeviceDifference
from streamsplit.learning.differences import pack, quantised, spec_of, unpack

DEVICE_PREFIX = "blocks."
"""What a device may change: what it computes with. The server's other tails are not its business."""

MOST_WINDOWS = 1 << 40
"""A difference can come of; at one a second 34,000 years."""


def pack_device_difference(
    difference: Mapping[str, Tensor], version: Version, device: str, windows: int, bits: int = 8
) -> bytes:
    """What a device has learned, ready to be sent.

    Args:
        difference: name -> tensor, of what it trains, relative to `version`.
        version: the base.
        device: its name.
        windows: it learned from, at least 1.
        bits: of the levels.
    """
    said = {"device": device, "base": version.id, "windows": windows}
    return pack(quantised(difference, bits), spec_of(version.state, DEVICE_PREFIX), said)


def device_difference(message: bytes, version: Version) -> DeviceDifference:
    """Reads such a message.

    Raises:
        PayloadError: damaged, of another base than `version`, or of tensors that are not a device's to change.
    """
    small, said = unpack(message, spec_of(version.state, DEVICE_PREFIX))
    windows = said.get("windows")
    if said.get("base") != version.id:
        raise PayloadError(f"difference: expected one of {version.id}, got one of {said.get('base')}")
    if type(windows) is not int or not 1 <= windows <= MOST_WINDOWS:
        raise PayloadError(f"difference: expected 1..{MOST_WINDOWS} windows, got {str(windows)[:40]}")
    return DeviceDifference(str(said.get("device")), version.id, windows, small.tensors())
