"""The service over a real socket: what a device may say, and what each mistake costs."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch

from streamsplit.audio.features import LogMel
from streamsplit.audio.window import Window
from streamsplit.encoders.registry import make_untrained
from streamsplit.encoders.version import Version
from streamsplit.server.keys import make_token
from streamsplit.server.store import EmbeddingStore
from streamsplit.wire import messages, translate
from streamsplit.wire.audio import pack_audio
from streamsplit.wire.codec import Codec, pack, pack_embedding, unpack, unpack_embedding
from streamsplit.wire.v1 import streamsplit_pb2 as pb
from streamsplit.wire.v1 import streamsplit_pb2_grpc as pb_grpc
from tests.conftest import Serve


class Talk:
    """A device that says exactly what a test tells it to."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
        self.call = pb_grpc.StreamSplitStub(self.channel).Connect()

    async def say(self, *said: messages.DeviceSays) -> None:
        for message in said:
            await self.call.write(translate.device_message(message))

    async def hear(self) -> messages.ServerSays:
        message = await asyncio.wait_for(self.call.read(), 10)
        assert message is not grpc.aio.EOF
        heard = translate.read_server_message(message)
        assert heard is not None
        return heard

    async def status(self) -> tuple[grpc.StatusCode, str]:
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await asyncio.wait_for(self.call.read(), 10) is not grpc.aio.EOF:
                pass
        return await self.call.code(), await self.call.details()


@asynccontextmanager
async def talking(port: int, *said: messages.DeviceSays) -> AsyncIterator[Talk]:
    talk = Talk(port)
    try:
        await talk.say(*said)
        yield talk
    finally:
        talk.call.cancel()
        await talk.channel.close()


def greeting(version: str, device: str = "pi") -> tuple[messages.Hello, messages.OpenStream]:
    return messages.Hello("1.0", device, (version,)), messages.OpenStream(0, "kitchen", 1_000, 16_000)


def packed(version: Version, window: Window, split: int, codec: Codec) -> bytes:
    with torch.inference_mode():
        mel = LogMel(version.front_end)(torch.from_numpy(window.samples)[None])
        activation = version.encoder.head(mel, split)[0].numpy()
    if split == version.encoder.last_split:
        return pack_embedding(activation, codec)
    return pack(activation, codec, version.ranges[split])


def message(version: Version, window: Window, split: int, codec: Codec) -> messages.WindowMessage:
    return messages.WindowMessage(
        0, window.sequence, window.start_sample, 0, split, codec, packed(version, window, split, codec), -30.0
    )


@pytest.mark.parametrize("split", range(5))
async def test_the_embedding_is_that_of_the_tail_on_what_was_sent(
    serve: Serve, compact: Version, windows: list[Window], tmp_path: Path, split: int
) -> None:
    codec = Codec.INT8 if split == 4 else Codec.INT4
    said = [message(compact, window, split, codec) for window in windows[:40]]
    async with serve() as server, talking(server.port, *greeting(compact.id)) as talk:
        assert isinstance(await talk.hear(), messages.Welcome)
        await talk.say(*said)
        heard = [await talk.hear() for _ in said]
    assert all(isinstance(answer, messages.Acknowledgement) for answer in heard)
    store = EmbeddingStore(tmp_path / "embeddings.db", read_only=True)
    rows = {row.sequence: row for row in store.iterate()}
    assert sorted(rows) == [window.sequence for window in windows[:40]]
    for sent in said:
        row = rows[sent.sequence]
        if split == 4:
            expected = unpack_embedding(sent.payload, codec, 128)
        else:
            activation = unpack(
                sent.payload, codec, compact.encoder.activation_spec(split), compact.ranges[split]
            )
            with torch.inference_mode():
                expected = compact.encoder.tail(torch.from_numpy(activation)[None], split)[0].numpy()
        np.testing.assert_array_equal(row.embedding, expected)
        assert (row.device, row.stream, row.split, row.codec) == ("pi", "kitchen", split, str(codec))
        assert row.computed_on == ("device" if split == 4 else "server")


