"""What is kept to learn from: features and activations of sound, not silence and not embeddings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from streamsplit.audio.window import SILENCE_DBFS, Samples
from streamsplit.encoders.version import Version
from streamsplit.learning.replay import ReplayReader
from streamsplit.server.commit import Committed
from streamsplit.server.events import WindowJob
from streamsplit.server.replay_feed import ReplayFeed
from streamsplit.server.versions import serve
from streamsplit.wire.codec import Codec
from tests.learning.received import received


def test_silence_and_embeddings_are_not_kept(compact: Version, sound: Samples, tmp_path: Path) -> None:
    windows = received(compact, sound, 0)[:4]
    jobs = [
        WindowJob(
            device="d",
            stream="s",
            stream_index=0,
            sequence=place,
            start_sample=15360 * place,
            sample_rate_hz=16000,
            started_unix_ms=0,
            version=compact.id,
            split=0,
            codec=Codec.INT8,
            payload=window.payload,
            level_dbfs=-30.0,
            source=None,
            label=None,
        )
        for place, window in enumerate(windows)
    ]
    jobs[1] = replace(jobs[1], level_dbfs=SILENCE_DBFS)
    jobs[2] = replace(jobs[2], split=compact.encoder.last_split)
    feed = ReplayFeed(tmp_path / "ring.db", 10**8, serve([compact], "cpu"), compact.name)
    feed.start()
    feed([Committed(job, np.zeros(128, np.float32), None, None) for job in jobs])
    feed.stop()
    assert feed.kept == 2
    with ReplayReader(tmp_path / "ring.db") as reader:
        assert [one.sequence for one in reader.newest(10)] == [0, 3]
