"""The split law and its company, for every encoder."""

from __future__ import annotations

import pytest
import torch

from tests.encoders.conftest import Subject

SHAPES = {
    "compact": [(1, 64, 96), (12, 16, 24), (16, 8, 12), (16, 4, 12), (128,)],
    "cola": [
        (1, 64, 96),
        (32, 32, 48),
        (16, 32, 48),
        (24, 16, 24),
        (40, 8, 12),
        (80, 4, 6),
        (112, 4, 6),
        (192, 2, 3),
        (320, 2, 3),
        (128,),
    ],
    "mobile": [
        (1, 64, 96),
        (16, 32, 48),
        (16, 16, 24),
        (24, 8, 12),
        (40, 4, 6),
        (48, 4, 6),
        (96, 2, 3),
        (128,),
    ],
    "resnet18": [
        (1, 64, 96),
        (64, 16, 24),
        (64, 16, 24),
        (128, 8, 12),
        (128, 8, 12),
        (256, 4, 6),
        (256, 4, 6),
        (512, 2, 3),
        (128,),
    ],
    "clap": [(1, 64, 1001), (32,)],
}


@torch.inference_mode()
def test_tail_of_head_equals_the_whole_at_every_split(subject: Subject) -> None:
    for encoder in (subject.encoder, subject.trainable):
        whole = encoder.embeddings(subject.mel[:3])
        for split in range(encoder.last_split + 1):
            divided = encoder.tail(encoder.head(subject.mel[:3], split), split)
            torch.testing.assert_close(divided, whole[encoder.path(split)], atol=1e-6, rtol=0)


@torch.inference_mode()
def test_from_every_boundary_the_paths_that_are_left_end_alike(subject: Subject) -> None:
    encoder = subject.encoder
    whole = encoder.embeddings(subject.mel[:3])
    for split in range(encoder.last_split):
        rest = encoder.embeddings(encoder.head(subject.mel[:3], split), split)
        later = {encoder.path(later) for later in range(split, encoder.last_split + 1)}
        assert later <= rest.keys()
        for path, embedding in rest.items():
            torch.testing.assert_close(embedding, whole[path], atol=1e-6, rtol=0)


@torch.inference_mode()
def test_forward_is_the_best_path(subject: Subject) -> None:
    encoder = subject.encoder
    assert torch.equal(encoder(subject.mel[:2]), encoder.embeddings(subject.mel[:2])[encoder.path(0)])
    assert set(encoder.embeddings(subject.mel[:1])) == set(encoder.paths)


@torch.inference_mode()
def test_every_activation_has_the_stated_shape(subject: Subject) -> None:
    encoder = subject.encoder
    stated = [encoder.activation_spec(split).shape for split in range(encoder.last_split + 1)]
    assert stated == SHAPES[encoder.name]
    assert len(encoder.block_names) == encoder.last_split
    for split, shape in enumerate(stated):
        assert encoder.head(subject.mel[:2], split).shape == (2, *shape)


@torch.inference_mode()
def test_embeddings_are_unit_vectors_and_differ_between_sounds(subject: Subject) -> None:
    for embedding in subject.encoder.embeddings(subject.mel).values():
        assert embedding.shape == (len(subject.mel), subject.encoder.embedding_dim)
        torch.testing.assert_close(embedding.norm(dim=1), torch.ones(len(embedding)), atol=1e-5, rtol=0)
        assert embedding.std(dim=0).max() > 1e-3


def test_inference_never_moves_a_statistic(subject: Subject) -> None:
    for encoder in (subject.encoder, subject.trainable.eval()):
        before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
        with torch.no_grad():
            for split in range(encoder.last_split + 1):
                encoder.tail_and_own(encoder.head(subject.mel[:2], split), split)
        assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())


def test_an_inference_copy_has_nothing_to_train(subject: Subject) -> None:
    assert not any(parameter.requires_grad for parameter in subject.encoder.parameters())
    assert not any(module.training for module in subject.encoder.modules())


@torch.inference_mode()
def test_pooled_features_are_one_vector_per_window(subject: Subject) -> None:
    for path in subject.encoder.paths:
        pooled = subject.encoder.pooled(subject.mel[:2], path)
        assert pooled.ndim == 2
        assert pooled.shape[0] == 2
        assert torch.isfinite(pooled).all()
    with pytest.raises(ValueError, match="path must be one of"):
        subject.encoder.pooled(subject.mel[:1], "sideways")


def test_a_split_that_is_not_there_is_refused(subject: Subject) -> None:
    encoder = subject.encoder
    for split in (-1, encoder.last_split + 1):
        with pytest.raises(ValueError, match=f"split must be 0..{encoder.last_split}, got {split}"):
            encoder.head(subject.mel[:1], split)
        with pytest.raises(ValueError, match="split must be"):
            encoder.tail(subject.mel[:1], split)
        with pytest.raises(ValueError, match="split must be"):
            encoder.activation_spec(split)


def test_gradients_reach_every_parameter(subject: Subject) -> None:
    encoder = subject.trainable
    weights = torch.randn(encoder.embedding_dim, generator=torch.Generator().manual_seed(0))
    loss = torch.stack(
        [(embedding @ weights).square().sum() for embedding in encoder.embeddings(subject.mel[:4]).values()]
    )
    gradients = torch.autograd.grad(loss.sum(), list(encoder.parameters()), allow_unused=True)
    reached = [gradient is not None for gradient in gradients]
    if encoder.name != "clap":  # transformers' model has parameters that its embedding does not use
        assert all(reached)
    assert sum(reached) > 0.9 * len(reached)
