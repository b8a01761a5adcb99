"""Who may connect, and from where: transport security, identities, limits.

The rules, in one place:

- On loopback the server may listen in plain; anywhere else it needs TLS, and a way to tell devices apart: certificates signed by an
  authority of ours (mutual TLS), or tokens. `check_listen` refuses to start otherwise.
- With an authority, a device without a certificate it signed does not get past the TLS handshake. With a list of devices, one that is
  not on it is refused, certificate or not. A token that is presented must be right, also beside a certificate.
- The name in the credentials must be the name in the device's Hello; the session compares them.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from streamsplit.config import ServerSettings
from streamsplit.errors import ConfigError, RefusedError
from streamsplit.server.keys import Devices, read_devices

AuthContext = Mapping[str, Sequence[bytes]]
Metadata = Iterable[tuple[str, str | bytes]]

_BEARER = "bearer "
_LONGEST_TOKEN = 256


@dataclass(frozen=True, slots=True)
class ServerSecurity:
    """How a server proves itself and what it asks of devices.

    Attributes:
        certificate, key: PEM pair of the server; None: no TLS.
        client_ca: PEM of the authority of the devices' certificates; None: none are asked for.
        devices: those it knows; None: no list, every certificate of `client_ca` will do.
    """

    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    devices: Devices | None = None

    @classmethod
    def from_settings(cls, settings: ServerSettings) -> ServerSecurity:
        """Reads the list of devices the settings name.

        Raises:
            ConfigError: it cannot be read, or is not one.
        """
        devices = read_devices(settings.devices) if settings.devices is not None else None
        if settings.tls is None:
            return cls(devices=devices)
        return cls(settings.tls.certificate, settings.tls.key, settings.tls.client_ca, devices)

    @property
    def identifies(self) -> bool:
        """Whether devices are told apart by credentials, rather than by what they say."""
        return self.client_ca is not None or self.devices is not None

    def credentials(self) -> grpc.ServerCredentials | None:
        """What gRPC listens with; None in plain.

        Raises:
            ConfigError: a PEM file is missing or is none, or only one of certificate and key is given.
        """
        if self.certificate is None and self.key is None and self.client_ca is None:
            return None
        if self.certificate is None or self.key is None:
            raise ConfigError("tls: expected both certificate and key, got only part of them")
        pair = (
            _pem(self.key, "tls.key", b"PRIVATE KEY"),
            _pem(self.certificate, "tls.certificate", b"CERTIFICATE"),
        )
        authority = _pem(self.client_ca, "tls.client_ca", b"CERTIFICATE") if self.client_ca else None
        return grpc.ssl_server_credentials([pair], authority, require_client_auth=authority is not None)


def is_loopback(host: str) -> bool:
    """Whether a listening address is reachable from this machine only.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "[::]", "example.org")]
    [True, True, True, False, False, False]
    """
    name = host.strip().removeprefix("[").removesuffix("]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check_listen(host: str, security: ServerSecurity) -> None:
    """Refuses an address that others can reach unless the server is secured.

    Raises:
        ConfigError: saying what is missing and how to get it.
    """
    if is_loopback(host):
        return
    if security.certificate is None or security.key is None:
        raise ConfigError(
            f"listen = {host!r} is reachable from other machines and needs TLS: make keys with "
            "`streamsplit keys ca DIR` and `streamsplit keys server DIR HOST`, set tls.certificate and tls.key; "
            "or listen on 127.0.0.1"
        )
    tokens = security.devices is not None and security.devices.has_tokens
    if security.client_ca is None and not tokens:
        raise ConfigError(
            f"listen = {host!r} is reachable from other machines and must know its devices: set tls.client_ca to DIR/ca.pem and make "
            "a key per device with `streamsplit keys device DIR NAME`, or set devices to a file made with "
            "`streamsplit keys token FILE NAME`"
        )


def identify(auth_context: AuthContext, metadata: Metadata, security: ServerSecurity) -> str | None:
    """The device that a call's credentials name.

    Args:
        auth_context: what the transport knows of the peer: gRPC's, with ``x509_common_name`` after mutual TLS.
        metadata: the call's; a token comes as ``authorization: Bearer TOKEN``.
        security: what is asked for.

    Returns:
        The device; None where no credentials are asked for (plain loopback): the device is then who it says it is.

    Raises:
        RefusedError: credentials are missing, wrong, contradict each other, or name a device that is not known.
    """
    if not security.identifies:
        return None
    named = _common_name(auth_context) if security.client_ca is not None else None
    token = _token(metadata)
    if token is not None:
        owner = security.devices.owner(token) if security.devices is not None else None
        if owner is None:
            raise RefusedError("identity: expected the token of a known device, got another")
        if named is not None and named != owner:
            raise RefusedError(f"identity: the certificate names {named!r}, the token another device")
        return owner
    if named is None:
        wanted = (
            "a certificate of the server's authority" if security.client_ca is not None else "a device token"
        )
        raise RefusedError(f"identity: expected {wanted}, got none")
    if security.devices is not None and named not in security.devices:
        raise RefusedError(f"identity: device {named!r} is not known here")
    return named


def identifier(security: ServerSecurity) -> Callable[[grpc.aio.ServicerContext], str | None]:
    """`identify` for a gRPC call's context."""

    def of_call(context: grpc.aio.ServicerContext) -> str | None:
        return identify(context.auth_context(), context.invocation_metadata() or (), security)

    return of_call


