"""The systems that a scenario compares: each is a client told another way of deciding, or a model of one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from streamsplit.errors import ConfigError
from streamsplit.policy.observation import AUDIO_SPLIT

LEARNED: Final = "learned"
ORACLE: Final = "oracle"
STREAMED: Final = "server_pcm_streamed"
EDGE_ONLY: Final = "edge_only"
BEST_FIXED: Final = "best_fixed"

MODELLED: Final = (STREAMED, ORACLE)
"""Not run: computed from what was, or simulated."""


@dataclass(frozen=True, slots=True)
class System:
    """One system.

    Attributes:
        name: of its file and its key in summary.json.
        label: for people.
        arguments: of `streamsplit replay`.
        fixed: always the same split (of those a device has without being told to send sound).
        profiled: its decider wants the device's profile.
        split: that it always takes, -1 for sound; None: it decides.
    """

    name: str
    label: str
    arguments: tuple[str, ...]
    fixed: bool = False
    profiled: bool = False
    split: int | None = None


def _audio(name: str, label: str, codec: str, *more: str) -> System:
    arguments = ("--send-audio", "--split", "audio", "--audio-codec", codec, *more)
    return System(name, label, arguments, split=AUDIO_SPLIT)


def all_systems(last_split: int) -> dict[str, System]:
    """Every system of an encoder with splits 0 to `last_split`, by name, in the order of tables.

    >>> list(all_systems(2))[:7]
    ['server_pcm', 'server_flac', 'server_opus_24k', 'server_opus', 'split_0', 'split_1', 'edge_only']
    """
    systems = [
        _audio("server_pcm", "PCM to the server", "pcm16"),
        _audio("server_flac", "FLAC to the server", "flac"),
        _audio("server_opus_24k", "Opus 24k to the server", "opus", "--audio-kbps", "24"),
        _audio("server_opus", "Opus 12k to the server", "opus", "--audio-kbps", "12"),
        System("split_0", "log-mel, 8 bit (split 0)", ("--split", "0"), fixed=True, split=0),
        *(
            System(
                f"split_{split}", f"split {split}, 4 bit", ("--split", str(split)), fixed=True, split=split
            )
            for split in range(1, last_split)
        ),
        System(EDGE_ONLY, "all on the device", ("--split", str(last_split)), fixed=True, split=last_split),
        System("heuristic", "heuristic", ("--decider", "heuristic")),
        System("greedy_profile", "greedy by profile", ("--decider", "greedy-profile"), profiled=True),
        System("linucb", "LinUCB", ("--decider", "linucb"), profiled=True),
        System(LEARNED, "learned", ("--decider", "learned"), profiled=True),
    ]
    return {system.name: system for system in systems}


def label_of(name: str) -> str:
    """For people, models and summaries included."""
    extra = {
        STREAMED: "PCM streamed (modelled)",
        ORACLE: "oracle (modelled)",
        BEST_FIXED: "best fixed split in hindsight",
    }
    if name in extra:
        return extra[name]
    number = re.fullmatch(r"split_(\d+)", name)
    known = all_systems(int(number[1]) + 1 if number else 1).get(name)
    return known.label if known else name


def choose(names: Sequence[str] | None, last_split: int) -> list[System]:
    """The systems that were asked for, all without `names`; modelled ones are left out, they need no run.

    Raises:
        ConfigError: an unknown name.
    """
    known = all_systems(last_split)
    if not names:
        return list(known.values())
    unknown = [name for name in names if name not in known and name not in MODELLED]
    if unknown:
        legal = ", ".join((*known, *MODELLED))
        raise ConfigError(f"--systems: expected some of {legal}, got {unknown[0]!r}")
    return [known[name] for name in known if name in names]


def rotated(systems: Sequence[System], seed: int) -> list[System]:
    """The order of one seed: each system comes first, in the middle and last about as often."""
    shift = (seed * 5) % len(systems) if systems else 0
    return [*systems[shift:], *systems[:shift]]
