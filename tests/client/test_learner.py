"""A device that learns, against a real server that refines: versions, differences and memories cross a real socket."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamsplit.audio.window import Mark, Samples
from streamsplit.client.app import device
from streamsplit.client.daemon import DaemonSettings
from streamsplit.client.journal import read
from streamsplit.client.version_store import VersionStore
from streamsplit.config import ClientSettings, LearnerSettings, RefinerSettings, ServerSettings
from streamsplit.encoders.checkpoint import save
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, PayloadError
from streamsplit.learning.device_difference import device_difference
from streamsplit.learning.edge_settings import STEP_PAIRS
from streamsplit.learning.memory_file import unpack
from streamsplit.learning.upgrade import make_upgrade
from streamsplit.server.app import running
from streamsplit.server.publications import Publications
from streamsplit.server.refiner import INBOX, PUBLISHED
from streamsplit.server.store import EmbeddingStore
from tests.client.devices import Played, blocks


def serving(folder: Path) -> ServerSettings:
    refiner = RefinerSettings(state_dir=folder / "refiner", least_windows=100_000)
    return ServerSettings(
        listen="127.0.0.1:0",
        weights=("untrained",),
        store=folder / "embeddings.db",
        drain_s=2.0,
        refine=True,
        refiner=refiner,
    )


def learning(folder: Path, port: int, split: int, **learn: object) -> ClientSettings:
    return ClientSettings(
        device="pi",
        server=f"127.0.0.1:{port}",
        state_dir=folder / "device",
        decider=f"fixed:{split}",
        learn=LearnerSettings(sync="always", **learn),  # type: ignore[arg-type]
    )


def moved(base: Version, by: float) -> tuple[Version, bytes]:
    encoder = base.trainable()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(by * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return make_upgrade(base, encoder, None)


async def stream(
    settings: ClientSettings, version: Version, sound: Samples, windows: int, pause_s: float, name: str = "s"
) -> None:
    daemon = DaemonSettings(name, settings.decider, lossless=True, patience_s=20.0)
    source = Played(blocks(sound, windows), pause_s)
    async with device(settings, daemon, source, version) as made:
        await made.run()


@pytest.mark.parametrize("split", [3, 4])
async def test_a_device_takes_what_is_published_between_two_windows(
    tmp_path: Path, compact: Version, sound: Samples, split: int
) -> None:
    told = serving(tmp_path)
    async with running(told, [compact]) as server:
        publications = Publications(told.refiner.state_dir / PUBLISHED)
        second, message = moved(compact, 1e-3)
        third, another = moved(second, 2e-3)
        settings = learning(tmp_path, server.port, split)

        async def publish() -> None:
            await asyncio.sleep(0.5)
            publications.publish(second, compact.id, message, None, 0)
            publications.publish(third, second.id, another, None, 0)

        await asyncio.gather(publish(), stream(settings, compact, sound, 60, 0.1))
    rows = sorted(
        EmbeddingStore(tmp_path / "embeddings.db", read_only=True).iterate(), key=lambda r: r.sequence
    )
    assert [row.sequence for row in rows] == list(range(60))
    versions = [row.version for row in rows]
    assert versions[0] == compact.id
    assert versions[-1] == third.id
    swap = versions.index(third.id)
    assert set(versions[swap:]) == {third.id}, "there is no way back"
    told_of = [r for r in read(tmp_path / "device" / "journal.jsonl") if r["kind"] == "version"]
    assert [r["version"] for r in told_of] == [third.id]
    served_from = told_of[0]["sequence"]
    assert {row.split for row in rows[swap:served_from]} <= {0, 4}, (
        "two versions back: embedded again from features"
    )
    assert {row.split for row in rows[served_from:]} == {split}
    assert (
        len(message) + len(another)
        < told_of[0]["measured"]["sync_down_bytes"]
        < 1.1 * (len(message) + len(another) + 5_000)
    )
    assert VersionStore(tmp_path / "device").instead_of(compact).id == third.id, "a restart goes on with it"


async def test_memory_goes_up_and_comes_back_merged(tmp_path: Path, compact: Version, sound: Samples) -> None:
    told = serving(tmp_path)
    async with running(told, [compact]) as server:
        settings = learning(tmp_path, server.port, 4, memory_windows=20)
        await stream(settings, compact, sound, 53, 0.03)
        publications = Publications(told.refiner.state_dir / PUBLISHED)
        packed = publications.memory(compact.id)
    assert packed is not None
    assert 20 <= int(unpack(packed).count) <= 53
    signals = [r for r in read(tmp_path / "device" / "journal.jsonl") if r["kind"] == "signals"]
    assert sorted(number for one in signals for number in one["sequences"]) == list(range(53))
    assert all(len(one["novelty"]) == len(one["posterior_entropy"]) == 10 for one in signals[1:-1])
    assert len(signals[-1]["novelty"]) == 3


async def test_labels_come_back_as_a_head_that_judges_the_devices_own_embeddings(
    tmp_path: Path, compact: Version, sound: Samples
) -> None:
    told = serving(tmp_path)
    marks = [Mark("one.wav", "rain"), Mark("two.wav", "bark")]
    played = [replace(block, mark=marks[place // 5 % 2]) for place, block in enumerate(blocks(sound, 90))]
    async with running(told, [compact]) as server:
        settings = learning(tmp_path, server.port, 4, memory_windows=20)
        daemon = DaemonSettings("s", settings.decider, lossless=True, patience_s=20.0)
        async with device(settings, daemon, Played(played, 0.03), compact) as made:
            await made.run()
    assert len(list((told.refiner.state_dir / "labels").glob("*.labels"))) == 1
    signals = [r for r in read(tmp_path / "device" / "journal.jsonl") if r["kind"] == "signals"]
    assert signals[0]["head_entropy"] is signals[0]["class_entropy"] is None
    last = signals[-1]
    for name in ("head_entropy", "head_margin", "class_entropy"):
        assert len(last[name]) == len(last["sequences"])
        assert all(0 <= value <= 1 for value in last[name])


async def test_a_device_is_told_where_the_dense_tail_would_say_another_class(
    tmp_path: Path, compact: Version, sound: Samples
) -> None:
    told = serving(tmp_path)
    marks = [Mark("one.wav", "rain"), Mark("two.wav", "bark")]
    heard = blocks(np.tile(sound, 3), 320)
    played = [replace(block, mark=marks[place // 5 % 2]) for place, block in enumerate(heard)]
    async with running(told, [compact]) as server:
        sender = learning(tmp_path / "sender", server.port, 0)
        daemon = DaemonSettings("s", sender.decider, lossless=True, patience_s=20.0)
        async with device(sender, daemon, Played(played), compact) as made:
            await made.run()
        hearer = learning(tmp_path, server.port, 4, memory_windows=20).model_copy(update={"device": "hearer"})
        await stream(hearer, compact, sound, 90, 0.03)
    signals = [r for r in read(tmp_path / "device" / "journal.jsonl") if r["kind"] == "signals"]
    assert signals[0]["head_change"] is None
    last = signals[-1]
    assert len(last["head_change"]) == len(last["sequences"])
    assert all(0 <= value <= 1 for value in last["head_change"])


async def test_what_is_offloaded_teaches_a_device_its_own_embedding(
    tmp_path: Path, compact: Version, sound: Samples
) -> None:
    """Memory and predictor are asked about embeddings that the device makes: taught by the dense tail's they would be wrong."""
    told, heard = serving(tmp_path), {}
    async with running(told, [compact]) as server:
        for split in (0, 4):
            settings = learning(tmp_path / str(split), server.port, split)
            settings = settings.model_copy(update={"device": f"at-{split}"})
            daemon = DaemonSettings("s", settings.decider, lossless=True, patience_s=20.0)
            async with device(settings, daemon, Played(blocks(sound, 60)), compact) as made:
                await made.run()
            learner = made.learner
            assert learner is not None
            heard[split] = learner.memory.reservoir.embeddings()
            taught = learner._insight.disagreement.learned
            assert taught == (60 if split == 0 else 0)
    assert heard[0].shape == heard[4].shape == (60, 128)
    alike = (heard[0] @ heard[4].T).max(1).values  # answers may overtake each other
    assert float(alike.min()) > 0.99, "only roundings apart"
    with EmbeddingStore(told.store, read_only=True) as store:
        dense = sorted(store.iterate(device="at-0"), key=lambda row: row.sequence)
    stored = np.stack([row.embedding for row in dense])
    assert float((heard[4].numpy() * stored).sum(1).mean()) < 0.9, "the two tails are not the same"


