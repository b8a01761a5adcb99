"""How good an embedding is, by the path that made it and the window's uncertainty: the A of the reward.

A table, measured by an evaluation or stated as an assumption; it says which. Between its knots it is linear,
beyond them it stays level.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from streamsplit.errors import ConfigError
from streamsplit.policy.observation import SKIP_SPLIT
from streamsplit.whole_file import write_whole

FORMAT: Final = "streamsplit-quality"
FORMAT_VERSION: Final = 1
SHIPPED: Final = Path(__file__).parents[1] / "weights"
SERVER, DEVICE, SKIP = "server", "device", "skip"


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares of right answers, 0..1.

    Attributes:
        source: where the figures come from, for people.
        measured: false: assumed.
        uncertainty: knots, rising: the uncertainty that observations carry, 1 - cos(lite, dense) unless the
            source says otherwise.
        paths: at each knot, for "device", "server" and "skip"; a split's own name ("2", "-1") goes before
            "server".

    Raises:
        ValueError: knots that do not rise, a path missing or out of 0..1.
    """

    source: str
    measured: bool
    uncertainty: tuple[float, ...]
    paths: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        knots = self.uncertainty
        if not knots or any(a >= b for a, b in itertools.pairwise(knots)):
            raise ValueError(f"uncertainty: expected rising knots, got {list(knots)}")
        for name in (DEVICE, SERVER, SKIP):
            if name not in self.paths:
                raise ValueError(f"paths: expected device, server and skip, got {', '.join(self.paths)}")
        for name, values in self.paths.items():
            if len(values) != len(knots) or not all(0.0 <= value <= 1.0 for value in values):
                raise ValueError(
                    f"paths: {name}: expected {len(knots)} shares from 0 to 1, got {list(values)}"
                )

    def curve(self, split: int, last_split: int) -> tuple[float, ...]:
        """Of one option, at each knot."""
        if split == SKIP_SPLIT:
            return self.paths[SKIP]
        if split == last_split:
            return self.paths[DEVICE]
        return self.paths.get(str(split), self.paths[SERVER])

    def at(self, split: int, last_split: int, uncertainty: float | npt.NDArray[np.float64]) -> Any:
        """Of one option at an uncertainty, or at several."""
        return np.interp(uncertainty, self.uncertainty, self.curve(split, last_split))

    def save(self, path: Path) -> None:
        """Writes JSON.

        Raises:
            StorageError: it cannot be written there.
        """
        record = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "source": self.source,
            "measured": self.measured,
            "uncertainty": list(self.uncertainty),
            "paths": {name: list(values) for name, values in self.paths.items()},
        }
        write_whole(path, (json.dumps(record, indent=1) + "\n").encode())


def flat(share: float, source: str) -> Quality:
    """One quality everywhere: of an encoder whose split does not change the embedding."""
    return Quality(source, False, (0.0,), dict.fromkeys((DEVICE, SERVER, SKIP), (share,)))


def load_quality(path: Path) -> Quality:
    """Reads what `Quality.save` wrote.

    Raises:
        ConfigError: no such file, or not a table of qualities; the message names what is wrong.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"quality {path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"quality {path}: expected JSON, got something else") from error
    if (
        not isinstance(record, dict)
        or record.get("format") != FORMAT
        or record.get("format_version") != FORMAT_VERSION
    ):
        raise ConfigError(f"quality {path}: expected a {FORMAT} of version {FORMAT_VERSION}")
    try:
        return Quality(
            str(record["source"]),
            bool(record["measured"]),
            tuple(float(knot) for knot in record["uncertainty"]),
            {str(name): tuple(float(value) for value in values) for name, values in record["paths"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise ConfigError(f"quality {path}: {what}") from error


def assumed_quality(encoder: str) -> Quality:
    """The table of made worlds: what `compact` was hoped to be worth, so that there is something to decide; others are flat."""
    return (
        load_quality(SHIPPED / "quality-assumed.json") if encoder == "compact" else shipped_quality(encoder)
    )


def shipped_quality(encoder: str) -> Quality:
    """The table that comes with the project; encoders without one have one set of weights, hence one quality."""
    path = SHIPPED / f"quality-{encoder}.json"
    if path.is_file():
        return load_quality(path)
    return flat(0.8, f"assumed: {encoder} has one set of weights, so the split does not change the embedding")
