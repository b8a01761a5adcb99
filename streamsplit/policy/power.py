"""Stated power models, for devices without a meter. Everything derived from one says "modelled"."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Where a device's energy goes, linear in what it does.

    Attributes:
        name: for tables.
        idle_w: drawn whatever happens.
        core_w: added by one busy core.
        radio_j_per_byte: added by each byte sent.
        radio_active_w: added while a transfer lasts.
        radio_tail_w: added while the radio stays up after it.
        radio_tail_s: for so long, or until the next transfer.
        source: where the figures come from.
        modelled: true: no meter was involved.
    """

    name: str
    idle_w: float
    core_w: float
    radio_j_per_byte: float
    radio_active_w: float
    radio_tail_w: float
    radio_tail_s: float
    source: str
    modelled: bool = True


_PI4 = "unverified, from memory: Raspberry Pi 4: idle 2.7 W and four busy cores 6.4 W"
_HUANG = "unverified, from memory: after Huang et al., A Close Examination of 4G LTE Networks, MobiSys 2012"

PI4_WIFI = PowerModel(
    "pi4-wifi", 2.7, 0.93, 8 * 283.17e-9, 0.13286, 0.1193, 0.238, f"{_PI4}; WiFi radio: {_HUANG}"
)
PI4_LTE = PowerModel(
    "pi4-lte", 2.7, 0.93, 8 * 438.39e-9, 1.28804, 1.060, 11.576, f"{_PI4}; LTE radio: {_HUANG}"
)
PI4_3G = PowerModel("pi4-3g", 2.7, 0.93, 8 * 868.98e-9, 0.81788, 0.6013, 8.088, f"{_PI4}; 3G radio: {_HUANG}")

_LAPTOP = "assumed: idle laptop 4 W, 4 W a busy core"
LAPTOP_WIFI = replace(
    PI4_WIFI, name="laptop-wifi", idle_w=4.0, core_w=4.0, source=f"{_LAPTOP}; {PI4_WIFI.source}"
)
LAPTOP_LTE = replace(
    PI4_LTE, name="laptop-lte", idle_w=4.0, core_w=4.0, source=f"{_LAPTOP}; {PI4_LTE.source}"
)

POWER_MODELS = {model.name: model for model in (PI4_WIFI, PI4_LTE, PI4_3G, LAPTOP_WIFI, LAPTOP_LTE)}
"""By name. The first is the default."""