async def test_what_was_learned_reaches_the_refiners_inbox(
    tmp_path: Path, compact: Version, sound: Samples
) -> None:
    told = serving(tmp_path)
    async with running(told, [compact]) as server:
        settings = learning(
            tmp_path, server.port, 3, mode="train", pieces_per_window=1.0, difference_windows=90
        )
        await stream(settings, compact, sound, 120, 0.0)
        inbox = told.refiner.state_dir / INBOX
        for _ in range(50):
            if list(inbox.glob("*.difference")):
                break
            await asyncio.sleep(0.1)
    (sent,) = inbox.glob("*.difference")
    told_windows = device_difference(sent.read_bytes(), compact).windows
    assert told_windows > 0
    assert told_windows % STEP_PAIRS == 0, "whole steps' pairs, not a setting"
    assert VersionStore(tmp_path / "device").beside("training", compact).is_file()


async def test_a_predictor_of_the_uncertainty_is_learned_from_the_answers(
    tmp_path: Path, compact: Version, sound: Samples
) -> None:
    told = serving(tmp_path)
    async with running(told, [compact]) as server:
        await stream(learning(tmp_path, server.port, 2), compact, sound, 60, 0.0)
    signals = [r for r in read(tmp_path / "device" / "journal.jsonl") if r["kind"] == "signals"]
    assert [one["disagreement"] is not None for one in signals] == [False] * 4 + [True] * 2


