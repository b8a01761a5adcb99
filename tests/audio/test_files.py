from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamsplit.audio.files import Recording, find_recordings, read, read_blocks, shuffled
from streamsplit.errors import ConfigError, RecordingError


def tone(seconds: float, rate: int, hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def test_blocks_put_together_are_the_recording(tmp_path: Path) -> None:
    samples = tone(2.3, 16_000)
    soundfile.write(tmp_path / "a.wav", samples, 16_000, subtype="FLOAT")
    blocks = list(read_blocks(tmp_path / "a.wav", 16_000, block_s=0.25))
    assert [len(block) for block in blocks] == [4_000] * 9 + [800]
    np.testing.assert_array_equal(np.concatenate(blocks), samples)


@pytest.mark.parametrize(
    ("name", "subtype", "rate"),
    [
        ("a.wav", "PCM_U8", 8_000), ("a.wav", "PCM_24", 44_100), ("a.wav", "DOUBLE", 96_000), ("a.flac", "PCM_16", 22_050),
        ("a.ogg", "VORBIS", 32_000), ("a.opus", "OPUS", 48_000), ("a.mp3", "MPEG_LAYER_III", 44_100), ("a.aiff", "PCM_16", 11_025),
    ],
)  # fmt: skip
def test_any_format_rate_and_depth_gives_the_same_tone(
    tmp_path: Path, name: str, subtype: str, rate: int
) -> None:
    stereo = np.stack([tone(2.0, rate), tone(2.0, rate)], axis=1)
    container = "OGG" if name.endswith("opus") else None
    soundfile.write(tmp_path / name, stereo, rate, subtype=subtype, format=container)
    heard = np.concatenate(list(read_blocks(tmp_path / name, 16_000, block_s=0.3)))
    assert heard.dtype == np.float32
    assert abs(len(heard) - 32_000) <= 1
    np.testing.assert_allclose(heard[1_000:31_000], tone(2.0, 16_000)[1_000:31_000], atol=0.03)


def test_channels_are_averaged(tmp_path: Path) -> None:
    samples = tone(1.0, 16_000)
    soundfile.write(
        tmp_path / "a.wav", np.stack([samples, -samples, samples], axis=1), 16_000, subtype="FLOAT"
    )
    np.testing.assert_allclose(read(tmp_path / "a.wav", 16_000), samples / 3, atol=1e-6)


def test_the_size_of_blocks_leaves_no_seams(tmp_path: Path) -> None:
    samples = np.random.default_rng(2).uniform(-0.5, 0.5, 44_100 * 3).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 44_100, subtype="FLOAT")
    small = np.concatenate(list(read_blocks(tmp_path / "a.wav", 16_000, block_s=0.05)))
    np.testing.assert_allclose(small, read(tmp_path / "a.wav", 16_000), atol=1e-5)


def test_nan_is_passed_on_but_not_spread(tmp_path: Path) -> None:
    samples = tone(3.0, 48_000)
    samples[72_000:72_010] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 48_000, subtype="FLOAT")
    finite = [
        bool(np.isfinite(block).all()) for block in read_blocks(tmp_path / "a.wav", 16_000, block_s=0.4)
    ]
    assert finite.count(False) == 1


def test_what_is_no_recording_says_why_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not sound at all\n" * 50)
    (tmp_path / "empty.flac").touch()
    (tmp_path / "headerless.raw").write_bytes(bytes(1000))
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 16_000)
    expected = {
        "text.wav": "not a recording", "empty.flac": "empty file", "headerless.raw": "headerless",
        "zero.wav": "0 seconds", "missing.wav": "no such file", ".": "is a directory",
    }  # fmt: skip
    for name, reason in expected.items():
        with pytest.raises(RecordingError, match=reason) as caught:
            list(read_blocks(tmp_path / name, 16_000))
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("a.wav", "PCM_16"), ("a.aiff", "PCM_16"), ("a.flac", "PCM_16"), ("a.ogg", "VORBIS")],
)
def test_a_recording_cut_short_is_told_apart_from_a_whole_one(
    tmp_path: Path, name: str, subtype: str
) -> None:
    path = tmp_path / name
    noise = np.random.default_rng(1).uniform(-0.3, 0.3, 160_000)
    soundfile.write(path, noise, 16_000, subtype=subtype)
    assert sum(map(len, read_blocks(path, 16_000))) == 160_000
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RecordingError, match=r"cut short|broken"):
        list(read_blocks(path, 16_000))


def test_the_sound_before_the_cut_is_heard(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(10.0, 16_000), 16_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    heard: list[int] = []
    with pytest.raises(RecordingError, match="cut short"):
        heard.extend(len(block) for block in read_blocks(path, 16_000))
    assert sum(heard) == pytest.approx(80_000, abs=50)


def test_a_wav_of_unknown_length_is_not_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "piped.wav"
    soundfile.write(path, tone(1.0, 16_000), 16_000)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = b"\xff\xff\xff\xff"  # what a recorder writes into a pipe
    path.write_bytes(content)
    assert len(read(path, 16_000)) == 16_000


def test_a_folder_is_searched_recursively_and_in_order(tmp_path: Path) -> None:
    for name in ("b/two.wav", "a/one.FLAC", "zero.ogg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [recording.source for recording in find_recordings(tmp_path)] == [
        "a/one.FLAC",
        "b/two.wav",
        "zero.ogg",
    ]


def test_a_file_is_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "x.wav").touch()
    assert find_recordings(tmp_path / "x.wav") == [Recording(tmp_path / "x.wav", "x.wav")]


def test_a_manifest_gives_labels_folds_and_sources_and_keeps_missing_files(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(
        "path,label,fold,source_id,licence\nclips/a.ogg,dog,1,77,CC0\nb.ogg,,,,\n", encoding="utf-8"
    )
    assert find_recordings(manifest) == [
        Recording(tmp_path / "clips/a.ogg", "clips/a.ogg", "dog", 1, "77"),
        Recording(tmp_path / "b.ogg", "b.ogg"),
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("file,label\na.wav,dog\n", "line 1: expected a column 'path', got file, label"),
        ("path,fold\na.wav,1\nb.wav,first\n", "line 3, column fold: expected a whole number, got 'first'"),
        ("path,label\n,dog\n", "line 2, column path"),
        ("path,label\na.wav,dog,extra\n", "line 2: more values"),
        ("path,label\n", "only the heading"),
        ("", "got nothing"),
    ],
)
def test_a_wrong_manifest_is_named_by_line_and_column(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "m.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=complaint):
        find_recordings(tmp_path / "m.csv")


def test_a_source_that_is_not_there_or_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        find_recordings(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="found none"):
        find_recordings(tmp_path)


def test_shuffling_depends_on_the_seed_alone() -> None:
    recordings = [Recording(Path(f"{n}.wav"), f"{n}.wav") for n in range(20)]
    assert shuffled(recordings, 3) == shuffled(recordings, 3)
    assert shuffled(recordings, 3) != shuffled(recordings, 4)
    assert sorted(shuffled(recordings, 3), key=recordings.index) == recordings


def test_a_block_of_no_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="block_s"):
        list(read_blocks(tmp_path / "a.wav", 16_000, block_s=0))


@pytest.mark.data
@pytest.mark.skipif(
    not Path("../shared/data").exists(), reason="no development recordings beside the checkout"
)
def test_the_development_recordings_can_all_be_read() -> None:
    recordings = find_recordings(Path("../shared/data/esc50_dev/manifest.csv"))
    for recording in shuffled(recordings, 0)[:25]:
        assert np.isfinite(read(recording.path, 16_000)).all()