@pytest.mark.parametrize("codec", [Codec.PCM16, Codec.FLAC, Codec.OPUS])
async def test_audio_is_embedded_too(
    serve: Serve, compact: Version, windows: list[Window], codec: Codec
) -> None:
    payload = pack_audio(windows[0].samples, codec, 16_000)
    said = messages.WindowMessage(0, 0, 0, 0, -1, codec, payload, -30.0)
    async with serve() as server, talking(server.port, *greeting(compact.id), said) as talk:
        await talk.hear()
        answer = await talk.hear()
    assert isinstance(answer, messages.Acknowledgement)
    with torch.inference_mode():
        direct = compact.encoder(LogMel(compact.front_end)(torch.from_numpy(windows[0].samples)[None]))[
            0
        ].numpy()
    cosine = float(unpack_embedding(answer.embedding, Codec.INT8, 128) @ direct)
    assert cosine > (0.9 if codec is Codec.OPUS else 0.999)


async def test_a_duplicate_is_acknowledged_and_stored_once(
    serve: Serve, compact: Version, windows: list[Window], tmp_path: Path
) -> None:
    said = message(compact, windows[0], 3, Codec.INT4)
    async with serve() as server, talking(server.port, *greeting(compact.id), said, said) as talk:
        await talk.hear()
        answers = [await talk.hear(), await talk.hear()]
    assert sorted(answer.duplicate for answer in answers if isinstance(answer, messages.Acknowledgement)) == [
        False,
        True,
    ]
    assert EmbeddingStore(tmp_path / "embeddings.db", read_only=True).count() == 1


async def test_bytes_that_do_not_decode_cost_their_window_only(
    serve: Serve, compact: Version, windows: list[Window]
) -> None:
    good = [message(compact, window, 3, Codec.INT4) for window in windows[:3]]
    bad = replace(good[1], payload=b"\xff" * 100)
    async with serve() as server, talking(server.port, *greeting(compact.id), good[0], bad, good[2]) as talk:
        await talk.hear()
        kinds = {answer.sequence: type(answer) for answer in [await talk.hear() for _ in range(3)]}  # type: ignore[union-attr]
    assert kinds == {0: messages.Acknowledgement, 1: messages.Rejected, 2: messages.Acknowledgement}


async def test_not_a_number_is_refused(serve: Serve, compact: Version) -> None:
    payload = np.full((16, 4, 12), np.nan, np.float32).tobytes()
    said = messages.WindowMessage(0, 0, 0, 0, 3, Codec.FP32, payload, -30.0)
    async with serve() as server, talking(server.port, *greeting(compact.id), said) as talk:
        await talk.hear()
        assert isinstance(await talk.hear(), messages.Rejected)


async def test_an_old_version_is_told_what_is_served_and_features_are_taken_instead(
    serve: Serve, compact: Version, windows: list[Window], tmp_path: Path
) -> None:
    old = make_untrained("compact", seed=1)
    async with (
        serve() as server,
        talking(server.port, *greeting(old.id), message(old, windows[0], 3, Codec.INT4)) as talk,
    ):
        await talk.hear()
        gone = await talk.hear()
        assert isinstance(gone, messages.VersionGone)
        assert gone.served == (messages.EncoderVersion(compact.id, "compact", old.front_end.fingerprint),)
        features = message(old, windows[0], 0, Codec.INT8)
        await talk.say(replace(features, served_version=gone.served[0].version))
        assert isinstance(await talk.hear(), messages.Acknowledgement)
    (row,) = EmbeddingStore(tmp_path / "embeddings.db", read_only=True).iterate()
    assert row.version == compact.id


async def test_another_major_protocol_is_refused_with_a_reason(serve: Serve, compact: Version) -> None:
    hello = messages.Hello("9.0", "pi", (compact.id,))
    async with serve() as server, talking(server.port, hello) as talk:
        code, details = await talk.status()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "expected 1.x, got '9.0'" in details