def test_only_descendants_of_the_devices_own_version_are_kept(tmp_path: Path, compact: Version) -> None:
    store = VersionStore(tmp_path)
    assert store.begin(compact) is compact
    second, _ = moved(compact, 1e-3)
    store.keep(second)
    assert VersionStore(tmp_path).begin(compact).id == second.id
    assert VersionStore(tmp_path).instead_of(second).id == second.id
    stranger, _ = moved(compact, 5e-3)
    assert VersionStore(tmp_path).begin(stranger) is stranger
    assert VersionStore(tmp_path).begin(compact) is compact, "nothing is left of what is no descendant"


def test_a_kill_while_a_version_is_kept_leaves_one_that_is_served(tmp_path: Path, compact: Version) -> None:
    store = VersionStore(tmp_path)
    store.begin(compact)
    second, _ = moved(compact, 1e-3)
    store.keep(second)
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    third, _ = moved(second, 2e-3)
    store.keep(third)
    for path, before in files.items():  # any mixture of before and after
        after = path.read_bytes()
        path.write_bytes(before)
        assert VersionStore(tmp_path).begin(compact).id in (second.id, third.id)
        path.write_bytes(after)
    (tmp_path / ".coming.123.safetensors").write_bytes(b"half")
    assert VersionStore(tmp_path).begin(compact).id == third.id
    assert not list(tmp_path.glob(".coming*"))


async def test_a_state_folder_in_use_is_left_alone(tmp_path: Path, compact: Version, sound: Samples) -> None:
    settings = ClientSettings(device="pi", state_dir=tmp_path, decider="fixed:4")
    daemon, stranger = DaemonSettings("s", "fixed:4", alone=True), moved(compact, 1e-3)[0]
    async with device(settings, daemon, Played(blocks(sound, 2), 0.0), compact):
        before = (tmp_path / "version.json").read_bytes()
        with pytest.raises(ConfigError):
            async with device(settings, daemon, Played(blocks(sound, 2), 0.0), stranger):
                pass
        assert (tmp_path / "version.json").read_bytes() == before


def test_a_file_that_is_another_version_than_announced_is_not_taken(tmp_path: Path, compact: Version) -> None:
    save(compact, tmp_path / "v.safetensors")
    content = (tmp_path / "v.safetensors").read_bytes()
    store = VersionStore(tmp_path / "device")
    (tmp_path / "device").mkdir()
    assert store.read(content, compact.id).id == compact.id
    with pytest.raises(PayloadError, match="expected other"):
        store.read(content, "other")
    with pytest.raises(PayloadError):
        store.read(content[:1000], compact.id)
    assert not list((tmp_path / "device").iterdir())
