"""From a name to a version: shipped, from a file, or made on the spot."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from streamsplit.encoders.registry import cache_folder, load, make_untrained, resolve, save
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, StorageError
from tests.encoders.conftest import TINY_CLAP

ALONE = """
import hashlib, sys, torch
from pathlib import Path
from streamsplit.encoders.registry import resolve
version = resolve("compact", "untrained:4", cache=Path(sys.argv[1]))
torch.set_num_threads(1)
mel = torch.randn(3, 1, 64, 96, generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    embeddings = version.encoder(mel)
print(version.id, hashlib.sha256(embeddings.numpy().tobytes()).hexdigest())
"""


def start(cache: Path, threads: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-c", ALONE, str(cache)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_processes_make_the_same_version_at_once_and_do_not_clash(tmp_path: Path) -> None:
    alone, *together = start(tmp_path / "a", 1), start(tmp_path / "b", 2), start(tmp_path / "b", 1)
    said = {process.communicate(timeout=120)[0] for process in (alone, *together)}
    assert len(said) == 1
    assert said.pop().startswith("compact-")
    files = [list((tmp_path / folder).iterdir()) for folder in "ab"]
    assert [len(found) for found in files] == [1, 1]
    assert files[0][0].read_bytes() == files[1][0].read_bytes()


def test_the_seed_decides_the_weights_and_chance_is_left_alone(compact: Version) -> None:
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    other = make_untrained("compact", seed=1)
    assert torch.equal(torch.rand(1), expected)
    assert other.id != compact.id
    assert not other.trained


def test_a_cached_version_is_read_and_a_damaged_one_made_again(tmp_path: Path, compact: Version) -> None:
    first = resolve("compact", "untrained", cache=tmp_path)
    assert first.id == compact.id
    (cached,) = tmp_path.iterdir()
    content = cached.read_bytes()
    cached.write_bytes(content[:5_000])
    assert resolve("compact", "untrained:0", cache=tmp_path).id == first.id
    assert cached.read_bytes() == content


def test_without_shipped_weights_the_log_warns_that_they_are_random(
    tmp_path: Path, compact: Version, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert resolve("compact", cache=tmp_path / "c", shipped=tmp_path).id == compact.id
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no trained weights are shipped" in caplog.text


def test_shipped_weights_come_first(tmp_path: Path, compact: Version) -> None:
    save(compact, tmp_path / "compact.safetensors")
    assert resolve("compact", cache=tmp_path / "unused", shipped=tmp_path).id == compact.id
    assert not (tmp_path / "unused").exists()


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, compact: Version, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert resolve("compact", "untrained", cache=tmp_path / "file" / "cache").id == compact.id
    assert "cannot be cached" in caplog.text


def test_weights_from_a_file(tmp_path: Path, compact: Version) -> None:
    save(compact, tmp_path / "mine.safetensors")
    assert resolve("compact", str(tmp_path / "mine.safetensors")).id == compact.id
    with pytest.raises(ConfigError, match="expected a cola encoder, got compact"):
        resolve("cola", str(tmp_path / "mine.safetensors"))
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(StorageError, match="damaged"):
        resolve("compact", str(tmp_path / "bad.safetensors"))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("wav2vec", None, "expected one of compact, cola, mobile, resnet18, clap, got 'wav2vec'"),
        ("compact", "untrained:x", "expected untrained:SEED with a whole number, got 'untrained:x'"),
        ("compact", "no/such.safetensors", "got nothing there"),
        ("clap", None, "give a local Hugging Face folder.*'untrained'"),
    ],
)
def test_what_cannot_be_resolved_says_why(
    name: str, weights: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(name, weights, cache=tmp_path, shipped=tmp_path)


@pytest.mark.parametrize("name", ["mobile", "clap"])
def test_every_encoder_can_be_made_saved_and_loaded(name: str, tmp_path: Path) -> None:
    if name == "clap":
        pytest.importorskip("transformers", reason="clap needs the extra `clap`")
    version = make_untrained(name, 0, TINY_CLAP if name == "clap" else None)
    save(version, tmp_path / "v.safetensors")
    again = load(tmp_path / "v.safetensors")
    assert again.id == version.id
    mel = torch.randn(1, *version.front_end.spec.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(again.encoder(mel), version.encoder(mel))


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "streamsplit" / "encoders"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_folder() == Path.home() / ".cache" / "streamsplit" / "encoders"
