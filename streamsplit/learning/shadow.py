"""The device's shadow: the copy of the served weights that it trains, and the difference it has to tell.

    served version --copy--> shadow --training--> difference() --upload--> server merges --new version--> rebase()

The served copy never changes between versions: head and tail of a window always come from one version.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from streamsplit.encoders.split import SplitEncoder
from streamsplit.encoders.version import COUNTER, Version
from streamsplit.errors import ConfigError

Paths = Literal["device", "all"]
Norms = Literal["batch", "stored"]
STORED_MOMENTUM = 0.5
"""Of stored norms: what a forward-only pass just told counts for half, so that the weights' last steps hardly show."""


class Shadow:
    """A trainable copy of a version; what is not trained shares the version's memory and never moves, batch norms included.

    Args:
        version: the served one.
        paths: "device" trains what the device runs to embed a window itself (`compact`: front and lite tail); "all" every path.
        train_front: whether the blocks before the last are trained too.
        norms: by whose statistics batch norms normalise in training; see `EdgeSettings`.
    """

    def __init__(self, version: Version, paths: Paths, train_front: bool, norms: Norms = "batch") -> None:
        self.paths: Paths = paths
        self.norms: Norms = norms
        self.train_front = train_front
        self.version = version
        self.encoder = self._copied(version)

    @property
    def trained(self) -> list[nn.Module]:
        """The modules that learn."""
        return trained_modules(self.encoder, self.paths, self.train_front)

    def parameters(self) -> dict[str, nn.Parameter]:
        """What the optimiser moves, by name."""
        return {name: value for name, value in self.encoder.named_parameters() if value.requires_grad}

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, by name: parameters and the batch norms' statistics."""
        changing = {id(tensor) for module in self.trained for tensor in _tensors(module)}
        state = self.encoder.state_dict(keep_vars=True)
        return {name: tensor.detach() for name, tensor in state.items() if id(tensor) in changing}

    def embed(self, mel: Tensor) -> dict[str, Tensor]:
        """Embeddings by path: [B, 1, F, T] to path -> [B, D]."""
        mel = mel.contiguous(memory_format=torch.channels_last)
        return embed(self.encoder, mel, self.paths)

    def to_train(self) -> None:
        """Trained modules by their batch's statistics unless norms are stored, all others by their own, which stay."""
        set_modes(self.encoder, self.trained, self.norms)

    @torch.no_grad()
    def store_norms(self, mel: Tensor) -> None:
        """Moves the trained batch norms half way to the statistics of this batch, [B, 1, F, T] with B above 1."""
        set_modes(self.encoder, self.trained, "batch")
        with norms_at(self.encoder, STORED_MOMENTUM):
            self.embed(mel)

    @torch.no_grad()
    def settle(self, parts: Iterable[Tensor]) -> None:
        """Sets the trained batch norms' statistics to those of plain windows: views are noisier and masked. Training is not touched.

        Args:
            parts: batches [B, 1, F, T] with B above 1, at least one.
        """
        norms = [
            module for one in self.trained for module in one.modules() if isinstance(module, nn.BatchNorm2d)
        ]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over batches
        set_modes(self.encoder, self.trained, "batch")
        for mel in parts:
            self.embed(mel)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    def difference(self) -> dict[str, Tensor]:
        """Shadow less served: float32 by name, of what training changes; zeros before any training."""
        served = self.version.state
        return {
            name: (tensor - served[name]).contiguous()
            for name, tensor in self.tensors().items()
            if not name.endswith(COUNTER)
        }

    def rebase(self, version: Version, sent: Mapping[str, Tensor]) -> None:
        """Goes on from a newly served version: its weights, plus what was learned here and not sent.

        Batch norms take the new version's statistics as they are: they belong to its weights, and follow ours within some fifty batches.

        Raises:
            ConfigError: a version of another encoder.
        """
        if version.name != self.version.name or version.encoder.options != self.version.encoder.options:
            raise ConfigError(
                f"rebase: expected a version of {self.version.name} {self.version.encoder.options},"
                f" got {version.id} {version.encoder.options}"
            )
        kept = self.difference()
        for name, part in sent.items():
            if name not in kept or kept[name].shape != part.shape:
                raise ConfigError(f"rebase: {name}: sent, but not a tensor that is trained here")
            kept[name] -= part
        self.version = version
        self.encoder = self._copied(version)
        with torch.no_grad():
            for name, parameter in self.parameters().items():
                parameter.add_(kept[name])

    def _copied(self, version: Version) -> SplitEncoder:
        encoder = version.trainable()
        # Channels last: the form convolutions train fastest in.
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.encoder = encoder
        changing = {id(tensor) for module in self.trained for tensor in _tensors(module)}
        for name, parameter in encoder.named_parameters():
            if id(parameter) not in changing:
                parameter.requires_grad_(False)
                parameter.data = version.state[name]
        return encoder


class SlowCopy:
    """A momentum encoder: follows the shadow slowly, so that its embeddings barely age (He et al. 2020).

    Args:
        shadow: whom it follows.
        share: of itself that it keeps at every step.
    """

    def __init__(self, shadow: Shadow, share: float) -> None:
        self.share = share
        self.follow_anew(shadow)

    def follow_anew(self, shadow: Shadow) -> None:
        """Becomes equal to the shadow."""
        self.paths: Paths = shadow.paths
        self.encoder = copy.deepcopy(shadow.encoder).requires_grad_(False)
        self.norms: Norms = shadow.norms
        modules = trained_modules(self.encoder, shadow.paths, shadow.train_front)
        set_modes(self.encoder, modules, shadow.norms)

    @torch.no_grad()
    def embed(self, mel: Tensor) -> dict[str, Tensor]:
        """As `Shadow.embed`, by its batch's statistics; no gradient."""
        return embed(self.encoder, mel.contiguous(memory_format=torch.channels_last), self.paths)

    @torch.no_grad()
    def follow(self, shadow: Shadow) -> None:
        """One step towards the shadow."""
        for slow, fast in zip(self.encoder.parameters(), shadow.encoder.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.share)
        if self.norms == "stored":
            for mine, theirs in zip(self.encoder.buffers(), shadow.encoder.buffers(), strict=True):
                mine.copy_(theirs)


def embed(encoder: SplitEncoder, mel: Tensor, paths: Paths) -> dict[str, Tensor]:
    """Embeddings of the device's own path, or of all of them: [B, 1, F, T] to path -> [B, D]."""
    if paths == "all":
        return encoder.embeddings(mel)
    return {encoder.path(encoder.last_split): encoder.head(mel, encoder.last_split)}


def trained_modules(encoder: SplitEncoder, paths: Paths, train_front: bool) -> list[nn.Module]:
    """The modules that learn: the blocks the device runs, or everything; without the front only what follows it."""
    own = list(encoder.blocks)
    front = [] if train_front else own[:-1]
    modules = encoder.learning_from(0) if paths == "all" else own
    return [module for module in modules if module not in front]


def set_modes(encoder: SplitEncoder, trained: list[nn.Module], norms: Norms) -> None:
    """Training mode for these modules (for their batch norms only where they go by the batch), evaluation mode for all others."""
    encoder.eval()
    for module in trained:
        module.train()
    if norms == "stored":
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


@contextmanager
def norms_at(encoder: nn.Module, share: float) -> Iterator[None]:
    """Batch norms learn this share of their batch's statistics; 0: for forward-only passes that another pass repeats."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = share
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
