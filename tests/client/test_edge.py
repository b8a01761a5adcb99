"""The device's part of a window that is sent as sound."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from streamsplit.audio.synth import make_clip
from streamsplit.audio.window import Window
from streamsplit.client.edge import Codecs, Edge
from streamsplit.config import ClientSettings
from streamsplit.encoders.registry import resolve
from streamsplit.policy.decide import Choice
from streamsplit.policy.observation import AUDIO_SPLIT

WINDOW = Window("s", 0, 0, make_clip("bell", seed=0, seconds=0.96))


def test_opus_takes_the_rate_it_is_told_and_its_option_expects_it() -> None:
    version = resolve("compact")
    packed = {}
    for kbps in (12.0, 24.0, 48.0):
        settings = ClientSettings(send_audio=True, audio_kbps=kbps)
        edge = Edge(version, Codecs.from_settings(settings))
        option = next(each for each in edge.options() if each.split == AUDIO_SPLIT)
        step = edge.process(WINDOW, Choice(AUDIO_SPLIT, option.codec, "told"))
        assert len(step.payload) == pytest.approx(option.payload_bytes, rel=0.35)
        packed[kbps] = len(step.payload)
    assert packed[12.0] < 0.7 * packed[24.0] < 0.7 * 0.7 * packed[48.0]


def test_sound_is_no_option_where_it_may_not_leave_the_device() -> None:
    edge = Edge(resolve("compact"), Codecs.from_settings(ClientSettings(audio_kbps=24.0)))
    assert AUDIO_SPLIT not in [option.split for option in edge.options()]
    assert np.all([option.payload_bytes > 0 for option in edge.options()])


@pytest.mark.parametrize("kbps", [5.9, 257.0, float("nan")])
def test_a_rate_that_opus_does_not_know_is_refused(kbps: float) -> None:
    with pytest.raises(ValidationError, match="audio_kbps"):
        ClientSettings(audio_kbps=kbps)
