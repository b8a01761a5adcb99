"""The gRPC channel to the server: transport security, keepalive, and what its failures mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import grpc

from streamsplit.config import LOOPBACK_HOSTS, ClientSettings, ClientTls, split_address
from streamsplit.errors import ConfigError, LinkError, RefusedError, StreamSplitError

TOKEN_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,256}")

Channel = Any  # grpc.aio.Channel: grpc has no types

_REFUSALS = {
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
}


def open_channel(settings: ClientSettings) -> Channel:
    """A channel to `settings.server`; nothing is connected yet.

    Raises:
        ConfigError: no server, no TLS off loopback, or a key file that cannot be read.
    """
    if settings.server is None:
        raise ConfigError("server: expected HOST:PORT, got nothing")
    options = (
        ("grpc.keepalive_time_ms", int(settings.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # The daemon paces its own reconnects, with jitter; the channel must not add a wait of its own.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        # Windows are small: probing the link for larger flow-control windows would cost more than it could bring.
        ("grpc.http2.bdp_probe", 0),
    )
    credentials = _credentials(settings)
    if credentials is None:
        return grpc.aio.insecure_channel(settings.server, options=options)
    return grpc.aio.secure_channel(settings.server, credentials, options=options)


def metadata(settings: ClientSettings) -> tuple[tuple[str, str], ...]:
    """The call's metadata: the device's token, where it has one."""
    if settings.token_file is None:
        return ()
    token = _read(settings.token_file, "token_file").decode("ascii", "replace").strip()
    if not TOKEN_PATTERN.fullmatch(token):
        raise ConfigError(
            f"token_file = {str(settings.token_file)!r}: expected one line of letters, digits, '-' and '_'"
        )
    return (("authorization", f"Bearer {token}"),)


def meaning(code: grpc.StatusCode, details: str, server: str) -> StreamSplitError:
    """What the end of a call means for the device: try again (`LinkError`) or do not (`RefusedError`)."""
    text = " ".join((details or code.name.lower()).split())
    if code in _REFUSALS:
        return RefusedError(f"server {server} refused this device ({code.name}): {text}")
    return LinkError(f"server {server}: {text} ({code.name})")


def _credentials(settings: ClientSettings) -> grpc.ChannelCredentials | None:
    host, _ = split_address(settings.server or "")
    if settings.tls is None:
        if host not in LOOPBACK_HOSTS:
            raise ConfigError(
                f"server = {settings.server!r} is not this machine: TLS is required; give --tls-ca (and --tls-certificate, --tls-key, "
                "or --token-file)"
            )
        return None
    tls: ClientTls = settings.tls
    if (tls.certificate is None) != (tls.key is None):
        raise ConfigError("tls: certificate and key go together; got only one of them")
    return grpc.ssl_channel_credentials(
        _pem(tls.ca, "tls.ca", b"CERTIFICATE") if tls.ca else None,
        _pem(tls.key, "tls.key", b"PRIVATE KEY") if tls.key else None,
        _pem(tls.certificate, "tls.certificate", b"CERTIFICATE") if tls.certificate else None,
    )


def _pem(path: Path, key: str, kind: bytes) -> bytes:
    content = _read(path, key)
    if not re.search(rb"-----BEGIN [A-Z ]*" + kind + rb"-----", content):
        raise ConfigError(
            f"{key} = {str(path)!r}: expected PEM with a {kind.decode().lower()}, got something else"
        )
    return content


def _read(path: Path, key: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{key} = {str(path)!r}: cannot be read: {error.strerror}") from None
