"""What is made ready before the systems of one (scenario, seed) run, and what is known of it for the report."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from streamsplit import __version__
from streamsplit.encoders.registry import Version
from streamsplit.errors import ConfigError
from streamsplit.lab.figures import finite
from streamsplit.lab.hearing import Heard, Probe, hear, make_probe, prepare
from streamsplit.lab.maps import place
from streamsplit.lab.modelled import simulate
from streamsplit.lab.processes import make_folder, on_cores
from streamsplit.lab.quota import calibrate, make_quota
from streamsplit.lab.results import FORMAT
from streamsplit.lab.rows import Run
from streamsplit.lab.scenario import Scenario
from streamsplit.lab.schedule import Schedule
from streamsplit.lab.systems import LEARNED, System, rotated
from streamsplit.policy.decide import make_decider
from streamsplit.policy.profile import Profile, load_profile, measure_profile
from streamsplit.policy.quality import Quality
from streamsplit.policy.scenarios import scaled

Cores = tuple[Sequence[int], Sequence[int]]
"""(of the client and its load, of everything else)."""

QUOTA_PREFIX: Final = "streamsplit-lab"
MAP_WINDOWS: Final = 300
PROFILE_REPEATS: Final = 15


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """One (scenario, seed), ready to be run.

    Attributes:
        manifest: of the recordings.
        profile_path: of the emulated device.
        run: what rows will be made from.
        probe: None where no labels are known.
        about: what the report shows.
        systems: those that can be run: all but a learned one without a policy.
    """

    manifest: Path
    profile_path: Path
    run: Run
    probe: Probe | None
    about: dict[str, Any]
    systems: list[System]


def prepare_seed(
    scenario: Scenario,
    seed: int,
    version: Version,
    schedule: Schedule,
    quality: Quality,
    systems: Sequence[System],
    folder: Path,
    cores: Cores | None,
) -> Prepared:
    """Makes and hears the sound, trains the probe, measures the profile, simulates.

    Args:
        folder: of the (scenario, seed); profiles are kept two levels above it, once per results folder.
        systems: that were chosen.
    """
    make_folder(folder)
    manifest, scape = prepare(scenario.sound, seed, folder / "sound", version.front_end.sample_rate_hz)
    heard = hear(manifest, scape, version)
    probe = make_probe(scenario.sound, version, folder / "sound" / "probe")
    profiles = folder.parents[1] / "profiles"
    profile, path = _profile(scenario, version, profiles, cores)
    run = Run(
        scenario,
        schedule,
        heard,
        quality,
        version.encoder.last_split,
        profile.window_s,
        {},
        None,
        None,
        profile,
    )
    possible = [system for system in systems if system.name != LEARNED or _has_policy(profile)]
    about = {
        **_conditions(run, version, profile, cores),
        "seed": seed,
        "order": [system.name for system in rotated(possible, seed)],
        "left_out": [system.name for system in systems if system not in possible],
        "probe_windows": None if probe is None else probe.windows,
        "simulated": simulate(
            scenario, schedule, heard, profile, [system.name for system in systems], quality
        ),
        "map": _map(heard),
    }
    return Prepared(manifest, path, run, probe, about, possible)


def fingerprint(scenario: Scenario, schedule: Schedule, quality: Quality, version: Version) -> str:
    """Of all that decides a result."""
    text = "\n".join(
        [scenario.fingerprint, schedule.uplink_source, schedule.load_source, repr(quality), version.id]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def client_and_other_cores() -> Cores | None:
    """One core for the device, the rest for server and link; None where there is but one, or cores cannot be chosen."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return (cores[-1:], cores[:-1]) if len(cores) > 1 else None


def quota_name() -> str:
    """Of this process' control group."""
    return f"{QUOTA_PREFIX}-{os.getpid()}"


def _profile(scenario: Scenario, version: Version, folder: Path, cores: Cores | None) -> tuple[Profile, Path]:
    """This machine's profile, measured once per results folder, slowed down as the device is."""
    measured_path, device = folder / f"{version.id}.json", scenario.device
    if measured_path.exists():
        measured = load_profile(measured_path)
    else:
        with on_cores(cores[0] if cores else None):
            measured = measure_profile(version, PROFILE_REPEATS)
        measured.save(measured_path)
    profile = scaled(measured, device.slowdown, device.power_model)
    path = folder / f"{version.id}-{device.name}-{device.slowdown:g}-{device.power}.json"
    profile.save(path)
    return profile, path


def _has_policy(profile: Profile) -> bool:
    try:
        make_decider(LEARNED, profile, profile.last_split)
    except ConfigError:
        return False
    return True


def _conditions(run: Run, version: Version, profile: Profile, cores: Cores | None) -> dict[str, Any]:
    scenario, schedule, power = run.scenario, run.schedule, profile.power
    return {
        "format": FORMAT,
        "title": scenario.title,
        "encoder": scenario.encoder,
        "version": version.id,
        "trained": version.trained,
        "scenario": scenario.model_dump(mode="json"),
        "window_s": run.window_s,
        "last_split": run.last_split,
        "uplink": schedule.uplink_source,
        "load": schedule.load_source,
        "outages": [list(outage) for outage in schedule.outages],
        "quality": {"source": run.quality.source, "measured": run.quality.measured},
        "power": {"name": power.name, "source": power.source, "modelled": power.modelled},
        "uncertainty": {
            f"p{level}": finite(np.percentile(run.heard.uncertainty, level)) for level in (5, 50, 95)
        },
        "quota": {"share": scenario.quota, **_calibration(scenario.quota, cores)},
        "speed": scenario.speed,
        "cores": None if cores is None else [list(each) for each in cores],
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
        "made_by": f"streamsplit {__version__}",
    }


def _calibration(share: float, cores: Cores | None) -> dict[str, Any]:
    """How the quota is set, and what it does in truth."""
    quota = make_quota(share, quota_name())
    with quota:
        longer = calibrate(quota, cores[0][0] if cores else None) if share < 1.0 else {}
    return {"method": quota.method, "longer": longer}


def _map(heard: Heard) -> dict[str, Any]:
    """Some of the server path's embeddings on a plane."""
    shown = slice(None, None, max(1, len(heard.start_s) // MAP_WINDOWS))
    vectors = heard.server[shown]
    points, method = place(vectors, 0) if len(vectors) > 2 else (np.zeros((0, 2)), "none")
    return {
        "method": method,
        "x": [round(float(x), 3) for x in points[:, 0]],
        "y": [round(float(y), 3) for y in points[:, 1]],
        "labels": heard.labels[shown],
    }
