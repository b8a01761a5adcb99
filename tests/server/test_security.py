from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from streamsplit.config import ServerSettings, ServerTls
from streamsplit.errors import ConfigError, RefusedError
from streamsplit.server.keys import (
    Devices,
    KeyPair,
    make_ca,
    make_device_key,
    make_server_key,
    make_token,
    read_devices,
    token_digest,
)
from streamsplit.server.security import ServerSecurity, TokenBucket, check_listen, identifier, identify

pytest.importorskip("cryptography", reason="needs cryptography (extra `server`)")

FILE = Path("any.pem")
TOKENS = Devices({"pi": token_digest("pi's"), "mac": token_digest("mac's"), "certified": None})


def by_certificate(*names: str) -> dict[str, list[bytes]]:
    return {"transport_security_type": [b"ssl"], "x509_common_name": [name.encode() for name in names]}


def bearer(token: str) -> list[tuple[str, str | bytes]]:
    return [("user-agent", "x"), ("authorization", f"Bearer {token}")]


# What may be listened on.


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1", "[::1]"])
def test_loopback_may_be_plain(host: str) -> None:
    check_listen(host, ServerSecurity())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::]", "192.0.2.1", "example.org", "", "*"])
def test_off_loopback_tls_and_known_devices_are_needed(host: str) -> None:
    with pytest.raises(ConfigError, match=r"needs TLS: .*streamsplit keys server"):
        check_listen(host, ServerSecurity(devices=TOKENS))
    tls = ServerSecurity(FILE, FILE)
    with pytest.raises(ConfigError, match=r"must know its devices: .*streamsplit keys device"):
        check_listen(host, tls)
    with pytest.raises(ConfigError, match="must know its devices"):
        check_listen(host, replace(tls, devices=Devices({"certified": None})))
    check_listen(host, replace(tls, devices=TOKENS))
    check_listen(host, replace(tls, client_ca=FILE))


# Who somebody is.


def test_where_nothing_is_asked_for_nobody_is_named() -> None:
    assert identify(by_certificate("pi"), bearer("anything"), ServerSecurity()) is None
    assert identify({}, [], ServerSecurity(FILE, FILE)) is None


@pytest.mark.parametrize(("token", "device"), [("pi's", "pi"), ("mac's", "mac")])
def test_a_token_names_its_device(token: str, device: str) -> None:
    security = ServerSecurity(devices=TOKENS)
    assert identify({}, bearer(token), security) == device
    assert identify({}, [("authorization", f"bearer {token}".encode())], security) == device


@pytest.mark.parametrize(
    "metadata",
    [
        [],
        bearer("wrong"),
        bearer(""),
        bearer(token_digest("pi's")),
        [("authorization", "pi's")],
        [("authorization", "Basic pi's")],
        bearer("x" * 10_000),
        [*bearer("pi's"), *bearer("mac's")],
        [("authorization", b"Bearer \xff")],
    ],
)
def test_without_the_right_token_a_device_is_refused(metadata: list[tuple[str, str | bytes]]) -> None:
    with pytest.raises(RefusedError, match="identity: expected"):
        identify(by_certificate("pi"), metadata, ServerSecurity(devices=TOKENS))


def test_a_certificate_of_the_authority_names_its_device() -> None:
    assert identify(by_certificate("anyone"), [], ServerSecurity(client_ca=FILE)) == "anyone"


def test_with_a_list_a_certified_device_must_be_on_it() -> None:
    security = ServerSecurity(client_ca=FILE, devices=TOKENS)
    assert identify(by_certificate("certified"), [], security) == "certified"
    with pytest.raises(RefusedError, match="device 'stranger' is not known here"):
        identify(by_certificate("stranger"), [], security)


@pytest.mark.parametrize(
    "context", [{}, by_certificate(), by_certificate("pi", "mac"), {"x509_common_name": [b"\xff"]}]
)
def test_a_certificate_without_exactly_one_name_names_nobody(context: dict[str, list[bytes]]) -> None:
    with pytest.raises(RefusedError, match="expected a certificate"):
        identify(context, [], ServerSecurity(client_ca=FILE))


def test_a_token_beside_a_certificate_must_be_of_the_same_device() -> None:
    security = ServerSecurity(client_ca=FILE, devices=TOKENS)
    assert identify(by_certificate("pi"), bearer("pi's"), security) == "pi"
    with pytest.raises(RefusedError, match="the certificate names 'pi', the token another device"):
        identify(by_certificate("pi"), bearer("mac's"), security)
    with pytest.raises(RefusedError, match="token of a known device"):
        identify(by_certificate("pi"), bearer("wrong"), security)


# Settings and files.


def test_settings_become_security(tmp_path: Path) -> None:
    make_token(tmp_path / "devices.json", "pi", tmp_path / "pi.token")
    settings = ServerSettings(
        tls=ServerTls(certificate=FILE, key=FILE, client_ca=FILE), devices=tmp_path / "devices.json"
    )
    security = ServerSecurity.from_settings(settings)
    assert security == ServerSecurity(FILE, FILE, FILE, read_devices(tmp_path / "devices.json"))
    assert ServerSecurity.from_settings(ServerSettings()) == ServerSecurity()
    assert ServerSecurity().credentials() is None