class StrangersOut(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Where devices carry tokens, nothing but a health check answers a call without a good one.

    `Connect` asks for itself. A health watch or reflection stream would otherwise let anybody hold the server's calls.
    """

    def __init__(self, security: ServerSecurity, free: Collection[str]) -> None:
        self._security = security
        self._free = frozenset(free)

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], details: Any) -> Any:
        """gRPC calls it for every call before its handler."""
        if details.method in self._free or self._known(details.invocation_metadata or ()):
            return await continuation(details)

        async def refuse(request: object, context: grpc.aio.ServicerContext) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "identity: expected a device token")

        return grpc.unary_unary_rpc_method_handler(refuse)

    def _known(self, metadata: Metadata) -> bool:
        devices = self._security.devices
        if (
            devices is None or self._security.client_ca is not None
        ):  # TLS itself has asked already, or nobody is asked
            return True
        try:
            token = _token(metadata)
        except RefusedError:
            return False
        return token is not None and devices.owner(token) is not None


class TokenBucket:
    """A rate limit: `rate` a second on average, `burst` at once.

    Args:
        rate: refill per second, above 0.
        burst: most that can be saved up, at least 1.
        clock: monotonic seconds.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        if rate <= 0 or burst < 1:
            raise ValueError(f"token bucket: expected rate > 0 and burst >= 1, got {rate} and {burst}")
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._left = burst
        self._at_s = clock()

    def take(self, amount: float = 1.0) -> bool:
        """Takes `amount` if it is there; otherwise takes nothing and says False."""
        self._refill()
        if self._left < amount:
            return False
        self._left -= amount
        return True

    @property
    def full(self) -> bool:
        """Nothing was taken for so long that it has refilled."""
        self._refill()
        return self._left >= self._burst

    def wait_s(self, amount: float = 1.0) -> float:
        """Seconds until `take(amount)` can succeed; infinite above the burst."""
        self._refill()
        if amount > self._burst:
            return float("inf")
        return max(0.0, (amount - self._left) / self._rate)

    def _refill(self) -> None:
        now_s = self._clock()
        self._left = min(self._burst, self._left + (now_s - self._at_s) * self._rate)
        self._at_s = now_s


def _common_name(auth_context: AuthContext) -> str | None:
    names = auth_context.get("x509_common_name") or ()
    if len(names) != 1:  # a certificate with two names would be two devices
        return None
    try:
        return names[0].decode("ascii")
    except UnicodeDecodeError:
        return None


def _token(metadata: Metadata) -> str | None:
    values = [value for key, value in metadata if key.lower() == "authorization"]
    if not values:
        return None
    value = values[0].decode("ascii", "replace") if isinstance(values[0], bytes) else values[0]
    if len(values) > 1 or not value.lower().startswith(_BEARER) or len(value) > _LONGEST_TOKEN:
        raise RefusedError("identity: expected one 'authorization: Bearer TOKEN', got something else")
    return value[len(_BEARER) :].strip()


def _pem(path: Path, key: str, kind: bytes) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key} = {str(path)!r}: cannot be read: {error.strerror}") from error
    if b"-----BEGIN " not in content or kind not in content:
        raise ConfigError(f"{key} = {str(path)!r}: expected a PEM file with a {kind.decode().lower()}")
    return content
