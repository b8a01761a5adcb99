"""TLS, certificates and tokens between a real client and a real server: who gets in, and what the others are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamsplit.audio.window import Samples
from streamsplit.config import ClientTls, ServerTls
from streamsplit.encoders.version import Version
from streamsplit.errors import LinkError, RefusedError, StreamSplitError
from streamsplit.server.keys import make_ca, make_device_key, make_server_key, make_token
from streamsplit.server.store import EmbeddingStore
from tests.client.devices import Played, blocks, client
from tests.conftest import Serve


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server for localhost, the device `pi`; and a stranger's authority with a `pi` of its own."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        make_ca(folder / name)
        make_device_key(folder / name, "pi")
    make_server_key(folder / "ours", ["localhost", "127.0.0.1"])
    return folder


def server_tls(keys: Path, mutual: bool) -> ServerTls:
    ours = keys / "ours"
    return ServerTls(
        certificate=ours / "server.pem",
        key=ours / "server.key",
        client_ca=ours / "ca.pem" if mutual else None,
    )


async def send(folder: Path, version: Version, sound: Samples, port: int, **changes: object) -> None:
    source = Played(blocks(sound, 3))
    async with client(folder, version, source, f"localhost:{port}", connect_timeout_s=1.5, **changes) as made:
        await made.run()


async def test_mutual_tls_lets_our_device_in_and_stores_it_under_its_certificates_name(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path, keys: Path
) -> None:
    ours = keys / "ours"
    tls = ClientTls(ca=ours / "ca.pem", certificate=ours / "pi.pem", key=ours / "pi.key")
    async with serve(tls=server_tls(keys, mutual=True)) as server:
        await send(tmp_path / "c", compact, sound, server.port, tls=tls)
    rows = list(EmbeddingStore(tmp_path / "embeddings.db", read_only=True).iterate())
    assert [(row.device, row.sequence) for row in rows] == [("pi", 0), ("pi", 1), ("pi", 2)]


async def test_a_certificate_for_another_name_is_refused(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path, keys: Path
) -> None:
    ours = keys / "ours"
    tls = ClientTls(ca=ours / "ca.pem", certificate=ours / "pi.pem", key=ours / "pi.key")
    async with serve(tls=server_tls(keys, mutual=True)) as server:
        with pytest.raises(RefusedError, match=r"PERMISSION_DENIED.*'other'.*'pi'"):
            await send(tmp_path / "c", compact, sound, server.port, tls=tls, device="other")


@pytest.mark.parametrize("certificate", ["theirs", None])
async def test_a_strangers_certificate_or_none_does_not_get_past_the_handshake(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path, keys: Path, certificate: str | None
) -> None:
    own = (keys / certificate / "pi.pem", keys / certificate / "pi.key") if certificate else (None, None)
    tls = ClientTls(ca=keys / "ours" / "ca.pem", certificate=own[0], key=own[1])
    async with serve(tls=server_tls(keys, mutual=True)) as server:
        with pytest.raises(LinkError, match="localhost"):
            await send(tmp_path / "c", compact, sound, server.port, tls=tls)


async def test_a_server_of_another_authority_is_not_talked_to(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path, keys: Path
) -> None:
    async with serve(tls=server_tls(keys, mutual=False)) as server:
        with pytest.raises(LinkError, match=r"(?i)certificate|handshake|ssl"):
            await send(
                tmp_path / "c", compact, sound, server.port, tls=ClientTls(ca=keys / "theirs" / "ca.pem")
            )


async def test_plain_text_does_not_get_into_a_tls_server(
    serve: Serve, compact: Version, sound: Samples, tmp_path: Path, keys: Path
) -> None:
    async with serve(tls=server_tls(keys, mutual=False)) as server:
        with pytest.raises(LinkError):
            await send(tmp_path / "c", compact, sound, server.port)


@pytest.mark.parametrize(
    ("token", "error"), [("pi", None), ("other", "PERMISSION_DENIED"), ("wrong", "UNAUTHENTICATED")]
)
async def test_a_token_over_tls_names_its_device(
    serve: Serve,
    compact: Version,
    sound: Samples,
    tmp_path: Path,
    keys: Path,
    token: str,
    error: str | None,
) -> None:
    for name in ("pi", "other"):
        make_token(tmp_path / "devices.json", name, tmp_path / f"{name}.token")
    (tmp_path / "wrong.token").write_text("x" * 43)
    tls = ClientTls(ca=keys / "ours" / "ca.pem")
    async with serve(
        listen="0.0.0.0:0", tls=server_tls(keys, mutual=False), devices=tmp_path / "devices.json"
    ) as server:
        folder, file = tmp_path / "c", tmp_path / f"{token}.token"
        if error is None:
            await send(folder, compact, sound, server.port, tls=tls, token_file=file)
            return
        with pytest.raises(StreamSplitError, match=error):
            await send(folder, compact, sound, server.port, tls=tls, token_file=file)
