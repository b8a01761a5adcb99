"""The contract every encoder keeps: blocks in a row, cut after any of them.

    head(mel, k)  runs blocks 1..k        -> activation, on the device
    tail(act, k)  runs blocks k+1..L      -> embedding, on the server

Laws, checked for every encoder by the same test: ``tail(head(x, k), k) == forward(x, path(k))`` for every k in evaluation mode,
``head(x, k)`` has the shape `activation_spec(k)` states, and inference never moves a BatchNorm statistic.

No branch asks which machine it is on, and no streaming state lives on the module.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from streamsplit.audio.features import FrontEndSettings
from streamsplit.encoders.blocks import EmbeddingBlock
from streamsplit.encoders.folding import folded
from streamsplit.wire.codec import TensorSpec

FULL = "full"
"""The path of an encoder that has only one."""


class SplitEncoder(nn.Module):
    """Log-mel [B, 1, F, T] to embedding [B, D] on the unit sphere, in blocks.

    Subclasses fill `blocks` with `set_blocks`; the last block ends in the unit-norm embedding. An encoder with more than one way
    from a boundary to the embedding (`compact`) overrides `tail`, `path`, `paths`, `embeddings`,
    `learning_from` and `pooled`.

    Attributes:
        name: registry name.
        front_end: how PCM becomes the log-mel this encoder was made for.
        embedding_dim: D.
        options: what its builder needs besides the front end to make it again; plain JSON types.
        blocks: blocks[i] maps boundary i to boundary i + 1.
        block_names: one short name per boundary 1..L, for tables.
    """

    name: str = ""
    embedding_dim: int = 128
    paths: tuple[str, ...] = (FULL,)

    def __init__(self, front_end: FrontEndSettings) -> None:
        super().__init__()
        self.front_end = front_end
        self.options: dict[str, Any] = {}
        self.blocks = nn.ModuleList()
        self.block_names: tuple[str, ...] = ()
        self._specs: tuple[TensorSpec, ...] = ()

    def set_blocks(self, **blocks: nn.Module) -> None:
        """Takes the blocks in order, each with its boundary's name, and notes the shape of every boundary."""
        self.blocks = nn.ModuleList(blocks.values())
        self.block_names = tuple(blocks)
        self._specs = self._boundary_specs()

    @property
    def last_split(self) -> int:
        """L: the split at which the device makes the embedding by itself."""
        return len(self.blocks)

    def head(self, mel: Tensor, split: int) -> Tensor:
        """The device's part: [B, 1, F, T] to the activation at boundary `split` (0 returns `mel`, L the embedding)."""
        self._check(split)
        for block in self.blocks[:split]:
            mel = block(mel)
        return mel

    def tail(self, activation: Tensor, split: int) -> Tensor:
        """The server's part: the activation at boundary `split` to the embedding [B, D], unit norm."""
        self._check(split)
        for block in self.blocks[split:]:
            activation = block(activation)
        return activation

    def tail_and_own(self, activation: Tensor, split: int) -> tuple[Tensor, Tensor]:
        """`tail`, and what the device would have embedded the same windows as: [B, D] each, one and the same where there is one path."""
        embeddings = self.tail(activation, split)
        return embeddings, embeddings

    def forward(self, mel: Tensor) -> Tensor:
        """The best embedding of whole windows, undivided: [B, 1, F, T] to [B, D]."""
        return self.tail(mel, 0)

    def path(self, split: int) -> str:
        """Which set of weights finishes a window cut at `split`; embeddings of one path are the same at each of its splits."""
        self._check(split)
        return FULL

    def embeddings(self, activation: Tensor, split: int = 0) -> dict[str, Tensor]:
        """Every path's embedding [B, D] from boundary `split` (before L) on, what they share computed once: for training."""
        return {FULL: self.tail(activation, split)}

    def learning_from(self, split: int) -> list[nn.Module]:
        """The parts that may change where training begins at boundary `split`: what `embeddings` runs from there, and nobody before it."""
        self._check(split)
        return list(self.blocks[split:])

    def pooled(self, mel: Tensor, path: str) -> Tensor:
        """The pooled features before the embedding head, [B, P]: what probes read. P depends on the path."""
        if path not in self.paths:
            raise ValueError(f"{self.name}: path must be one of {', '.join(self.paths)}, got {path!r}")
        return self._pooled(mel, path)

    def activation_spec(self, split: int) -> TensorSpec:
        """Shape (without batch) of the activation at boundary `split`; (D,) at L."""
        self._check(split)
        return self._specs[split]

    def for_inference(self) -> Self:
        """A copy that cannot be trained: batch norms folded, each window independent of its batch (see `folding`)."""
        return folded(self)

    @property
    def embedding_block(self) -> EmbeddingBlock:
        """The last block: what turns the last boundary into the embedding."""
        last = self.blocks[-1]
        if not isinstance(last, EmbeddingBlock):
            raise TypeError(
                f"{self.name}: expected its last block to be an EmbeddingBlock, got {type(last).__name__}"
            )
        return last

    def _pooled(self, mel: Tensor, path: str) -> Tensor:
        return self.embedding_block.pooled(self.head(mel, self.last_split - 1))

    def _boundary_specs(self) -> tuple[TensorSpec, ...]:
        """Every boundary's shape, from one window of zeros: evaluation mode, so no statistic moves."""
        was_training = self.training
        self.eval()
        activation = torch.zeros(1, *self.front_end.spec.shape)
        specs = [self.front_end.spec]
        with torch.no_grad():
            for block in self.blocks:
                activation = block(activation)
                specs.append(TensorSpec(tuple(activation.shape[1:])))
        self.train(was_training)
        return tuple(specs)

    def _check(self, split: int) -> None:
        if not 0 <= split <= self.last_split:
            raise ValueError(f"{self.name}: split must be 0..{self.last_split}, got {split}")
