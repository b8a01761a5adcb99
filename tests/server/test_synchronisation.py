"""What devices fetch and keep, without a socket: the way to the newest version, and nothing of other people."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from streamsplit.encoders.version import Version
from streamsplit.learning.memory import DistributionMemory
from streamsplit.learning.memory_file import pack
from streamsplit.learning.upgrade import make_upgrade
from streamsplit.server.inbox import Inbox
from streamsplit.server.labels import LabelBook
from streamsplit.server.publications import Publications
from streamsplit.server.synchronisation import Synchronisation
from streamsplit.server.versions import ServedVersion, serve
from streamsplit.wire.messages import Thing, Want


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
