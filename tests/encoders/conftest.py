"""Every encoder once, with settled batch norms and a few windows of made sound."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from streamsplit.encoders.calibrate import made_mel, settle_norms
from streamsplit.encoders.catalogue import ENCODERS, build
from streamsplit.encoders.split import SplitEncoder

TINY_CLAP: dict[str, Any] = {
    "config": {
        "patch_embeds_hidden_size": 8,
        "hidden_size": 64,
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 4, 8],
        "projection_dim": 32,
    }
}


@dataclass(frozen=True)
class Subject:
    """An encoder to train, its inference copy, and windows of sound."""

    trainable: SplitEncoder
    encoder: SplitEncoder
    mel: Tensor


@functools.cache
def made(name: str) -> Subject:
    if name == "clap":
        pytest.importorskip("transformers", reason="clap needs the extra `clap`")
    torch.manual_seed(3)
    trainable = build(name, options=TINY_CLAP if name == "clap" else None)
    mel = made_mel(trainable.front_end, 4 if name == "clap" else 32)
    settle_norms(trainable, mel)
    return Subject(trainable, trainable.for_inference(), mel)


@pytest.fixture(params=list(ENCODERS))
def subject(request: pytest.FixtureRequest) -> Subject:
    return made(request.param)


@pytest.fixture
def compact_subject() -> Subject:
    return made("compact")
