"""The refiner's rounds: the gate, publishing, and the way back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from streamsplit.audio.window import Samples
from streamsplit.config import RefinerSettings
from streamsplit.encoders.checkpoint import load as load_version
from streamsplit.encoders.split import SplitEncoder
from streamsplit.encoders.version import Version
from streamsplit.errors import ConfigError
from streamsplit.learning.buffer import BufferedWindow
from streamsplit.learning.lessons import held_out
from streamsplit.learning.memory_file import unpack as unpack_memory
from streamsplit.learning.replay import FeatureReplay
from streamsplit.learning.upgrade import make_upgrade, upgraded
from streamsplit.server.publications import Publications
from streamsplit.server.refiner import PUBLISHED, REPLAY
from streamsplit.server.refiner_log import read_status
from tests.learning.received import received
from tests.server.rounds import lines, more, process


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
