"""What `compact` promises beyond the contract."""

from __future__ import annotations

import pytest
import torch

from streamsplit.encoders.compact import CompactEncoder
from tests.encoders.conftest import Subject


@pytest.fixture
def encoder(compact_subject: Subject) -> CompactEncoder:
    assert isinstance(compact_subject.encoder, CompactEncoder)
    return compact_subject.encoder


@torch.inference_mode()
def test_the_device_ends_in_the_lite_embedding_and_the_server_in_the_dense_one(
    encoder: CompactEncoder, compact_subject: Subject
) -> None:
    mel = compact_subject.mel
    assert [encoder.path(split) for split in range(5)] == ["dense"] * 3 + ["squeezed", "lite"]
    assert torch.equal(encoder.head(mel, 4), encoder.lite(mel))
    assert torch.equal(encoder.tail(encoder.lite(mel), 4), encoder.lite(mel))
    assert not torch.allclose(encoder(mel), encoder.lite(mel))


@torch.inference_mode()
def test_a_tail_tells_what_the_device_would_have_embedded(
    encoder: CompactEncoder, compact_subject: Subject
) -> None:
    mel = compact_subject.mel
    for split in range(4):
        embedding, own = encoder.tail_and_own(encoder.head(mel, split), split)
        assert torch.equal(embedding, encoder.tail(encoder.head(mel, split), split))
        torch.testing.assert_close(own, encoder.lite(mel), atol=1e-5, rtol=0)
    embedding, own = encoder.tail_and_own(encoder.lite(mel), 4)
    assert own is embedding


@torch.inference_mode()
def test_pooled_features_lead_to_the_embedding_of_their_path(
    encoder: CompactEncoder, compact_subject: Subject
) -> None:
    mel = compact_subject.mel[:4]
    assert encoder.pooled(mel, "dense").shape == encoder.pooled(mel, "squeezed").shape == (4, 512)
    assert encoder.pooled(mel, "lite").shape == (4, 256)
    block = encoder.embedding_block
    embedding = torch.nn.functional.normalize(block.norm(block.project(encoder.pooled(mel, "lite"))), dim=1)
    assert torch.equal(embedding, encoder.lite(mel))


def test_the_dense_tail_is_the_larger_one(compact_subject: Subject) -> None:
    trainable = compact_subject.trainable
    assert isinstance(trainable, CompactEncoder)
    dense = sum(parameter.numel() for parameter in trainable.dense.parameters())
    everything = sum(parameter.numel() for parameter in trainable.parameters())
    assert 0.9e6 < dense < 1.2e6
    assert everything - dense < 0.15e6
