"""Uplink bytes per second of sound, counted by the operating system on the socket: framing, acknowledgements of the protocol, all of it.

Beside our payloads stand the codecs a server-centric system would use: PCM, FLAC and Opus per window through the same protocol, and
Opus of whole recordings at fixed rates through ffmpeg, where that is installed (bytes of the file; no protocol around them).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.runs import made_sound, replay

WAYS: dict[str, tuple[str, ...]] = {
    "features int8": ("--split", "0"),
    "features int5": ("--split", "0", "--features-codec", "int5"),
    "b0 int4": ("--split", "1", "--codec", "int4"),
    "b1 int8": ("--split", "2", "--codec", "int8"),
    "b1 int4": ("--split", "2", "--codec", "int4"),
    "b1 int3": ("--split", "2", "--codec", "int3"),
    "b2 int8": ("--split", "3", "--codec", "int8"),
    "b2 int4": ("--split", "3", "--codec", "int4"),
    "b2 int3": ("--split", "3", "--codec", "int3"),
    "embedding int8": ("--split", "4"),
    "embedding int4": ("--split", "4", "--embedding-codec", "int4"),
    "audio pcm16": ("--split", "audio", "--send-audio", "--audio-codec", "pcm16"),
    "audio flac": ("--split", "audio", "--send-audio", "--audio-codec", "flac"),
    "audio opus": ("--split", "audio", "--send-audio", "--audio-codec", "opus"),
}
TARGETS = {"b2 int4": 420.0, "b1 int4": 700.0, "embedding int8": 200.0}
OPUS_KBPS = (6, 12, 24)


def run(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """The same sound each way, and once at the speed of life to see that haste changes nothing."""
    source = made_sound(folder, 60.0 if quick else 240.0, seed)
    figures: dict[str, dict[str, float]] = {}
    for name, arguments in WAYS.items():
        figures[name] = _rates(*replay(source, folder / name.replace(" ", "-"), *arguments, "--speed", "64"))
    live = "b2 int4, real time"
    short = (
        made_sound(folder / "short", 20.0 if quick else 60.0, seed)
        if (folder / "short").mkdir(exist_ok=True) is None
        else source
    )
    figures[live] = _rates(*replay(short, folder / "real", *WAYS["b2 int4"], "--speed", "real"))
    for kbps in OPUS_KBPS:
        size = _ffmpeg_opus(source, folder, kbps)
        if size is not None:
            figures[f"ffmpeg opus {kbps}k, whole recording"] = {
                "uplink_bytes_per_s": round(size / (60.0 if quick else 240.0), 1)
            }
    pcm = figures["audio pcm16"]["uplink_bytes_per_s"]
    for figure in figures.values():
        figure["ratio_to_pcm"] = round(figure["uplink_bytes_per_s"] / pcm, 5)
    return {
        "ways": figures,
        "targets": TARGETS,
        "within_targets": {
            name: figures[name]["uplink_bytes_per_s"] <= target for name, target in TARGETS.items()
        },
        "ffmpeg": shutil.which("ffmpeg") is not None,
    }


def _rates(summary: dict[str, Any], records: list[dict[str, Any]]) -> dict[str, float]:
    seconds = summary["audio_s"]
    return {
        "uplink_bytes_per_s": round(summary["uplink_bytes"] / seconds, 1),
        "downlink_bytes_per_s": round(summary["downlink_bytes"] / seconds, 1),
        "payload_bytes_per_window": round(
            sum(record["payload_bytes"] for record in records) / len(records), 1
        ),
    }


def _ffmpeg_opus(source: Path, folder: Path, kbps: int) -> int | None:
    if shutil.which("ffmpeg") is None:
        return None
    out = folder / f"opus-{kbps}.ogg"
    command = [
        "ffmpeg",
        "-y",
        "-loglevel",
        "error",
        "-i",
        str(source),
        "-c:a",
        "libopus",
        "-b:a",
        f"{kbps}k",
        str(out),
    ]
    subprocess.run(command, check=True)
    return out.stat().st_size
