"""COLA's similarity."""

from __future__ import annotations

import torch

from streamsplit.encoders.cola import BilinearSimilarity


def test_bilinear_similarity_begins_as_the_cosine_and_can_be_trained() -> None:
    torch.manual_seed(0)
    anchors, others = (torch.nn.functional.normalize(torch.randn(n, 8), dim=1) for n in (3, 5))
    similarity = BilinearSimilarity(8)
    torch.testing.assert_close(similarity(anchors, others), anchors @ others.t())
    similarity(anchors, others).sum().backward()
    assert similarity.matrix.grad is not None
