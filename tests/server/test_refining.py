"""What is published is served: N and N - 1 over a real socket, N - 2 gone; what is stored is kept to learn from."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamsplit.audio.features import LogMel
from streamsplit.audio.window import Window
from streamsplit.config import RefinerSettings, ServerSettings
from streamsplit.encoders.checkpoint import save
from streamsplit.encoders.version import Version
from streamsplit.learning.buffer import unpacked
from streamsplit.learning.replay import ReplayReader
from streamsplit.learning.upgrade import make_upgrade
from streamsplit.server import refining
from streamsplit.server.app import running
from streamsplit.server.publications import Publications
from streamsplit.server.refiner import PUBLISHED, REPLAY
from streamsplit.server.refiner_log import read_status
from streamsplit.wire import messages
from streamsplit.wire.audio import pack_audio
from streamsplit.wire.codec import Codec
from tests.server.test_service import greeting, message, talking


def settings(folder: Path) -> ServerSettings:
    return ServerSettings(
        listen="127.0.0.1:0",
        store=folder / "embeddings.db",
        drain_s=2.0,
        refine=True,
        refiner=RefinerSettings(state_dir=folder / "refiner", least_windows=10_000, nice=0),
    )


def next_version(base: Version, publications: Publications, change: float) -> Version:
    encoder = base.trainable()
    with torch.no_grad():
        encoder.get_parameter("blocks.3.norm.bias").add_(change)
    version, difference = make_upgrade(base, encoder, None)
    assert publications.publish(version, base.id, difference, None, 0) is not None
    return version


async def test_the_newest_two_versions_are_served_and_the_third_is_gone(
    tmp_path: Path, compact: Version, windows: list[Window]
) -> None:
    told = settings(tmp_path)
    async with running(told, [compact]) as server:
        publications = Publications(told.refiner.state_dir / PUBLISHED)
        second = next_version(compact, publications, 0.1)
        third = next_version(second, publications, 0.2)
        for _ in range(100):
            if compact.id not in server.versions and third.id in server.versions:
                break
            await asyncio.sleep(0.1)
        hello = messages.Hello("1.0", "pi", (compact.id, second.id, third.id))
        async with talking(server.port, hello, greeting(compact.id)[1]) as talk:
            welcome = await talk.hear()
            assert isinstance(welcome, messages.Welcome)
            assert {one.version for one in welcome.served} == {second.id, third.id}
            newest = await talk.hear()
            assert isinstance(newest, messages.Newest)
            assert newest.version.version == third.id
            said = message(compact, windows[0], 3, Codec.INT4)
            await talk.say(said)
            assert isinstance(await talk.hear(), messages.VersionGone)
            for place, one in enumerate((second, third), start=1):
                said = message(one, windows[place], 3, Codec.INT4)
                await talk.say(replace(said, version=place))
                assert isinstance(await talk.hear(), messages.Acknowledgement)
    async with running(told, [compact]) as server:
        assert list(server.versions) == [third.id, second.id], "a restart goes on with what was published"


@pytest.mark.parametrize("split", [0, 3])
async def test_what_is_stored_is_kept_to_learn_from(
    tmp_path: Path, compact: Version, windows: list[Window], split: int
) -> None:
    told = settings(tmp_path)
    said = [message(compact, window, split, Codec.INT8) for window in windows[:12]]
    own = message(compact, windows[12], 4, Codec.INT8)
    async with running(told, [compact]) as server, talking(server.port, *greeting(compact.id)) as talk:
        await talk.hear()
        assert isinstance(await talk.hear(), messages.Newest)
        await talk.say(*said, own, said[0])
        for _ in range(14):
            assert isinstance(await talk.hear(), messages.Acknowledgement)
    with ReplayReader(told.refiner.state_dir / REPLAY) as reader:
        kept = reader.newest(100)
    assert [one.sequence for one in sorted(kept, key=lambda one: one.sequence)] == list(range(12))
    for one in kept:
        assert (one.device, one.stream, one.split, one.version) == ("pi", "kitchen", split, compact.id)
        assert one.start_s == pytest.approx(1.0 + 0.96 * one.sequence)
        assert one.payload == said[one.sequence].payload


async def test_of_sound_the_features_are_kept(
    tmp_path: Path, compact: Version, windows: list[Window]
) -> None:
    told = settings(tmp_path)
    payload = pack_audio(windows[3].samples, Codec.PCM16, 16_000)
    sound = messages.WindowMessage(0, 3, 3 * 15_360, 0, -1, Codec.PCM16, payload, -30.0)
    async with running(told, [compact]) as server, talking(server.port, *greeting(compact.id)) as talk:
        await talk.hear()
        assert isinstance(await talk.hear(), messages.Newest)
        await talk.say(sound)
        assert isinstance(await talk.hear(), messages.Acknowledgement)
    with ReplayReader(told.refiner.state_dir / REPLAY) as reader:
        (kept,) = reader.newest(10)
    assert (kept.split, kept.codec) == (0, Codec.INT8)
    mel = LogMel(compact.front_end)(torch.from_numpy(windows[3].samples)[None])
    got = unpacked([kept], compact.encoder.activation_spec(0), compact.ranges[0])
    bounds = compact.ranges[0]
    inside = mel[0].clamp(float(bounds.low[0]), float(bounds.high[0]))
    torch.testing.assert_close(got[0], inside, atol=float(bounds.high[0] - bounds.low[0]) / 60, rtol=0.0)


async def test_a_refiner_that_keeps_dying_is_started_less_and_less_often(tmp_path: Path) -> None:
    pauses: list[float] = []

    async def dies(_: ServerSettings) -> int:
        return 1

    async def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        if len(pauses) == 9:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await refining.keep_alive(settings(tmp_path), dies, sleep)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_a_killed_refiner_lives_again_and_ends_with_the_server(
    tmp_path: Path, compact: Version
) -> None:
    save(compact, tmp_path / "v.safetensors")
    told = settings(tmp_path).model_copy(update={"weights": (str(tmp_path / "v.safetensors"),)})
    lives: list[int] = []
    async with running(told, [compact]):
        for _ in range(600):
            await asyncio.sleep(0.1)
            said = read_status(told.refiner.state_dir)
            if said and said["running"] and said["pid"] not in lives:
                lives.append(said["pid"])
                if len(lives) == 2:
                    break
                os.kill(said["pid"], signal.SIGKILL)
    assert len(lives) == 2
    said = read_status(told.refiner.state_dir)
    assert said is not None
    assert not said["running"]
