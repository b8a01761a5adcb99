"""Key files for a server and its devices, and the list of devices it knows.

    folder/
      ca.pem, ca.key            the authority: signs the two kinds below; its key is needed only to make more of them
      server.pem, server.key    the server's, for the names and addresses that devices call it by
      NAME.pem, NAME.key        a device's, whose common name is the device
      devices.json              the devices the server knows, with the SHA-256 of their tokens (never the tokens)

Private keys and tokens are written with mode 0600, and nothing is overwritten unless asked to in so many words.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from streamsplit.config import NAME_PATTERN
from streamsplit.errors import ConfigError, StorageError
from streamsplit.whole_file import make_folder, write_whole

if TYPE_CHECKING:
    from streamsplit.server.certificates import PemPair

TOKEN_BYTES = 32
_DEVICES_FORMAT = 1
_OWN_NAMES = ("ca", "server")


class KeyPair(NamedTuple):
    """Two PEM files: a certificate, and the private key that goes with it."""

    certificate: Path
    key: Path


class TokenFiles(NamedTuple):
    """The device's token, to be copied to it, and the server's list with its hash."""

    token: Path
    devices: Path


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices a server knows.

    Attributes:
        digests: device name to the SHA-256 of its token, in hex; None for a device that has a certificate only.
    """

    digests: Mapping[str, str | None] = field(default_factory=dict)

    def __contains__(self, device: str) -> bool:
        return device in self.digests

    @property
    def has_tokens(self) -> bool:
        """Whether any device has a token."""
        return any(digest is not None for digest in self.digests.values())

    def owner(self, token: str) -> str | None:
        """The device a token belongs to. Every known digest is compared, in constant time, so the time taken tells nothing."""
        asked = token_digest(token)
        found: str | None = None
        for device, digest in self.digests.items():
            if digest is not None and hmac.compare_digest(digest, asked):
                found = device
        return found


def token_digest(token: str) -> str:
    """SHA-256 of a token, in hex. A token is 32 random bytes: no salt or slow hash makes it harder to guess."""
    return hashlib.sha256(token.encode("utf-8")).hexdigest()


def make_ca(folder: Path, name: str = "StreamSplit authority", overwrite: bool = False) -> KeyPair:
    """Makes the authority that devices and server are checked against.

    Raises:
        ConfigError: it is there already (`overwrite` makes every certificate it signed worthless), or the extra is missing.
        StorageError: the folder cannot be written.
    """
    made: PemPair = _certificates().authority(name, _now())
    return _write_pair(Path(folder), "ca", made, overwrite)


def make_server_key(folder: Path, names: Sequence[str], overwrite: bool = False) -> KeyPair:
    """Makes the server's key, signed by the folder's authority.

    Args:
        folder: where `make_ca` was called.
        names: host names and IP addresses by which devices call the server.
        overwrite: replace the one that is there.

    Raises:
        ConfigError: no authority, no name, a name that is neither a host nor an address, or a key that is there already.
        StorageError: the folder cannot be read or written.
    """
    made: PemPair = _certificates().server(_read_ca(Path(folder)), names, _now())
    return _write_pair(Path(folder), "server", made, overwrite)


def make_device_key(folder: Path, device: str, overwrite: bool = False) -> KeyPair:
    """Makes a device's key, signed by the folder's authority, and enters the device in the folder's ``devices.json``.

    Raises:
        ConfigError: no authority, a name that is no device name, or a key that is there already.
        StorageError: the folder cannot be read or written.
    """
    _check_device(device)
    if device in _OWN_NAMES:
        raise ConfigError(f"device {device!r}: this name is taken by the folder's own keys")
    folder = Path(folder)
    made: PemPair = _certificates().device(_read_ca(folder), device, _now())
    pair = _write_pair(folder, device, made, overwrite)
    known = _known(folder / "devices.json")
    _write_devices(folder / "devices.json", {device: None, **known.digests})
    return pair


