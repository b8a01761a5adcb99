"""CLAP from a local folder equals transformers' own model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamsplit.encoders.catalogue import build
from streamsplit.encoders.clap import ClapEncoder
from streamsplit.encoders.registry import load, resolve, save
from streamsplit.errors import ConfigError
from tests.encoders.conftest import TINY_CLAP

pytest.importorskip("transformers", reason="clap needs the extra `clap`")


@pytest.fixture(scope="module")
def encoder() -> ClapEncoder:
    torch.manual_seed(0)
    made = build("clap", options=TINY_CLAP)
    assert isinstance(made, ClapEncoder)
    return made.eval()


@pytest.fixture(scope="module")
def folder(encoder: ClapEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clap")
    encoder.block.model.save_pretrained(path)
    return path


@torch.inference_mode()
def test_a_local_folder_gives_the_models_own_embedding(
    encoder: ClapEncoder, folder: Path, tmp_path: Path
) -> None:
    version = resolve("clap", str(folder))
    assert version.trained
    mel = torch.randn(2, 1, 64, 1001, generator=torch.Generator().manual_seed(1))
    expected = encoder.block.model(input_features=mel.transpose(2, 3)).audio_embeds
    torch.testing.assert_close(
        version.encoder(mel), torch.nn.functional.normalize(expected), atol=1e-5, rtol=0
    )
    save(version, tmp_path / "clap.safetensors")
    assert load(tmp_path / "clap.safetensors").id == version.id


def test_clap_offers_features_or_local_only(encoder: ClapEncoder) -> None:
    assert encoder.last_split == 1
    assert [encoder.activation_spec(split).shape for split in (0, 1)] == [(1, 64, 1001), (32,)]
    assert build("clap").embedding_dim == 512


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a Hugging Face folder of a CLAP model"):
        resolve("clap", str(tmp_path))


def test_a_fused_model_and_a_wrong_option_are_refused() -> None:
    with pytest.raises(ConfigError, match="expected an unfused model"):
        build("clap", options={"config": {"enable_fusion": True}})
    with pytest.raises(ConfigError, match="encoder clap: options"):
        build("clap", options={"depth": 3})
    with pytest.raises(ConfigError, match="clap: config: Validation error for field 'depths'") as caught:
        build("clap", options={"config": {"depths": "x"}})
    assert "\n" not in str(caught.value)
