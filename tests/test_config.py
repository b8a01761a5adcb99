"""Settings: what wins over what, and what is said of a bad value."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamsplit.config import ClientSettings, ServerSettings, load, split_address
from streamsplit.errors import ConfigError


def test_the_command_line_wins_over_the_environment_over_the_file_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "client.toml"
    file.write_text('device = "from-file"\ncodec = "int8"\nthreads = 2\nencoder = "cola"\n')
    monkeypatch.setenv("STREAMSPLIT_CLIENT_CODEC", "int3")
    monkeypatch.setenv("STREAMSPLIT_CLIENT_THREADS", "3")
    settings = load(ClientSettings, file, {"threads": 4, "decider": None})
    assert (settings.device, settings.codec, settings.threads, settings.decider) == (
        "from-file",
        "int3",
        4,
        "learned",
    )


def test_nested_tables_are_read(tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text('listen = "0.0.0.0:1"\n[tls]\ncertificate = "c.pem"\nkey = "k.pem"\n')
    settings = load(ServerSettings, file)
    assert settings.tls is not None
    assert settings.tls.key == Path("k.pem")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("threads = 0", "threads = 0.*greater than or equal to 1"),
        ('codec = "int2"', "codec = 'int2'.*'int3'"),
        ('server = "nowhere"', "server = 'nowhere'.*HOST:PORT"),
        ('device = "a b"', "device = 'a b'.*letters"),
        ("colour = 1", "colour = 1.*not permitted"),
        ("threads = ", "not valid TOML"),
    ],
)
def test_a_bad_value_is_named_with_what_is_legal(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "client.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        load(ClientSettings, file)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("encoders = []", r"encoders = \[\].*at least 1 item"),
        ("[refiner]\nreplay_mb = inf", "replay_mb = inf.*less than or equal to 1000000"),
        ("[refiner]\njudged_windows = 40", "judged_windows = 40.*greater than or equal to 48"),
    ],
)
def test_a_server_is_not_started_with_what_it_cannot_do(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        load(ServerSettings, file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        load(ClientSettings, tmp_path / "none.toml")


@pytest.mark.parametrize("address", ["", "host", "host:", ":1", "host:port", "host:70000"])
def test_an_address_needs_host_and_port(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        split_address(address)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        ClientSettings().threads = 3  # type: ignore[misc]
