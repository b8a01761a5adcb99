"""Scenarios: what ships is sound, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamsplit.errors import ConfigError
from streamsplit.lab.scenario import load, parse, shipped
from streamsplit.lab.schedule import make_schedule

LEAST: dict[str, Any] = {"name": "mine", "title": "mine", "link": {"made": "1M"}}


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_scenario_is_named_after_its_file_and_has_a_schedule_without_real_traces(
    name: str,
) -> None:
    scenario = load(name)
    assert scenario.name == name
    for seed in scenario.seeds:
        schedule = make_schedule(scenario, seed, None)
        assert schedule.uplink_source.startswith("made")
        assert max(rate for _, rate in schedule.uplink) >= 100e3


def test_the_scenarios_that_were_promised_are_shipped() -> None:
    promised = {"wifi-idle", "lte-idle", "lte-loaded", "evdo-idle", "umts-idle", "commute-3g", "outages"}
    assert promised | {"pi4-wifi", "pi4-lte-loaded", "lte-held", "lte-cola", "lte-clap"} <= set(shipped())
    assert {load(name).encoder for name in shipped()} == {"compact", "cola", "clap", "resnet18"}


@pytest.mark.parametrize("name", ["lte-cola", "lte-clap"])
def test_random_weights_are_asked_for_in_so_many_words(name: str) -> None:
    assert load(name).weights == "untrained"
    assert "random weights" in load(name).title


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"speed": 0}, r"speed = 0: .*greater than 0"),
        ({"color": "red"}, r"color = 'red'"),
        ({"link": {}}, r"link\.made"),
        ({"link": {"made": "1M", "delay_ms": -1}}, r"link\.delay_ms = -1"),
        ({"link": {"made": "1M", "outages": [[9, 3, "cut"]]}}, "beginning before its end"),
        ({"device": {"slowdown": 10}}, "where does the figure come from"),
        ({"device": {"power": "nuclear"}}, r"device\.power = 'nuclear'.*pi4-wifi"),
        ({"load": {"kind": "constant", "percent": 101}}, r"load\.percent = 101"),
        ({"sound": {"kind": "recordings"}}, "expected `path`"),
        ({"seeds": [1, 1]}, "no two alike"),
        ({"name": "not a name"}, "name = 'not a name'"),
    ],
)
def test_a_mistake_is_told_with_key_value_and_what_is_legal(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        parse({**LEAST, **wrong}, "mine.toml")


def test_a_scenario_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="wifi-idle"):
        load("nowhere")
    broken = tmp_path / "broken.toml"
    broken.write_text("name = ")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(str(broken))


def test_recordings_are_looked_for_beside_the_scenario(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "m"\ntitle = "m"\n[link]\nmade = "1M"\n[sound]\nkind = "recordings"\npath = "clips"\n'
    )
    assert load(str(file)).sound.path == tmp_path / "clips"


def test_a_real_trace_is_used_where_it_is_and_begins_later_for_another_seed(tmp_path: Path) -> None:
    (tmp_path / "rates.csv").write_text("seconds,bits_per_second\n0,1e6\n10,2e6\n20,4e6\n")
    scenario = parse(
        {**LEAST, "link": {"trace": "rates.csv", "made": "1M"}, "sound": {"seconds": 10}}, "here"
    )
    first, second = (make_schedule(scenario, seed, tmp_path) for seed in (0, 1))
    assert first.uplink_source == "rates.csv"
    assert [first.rate_at(t) for t in (0.0, 9.9, 10.0, 25.0, 30.0)] == [1e6, 1e6, 2e6, 4e6, 1e6]
    assert [second.rate_at(t) for t in (0.0, 10.0, 20.0)] == [2e6, 4e6, 1e6]
    assert "not at hand" in make_schedule(scenario, 0, tmp_path / "elsewhere").uplink_source


def test_the_link_stands_still_in_an_outage_and_a_load_keeps_its_mean(tmp_path: Path) -> None:
    (tmp_path / "cpu.csv").write_text("step,a,b\n0,1,10\n1,1,30\n")
    load_part = {"kind": "trace", "trace": "cpu.csv", "percent": 40, "step_s": 2}
    link = {"made": "1M", "outages": [[3, 5, "cut"]]}
    schedule = make_schedule(parse({**LEAST, "link": link, "load": load_part}, "here"), 0, tmp_path)
    assert [schedule.rate_at(t) for t in (2.9, 3.0, 5.0)] == [1e6, 0.0, 1e6]
    assert [schedule.load_at(t) for t in (0.0, 2.0, 4.0)] == [20.0, 60.0, 20.0]


def test_the_fingerprint_follows_settings_and_not_the_list_of_seeds() -> None:
    one = parse(LEAST, "here")
    assert one.fingerprint == parse({**LEAST, "seeds": [3, 4]}, "here").fingerprint
    assert one.fingerprint != parse(LEAST, "here", speed=2.0).fingerprint
    assert one.fingerprint != parse(LEAST, "here", seconds=50.0).fingerprint


def test_quota_and_time_make_up_the_slowdown_together() -> None:
    device = {"slowdown": 8, "source": "a guess"}
    for speed in (1.0, 2.0, 8.0, 16.0):
        scenario = parse({**LEAST, "device": device}, "here", speed=speed)
        assert scenario.compute_factor / scenario.quota == pytest.approx(8.0)
