"""Options that several commands take mean the same everywhere, and win over the settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer.main

from streamsplit.cli import app
from streamsplit.cli.options import client_settings, decider_name
from streamsplit.config import ClientTls
from streamsplit.errors import ConfigError
from streamsplit.lab import replay

ALONE = {"split": None, "decider": None, "tls_ca": None, "tls_certificate": None, "tls_key": None}
OWN_WORDS = {"server", "help"}
"""`client` works alone without a server, `replay` starts one."""


def said(command: str) -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return {
        option.name: (option.opts, option.help, option.default, option.is_flag)
        for option in group.commands[command].params
        if option.param_type_name == "option"
    }


def test_client_and_replay_take_the_same_options_in_the_same_words() -> None:
    client, replay = said("client"), said("replay")
    shared = (client.keys() & replay.keys()) - OWN_WORDS
    assert shared >= {"config", "device", "encoder", "weights", "split", "decider", "codec", "send_audio"}
    assert shared >= {"audio_codec", "profile", "token_file", "tls_ca", "tls_certificate", "tls_key"}
    assert {name: client[name] for name in shared} == {name: replay[name] for name in shared}


def test_what_the_command_line_says_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text('device = "attic"\ncodec = "int8"\ndecider = "fixed:2"\n')
    settings = client_settings(file, **ALONE, device="kitchen", codec=None)
    assert (settings.device, settings.codec, settings.decider, settings.tls) == (
        "kitchen",
        "int8",
        "fixed:2",
        None,
    )
    assert client_settings(file, **{**ALONE, "split": "audio"}).decider == "fixed:-1"
    assert client_settings(None, **{**ALONE, "tls_ca": Path("ca.pem")}).tls == ClientTls(ca=Path("ca.pem"))


def test_a_split_and_a_decider_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match="--split 3 and --decider heuristic: give one of them"):
        decider_name("3", "heuristic")


@pytest.mark.parametrize(
    ("arguments", "decider"),
    [
        ((), "heuristic"),
        (("--conditions", "live"), "learned"),
        (("--decider", "linucb"), "linucb"),
        (("--split", "2"), "fixed:2"),
    ],
)
def test_made_conditions_are_decided_on_by_what_is_the_same_on_every_machine(
    arguments: tuple[str, ...], decider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[replay.ReplaySettings] = []

    def stopped(run: replay.ReplaySettings, update: object) -> None:
        asked.append(run)
        raise ConfigError("that was all")

    monkeypatch.setattr(replay, "replay", stopped)
    with pytest.raises(ConfigError, match="that was all"):
        app(["replay", str(tmp_path), *arguments], standalone_mode=False)
    assert [run.client.decider for run in asked] == [decider]
