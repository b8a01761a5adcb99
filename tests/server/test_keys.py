from __future__ import annotations

import json
import re
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from streamsplit.errors import ConfigError, StorageError
from streamsplit.server.keys import (
    Devices,
    make_ca,
    make_device_key,
    make_server_key,
    make_token,
    read_devices,
    remove_device,
    token_digest,
)

x509 = pytest.importorskip("cryptography.x509", reason="needs cryptography (extra `server`)")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_ca(tmp_path / "keys")
    return tmp_path / "keys"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_private_keys_are_for_their_owner_only(folder: Path) -> None:
    make_server_key(folder, ["localhost"])
    make_device_key(folder, "pi-1")
    private = [*folder.glob("*.key"), folder / "devices.json"]
    assert len(private) == 4
    assert {mode(path) for path in private} == {0o600}
    assert [path for path in folder.iterdir() if path.name.startswith(".")] == []


def test_certificates_chain_to_the_authority_and_are_valid_now(folder: Path) -> None:
    authority = certificate(folder / "ca.pem")
    for pair in (make_server_key(folder, ["example.org"]), make_device_key(folder, "pi-1")):
        leaf = certificate(pair.certificate)
        leaf.verify_directly_issued_by(authority)
        assert leaf.not_valid_before_utc < datetime.now(UTC) < leaf.not_valid_after_utc
        assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_server_s_certificate_names_every_host_and_address(folder: Path) -> None:
    pair = make_server_key(folder, ["studio.local", "192.0.2.7", "::1"])
    names = (
        certificate(pair.certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    )
    assert names.get_values_for_type(x509.DNSName) == ["studio.local"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.7", "::1"]


def test_a_device_s_certificate_names_it_and_can_only_call(folder: Path) -> None:
    leaf = certificate(make_device_key(folder, "pi-1").certificate)
    assert leaf.subject.rfc4514_string() == "CN=pi-1"
    purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(purposes) == [x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]


def test_nothing_is_overwritten_unless_asked_to(folder: Path) -> None:
    make_server_key(folder, ["a"])
    make_device_key(folder, "pi-1")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"ca\.pem: is there already"):
        make_ca(folder)
    with pytest.raises(ConfigError, match=r"server\.pem: is there already"):
        make_server_key(folder, ["b"])
    with pytest.raises(ConfigError, match=r"pi-1\.pem: is there already"):
        make_device_key(folder, "pi-1")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    make_server_key(folder, ["b"], overwrite=True)
    assert (folder / "server.pem").read_bytes() != before["server.pem"]


def test_a_key_left_without_its_certificate_is_not_overwritten_either(folder: Path) -> None:
    make_server_key(folder, ["a"])
    (folder / "server.pem").unlink()
    with pytest.raises(ConfigError, match=r"server\.key: is there already"):
        make_server_key(folder, ["a"])
    assert not (folder / "server.pem").exists()


def test_without_an_authority_the_command_that_makes_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="streamsplit keys ca"):
        make_server_key(tmp_path, ["localhost"])


def test_an_authority_that_is_none_is_refused(folder: Path) -> None:
    (folder / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match=r"ca\.pem or ca\.key is not the PEM file"):
        make_device_key(folder, "pi-1")


def test_an_authority_s_key_of_another_authority_is_refused(folder: Path, tmp_path: Path) -> None:
    make_ca(tmp_path / "other")
    (tmp_path / "other" / "ca.key").replace(folder / "ca.key")
    with pytest.raises(ConfigError, match=r"ca\.key is not the elliptic-curve key of ca\.pem"):
        make_device_key(folder, "pi-1")


@pytest.mark.parametrize("names", [[], [" "], ["bücher.example"]])
def test_a_server_needs_names_that_are_names(folder: Path, names: list[str]) -> None:
    with pytest.raises(ConfigError, match="server key: expected"):
        make_server_key(folder, names)


@pytest.mark.parametrize("device", ["", "a b", "../up", "x" * 65, "ca", "server"])
def test_a_device_needs_a_name_that_can_be_a_file_s(folder: Path, device: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        make_device_key(folder, device)


def test_a_token_goes_to_the_device_and_only_its_hash_to_the_server(tmp_path: Path) -> None:
    files = make_token(tmp_path / "devices.json", "pi-1", tmp_path / "pi-1.token")
    token = files.token.read_text().strip()
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", token)
    assert token not in files.devices.read_text()
    assert json.loads(files.devices.read_text())["devices"] == {"pi-1": {"token_sha256": token_digest(token)}}
    assert (mode(files.token), mode(files.devices)) == (0o600, 0o600)


def test_a_token_belongs_to_its_device_and_others_to_none(tmp_path: Path) -> None:
    listed = tmp_path / "devices.json"
    tokens = {
        n: make_token(listed, n, tmp_path / n).token.read_text().strip() for n in ("pi-1", "pi-2", "mac")
    }
    devices = read_devices(listed)
    assert {name: devices.owner(token) for name, token in tokens.items()} == {n: n for n in tokens}
    assert devices.owner("") is None
    assert devices.owner(tokens["mac"] + "x") is None
    assert devices.owner(devices.digests["mac"] or "") is None
    assert devices.has_tokens
    assert not Devices({"pi": None}).has_tokens


def test_a_second_token_or_a_token_file_in_the_way_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    listed = tmp_path / "devices.json"
    make_token(listed, "pi-1", tmp_path / "pi-1.token")
    before = listed.read_bytes()
    with pytest.raises(ConfigError, match="'pi-1' has a token already"):
        make_token(listed, "pi-1", tmp_path / "new.token")
    with pytest.raises(ConfigError, match=r"pi-1\.token: is there already"):
        make_token(listed, "pi-2", tmp_path / "pi-1.token")
    assert listed.read_bytes() == before
    assert not (tmp_path / "new.token").exists()


def test_a_device_key_does_not_take_away_the_device_s_token(folder: Path) -> None:
    make_token(folder / "devices.json", "pi-1", folder / "pi-1.token")
    make_device_key(folder, "pi-1")
    make_device_key(folder, "pi-2")
    devices = read_devices(folder / "devices.json")
    assert set(devices.digests) == {"pi-1", "pi-2"}
    assert devices.digests["pi-1"] is not None


def test_a_removed_device_is_not_known_any_more(tmp_path: Path) -> None:
    listed = tmp_path / "devices.json"
    token = make_token(listed, "pi-1", tmp_path / "t").token.read_text().strip()
    remove_device(listed, "pi-1")
    assert read_devices(listed).owner(token) is None
    with pytest.raises(ConfigError, match=r"expected a known device \(none\), got 'pi-1'"):
        remove_device(listed, "pi-1")


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 2, "devices": {}}',
        '{"format": 1}',
        '{"format": 1, "devices": {"a": 5}}',
        '{"format": 1, "devices": {"a": {"token_sha256": "short"}}}',
    ],
)
def test_a_file_that_is_no_list_of_devices_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "devices.json").write_text(content)
    with pytest.raises(ConfigError, match=r"devices\.json: (expected|device)"):
        read_devices(tmp_path / "devices.json")


def test_a_missing_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"devices\.json: cannot read the devices: No such file"):
        read_devices(tmp_path / "devices.json")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"ca\.\w+: cannot be written"):
        make_ca(tmp_path / "file")
