"""A memory saved and loaded goes on identically; bytes that are no memory are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of

from streamsplit.errors import PayloadError, StorageError
from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.memory_file import load, pack, save, state, unpack
from tests.learning.memories import stream


def heard(kind: str = "gaussian", windows: int = 700) -> DistributionMemory:
    memory = DistributionMemory(MemorySettings(kind=kind))  # type: ignore[arg-type]
    for part in stream(20, windows, cone=1.0).z.split(4):
        memory.update(part)
    return memory


def equal(one: DistributionMemory, other: DistributionMemory) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(one.tensors().values(), other.tensors().values(), strict=True)
    )


@pytest.mark.parametrize("kind", ["gaussian", "vmf"])
@pytest.mark.parametrize("windows", [1, 30, 700])
def test_saved_and_loaded_it_goes_on_to_the_same_bits(tmp_path: Path, kind: str, windows: int) -> None:
    memory = heard(kind, windows)
    save(memory, tmp_path / "memory.safetensors")
    loaded = load(tmp_path / "memory.safetensors")
    assert equal(memory, loaded)
    assert loaded.settings == memory.settings
    for part in stream(30, 1000, seed=3).z.split(4):  # through fits, refits and the reservoir's turns
        memory.update(part)
        loaded.update(part)
    assert equal(memory, loaded)
    assert [path.name for path in tmp_path.iterdir()] == ["memory.safetensors"]


def test_saving_costs_no_likelihood_and_saving_again_changes_nothing() -> None:
    memory, z = heard(), stream(20, 500, cone=1.0).z
    before = float(memory.novelty(z).mean())
    first = pack(memory, with_reservoir=True)
    assert float(memory.novelty(z).mean()) == pytest.approx(before, abs=0.1)
    assert tensors_of(pack(memory, with_reservoir=True)).keys() == tensors_of(first).keys()
    assert all(torch.equal(tensors_of(first)[name], value) for name, value in state(memory).items())


def test_rounding_at_every_hundredth_window_does_not_drift() -> None:
    made = stream(20, 4000, cone=1.0)
    plain, rounded = DistributionMemory(), DistributionMemory()
    for number, part in enumerate(made.z.split(4)):
        plain.update(part)
        rounded.update(part)
        if number % 25 == 0:
            state(rounded)
    assert float(rounded.novelty(made.z).mean()) == pytest.approx(
        float(plain.novelty(made.z).mean()), abs=1.0
    )


@pytest.mark.parametrize(("kind", "most"), [("gaussian", 35_000), ("vmf", 20_000)])
def test_what_is_sent_is_below_35_kb_and_as_long_as_foretold(kind: str, most: int) -> None:
    memory = heard(kind)
    assert memory.state_bytes() == sum(tensor.nbytes for tensor in state(memory).values())
    assert memory.state_bytes() < len(pack(memory, with_reservoir=False)) < most


def test_a_memory_sent_without_its_reservoir_goes_on_with_an_empty_one() -> None:
    memory = unpack(pack(heard(), with_reservoir=False))
    assert memory.reservoir.kept == 0
    z = stream(20, 1500, cone=1.0).z
    before = float(memory.novelty(z).mean())
    for part in z.split(4):
        memory.update(part)
    assert memory.reservoir.kept == memory.settings.reservoir_windows
    assert float(memory.novelty(z).mean()) < before + 1.0


def test_bytes_that_are_no_memory_are_refused() -> None:
    good = tensors_of(pack(heard(), with_reservoir=True))
    bad = {
        "means": good["means"][:3],
        "weights": good["weights"] + 1,
        "points": -good["points"] - 1,
        "deviations": torch.full_like(good["deviations"], float("nan")),
        "count": good["count"].float(),
        "settings": torch.zeros(4, dtype=torch.uint8),
        "reservoir/codes": good["reservoir/codes"][:, :5].contiguous(),
    }
    for name, tensor in bad.items():
        with pytest.raises(PayloadError, match=r"memory|reservoir"):
            unpack(bytes_of({**good, name: tensor}))
    for name in good:
        with pytest.raises(PayloadError, match="expected"):
            unpack(bytes_of({key: value for key, value in good.items() if key != name}))
    later = b'{"format_version": 2}'
    with pytest.raises(PayloadError, match="format_version: expected 1, got 2"):
        unpack(bytes_of({**good, "settings": torch.frombuffer(bytearray(later), dtype=torch.uint8)}))
    for said in (
        b'{"format_version": 1, "reservoir_windows": 100000000, "horizon_windows": 100000000}',
        b'{"format_version": 1, "components": 4096, "dim": 4096}',
        b'{"format_version": 1, "components": 64.0}',
        b'{"format_version": 1, "seed": 1e99}',
        b'{"format_version": 1, "seed": -1}',
        b"[" * 20_000,
    ):
        with pytest.raises(PayloadError, match="memory"):
            unpack(bytes_of({**good, "settings": torch.frombuffer(bytearray(said), dtype=torch.uint8)}))
    for data in (b"", b"not safetensors", bytes_of(good)[:-100]):
        with pytest.raises(PayloadError, match="expected safetensors"):
            unpack(data)


def test_files_that_cannot_be_read_or_written_are_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        load(tmp_path / "nowhere")
    (tmp_path / "damaged").write_bytes(os.urandom(100))
    with pytest.raises(StorageError, match="damaged: memory: expected safetensors"):
        load(tmp_path / "damaged")
    with pytest.raises(StorageError, match="cannot be written"):
        save(DistributionMemory(), tmp_path / "no" / "folder")
