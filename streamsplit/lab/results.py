"""The results folder: one JSON per finished (scenario, seed, system), and what all of them come to.

DIR/SCENARIO/seed-N/SYSTEM.json     rows and figures of one run; written whole when it is finished
DIR/SCENARIO/seed-N/about.json      what the seed's runs share: trace, load, probe, map, simulation
DIR/summary.json  DIR/windows.parquet  DIR/report.html
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from streamsplit.errors import ConfigError
from streamsplit.lab.rows import Row
from streamsplit.whole_file import make_folder, whole, write_whole

FORMAT: Final = 2
"""2: rows say what the cost model had expected."""
ABOUT: Final = "about"


@dataclass(slots=True)
class Seed:
    """What is known of one (scenario, seed).

    Attributes:
        about: see the module.
        rows, facts: of each finished system.
    """

    about: dict[str, Any]
    rows: dict[str, list[Row]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)


def folder_of(out: Path, scenario: str, seed: int) -> Path:
    """Where one (scenario, seed) lives."""
    return out / scenario / f"seed-{seed}"


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes it whole or not at all.

    Raises:
        StorageError: it cannot be written.
    """
    make_folder(path)
    write_whole(path, (json.dumps(record, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Raises:
        ConfigError: it is not there, or is something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a result of the lab: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ConfigError(f"{path}: expected a result of format {FORMAT}; run the lab into a new folder")
    return record


def finished(folder: Path, system: str, fingerprint: str) -> bool:
    """Whether a run is done already.

    Raises:
        ConfigError: it is, of a scenario with other settings.
    """
    path = folder / f"{system}.json"
    if not path.exists():
        return False
    if read_json(path)["fingerprint"] != fingerprint:
        raise ConfigError(
            f"{path} is of a scenario with other settings or traces; give another --out, or delete {folder}"
        )
    return True


def write_run(
    folder: Path, system: str, fingerprint: str, rows: Sequence[Row], facts: Mapping[str, Any]
) -> None:
    """One finished run. Rows are kept by column."""
    columns = {name: [getattr(row, name) for row in rows] for name in Row.__slots__}
    record = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "system": system,
        "facts": facts,
        "columns": columns,
    }
    write_json(folder / f"{system}.json", record)


def read_rows(record: Mapping[str, Any]) -> list[Row]:
    """The rows of `write_run`."""
    columns = record["columns"]
    return [Row(*values) for values in zip(*(columns[name] for name in Row.__slots__), strict=True)]


def read_all(out: Path) -> dict[str, dict[int, Seed]]:
    """Everything in a results folder, by scenario and seed.

    Raises:
        ConfigError: there is nothing, or something that is no result.
    """
    found: dict[str, dict[int, Seed]] = {}
    for about in sorted(out.glob(f"*/seed-*/{ABOUT}.json")):
        number = about.parent.name.removeprefix("seed-")
        if not number.isdecimal():
            continue
        seed = Seed(read_json(about))
        for path in sorted(about.parent.glob("*.json")):
            if path.stem != ABOUT:
                record = read_json(path)
                seed.rows[record["system"]], seed.facts[record["system"]] = read_rows(record), record["facts"]
        found.setdefault(about.parent.parent.name, {})[int(number)] = seed
    if not found:
        raise ConfigError(f"{out}: expected results of `streamsplit lab run`, found none")
    return found


def write_parquet(results: Mapping[str, Mapping[int, Seed]], path: Path) -> int:
    """One row per window of every run; returns how many.

    Raises:
        ConfigError: pyarrow is not installed.
        StorageError: it cannot be written.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ConfigError("Parquet wants pyarrow: install streamsplit[train]") from None
    rows = [
        {"scenario": scenario, "seed": number, "system": system, **row.as_dict()}
        for scenario, seeds in results.items()
        for number, seed in seeds.items()
        for system, listed in seed.rows.items()
        for row in listed
    ]
    with whole(path) as partial:
        parquet.write_table(pa.Table.from_pylist(rows), partial)
    return len(rows)
