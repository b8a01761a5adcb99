"""From a loudspeaker to a name: a clip is played into a room, a real client hears it, and a search names the clip."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
import soundfile

from streamsplit.audio.synth import EVENT_KINDS, make_clip
from streamsplit.client.capture import MicrophoneSettings, MicrophoneSource
from streamsplit.encoders.registry import resolve
from streamsplit.server.query import embed_recording
from streamsplit.server.search import nearest
from streamsplit.server.store import EmbeddingStore, StoredWindow, Vectors
from tests.client.devices import client
from tests.client.test_capture import SoundServer, sound_server  # noqa: F401 - a fixture
from tests.conftest import Serve


@pytest.mark.microphone
async def test_a_clip_played_in_the_room_is_recognised(
    sound_server: SoundServer,  # noqa: F811 - the fixture
    serve: Serve,
    tmp_path: Path,
) -> None:
    version = resolve("compact")
    clips = {kind: make_clip(kind, seed=11) for kind in EVENT_KINDS}
    played = "siren"
    for kind, samples in clips.items():
        soundfile.write(tmp_path / f"{kind}.wav", samples, 16_000)
    async with serve([version]) as server:
        microphone = MicrophoneSource(MicrophoneSettings("pulse"))
        address = f"127.0.0.1:{server.port}"
        async with client(
            tmp_path / "c", version, microphone, address, lossless=False, decider="fixed:1", codec="int8"
        ) as made:
            listening = asyncio.create_task(made.run())
            await asyncio.sleep(1.5)
            command = ("paplay", "--device=speaker", str(tmp_path / f"{played}.wav"))
            assert (await asyncio.to_thread(sound_server.command, *command)).returncode == 0
            await asyncio.sleep(1.5)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
    with EmbeddingStore(tmp_path / "embeddings.db") as store:
        heard = [row for row in store.iterate() if row.level_dbfs > -60]
        for kind in clips:
            embeddings = embed_recording(version, tmp_path / f"{kind}.wav")[:, 0]
            store.insert([_known(version.id, kind, place, z) for place, z in enumerate(embeddings)])
        votes = Counter(
            nearest(store, row.embedding, version.id, 1, exclude_stream=("pi", "s"))[0].source
            for row in heard
        )
    assert len(heard) >= 4
    assert votes.most_common(1)[0][0] == played
    assert votes[played] >= len(heard) - 2  # the first and the last window hold only a part of the clip


def _known(version: str, kind: str, sequence: int, embedding: Vectors) -> StoredWindow:
    return StoredWindow(
        device="library",
        stream=kind,
        sequence=sequence,
        start_sample=sequence * 15_360,
        sample_rate_hz=16_000,
        started_unix_ms=0,
        version=version,
        split=0,
        codec="fp32",
        computed_on="server",
        embedding=embedding,
        received_unix_ms=0,
        payload_bytes=0,
        source=kind,
    )
