"""Our own encoder: narrow boundaries to cut at, a lite tail for the device and a dense one for the server.

    mel 1x64x96 -> b0 12x16x24 -> b1 16x8x12 -+-> b2 16x4x12 -+-> lite tail -> embedding   (device, split 4: "lite")
                                              |               +-> unsqueezed -+
                                              +-> widened --------------------+-> dense tail -> embedding
                                                            (server, splits 0..2: "dense"; split 3: "squeezed")

All ways are trained into one embedding space (the dense + gated idea of Krishna et al., BMVC 2023), so offloading buys quality
and not only time. Boundaries are linear, to be sent at 4 bits per number: 1,288, 464 and 250 bytes a window after b0, b1 and b2 (the
weights that ship, mean). Four bits cost something: sent so after b1, the dense embedding's cosine to the undivided pass is 0.976 in the
mean and 0.73 at the lowest, over the windows of 1,600 ESC clips.
"""

from __future__ import annotations

from torch import Tensor, cat, nn

from streamsplit.audio.features import FrontEndSettings
from streamsplit.encoders.blocks import ConvNorm, EmbeddingBlock, Residual
from streamsplit.encoders.split import SplitEncoder

DENSE, SQUEEZED, LITE = "dense", "squeezed", "lite"
B1, B2 = 2, 3
"""The splits at which the dense tail and the lite one begin."""


class CompactEncoder(SplitEncoder):
    """Splits: 0 features; 1, 2, 3 after b0, b1, b2 (finished by the dense tail); 4 embedded by the lite tail.

    To the lite embedding: 0.08 M parameters and 4.0 M multiply-accumulates; to the dense one 1.1 M and 26.5 M.

    The lite tail is one convolution. Trained beside one of two (128 and 256 channels, 0.37 M parameters, 4.0 M multiply-accumulates) on
    all 50 classes of ESC-50, one of 96 channels gave embeddings that were as good after 24,000 pairs (linear probe 51.1 against 47.7, 5-NN
    40.2 against 37.4) and after 96,000 (59.8 against 61.0, 49.6 against 50.0), and pooled features 2 to 4 points behind (one seed).

    The dense tail begins at b1, because what b2 has squeezed out no depth brings back: begun at b2, with 1.1 M parameters, it was never
    better than a lite one. Begun at b1 (b0) it was after 24,000 pairs: single windows 39.6 (40.4) % right against 37.8 (38.0), clips by means
    and deviations 58.8 (60.0) against 55.4 (55.2), its pooled features 43.5 (44.5) against 39.7 (40.1) (ESC-50, one seed). A window cut after
    b2 enters it by another door, as a way of its own.
    """

    name = "compact"
    paths = (DENSE, SQUEEZED, LITE)

    def __init__(self, front_end: FrontEndSettings) -> None:
        super().__init__(front_end)
        self.widened = ConvNorm(16, 128)
        self.unsqueezed = nn.Sequential(nn.Upsample(scale_factor=(2, 1)), ConvNorm(16, 128))
        self.dense = EmbeddingBlock(
            Residual(128, 256, stride=2), channels=256, dim=self.embedding_dim, with_max=True
        )
        self.set_blocks(
            b0=nn.Sequential(
                ConvNorm(1, 16, 5, 2), ConvNorm(16, 32, 3, 2), ConvNorm(32, 12, 1, activation="linear")
            ),
            b1=nn.Sequential(ConvNorm(12, 64, 3, 2), ConvNorm(64, 16, 1, activation="linear")),
            b2=nn.Sequential(ConvNorm(16, 64, 3, (2, 1)), ConvNorm(64, 16, 1, activation="linear")),
            lite=EmbeddingBlock(ConvNorm(16, 128, 3, 2), channels=128, dim=self.embedding_dim, with_max=True),
        )

    def tail(self, activation: Tensor, split: int) -> Tensor:
        """The remaining front blocks and the dense tail; at L the activation is the embedding already."""
        if split == self.last_split:
            return activation
        return self._embed(self._opened(activation, split))

    def tail_and_own(self, activation: Tensor, split: int) -> tuple[Tensor, Tensor]:
        """`tail`, and the lite embedding of the same windows; what the two share is computed once."""
        if split == self.last_split:
            return activation, activation
        activation = self._front(activation, split, B1)
        dense = self._embed(self._opened(activation, max(split, B1)))
        return dense, self.embedding_block(self._front(activation, max(split, B1), B2))

    def lite(self, mel: Tensor) -> Tensor:
        """The device's own embedding: [B, 1, F, T] to [B, D]."""
        return self.head(mel, self.last_split)

    def path(self, split: int) -> str:
        """ "lite" at L, "squeezed" after b2, "dense" before it."""
        self._check(split)
        return LITE if split == self.last_split else SQUEEZED if split == B2 else DENSE

    def embeddings(self, activation: Tensor, split: int = 0) -> dict[str, Tensor]:
        """Every way's embedding [B, D] from boundary `split` on; from b2 there is no "dense"."""
        wide = self._front(activation, split, B1)
        narrow = self._front(wide, max(split, B1), B2)
        unsqueezed, lite = self.unsqueezed(narrow), self.embedding_block(narrow)
        if split == B2:
            return {SQUEEZED: self._embed(unsqueezed), LITE: lite}
        # Together, so that batch norms see in training what they will see in inference.
        dense, squeezed = self._embed(cat([self.widened(wide), unsqueezed])).chunk(2)
        return {DENSE: dense, SQUEEZED: squeezed, LITE: lite}

    def learning_from(self, split: int) -> list[nn.Module]:
        """From b2 the dense tail itself stays: it would lose "dense", which nobody would see there, and it anchors the space."""
        dense = [] if split == B2 else [self.widened, self.dense]
        return [*super().learning_from(split), self.unsqueezed, *dense]

    def _pooled(self, mel: Tensor, path: str) -> Tensor:
        if path == LITE:
            return self.embedding_block.pooled(self._front(mel, 0, B2))
        begun = B2 if path == SQUEEZED else B1
        return self.dense.pooled(self._opened(self._front(mel, 0, begun), begun))

    def _front(self, activation: Tensor, split: int, until: int) -> Tensor:
        """The activation at boundary `split` to the one at boundary `until`; as it is if it is there or beyond."""
        self._check(split)
        for block in self.blocks[split:until]:
            activation = block(activation)
        return activation

    def _opened(self, activation: Tensor, split: int) -> Tensor:
        """From boundary `split` to what the dense tail reads: [B, 128, 8, 12]."""
        door = self.unsqueezed if split == B2 else self.widened
        opened: Tensor = door(self._front(activation, split, B1))
        return opened

    def _embed(self, opened: Tensor) -> Tensor:
        embedding: Tensor = self.dense(opened)
        return embedding
