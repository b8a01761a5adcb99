"""Devices' differences reach the refiner's version: once each, from bases that are still kept, and of whom they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamsplit.config import RefinerSettings
from streamsplit.encoders.version import Version
from streamsplit.errors import PayloadError
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.learning.device_difference import pack_device_difference
from streamsplit.learning.differences import spec_of
from streamsplit.learning.upgrade import make_upgrade
from streamsplit.server import refining_round
from streamsplit.server.inbox import Inbox
from streamsplit.server.overview import overview
from streamsplit.server.publications import Publications
from streamsplit.server.refiner import INBOX, PUBLISHED
from tests.server.rounds import lines, more, process


def learned(version: Version, seed: int, scale: float = 1e-3) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    legal = spec_of(version.state, "blocks.3")
    return {name: scale * torch.randn(shape, generator=chance) for name, shape in legal.items()}


def test_devices_differences_are_merged_once(settings: RefinerSettings, compact: Version) -> None:
    inbox = Inbox(settings.state_dir / INBOX)
    for device in ("pi0", "pi1"):
        for seed in (1, 2):  # the second takes the first one's place
            message = pack_device_difference(learned(compact, seed), compact, device, 10)
            inbox.put(device, message, compact)
    assert len(inbox.waiting()) == 2
    (inbox.folder / "0.0.difference").write_bytes(b"nonsense")
    stopped = process(settings, compact, stop=lambda: True)
    stopped.turn()
    assert not inbox.waiting()
    name = "blocks.3.project.weight"
    moved = stopped._refiner.encoder.get_parameter(name).detach() - compact.state[name]
    torch.testing.assert_close(moved, learned(compact, 2)[name], atol=2e-5, rtol=0.0)
    assert set(stopped.standing.devices) == {"pi0", "pi1"}
    again = process(settings, compact, stop=lambda: True)
    again.turn()
    assert torch.equal(
        again._refiner.encoder.get_parameter(name), stopped._refiner.encoder.get_parameter(name)
    )


def test_of_a_second_difference_of_one_base_only_what_is_new_is_merged(
    settings: RefinerSettings, compact: Version, heard: list[BufferedWindow]
) -> None:
    name = "blocks.3.project.weight"
    inbox = Inbox(settings.state_dir / INBOX)
    early = learned(compact, 1)
    later = {key: 1.5 * part for key, part in early.items()}

    def merged(version: Version, sent: dict[str, torch.Tensor]) -> torch.Tensor:
        inbox.put("pi", pack_device_difference(sent, compact, "pi", 10), compact)
        subject = process(settings, version, stop=lambda: True)
        before = subject._refiner.encoder.get_parameter(name).detach().clone()
        subject.turn()
        return subject._refiner.encoder.get_parameter(name).detach() - before

    torch.testing.assert_close(merged(compact, early), early[name], atol=2e-5, rtol=0.0)
    assert process(settings, compact).turn()
    more(settings, heard)
    torch.testing.assert_close(merged(compact, later), 0.5 * early[name], atol=4e-5, rtol=0.0)
    inbox.put("pi", pack_device_difference(later, compact, "pi", 10), compact)
    for forgotten, share in ((False, 0.0), (True, 1.0)):
        if forgotten:
            inbox.forget()
        new = inbox.since(inbox.waiting()[0], lambda id: compact if id == compact.id else None)
        torch.testing.assert_close(new.tensors[name], share * later[name], atol=4e-5, rtol=0.0)


def publish_more(settings: RefinerSettings, first: Version, count: int) -> Version:
    """So many versions that descend from `first`, as a refiner would have published them; the newest."""
    publications = Publications(settings.state_dir / PUBLISHED)
    publications.start(first, 0)
    encoder, base = first.trainable(), first
    for _ in range(count):
        with torch.no_grad():
            encoder.get_parameter("dense.project.bias").add_(0.01)
        version, message = make_upgrade(base, encoder, None)
        assert publications.publish(version, base.id, message, None, 0) is not None
        base = version
    return base


def test_a_difference_that_waited_through_two_publications_is_merged(
    settings: RefinerSettings, compact: Version
) -> None:
    inbox = Inbox(settings.state_dir / INBOX)
    inbox.put("pi", pack_device_difference(learned(compact, 1), compact, "pi", 10), compact)
    newest = publish_more(settings, compact, 2)
    subject = process(settings, compact, stop=lambda: True)
    subject.turn()
    name = "blocks.3.project.weight"
    moved = subject._refiner.encoder.get_parameter(name).detach() - newest.state[name]
    torch.testing.assert_close(moved, learned(compact, 1)[name], atol=4e-5, rtol=0.0)
    assert (set(subject.standing.devices), subject.standing.lost) == ({"pi"}, 0)


@pytest.mark.parametrize("gone", ["file", "line"])
def test_a_difference_whose_base_is_gone_is_counted_and_told_once(
    settings: RefinerSettings, compact: Version, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = Inbox(settings.state_dir / INBOX)
    first = compact
    inbox.put("pi0", pack_device_difference(learned(compact, 1), compact, "pi0", 10), compact)
    publications = Publications(settings.state_dir / PUBLISHED)
    newest = publish_more(settings, compact, 2)
    if gone == "file":
        (publications.folder / f"{compact.id}.safetensors").unlink()
    else:  # the server was given other weights
        encoder = compact.trainable()
        with torch.no_grad():
            encoder.get_parameter("dense.project.bias").add_(1.0)
        first = newest = make_upgrade(compact, encoder, None)[0]
        publications.start(first, 0)
    inbox.put("pi1", pack_device_difference(learned(newest, 2), newest, "pi1", 10), newest)
    subject = process(settings, first)
    assert subject.turn()
    (told,) = [record for record in caplog.records if "left out" in record.message]
    assert told.levelname == "WARNING"
    assert f"device pi0: its base {compact.id} is not kept any more" in told.message
    assert lines(settings)[0]["left_out"] == [f"device pi0: its base {compact.id} is not kept any more"]
    assert set(lines(settings)[0]["devices"]) == {"pi1"}
    assert not inbox.waiting()
    seen = overview(settings.state_dir / "none.db", settings.state_dir)
    assert (seen["differences_waiting"], seen["refiner_differences_lost"]) == (0, 1)
    assert process(settings, first).standing.lost == 1, "a restart remembers it, and counts it once"


def test_what_a_device_sends_while_a_round_merges_is_the_next_rounds(
    tmp_path: Path, compact: Version
) -> None:
    inbox = Inbox(tmp_path)
    early, later = learned(compact, 1), learned(compact, 2)
    both = {name: part + later[name] for name, part in early.items()}
    inbox.put("pi", pack_device_difference(early, compact, "pi", 10), compact)
    (merged,) = inbox.claim()
    inbox.put("pi", pack_device_difference(both, compact, "pi", 20), compact)
    inbox.take([merged.name])
    (waiting,) = inbox.waiting()
    new = inbox.since(waiting, lambda id: compact if id == compact.id else None)
    name = next(iter(later))
    torch.testing.assert_close(new.tensors[name], later[name], atol=4e-5, rtol=0.0)


def test_what_was_claimed_before_a_kill_is_claimed_again_unless_newer_came(
    tmp_path: Path, compact: Version
) -> None:
    for device in ("pi0", "pi1"):
        Inbox(tmp_path).put(device, pack_device_difference(learned(compact, 1), compact, device, 10), compact)
    before = {path.name for path in Inbox(tmp_path).claim()}
    inbox = Inbox(tmp_path)
    inbox.put("pi1", pack_device_difference(learned(compact, 2), compact, "pi1", 20), compact)
    again = {path.name for path in inbox.claim()}
    assert len(before) == len(again) == 2
    assert len(before & again) == 1
    assert not inbox.waiting()


@pytest.mark.parametrize("device", ["pi0", "pi1"])
def test_the_inbox_takes_only_a_devices_own_difference(tmp_path: Path, compact: Version, device: str) -> None:
    inbox = Inbox(tmp_path)
    message = pack_device_difference(learned(compact, 1), compact, "pi0", 10)
    if device == "pi0":
        inbox.put(device, message, compact)
        assert len(inbox.waiting()) == 1
    else:
        with pytest.raises(PayloadError, match="of device pi1"):
            inbox.put(device, message, compact)
    with pytest.raises(ValueError, match="dense"):
        pack_device_difference({"dense.project.bias": torch.ones(128)}, compact, "pi0", 1)


def astray(version: Version) -> dict[str, torch.Tensor]:
    """As much as a device may change, all of it in one direction: every lite embedding goes there."""
    name = "blocks.3.project.weight"
    rows, columns = version.state[name].shape
    return {name: torch.linspace(-1, 1, rows)[:, None].expand(rows, columns).contiguous()}


def test_a_device_that_makes_candidates_be_refused_is_left_out_until_what_it_sends_passes(
    settings: RefinerSettings, compact: Version, heard: list[BufferedWindow]
) -> None:
    subject, inbox = process(settings, compact), Inbox(settings.state_dir / INBOX)

    def send(device: str, sent: dict[str, torch.Tensor]) -> None:
        windows = 100 if device == "bad" else 10
        inbox.put(device, pack_device_difference(sent, subject._base, device, windows), subject._base)

    def turn() -> tuple[str, set[str], list[str]]:
        more(settings, heard, f"round {subject.standing.rounds}")
        assert subject.turn()
        line = lines(settings)[-1]
        return line["outcome"], set(line["devices"]), subject.standing.doubted

    send("bad", astray(compact))
    send("beside", learned(compact, 3))
    assert turn() == ("refused", {"bad", "beside"}, ["bad", "beside"])
    send("bad", astray(compact))
    send("good", learned(compact, 1))
    assert turn() == ("published", {"good"}, ["bad", "beside"])
    (why,) = lines(settings)[-1]["left_out"]
    assert why.startswith(
        "device bad: it was in a refused candidate, and is refused by itself: lite: mean vector "
    )
    assert process(settings, compact).standing.doubted == ["bad", "beside"], "a restart must not forget it"
    assert overview(settings.state_dir / "none.db", settings.state_dir)["refiner_doubted"] == [
        "bad",
        "beside",
    ]
    send("bad", learned(subject._base, 2))
    send("beside", learned(subject._base, 3))
    assert turn() == ("published", {"bad", "beside"}, [])


def test_where_nothing_can_be_judged_a_doubted_device_waits_and_all_since_the_last_publication_are_suspects(
    settings: RefinerSettings, compact: Version, heard: list[BufferedWindow], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, inbox = process(settings, compact), Inbox(settings.state_dir / INBOX)
    monkeypatch.setattr(refining_round, "LEAST_JUDGED", 10**6)
    inbox.put("bad", pack_device_difference(astray(compact), compact, "bad", 10), compact)
    subject.turn()
    subject.standing.doubted = ["other"]
    inbox.put("other", pack_device_difference(learned(compact, 1), compact, "other", 10), compact)
    more(settings, heard)
    subject.turn()
    assert [line["outcome"] for line in lines(settings)] == ["unjudged", "unjudged"]
    assert (subject.standing.suspects, subject.standing.doubted) == (["bad"], ["other"])
    assert len(inbox.claim()) == 1, "it is neither merged nor lost"
    monkeypatch.undo()
    more(settings, heard, "later still")
    subject.turn()
    assert lines(settings)[-1]["outcome"] == "refused"
    assert subject.standing.doubted == ["bad", "other"]
    assert subject.standing.suspects == []
