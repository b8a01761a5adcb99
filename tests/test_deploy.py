"""What is shipped for running it for good: settings files that load, units and pins that agree with the program."""

from __future__ import annotations

import configparser
import plistlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from streamsplit.config import ClientSettings, ServerSettings, load

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
KINDS = [("client", ClientSettings), ("server", ServerSettings)]


class _Unit(configparser.ConfigParser):
    """A systemd unit: keys keep their case, repeated ones their last value."""

    def __init__(self) -> None:
        super().__init__(strict=False, interpolation=None, allow_no_value=True)

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def unit(name: str) -> _Unit:
    parsed = _Unit()
    parsed.read_string((DEPLOY / f"streamsplit-{name}.service").read_text())
    return parsed


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / name).read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {package.lower().replace("_", "-"): version for package, version in pairs}


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_the_example_settings_load(name: str, kind: Any) -> None:
    settings = load(kind, DEPLOY / f"{name}.toml")
    assert settings.tls is not None


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_the_example_names_every_setting_there_is(name: str, kind: Any) -> None:
    text = (DEPLOY / f"{name}.toml").read_text()
    missing = [
        key
        for key in kind.model_fields
        if not re.search(rf"^(# )?{key} = ", text, re.M) and not re.search(rf"^\[{key}\]$", text, re.M)
    ]
    assert missing == []


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_settings_that_are_commented_out_are_legal_too(name: str, kind: Any, tmp_path: Path) -> None:
    text = re.sub(r"^# (\w+ = )", r"\1", (DEPLOY / f"{name}.toml").read_text(), flags=re.M)
    path = tmp_path / "all.toml"
    path.write_text(text)
    assert load(kind, path).model_fields_set >= set(tomllib.loads(text))


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_unit_runs_the_program_with_the_example_and_lends_it_the_files_it_names(
    name: str, kind: Any
) -> None:
    service, text = unit(name)["Service"], (DEPLOY / f"streamsplit-{name}.service").read_text()
    assert service["ExecStart"].endswith(f"bin/streamsplit {name} --config /etc/streamsplit/{name}.toml")
    settings = load(kind, DEPLOY / f"{name}.toml")
    named = [*settings.tls.model_dump(exclude_none=True).values(), getattr(settings, "token_file", None)]
    named += [getattr(settings, "devices", None)]
    for path in filter(None, named):
        assert path.parent == Path(f"/run/credentials/streamsplit-{name}.service")
        assert f"\nLoadCredential={path.name}:" in text


def test_a_unit_gives_a_drain_time_to_end() -> None:
    settings = load(ServerSettings, DEPLOY / "server.toml")
    assert int(unit("server")["Service"]["TimeoutStopSec"]) > settings.drain_s + 10


def test_the_agent_of_a_mac_runs_the_client() -> None:
    agent = plistlib.loads((DEPLOY / "org.streamsplit.client.plist").read_bytes())
    assert agent["ProgramArguments"][1:3] == ["client", "--config"]
    assert agent["KeepAlive"] == {"SuccessfulExit": False}


def test_the_raspberry_pis_pins_cover_every_base_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = {re.split(r"[<>=!]", needed)[0] for needed in project["dependencies"]}
    assert base <= set(pins("pi4.txt"))
    assert pins("pi4.txt")["torch"] == pins("pi4.txt")["torchaudio"] == "2.9.1"


def test_both_machines_run_the_same_releases_but_for_torch() -> None:
    there, here = pins("pi4.txt"), pins("workstation.txt")
    assert {name for name, version in there.items() if here.get(name) != version} == {"torch", "torchaudio"}
