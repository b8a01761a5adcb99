"""Quality tables: read between their knots, kept in files, refused when they make no sense."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from streamsplit.errors import ConfigError
from streamsplit.policy.quality import Quality, assumed_quality, flat, load_quality, shipped_quality
from streamsplit.policy.scenarios import shipped_scenarios, under
from streamsplit.policy.worlds import QUALITY_KNOTS, curve_at
from tests.policy.worlds import QUALITY


def test_a_table_is_linear_between_knots_and_level_beyond() -> None:
    assert QUALITY.at(3, 3, 0.25) == pytest.approx(0.65)
    assert QUALITY.at(3, 3, 2.0) == QUALITY.at(3, 3, 0.5) == 0.4
    assert QUALITY.at(1, 3, 0.3) == 0.9
    assert QUALITY.at(-2, 3, 0.0) == 0.5


def test_a_splits_own_figures_go_before_the_servers() -> None:
    table = Quality("made", True, (0.0,), {"device": (0.5,), "server": (0.9,), "skip": (0.1,), "2": (0.8,)})
    assert [table.at(split, 3, 0.0) for split in (-1, 0, 1, 2, 3)] == [0.9, 0.9, 0.9, 0.8, 0.5]


def test_simulated_devices_read_curves_as_live_ones_do() -> None:
    curve = np.array([QUALITY.at(3, 3, QUALITY_KNOTS)])
    for uncertainty in np.linspace(0.0, 2.5, 101):
        read = curve_at(curve, np.array([uncertainty]))[0]
        assert read == pytest.approx(float(np.interp(uncertainty, QUALITY_KNOTS, curve[0])))


def test_a_table_survives_its_file(tmp_path: Path) -> None:
    QUALITY.save(tmp_path / "q.json")
    loaded = load_quality(tmp_path / "q.json")
    assert loaded == Quality(QUALITY.source, QUALITY.measured, QUALITY.uncertainty, dict(QUALITY.paths))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"uncertainty": [0.5, 0.0]}, "expected rising knots"),
        ({"paths": {"device": [0.5, 0.5]}}, "expected device, server and skip"),
        ({"paths": {"device": [0.5], "server": [0.5, 0.5], "skip": [0.5, 0.5]}}, "device: expected 2 shares"),
        ({"paths": {"device": [0.5, 1.5], "server": [0.5, 0.5], "skip": [0.5, 0.5]}}, "from 0 to 1"),
        ({"paths": 3}, "q.json"),
        ({"format": "other"}, "expected a streamsplit-quality of version 1"),
    ],
)
def test_a_wrong_table_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = tmp_path / "q.json"
    QUALITY.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=message):
        load_quality(path)


def test_no_file_and_no_json_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_quality(tmp_path / "absent.json")
    (tmp_path / "q.json").write_text("{")
    with pytest.raises(ConfigError, match="expected JSON"):
        load_quality(tmp_path / "q.json")


def test_made_worlds_keep_their_assumed_table_and_take_another_when_told() -> None:
    assert not assumed_quality("compact").measured
    lte, cola = (shipped_scenarios()[name] for name in ("lte", "cola-loaded"))
    changed, same = under(lte, QUALITY).world(3, 20), lte.world(3, 20)
    assert same[0].quality == assumed_quality("compact")
    assert changed[0].quality == QUALITY
    assert (changed[1].uplink_bps == same[1].uplink_bps).all()
    assert under(cola, QUALITY).world(3, 20)[0].quality == cola.world(3, 20)[0].quality


def test_the_shipped_table_says_what_it_is_and_others_are_flat() -> None:
    compact = shipped_quality("compact")
    assert compact.measured or compact.source.startswith("ASSUMED")
    assert flat(0.7, "made").at(9, 9, 0.4) == 0.7
    assert shipped_quality("cola").at(9, 9, 0.5) == shipped_quality("cola").at(0, 9, 0.0)