def make_token(devices_file: Path, device: str, token_file: Path, overwrite: bool = False) -> TokenFiles:
    """Gives a device a token: the device gets the token's file, the server's list keeps only its hash.

    Raises:
        ConfigError: a name that is no device name, the device has a token already, or `token_file` is there already.
        StorageError: a file cannot be read or written.
    """
    _check_device(device)
    devices_file, token_file = Path(devices_file), Path(token_file)
    known = _known(devices_file)
    if known.digests.get(device) is not None and not overwrite:
        raise ConfigError(
            f"{devices_file}: device {device!r} has a token already; overwriting it shuts out the one in use"
        )
    token = secrets.token_urlsafe(TOKEN_BYTES)
    _write(token_file, f"{token}\n".encode("ascii"), 0o600, overwrite)
    _write_devices(devices_file, {**known.digests, device: token_digest(token)})
    return TokenFiles(token_file, devices_file)


def remove_device(devices_file: Path, device: str) -> None:
    """Takes a device off the list: its token and its certificate are refused from the server's next start on.

    Raises:
        ConfigError: it is not on the list.
        StorageError: the file cannot be read or written.
    """
    path = Path(devices_file)
    known = read_devices(path)
    if device not in known:
        listed = ", ".join(sorted(known.digests)) or "none"
        raise ConfigError(f"{path}: expected a known device ({listed}), got {device!r}")
    _write_devices(path, {name: digest for name, digest in known.digests.items() if name != device})


def read_devices(path: Path) -> Devices:
    """The devices a file names.

    Raises:
        ConfigError: it is missing, cannot be read, or is not such a file.
    """
    try:
        content: Any = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the devices: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path}: expected JSON: {error}") from error
    devices = content.get("devices") if isinstance(content, dict) else None
    if not isinstance(devices, dict) or content.get("format") != _DEVICES_FORMAT:
        raise ConfigError(
            f"{path}: expected a devices file of format {_DEVICES_FORMAT}, as `streamsplit keys` writes it"
        )
    return Devices({name: _digest(path, name, entry) for name, entry in devices.items()})


def _digest(path: Path, name: str, entry: Any) -> str | None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}: device {name!r}: expected a JSON object, got {entry!r}")
    digest = entry.get("token_sha256")
    if digest is None:
        return None
    if not isinstance(digest, str) or len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
        raise ConfigError(f"{path}: device {name!r}: expected token_sha256 of 64 hex digits, got {digest!r}")
    return digest


def _known(path: Path) -> Devices:
    return read_devices(path) if path.exists() else Devices()


def _write_devices(path: Path, digests: Mapping[str, str | None]) -> None:
    content = {
        "format": _DEVICES_FORMAT,
        "devices": {
            name: {"token_sha256": digest} if digest else {} for name, digest in sorted(digests.items())
        },
    }
    _write(path, (json.dumps(content, indent=2) + "\n").encode(), 0o600, overwrite=True)


def _read_ca(folder: Path) -> PemPair:
    pem_pair: type[PemPair] = _certificates().PemPair
    try:
        return pem_pair((folder / "ca.pem").read_bytes(), (folder / "ca.key").read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder}: expected an authority (ca.pem, ca.key) here: make one with `streamsplit keys ca`"
        ) from error
    except OSError as error:
        raise StorageError(f"{folder}: cannot read the authority: {error.strerror}") from error


def _write_pair(folder: Path, stem: str, made: PemPair, overwrite: bool) -> KeyPair:
    pair = KeyPair(folder / f"{stem}.pem", folder / f"{stem}.key")
    for path in pair:  # before either is written
        if path.exists() and not overwrite:
            raise _there_already(path)
    _write(pair.key, made.key, 0o600, overwrite)
    _write(pair.certificate, made.certificate, 0o644, overwrite)
    return pair


def _write(path: Path, content: bytes, mode: int, overwrite: bool) -> None:
    make_folder(path)
    try:
        write_whole(path, content, mode, replace=overwrite)
    except FileExistsError as error:
        raise _there_already(path) from error


def _there_already(path: Path) -> ConfigError:
    return ConfigError(f"{path}: is there already; move it away first if it is really to be replaced")


def _check_device(device: str) -> None:
    if not NAME_PATTERN.fullmatch(device):
        raise ConfigError(f"device: expected 1 to 64 letters, digits, '.', '_' and '-', got {device!r}")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _certificates() -> ModuleType:
    """The part that needs the `cryptography` package, which a device does not install."""
    try:
        from streamsplit.server import certificates
    except ImportError as error:
        raise ConfigError(
            f"keys need the extra `server`: pip install 'streamsplit[server]' ({error.name} is missing)"
        ) from error
    return certificates
