"""The refiner's process: rounds, the gate, merging, rollback, and that a kill costs nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
import torch

from streamsplit.audio.window import Samples
from streamsplit.config import RefinerSettings, ServerSettings
from streamsplit.encoders.checkpoint import load as load_version
from streamsplit.encoders.checkpoint import save
from streamsplit.encoders.split import SplitEncoder
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError, PayloadError
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.learning.device_difference import pack_device_difference
from streamsplit.learning.differences import spec_of
from streamsplit.learning.lessons import held_out
from streamsplit.learning.memory_file import unpack as unpack_memory
from streamsplit.learning.progress import load_progress
from streamsplit.learning.replay import FeatureReplay
from streamsplit.learning.upgrade import make_upgrade, upgraded
from streamsplit.server.inbox import Inbox
from streamsplit.server.overview import overview
from streamsplit.server.publications import Publications
from streamsplit.server.refiner import INBOX, PROGRESS, PUBLISHED, REPLAY, RefinerProcess, run
from streamsplit.server.refiner_log import read_status
from streamsplit.server.refining import command
from tests.learning.received import received


@pytest.fixture(scope="module")
def heard(compact: Version, sound: Samples) -> list[BufferedWindow]:
    """Features of 120 windows on eight streams of two devices."""
    features = received(compact, sound, 0)
    return [replace(one, stream=f"s{turn}") for turn in range(8) for one in features]


@pytest.fixture
def settings(tmp_path: Path, heard: list[BufferedWindow]) -> RefinerSettings:
    with FeatureReplay(tmp_path / "state" / REPLAY) as replay:
        replay.add(heard)
    return RefinerSettings(
        state_dir=tmp_path / "state",
        batch=8,
        round_steps=4,
        checkpoint_steps=2,
        least_windows=64,
        new_windows=100,
        judged_windows=64,
        learning_rate=1e-4,
        nice=0,
    )


def process(
    settings: RefinerSettings, version: Version, stop: Callable[[], bool] = lambda: False
) -> RefinerProcess:
    return RefinerProcess(settings, version, stop, sleep=lambda _: None)


def lines(settings: RefinerSettings) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (settings.state_dir / "log.jsonl").read_text().splitlines()]


def more(settings: RefinerSettings, heard: Sequence[BufferedWindow], stream: str = "later") -> None:
    with FeatureReplay(settings.state_dir / REPLAY) as replay:
        replay.add([replace(one, stream=stream) for one in heard[:120]])


def test_a_round_publishes_a_version_that_devices_can_reach(
    settings: RefinerSettings, compact: Version
) -> None:
    subject = process(settings, compact)
    assert subject.turn()
    (line,) = lines(settings)
    assert line["outcome"] == "published", line
    publications = Publications(settings.state_dir / PUBLISHED)
    current = publications.current()
    assert current is not None
    assert (current.newest, current.previous) == (line["candidate"], compact.id)
    assert current.newest != compact.id
    way = publications.difference(compact.id)
    assert way is not None
    newest, messages = way
    assert newest == current.newest
    (message,) = messages
    assert upgraded(compact, message).id == newest == publications.load(newest).id
    memory = publications.memory(newest)
    assert memory is not None
    assert int(unpack_memory(memory).count) >= 400
    assert {"task", "spread", "smoothness"} <= line["loss"].keys()
    assert line["quality"].keys() >= {"candidate/lite", "serving/dense"}
    assert not subject.turn(), "nothing new has come"
    told = read_status(settings.state_dir)
    assert told is not None
    assert (told["state"], told["running"], told["published"]) == ("waiting", True, 1)


def test_a_refiner_slower_than_the_stream_holds_the_rounds_it_owes(
    settings: RefinerSettings, compact: Version, heard: list[BufferedWindow]
) -> None:
    subject = process(settings.model_copy(update={"round_steps": 1}), compact)
    assert subject.turn()
    more(settings, heard, "later")
    more(settings, heard, "later still")
    assert [subject.turn() for _ in range(3)] == [True, True, False]


def test_the_next_difference_is_of_what_was_published(
    settings: RefinerSettings, compact: Version, heard: list[BufferedWindow]
) -> None:
    subject = process(settings, compact)
    subject.turn()
    more(settings, heard)
    assert subject.turn()
    publications = Publications(settings.state_dir / PUBLISHED)
    way = publications.difference(compact.id)
    assert way is not None
    newest, messages = way
    version = compact
    for message in messages:
        version = upgraded(version, message)
    assert len(messages) == 2
    assert version.id == newest
    assert publications.difference("compact-000000000000") is None


def collapsed(version: Version) -> SplitEncoder:
    """What training that went wrong comes to: both tails answer every sound with nearly one point."""
    encoder = version.trainable()
    with torch.no_grad():
        for project in ("blocks.3.project", "dense.project"):
            encoder.get_parameter(f"{project}.weight").mul_(1e-3)
            encoder.get_parameter(f"{project}.bias").copy_(torch.linspace(-1, 1, 128))
    return encoder


def test_the_gate_refuses_a_collapsed_candidate_and_training_starts_again(
    settings: RefinerSettings, compact: Version, heard: list[BufferedWindow]
) -> None:
    subject = process(settings, compact)
    subject._refiner.encoder.load_state_dict(collapsed(compact).state_dict())
    assert subject.turn()
    (line,) = lines(settings)
    assert line["outcome"] == "refused"
    for path in ("dense", "lite"):
        assert f"{path}: mean vector" in line["why"]
        assert line["quality"][f"candidate/{path}"]["mean_norm"] > 0.99
    assert Publications(settings.state_dir / PUBLISHED).current().newest == compact.id  # type: ignore[union-attr]
    for name, tensor in subject._refiner.encoder.state_dict().items():
        assert torch.equal(tensor, compact.state[name]), "it must not go on from what collapsed"
    more(settings, heard)
    assert subject.turn()
    assert lines(settings)[-1]["outcome"] == "published"


def test_too_few_held_out_windows_publish_nothing(settings: RefinerSettings, compact: Version) -> None:
    path = settings.state_dir / REPLAY
    with FeatureReplay(path) as replay:
        few = [one for one in replay.newest(1000) if not held_out(one)][:200]
    path.unlink()
    with FeatureReplay(path) as replay:
        replay.add(few)
    process(settings, compact).turn()
    (line,) = lines(settings)
    assert line["outcome"] == "unjudged"


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


def test_a_rollback_serves_the_one_before_and_training_starts_from_it(
    settings: RefinerSettings, compact: Version, heard: list[BufferedWindow]
) -> None:
    subject = process(settings, compact)
    publications = subject.publications
    with pytest.raises(ConfigError, match="no version before"):
        publications.rollback(0)
    subject.turn()
    bad = publications.current()
    assert bad is not None
    back = publications.rollback(1)
    assert (back.newest, back.previous) == (compact.id, bad.newest)
    assert [one.by for one in back.history] == ["start", "refiner", "rollback"]
    assert publications.difference(bad.newest) is None
    assert publications.difference(compact.id) == (compact.id, [])
    (settings.state_dir / "whole").write_bytes(publications.whole(compact.id))
    assert load_version(settings.state_dir / "whole").id == compact.id
    assert not subject.turn()
    for name, tensor in subject._refiner.encoder.state_dict().items():
        assert torch.equal(tensor, compact.state[name])
    more(settings, heard)
    subject.turn()
    assert lines(settings)[-1]["base"] == compact.id


def test_old_files_go_and_what_is_served_stays(tmp_path: Path, compact: Version) -> None:
    publications = Publications(tmp_path)
    publications.start(compact, 0)
    encoder, base, seen = compact.trainable(), compact, [compact.id]
    for turn in range(10):
        with torch.no_grad():
            encoder.get_parameter("blocks.3.norm.bias").add_(0.01 * (turn + 1))
        version, message = make_upgrade(base, encoder, None)
        assert publications.publish(version, base.id, message, None, turn) is not None
        base = version
        seen.append(version.id)
    assert len(set(seen)) == 11
    assert [publications.has(id) for id in seen] == [False] * 3 + [True] * 8
    assert publications.difference(seen[0]) is None
    way = publications.difference(seen[3])
    assert way is not None
    assert (way[0], len(way[1])) == (seen[-1], 7)
    assert publications.publish(compact, seen[0], b"", None, 0) is None, "not on top of what is not served"


def test_activations_are_learned_from_with_the_front_frozen(
    tmp_path: Path, settings: RefinerSettings, compact: Version, sound: Samples
) -> None:
    activations = received(compact, sound, 3)
    path = tmp_path / "other"
    with FeatureReplay(path / REPLAY) as replay:
        replay.add([replace(one, stream=f"s{turn}") for turn in range(8) for one in activations])
    subject = process(settings.model_copy(update={"state_dir": path}), compact)
    assert subject.turn()
    line = json.loads((path / "log.jsonl").read_text())
    assert (line["frozen"], line["outcome"]) == (3, "published")
    new = subject.publications.load(line["candidate"])
    same = [name for name in compact.state if torch.equal(new.state[name], compact.state[name])]
    assert {name for name in same if "conv.weight" in name and name.startswith("blocks.")} >= {
        name
        for name in compact.state
        if name.startswith(("blocks.0", "blocks.1", "blocks.2")) and "conv.weight" in name
    }
    assert all((new.ranges[split].low == compact.ranges[split].low).all() for split in range(4))


# Kills.


def test_a_training_that_was_stopped_comes_to_the_same_candidate(
    settings: RefinerSettings, compact: Version, heard: list[BufferedWindow], tmp_path: Path
) -> None:
    whole = process(settings, compact)
    whole.turn()
    other = settings.model_copy(update={"state_dir": tmp_path / "other"})
    with FeatureReplay(other.state_dir / REPLAY) as replay:
        replay.add(heard)
    asked = chain([False] * 3, repeat(True))
    process(other, compact, stop=lambda: next(asked)).turn()  # two steps were saved, a third is lost
    assert load_progress(other.state_dir / PROGRESS).step == 2
    process(other, compact).turn()
    assert lines(other)[0]["candidate"] == lines(settings)[0]["candidate"]


def test_a_kill_right_after_publishing_is_found_out(
    settings: RefinerSettings, compact: Version, heard: list[BufferedWindow]
) -> None:
    subject = process(settings, compact)
    subject.turn()
    before = load_progress(settings.state_dir / PROGRESS)
    more(settings, heard)
    subject._close_round = lambda outcome: None  # type: ignore[method-assign]
    subject.turn()
    after = load_progress(settings.state_dir / PROGRESS)
    assert after.settings["standing"]["candidate"]
    assert after.pool == before.pool
    again = process(settings, compact)
    assert again.standing.published == 2
    assert not again.standing.open
    assert again._base.id == after.settings["standing"]["candidate"]
    assert again._refiner.done == 8


def test_a_refiner_that_is_killed_again_and_again_publishes_all_the_same(
    settings: RefinerSettings, compact: Version, tmp_path: Path
) -> None:
    save(compact, tmp_path / "v.safetensors")
    server = ServerSettings(
        weights=(str(tmp_path / "v.safetensors"),),
        refiner=settings.model_copy(update={"round_steps": 30, "checkpoint_steps": 3, "nice": 0}),
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    progress = settings.state_dir / PROGRESS
    steps = []
    for kill in (True, True, False):
        child = subprocess.Popen(command(server), stdin=subprocess.PIPE, env=environment)
        try:
            begun = load_progress(progress).step if progress.exists() else 0
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                if kill and progress.exists() and load_progress(progress).step >= begun + 6:
                    break
                if not kill and (settings.state_dir / "log.jsonl").exists():
                    break
                assert child.poll() is None, "the refiner died by itself"
                time.sleep(0.05)
            steps.append(load_progress(progress).step)
        finally:
            if kill:
                child.send_signal(signal.SIGKILL)
            else:
                assert child.stdin is not None
                child.stdin.close()  # as when the server dies
            child.wait(30)
            if child.stdin is not None:
                child.stdin.close()
    assert child.returncode == 0
    assert 6 <= steps[0] < steps[1] <= steps[2] == 30
    (line,) = lines(settings)
    assert line["outcome"] == "published"
    told = read_status(settings.state_dir)
    assert told is not None
    assert (told["state"], told["running"]) == ("stopped", False)


def test_a_second_refiner_is_turned_away(settings: RefinerSettings, compact: Version, tmp_path: Path) -> None:
    save(compact, tmp_path / "v.safetensors")
    server = ServerSettings(weights=(str(tmp_path / "v.safetensors"),), refiner=settings)

    def second() -> bool:
        with pytest.raises(ConfigError, match="another refiner"):
            run(server, lambda: True)
        return True

    run(server, second)