async def test_a_newer_minor_version_is_welcome_and_its_news_passed_over(
    serve: Serve, compact: Version
) -> None:
    hello = messages.Hello("1.9", "pi", (compact.id,))
    async with serve() as server, talking(server.port, hello) as talk:
        assert isinstance(await talk.hear(), messages.Welcome)
        await talk.call.write(pb.DeviceMessage.FromString(b"\xfa\x01\x02\x08\x01"))
        await talk.call.done_writing()
        assert (await talk.status())[0] is grpc.StatusCode.OK


async def test_a_message_beyond_the_limit_is_refused(serve: Serve, compact: Version) -> None:
    said = messages.WindowMessage(0, 0, 0, 0, 3, Codec.INT4, bytes(100_000), -30.0)
    async with serve(max_message_kb=16) as server, talking(server.port, *greeting(compact.id)) as talk:
        await talk.hear()
        await talk.say(said)
        assert (await talk.status())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_devices_beyond_the_limit_are_turned_away_until_one_leaves(
    serve: Serve, compact: Version
) -> None:
    async with serve(max_devices=1) as server:
        async with talking(server.port, greeting(compact.id, "one")[0]) as first:
            await first.hear()
            async with talking(server.port, greeting(compact.id, "two")[0]) as second:
                assert (await second.status())[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        for _ in range(50):
            async with talking(server.port, greeting(compact.id, "two")[0]) as second:
                try:
                    assert isinstance(await second.hear(), messages.Welcome)
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.1)  # the server has yet to notice that the first is gone
        else:
            pytest.fail("the second device was never let in")


async def test_connections_of_one_device_are_limited(serve: Serve, compact: Version) -> None:
    async with (
        serve(max_streams_per_device=1) as server,
        talking(server.port, greeting(compact.id)[0]) as first,
    ):
        await first.hear()
        async with talking(server.port, greeting(compact.id)[0]) as second:
            code, details = await second.status()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the limit is 1" in details


async def test_a_device_beyond_its_rate_is_told_busy(
    serve: Serve, compact: Version, windows: list[Window]
) -> None:
    said = [replace(message(compact, windows[0], 3, Codec.INT4), sequence=number) for number in range(20)]
    async with (
        serve(max_windows_per_second=2) as server,
        talking(server.port, *greeting(compact.id), *said) as talk,
    ):
        await talk.hear()
        kinds = [type(await talk.hear()) for _ in said]
    assert messages.Busy in kinds
    assert messages.Acknowledgement in kinds


async def test_random_bytes_on_the_port_harm_nobody(
    serve: Serve, compact: Version, windows: list[Window]
) -> None:
    generator = np.random.default_rng(0)
    async with serve() as server:
        for size in (1, 100, 10_000):
            with socket.create_connection(("127.0.0.1", server.port)) as stranger:
                stranger.sendall(generator.bytes(size))
        async with talking(
            server.port, *greeting(compact.id), message(compact, windows[0], 3, Codec.INT4)
        ) as talk:
            await talk.hear()
            assert isinstance(await talk.hear(), messages.Acknowledgement)


async def test_draining_finishes_what_is_in_flight_and_refuses_what_is_new(
    serve: Serve, compact: Version, windows: list[Window], tmp_path: Path
) -> None:
    said = [message(compact, window, 3, Codec.INT4) for window in windows[:10]]
    bad, late = replace(said[0], sequence=900, split=77), replace(said[0], sequence=901)
    async with serve() as server, talking(server.port, *greeting(compact.id)) as talk:
        await talk.hear()
        with held_open(tmp_path / "embeddings.db"):  # so that nothing in flight can be done before the drain
            await talk.say(*said, bad)
            assert isinstance(await talk.hear(), messages.Rejected)  # all before it have been taken
            drain = asyncio.create_task(server.service.drain(10.0))
            assert isinstance(await talk.hear(), messages.Drain)
            await talk.say(late)
            assert await talk.hear() == messages.Busy(1000, 0, 901)
        answers = [await talk.hear() for _ in said]
        assert all(isinstance(answer, messages.Acknowledgement) for answer in answers)
        assert sorted(answer.sequence for answer in answers) == list(range(10))  # type: ignore[union-attr]
        await talk.call.done_writing()
        assert (await talk.status())[0] is grpc.StatusCode.OK
        await drain
        async with talking(server.port) as newcomer:  # refused before it says a word
            assert (await newcomer.status())[0] is grpc.StatusCode.UNAVAILABLE
    rows = EmbeddingStore(tmp_path / "embeddings.db", read_only=True).iterate()
    assert sorted(row.sequence for row in rows) == list(range(10))


