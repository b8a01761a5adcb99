"""Inference copies: equal to what they were made from, and blind to the batch they run in."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from streamsplit.encoders.blocks import ConvNorm
from streamsplit.encoders.folding import fold, folded, plain
from tests.encoders.conftest import Subject, made

BATCHES = (1, 3, 8, 32)


@torch.inference_mode()
def test_folding_changes_only_the_rounding(subject: Subject) -> None:
    before, after = subject.trainable.embeddings(subject.mel), subject.encoder.embeddings(subject.mel)
    for path, embedding in before.items():
        torch.testing.assert_close(after[path], embedding, atol=1e-4, rtol=0)


def test_folding_leaves_the_original_alone(compact_subject: Subject) -> None:
    before = {name: tensor.clone() for name, tensor in compact_subject.trainable.state_dict().items()}
    compact_subject.trainable.for_inference()
    after = compact_subject.trainable.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@torch.inference_mode()
def test_an_embedding_does_not_depend_on_its_batch(subject: Subject) -> None:
    encoder, mel = subject.encoder, subject.mel
    for split in range(encoder.last_split + 1):
        activation = encoder.head(mel, split).contiguous()
        alone = [encoder.tail_and_own(activation[index : index + 1], split) for index in range(len(mel))]
        for batch in (size for size in BATCHES if size <= len(mel)):
            assert torch.equal(encoder.head(mel[:batch], split), activation[:batch]), (split, batch)
            embeddings, own = encoder.tail_and_own(activation[:batch], split)
            assert torch.equal(embeddings, torch.cat([one for one, _ in alone[:batch]])), (split, batch)
            assert torch.equal(own, torch.cat([one for _, one in alone[:batch]])), (split, batch)


@given(order=st.permutations(range(32)), batch=st.integers(1, 32), split=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_an_embedding_of_compact_depends_on_neither_place_nor_neighbours(
    order: list[int], batch: int, split: int
) -> None:
    subject = made("compact")
    chosen = order[:batch]
    with torch.inference_mode():
        activation = subject.encoder.head(subject.mel, split).contiguous()
        together = subject.encoder.tail(activation, split)
        assert torch.equal(subject.encoder.tail(activation[chosen], split), together[chosen])


@torch.inference_mode()
def test_memory_layout_does_not_change_an_embedding_of_compact(compact_subject: Subject) -> None:
    encoder = compact_subject.encoder
    for split in range(1, encoder.last_split):
        activation = encoder.head(compact_subject.mel, split)
        by_channel = activation.contiguous(memory_format=torch.contiguous_format)
        last = activation.contiguous(memory_format=torch.channels_last)
        assert torch.equal(encoder.tail(by_channel, split), encoder.tail(last, split))


@given(
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 9),
    kernel=st.sampled_from([1, 3, 5, 7]),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    activation=st.sampled_from(["linear", "relu", "hardswish", "silu"]),
    depthwise=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_folded_convolution_equals_convolution_and_norm(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: tuple[int, int],
    height: int,
    width: int,
    activation: str,
    depthwise: bool,
) -> None:
    torch.manual_seed(inputs * 100 + outputs)
    groups, outputs = (inputs, inputs) if depthwise else (1, outputs)
    layer = nn.Sequential(ConvNorm(inputs, outputs, kernel, stride, activation, groups))
    x = torch.randn(3, inputs, height, width)
    with torch.no_grad():
        norm = layer[0].norm
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.normal_()
        norm.bias.normal_()
        expected = layer.eval()(x)
        twin = folded(layer)
        torch.testing.assert_close(twin(x), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(plain(twin)(x), expected, atol=1e-4, rtol=1e-4)


def test_a_norm_without_statistics_cannot_be_folded() -> None:
    layer = ConvNorm(2, 3)
    layer.norm = nn.BatchNorm2d(3, track_running_stats=False)
    with pytest.raises(ValueError, match="expected running statistics"):
        fold(layer)
