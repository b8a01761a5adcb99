"""The streaming system's stream: whole windows of every clip at both phases, passes in other orders, so many audible windows."""

from __future__ import annotations

import asyncio
import csv
import json
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks import streaming
from benchmarks.learning_sounds import backgrounds, make_sounds, write_manifest
from benchmarks.streaming import DOWN_S, STREAMING, UP_S, _link, _refiner
from streamsplit.audio.features import COMPACT_FRONT_END
from streamsplit.errors import StreamSplitError
from streamsplit.learning.sources import Track

RATE_HZ, WINDOW = 16_000, 15_360


def track(number: int, windows: float, loud: float = 0.1) -> Track:
    sound = loud * np.random.default_rng(number).standard_normal(round(windows * WINDOW)).astype(np.float32)
    return Track(f"t{number}", lambda: iter([sound[:5000], sound[5000:]]))


def test_each_clip_is_cut_into_whole_windows_at_both_phases_and_ends_in_silence(tmp_path: Path) -> None:
    made = make_sounds([track(0, 5.2), track(1, 1.2, loud=0.0)], tmp_path, RATE_HZ, WINDOW)
    assert [[(one.windows, one.audible) for one in clip] for clip in made] == [[(5, 5), (4, 4)], [(1, 0)]]
    whole, _ = soundfile.read(made[0][0].path)
    later, _ = soundfile.read(made[0][1].path)
    assert len(whole) == 6 * WINDOW
    assert not whole[-WINDOW:].any()
    assert np.array_equal(whole[WINDOW // 2 :][: 4 * WINDOW], later[:-WINDOW])
    assert make_sounds([], tmp_path, RATE_HZ, WINDOW) == made, "made once"


def test_passes_go_on_until_enough_windows_can_be_heard(tmp_path: Path) -> None:
    made = make_sounds([track(number, 3.0) for number in range(4)], tmp_path, RATE_HZ, WINDOW)
    windows, audible = write_manifest(made, [None] * 4, tmp_path / "m.csv", 40, 0)
    with (tmp_path / "m.csv").open() as file:
        played = [Path(row["path"]).name for row in csv.DictReader(file)]
    assert 40 <= audible < 43
    assert windows == audible + len(played)
    passes = [[name.split("-")[0] for name in played[at : at + 4]] for at in range(0, len(played) - 3, 4)]
    assert all(len(set(each)) == 4 for each in passes)
    assert len({tuple(each) for each in passes}) > 1
    assert {name.split("-")[1] for name in played} == {"0.wav", "1.wav"}
    silent = make_sounds([track(0, 2.0, loud=0.0)], tmp_path / "silent", RATE_HZ, WINDOW)
    with pytest.raises(StreamSplitError, match="silent"):
        write_manifest(silent, [None], tmp_path / "m.csv", 10, 0)


def test_clips_come_class_after_class_or_in_scenes_with_backgrounds_between(tmp_path: Path) -> None:
    labels = ["dog", "rain"] * 15
    made = make_sounds([track(number, 2.0) for number in range(30)], tmp_path, RATE_HZ, WINDOW)
    quiet = make_sounds(backgrounds(COMPACT_FRONT_END)[::8], tmp_path / "quiet", RATE_HZ, WINDOW)
    assert all(sound.audible == sound.windows for phases in quiet for sound in phases)

    def classes(order: str, pairs: int) -> list[str]:
        write_manifest(made, labels, tmp_path / "m.csv", pairs, 0, order, quiet)
        with (tmp_path / "m.csv").open() as file:
            paths = [Path(row["path"]) for row in csv.DictReader(file)]
        return ["quiet" if path.parent.name == "quiet" else labels[int(path.name[:5])] for path in paths]

    heard = classes("sorted", 40)
    assert len(heard) >= 20
    assert sum(one != other for one, other in pairwise(heard[:30])) == 1
    heard = classes("composed", 300)
    assert set(heard[1::2]) == {"quiet"}
    runs = [len(list(run)) for _, run in groupby(heard[::2][:30])]
    assert sum(runs) == 30
    assert set(runs) <= {3, 6, 12, 15, 24, 27}, (
        "runs of twelve and what is left of each class, some side by side"
    )


def test_sparse_systems_learn_as_many_pairs_from_fewer_windows() -> None:
    known = {settings.name: settings for settings in STREAMING}
    assert known["streaming"].decider(3) == "fixed:0"
    assert known["streaming-10-bursts"].decider(3) == "random:0.1:3:10"
    asked = [_refiner(known[name], 24_000, 0)["new_windows"] for name in ("streaming", "streaming-10")]
    assert asked == [3072, 307]
    assert _refiner(known["streaming-4x"], 24_000, 0)["new_windows"] == 768, "four pairs a window"
    assert _refiner(known["streaming"], 1280, 0)["new_windows"] == 256, (
        "a quick run has rounds, too, when the first takes what has come"
    )
    assert {name for name, settings in known.items() if settings.fails} == {
        "streaming-outages", "streaming-outages-no-hybrid",
    }  # fmt: skip


@pytest.mark.parametrize("said", [None, {"state": "starting"}, {"state": "training", "step": 7}])
async def test_a_refiner_that_takes_no_step_is_not_waited_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    said: dict[str, object] | None,
) -> None:
    monkeypatch.setattr(streaming, "POLL_S", 0.001)
    monkeypatch.setattr(streaming, "PATIENCE_S", 0.01)
    (tmp_path / "refiner").mkdir()
    if said is not None:
        (tmp_path / "refiner" / "status.json").write_text(json.dumps(said))
    await asyncio.wait_for(streaming._until_quiet(streaming.Progress(tmp_path, 1, 1, lambda *_: None)), 30.0)
    assert "the refiner took no step" in caplog.text


async def test_a_refiner_that_waits_is_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "refiner").mkdir()
    (tmp_path / "refiner" / "status.json").write_text(json.dumps({"state": "waiting", "step": 7}))
    await streaming._until_quiet(streaming.Progress(tmp_path, 1, 1, lambda *_: None))
    assert not caplog.text


async def test_the_failing_link_is_there_only_where_it_is_asked_for() -> None:
    async with _link("127.0.0.1:1", STREAMING[0]) as link:
        assert link is None
    failing = next(settings for settings in STREAMING if settings.fails)
    async with _link("127.0.0.1:1", failing) as link:
        assert link is not None
        outages = link.settings.outages
        assert [end - start for start, end, _ in outages[:3]] == [DOWN_S] * 3
        assert [after[0] - before[1] for before, after in pairwise(outages[:4])] == [UP_S] * 3
