"""The contract every encoder keeps: blocks in a row, cut after any of them.

    head(mel, k)  runs blocks 1..k        -> activation, on the device
    tail(act, k)  runs blocks k+1..L      -> embedding, on the server

Laws, checked for every encoder by the same test: ``tail(head(x, k), k) == forward(x, path(k))`` for every k in evaluation mode,
``head(x, k)`` has the shape `activation_spec(k)` states, and inference never moves a BatchNorm statistic.

No branch asks which machine it is on, and no streaming state lives on the module.
"""

from __future__ import annotations

from torch import Tensor, nn

from streamsplit.audio.features import FrontEndSettings
from streamsplit.wire.codec import TensorSpec


class SplitEncoder(nn.Module):
    """Log-mel [B, 1, F, T] to embedding [B, D] on the unit sphere, in blocks.

    Subclasses fill `blocks`; the last block ends in the unit-norm embedding. An encoder with more than one way from a boundary to
    the embedding (`compact`) overrides `tail` and `path`.

    Attributes:
        name: registry name.
        front_end: how PCM becomes the log-mel this encoder was made for.
        embedding_dim: D.
        blocks: blocks[i] maps boundary i to boundary i + 1.
        block_names: one short name per boundary 1..L, for tables.
    """

    name: str = ""
    embedding_dim: int = 128

    def __init__(self, front_end: FrontEndSettings) -> None:
        super().__init__()
        self.front_end = front_end
        self.blocks = nn.ModuleList()
        self.block_names: tuple[str, ...] = ()

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

    def tail_with_uncertainty(self, activation: Tensor, split: int) -> tuple[Tensor, Tensor | None]:
        """`tail`, and an uncertainty in [0, 2] per window where the encoder has one: [B, D], [B] or None."""
        return self.tail(activation, split), None

    def forward(self, mel: Tensor) -> Tensor:
        """The best embedding of whole windows, undivided: [B, 1, F, T] to [B, D]."""
        return self.tail(mel, 0)

    def path(self, split: int) -> str:
        """Which set of weights finishes a window cut at `split`; embeddings of one path are the same at each of its splits."""
        self._check(split)
        return "full"

    def activation_spec(self, split: int) -> TensorSpec:
        """Shape (without batch) of the activation at boundary `split`; (D,) at L."""
        raise NotImplementedError

    def _check(self, split: int) -> None:
        if not 0 <= split <= self.last_split:
            raise ValueError(f"{self.name}: split must be 0..{self.last_split}, got {split}")