@contextlib.contextmanager
def held_open(store: Path) -> Iterator[None]:
    """Nobody else can commit meanwhile."""
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


async def test_numbers_beyond_what_can_be_stored_cost_their_window_only(
    serve: Serve, compact: Version, windows: list[Window]
) -> None:
    good = message(compact, windows[0], 3, Codec.INT4)
    bad = [replace(good, sequence=1, start_sample=2**63), replace(good, sequence=2**32 - 1, level_dbfs=-2e7)]
    async with serve() as server, talking(server.port, *greeting(compact.id), bad[0], bad[1], good) as talk:
        await talk.hear()
        kinds = {answer.sequence: type(answer) for answer in [await talk.hear() for _ in range(3)]}  # type: ignore[union-attr]
    assert kinds[1] is messages.Rejected
    assert kinds[0] is messages.Acknowledgement


async def test_a_stranger_gets_no_stream_but_may_ask_after_the_servers_health(
    serve: Serve, tmp_path: Path
) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    make_token(tmp_path / "devices.json", "pi", tmp_path / "pi.token")
    async with (
        serve(devices=tmp_path / "devices.json") as server,
        grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        assert (
            await health.Check(health_pb2.HealthCheckRequest())
        ).status == health_pb2.HealthCheckResponse.SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert await watch.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_reconnecting_does_not_refill_a_devices_rate(
    serve: Serve, compact: Version, windows: list[Window]
) -> None:
    said = [replace(message(compact, windows[0], 3, Codec.INT4), sequence=number) for number in range(6)]
    taken = 0
    async with serve(max_windows_per_second=1) as server:
        for _ in range(4):
            async with talking(server.port, *greeting(compact.id), *said) as talk:
                await talk.hear()
                taken += sum([isinstance(await talk.hear(), messages.Acknowledgement) for _ in said])
    assert taken <= 6


async def test_health_and_reflection_answer(serve: Serve) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async with serve() as server, grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        health = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="streamsplit.v1.StreamSplit")
        )
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {service.name for service in (await call.read()).list_services_response.service}
        assert "streamsplit.v1.StreamSplit" in listed
        call.cancel()


class Broken:
    """A synchronisation with a bug."""

    def newest(self) -> messages.Newest:
        return messages.Newest(messages.EncoderVersion("v2", "compact", "front"), 1)

    def most_bytes(self, thing: messages.Thing, name: str) -> int:
        return 10

    def fetch(self, want: messages.Want) -> messages.Piece:
        raise KeyError(want.version)

    def keep(self, device: str, thing: messages.Thing, version: str, base: str, content: bytes) -> str:
        raise KeyError(version)


async def test_a_bug_in_synchronisation_is_answered_like_everything_else(
    serve: Serve, compact: Version
) -> None:
    async with serve() as server:
        server.service.synchronisation = Broken()  # type: ignore[assignment]
        async with talking(server.port, *greeting(compact.id)) as talk:
            assert [type(await talk.hear()) for _ in range(2)] == [messages.Welcome, messages.Newest]
            await talk.say(messages.Want(messages.Thing.MEMORY, "v2", "", 0))
            nothing = await talk.hear()
            assert isinstance(nothing, messages.Piece)
            assert nothing.total == 0
            await talk.say(messages.Piece(messages.Thing.MEMORY, "v2", "", 0, 3, b"abc"))
            said = await talk.hear()
            assert isinstance(said, messages.Taken)
            assert said.problem
