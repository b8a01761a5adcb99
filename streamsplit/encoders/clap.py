"""CLAP's audio encoder (HTS-AT), through the optional `transformers` package and a local Hugging Face folder.

Two splits only: 0 sends features or audio, 1 embeds on the device. Its activations never beat an audio codec on bytes.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamsplit.audio.features import CLAP_FRONT_END, FrontEndSettings
from streamsplit.encoders.split import SplitEncoder
from streamsplit.errors import ConfigError
from streamsplit.wire.codec import TensorSpec


class ClapBlock(nn.Module):
    """The whole model: log-mel in decibels [B, 1, F, T] to the embedding [B, D].

    In evaluation mode windows run one at a time: attention over a batch sums in an order that depends on its size, and at some
    hundred milliseconds a window a batch saves nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def pooled(self, mel: Tensor) -> Tensor:
        """The audio tower's pooled output before the projection, [B, 768]."""
        return self._each(mel, lambda part: self.model.audio_model(input_features=part).pooler_output)

    def forward(self, mel: Tensor) -> Tensor:
        """[B, 1, F, T] to [B, D], unit norm."""
        embeddings = self._each(mel, lambda part: self.model(input_features=part).audio_embeds)
        return F.normalize(embeddings, dim=1)

    def _each(self, mel: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        frames_first = mel.transpose(2, 3)
        if self.training:
            return run(frames_first)
        return torch.cat([run(window) for window in torch.split(frames_first, 1)])


class ClapEncoder(SplitEncoder):
    """CLAP's audio tower and projection, without feature fusion; D is the configuration's projection_dim (512).

    Args:
        front_end: how PCM becomes CLAP's log-mel.
        config: fields of transformers' ClapAudioConfig that differ from its defaults; e.g. a small one for tests.
    """

    name = "clap"

    def __init__(
        self, front_end: FrontEndSettings = CLAP_FRONT_END, config: dict[str, Any] | None = None
    ) -> None:
        super().__init__(front_end)
        library = _transformers()
        self.options = {"config": dict(config or {})}
        settings = _settings(library, self.options["config"])
        if settings.enable_fusion:
            raise ConfigError("clap: expected an unfused model, got one with enable_fusion")
        self.embedding_dim = int(settings.projection_dim)
        self.set_blocks(embedding=ClapBlock(library.ClapAudioModelWithProjection(settings)))

    @property
    def block(self) -> ClapBlock:
        """The only block."""
        only = self.blocks[0]
        if not isinstance(only, ClapBlock):
            raise TypeError(f"clap: expected a ClapBlock, got {type(only).__name__}")
        return only

    @classmethod
    def from_folder(cls, folder: Path) -> ClapEncoder:
        """Weights from a local Hugging Face folder (config.json, model.safetensors); nothing is fetched.

        Raises:
            ConfigError: the folder is missing, holds another model, or has no safetensors file.
        """
        library = _transformers()
        try:
            config = library.ClapAudioConfig.from_pretrained(folder, local_files_only=True)
            encoder = cls(config=_differences(config.to_dict(), library.ClapAudioConfig().to_dict()))
            with _no_progress_bar(library):
                model = library.ClapAudioModelWithProjection.from_pretrained(
                    folder, config=config, local_files_only=True, use_safetensors=True
                )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"clap: {folder}: expected a Hugging Face folder of a CLAP model: {reason}"
            ) from error
        encoder.block.model = model.float()
        return encoder

    def for_inference(self) -> Self:
        """A copy in evaluation mode without gradients; its layers stay as they are."""
        return copy.deepcopy(self).eval().requires_grad_(False)

    def _pooled(self, mel: Tensor, path: str) -> Tensor:
        return self.block.pooled(mel)

    def _boundary_specs(self) -> tuple[TensorSpec, ...]:
        return self.front_end.spec, TensorSpec((self.embedding_dim,))


def _transformers() -> ModuleType:
    try:
        importlib.import_module("streamsplit.audio.torchaudio_guard")  # transformers imports torchaudio
        import transformers
    except ImportError as error:
        raise ConfigError("clap: needs the optional packages: pip install 'streamsplit[clap]'") from error
    module: ModuleType = transformers
    return module


def _settings(library: ModuleType, config: dict[str, Any]) -> Any:
    """The configuration; transformers checks its types, with an error class of its own since version 5."""
    errors = importlib.import_module("huggingface_hub.errors")
    wrong: type[Exception] = getattr(errors, "StrictDataclassError", ValueError)
    try:
        return library.ClapAudioConfig(**config)
    except wrong as error:
        raise ConfigError(f"clap: config: {' '.join(str(error).split())}") from error


def _differences(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The fields that make this model another one; names, labels and versions are left out."""
    own = {
        "_name_or_path",
        "architectures",
        "dtype",
        "id2label",
        "label2id",
        "transformers_version",
        "torch_dtype",
    }
    return {key: value for key, value in config.items() if key not in own and defaults.get(key) != value}


@contextmanager
def _no_progress_bar(library: ModuleType) -> Iterator[None]:
    enabled = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            library.utils.logging.enable_progress_bar()