def test_pem_files_that_are_missing_or_none_are_named(tmp_path: Path) -> None:
    make_ca(tmp_path)
    pair = make_server_key(tmp_path, ["localhost"])
    with pytest.raises(ConfigError, match=r"tls\.key = .*none\.key.*cannot be read"):
        ServerSecurity(pair.certificate, tmp_path / "none.key").credentials()
    with pytest.raises(ConfigError, match=r"tls\.key = .*expected a PEM file with a private key"):
        ServerSecurity(pair.certificate, pair.certificate).credentials()
    with pytest.raises(ConfigError, match=r"tls\.client_ca = .*expected a PEM file with a certificate"):
        ServerSecurity(pair.certificate, pair.key, pair.key).credentials()
    with pytest.raises(ConfigError, match="expected both certificate and key"):
        ServerSecurity(pair.certificate).credentials()


# Against gRPC itself: a server that answers with the identity it finds.


class WhoAmI(grpc.GenericRpcHandler):
    def __init__(self, security: ServerSecurity) -> None:
        self._identify = identifier(security)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            try:
                return str(self._identify(context)).encode()
            except RefusedError as error:
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def listening(security: ServerSecurity) -> AsyncIterator[str]:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([WhoAmI(security)])
    port = server.add_secure_port("127.0.0.1:0", security.credentials())
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(0)


async def ask(address: str, ca: Path, pair: KeyPair | None = None, token: str | None = None) -> str:
    credentials = grpc.ssl_channel_credentials(
        ca.read_bytes(),
        pair.key.read_bytes() if pair else None,
        pair.certificate.read_bytes() if pair else None,
    )
    metadata = [("authorization", f"Bearer {token}")] if token else []
    async with grpc.aio.secure_channel(address, credentials) as channel:
        answer = await channel.unary_unary("/Who/AmI")(b"", metadata=metadata, timeout=10)
    return bytes(answer).decode()


async def test_over_mutual_tls_a_device_is_who_its_certificate_says(tmp_path: Path) -> None:
    make_ca(tmp_path)
    server, device = make_server_key(tmp_path, ["localhost", "127.0.0.1"]), make_device_key(tmp_path, "pi-1")
    security = ServerSecurity(*server, tmp_path / "ca.pem", read_devices(tmp_path / "devices.json"))
    stranger = make_device_key(tmp_path, "later")  # after the server read its list
    async with listening(security) as address:
        assert await ask(address, tmp_path / "ca.pem", device) == "pi-1"
        with pytest.raises(grpc.aio.AioRpcError, match="device 'later' is not known here"):
            await ask(address, tmp_path / "ca.pem", stranger)


async def test_over_mutual_tls_others_do_not_get_past_the_handshake(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "other"):
        make_ca(folder)
    server = make_server_key(tmp_path, ["localhost"])
    foreign = make_device_key(tmp_path / "other", "pi-1")
    async with listening(ServerSecurity(*server, tmp_path / "ca.pem")) as address:
        for pair in (None, foreign, server):  # a server's certificate is not good for calling
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(address, tmp_path / "ca.pem", pair)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_device_does_not_talk_to_a_server_of_another_authority(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "other"):
        make_ca(folder)
    async with listening(ServerSecurity(*make_server_key(tmp_path, ["localhost"]))) as address:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(address, tmp_path / "other" / "ca.pem")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_over_tls_with_tokens_a_device_is_who_its_token_says(tmp_path: Path) -> None:
    make_ca(tmp_path)
    token = make_token(tmp_path / "devices.json", "pi-1", tmp_path / "pi-1.token").token.read_text().strip()
    security = ServerSecurity(
        *make_server_key(tmp_path, ["localhost"]), devices=read_devices(tmp_path / "devices.json")
    )
    async with listening(security) as address:
        assert await ask(address, tmp_path / "ca.pem", token=token) == "pi-1"
        for wrong in (None, token[:-1]):
            with pytest.raises(grpc.aio.AioRpcError, match="identity: expected"):
                await ask(address, tmp_path / "ca.pem", token=wrong)


# Limits.


class Clock:
    now_s = 5.0

    def __call__(self) -> float:
        return self.now_s


def test_a_bucket_gives_its_burst_at_once_and_then_its_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(10.0, 3.0, clock)
    assert [bucket.take() for _ in range(5)] == [True, True, True, False, False]
    given = 0
    for _ in range(1000):
        clock.now_s += 0.01
        given += bucket.take()
    assert given == pytest.approx(100, abs=1)


def test_a_bucket_saves_up_no_more_than_its_burst_and_says_how_long_to_wait() -> None:
    clock = Clock()
    bucket = TokenBucket(2.0, 4.0, clock)
    clock.now_s += 1000.0
    assert bucket.take(4.0)
    assert not bucket.take(1.0)
    assert bucket.wait_s(1.0) == pytest.approx(0.5)
    assert bucket.wait_s(5.0) == float("inf")
    clock.now_s += 0.5
    assert bucket.take(1.0)


@pytest.mark.parametrize(("rate", "burst"), [(0.0, 1.0), (-1.0, 5.0), (1.0, 0.5)])
def test_a_bucket_that_could_never_give_is_refused(rate: float, burst: float) -> None:
    with pytest.raises(ValueError, match="token bucket: expected rate > 0"):
        TokenBucket(rate, burst)
