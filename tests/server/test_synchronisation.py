"""What devices fetch and keep, without a socket: the way to the newest version, and nothing of other people."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from streamsplit.encoders.version import Version
from streamsplit.learning.memory import DistributionMemory, MemorySettings
from streamsplit.learning.memory_file import pack, unpack
from streamsplit.learning.upgrade import make_upgrade
from streamsplit.server.inbox import Inbox
from streamsplit.server.labels import LabelBook
from streamsplit.server.publications import Publications
from streamsplit.server.synchronisation import MOST_MERGED, Synchronisation
from streamsplit.server.versions import ServedVersion, serve
from streamsplit.wire.messages import Thing, Want
from tests.learning.memories import Stream, found, stream


@pytest.fixture
def served(compact: Version) -> dict[str, ServedVersion]:
    return serve([compact], "cpu")


@pytest.fixture
def sync(tmp_path: Path, compact: Version, served: dict[str, ServedVersion]) -> Synchronisation:
    publications = Publications(tmp_path / "published")
    publications.start(compact, 0)
    made = Synchronisation(
        publications,
        Inbox(tmp_path / "inbox"),
        tmp_path / "memories",
        served,
        LabelBook(tmp_path / "labels", served),
    )
    made.look()
    return made


def heard(seed: int = 0) -> bytes:
    memory = DistributionMemory()
    z = torch.randn(40, 128, generator=torch.Generator().manual_seed(seed))
    memory.update(torch.nn.functional.normalize(z, dim=1))
    return pack(memory, with_reservoir=False)


def test_a_memory_kept_is_fetched_by_its_versions_name(sync: Synchronisation, compact: Version) -> None:
    assert sync.keep("pi", Thing.MEMORY, compact.id, "", heard()) == ""
    assert sync.fetch(Want(Thing.MEMORY, compact.id, "", 0)).total > 30_000


def test_pieces_of_a_memory_tell_which_one_they_are_of(sync: Synchronisation, compact: Version) -> None:
    stamps = []
    for seed in (0, 1, 1):
        assert sync.keep("pi", Thing.MEMORY, compact.id, "", heard(seed)) == ""
        pieces = [sync.fetch(Want(Thing.MEMORY, compact.id, "", offset)) for offset in (0, 20_000)]
        assert pieces[0].base == pieces[1].base
        stamps.append(pieces[0].base)
    assert stamps[0] != stamps[1] == stamps[2]


@pytest.mark.parametrize("thing", list(Thing))
def test_a_name_that_is_no_served_version_leads_to_no_file(
    sync: Synchronisation, compact: Version, thing: Thing
) -> None:
    assert sync.keep("pi", Thing.MEMORY, compact.id, "", heard()) == ""
    whose = hashlib.sha256(b"pi").hexdigest()[:16]
    for name in (f"../memories/{whose}.{compact.id}", "a\0b", "x" * 5000, ""):
        assert sync.fetch(Want(thing, name, name, 0)).total == 0


def test_an_upgrade_asked_for_too_early_is_there_once_it_is_published(
    tmp_path: Path, sync: Synchronisation, compact: Version, served: dict[str, ServedVersion]
) -> None:
    want = Want(Thing.UPGRADE, "", compact.id, 0)
    assert sync.fetch(want).total == 0
    encoder = compact.trainable()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1e-3)
    second, message = make_upgrade(compact, encoder, None)
    Publications(tmp_path / "published").publish(second, compact.id, message, None, 0)
    served.update(serve([second], "cpu"))
    assert sync.look() is not None
    assert sync.fetch(want).total == len(message)


def test_a_header_that_never_ends_is_the_senders_problem(sync: Synchronisation, compact: Version) -> None:
    endless = b"SSD1" + (60_000).to_bytes(4, "little") + b"[" * 60_000
    assert "JSON" in sync.keep("pi", Thing.DIFFERENCE, "", compact.id, endless)


# Memories of several devices.


def memory_of(z: torch.Tensor, **settings: Any) -> DistributionMemory:
    memory = DistributionMemory(MemorySettings(**settings))
    memory.update(z)
    return memory


def send(sync: Synchronisation, device: str, version: str, memory: DistributionMemory) -> None:
    assert sync.keep(device, Thing.MEMORY, version, "", pack(memory, with_reservoir=False)) == ""


def come_down(sync: Synchronisation, version: str) -> DistributionMemory:
    pieces = b""
    while True:
        piece = sync.fetch(Want(Thing.MEMORY, version, "", len(pieces)))
        pieces += piece.data
        if len(pieces) >= piece.total:
            return unpack(pieces)


def sounds_found(memory: DistributionMemory, sounds: Stream) -> int:
    return found(memory.means, memory.weights, sounds.centres - memory.centre * memory.settings.centred)


def test_what_comes_down_covers_the_sounds_of_every_device(sync: Synchronisation, compact: Version) -> None:
    """The kitchen's are ten, the attic's twenty others, and the kitchen has heard more of them."""
    kitchen, attic = stream(10, 600, seed=1), stream(20, 400, seed=2)
    send(sync, "kitchen", compact.id, memory_of(kitchen.z, centred=False))
    alone = come_down(sync, compact.id)
    assert (sounds_found(alone, kitchen), sounds_found(alone, attic)) == (10, 0)
    send(sync, "attic", compact.id, memory_of(attic.z, centred=False))
    both = come_down(sync, compact.id)
    assert (sounds_found(both, kitchen), sounds_found(both, attic)) == (10, 20)
    assert int(both.count) == 1000


def test_what_a_device_sends_takes_the_place_of_what_it_sent_before(
    sync: Synchronisation, compact: Version
) -> None:
    for count in (50, 70):
        send(sync, "kitchen", compact.id, memory_of(stream(5, count).z))
    send(sync, "attic", compact.id, memory_of(stream(5, 30, seed=1).z))
    assert int(come_down(sync, compact.id).count) == 100


@pytest.mark.parametrize("other", [{"kind": "vmf"}, {"centred": False}])
def test_a_memory_of_another_kind_is_not_merged(
    sync: Synchronisation, compact: Version, other: dict[str, Any]
) -> None:
    send(sync, "attic", compact.id, memory_of(stream(5, 30, seed=1).z, **other))
    send(sync, "shed", compact.id, DistributionMemory())
    send(sync, "kitchen", compact.id, memory_of(stream(5, 50).z))
    assert int(come_down(sync, compact.id).count) == 50


def test_a_memory_of_another_version_is_not_merged_and_goes_with_its_version(
    tmp_path: Path, sync: Synchronisation, compact: Version, served: dict[str, ServedVersion]
) -> None:
    encoder = compact.trainable()
    with torch.no_grad():
        encoder.get_parameter("blocks.3.norm.bias").add_(0.1)
    second, _ = make_upgrade(compact, encoder, None)
    served.update(serve([second], "cpu"))
    send(sync, "attic", compact.id, memory_of(stream(5, 30, seed=1).z))
    send(sync, "kitchen", second.id, memory_of(stream(5, 50).z))
    assert int(come_down(sync, second.id).count) == 50
    assert int(come_down(sync, compact.id).count) == 30
    assert len(list((tmp_path / "memories").glob(f"*.{compact.id}.memory"))) == 1
    del served[compact.id]
    send(sync, "kitchen", second.id, memory_of(stream(5, 60).z))
    assert not list((tmp_path / "memories").glob(f"*.{compact.id}.memory"))


def test_of_many_devices_the_most_recent_are_merged(
    tmp_path: Path, sync: Synchronisation, compact: Version
) -> None:
    """Each has heard a number of windows that tells it from the others; the last that sent are not the last by name."""
    heard_by = {f"device {number}": 32 + number for number in range(MOST_MERGED + 3)}
    folder = tmp_path / "memories"
    for turn, (device, count) in enumerate(heard_by.items()):
        send(sync, device, compact.id, memory_of(stream(2, count, seed=turn).z, components=4))
        owner = hashlib.sha256(device.encode()).hexdigest()[:16]
        os.utime(folder / f"{owner}.{compact.id}.memory", (turn, turn))
    send(sync, "device 0", compact.id, memory_of(stream(2, 500).z, components=4))
    recent = list(heard_by.values())[-MOST_MERGED:]
    assert int(come_down(sync, compact.id).count) == 500 + sum(recent)
