"""The learned decider: numpy says what torch was trained to say, in any order, for any options; bad files are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from streamsplit.errors import ConfigError
from streamsplit.policy.cost import Goals
from streamsplit.policy.decide import make_decider, mask
from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.flight import Flight
from streamsplit.policy.layout import LAYOUT, MOMENT, PER_OPTION, Describer
from streamsplit.policy.learned import FORMAT, LearnedPolicy, Weights, load_weights
from streamsplit.policy.observation import Observation
from streamsplit.policy.scenarios import make_worlds, shipped_scenarios
from streamsplit.policy.scorer import Scorer
from streamsplit.policy.training_worlds import training_worlds
from tests.policy.device import OPTIONS, PROFILE
from tests.policy.worlds import QUALITY

G, K = len(MOMENT), len(PER_OPTION)

observations = st.builds(
    Observation,
    cpu_percent=st.floats(0, 100),
    memory_percent=st.just(50.0),
    level_dbfs=st.floats(-120, 0),
    server_available=st.booleans(),
    backlog_windows=st.integers(0, 500),
    backlog_bytes=st.integers(0, 10**8),
    temperature_c=st.none() | st.floats(0, 100),
    throttled=st.booleans(),
    battery_percent=st.none() | st.floats(0, 100),
    uplink_bps=st.none() | st.floats(1.0, 1e9),
    rtt_ms=st.none() | st.floats(0, 1e4),
    uncertainty=st.none() | st.floats(0, 2),
    last_split=st.none() | st.integers(-2, 3),
    lag_s=st.none() | st.floats(0, 1e3),
    since_send_s=st.none() | st.floats(0, 1e5),
)


def scorer(seed: int = 0) -> Scorer:
    torch.manual_seed(seed)
    norm = torch.rand(2, G) + 0.5, torch.rand(2, K) + 0.5
    return Scorer(12, 6, norm)


def policy(seed: int = 0) -> LearnedPolicy:
    return LearnedPolicy(scorer(seed).export(Goals(), "made for tests"), PROFILE, QUALITY)


@pytest.mark.parametrize("goals", [Goals(), Goals(energy_mj=500.0, latency_ms=200.0)])
def test_a_device_sees_and_decides_what_training_saw_and_decided(goals: Goals) -> None:
    worlds = training_worlds(range(1_000_000, 1_000_016), 60, goals)
    flight = Flight(Simulator(worlds, np.arange(16)))
    trained = scorer(1)
    weights = trained.export(goals, "made for tests")
    generator = np.random.default_rng(0)
    for _ in range(5):
        features = flight.features()
        with torch.no_grad():
            scores = trained.forward_actor(torch.from_numpy(features)).numpy()
        for row, device in enumerate(worlds.devices):
            options, observation = device.ordered(), flight.seen.observation(row)
            live = (device.hold_windows, device.predicts)
            describer = Describer(device.profile, device.quality, goals, *live)
            moment, described = describer.describe(observation, options)
            assert features[row, :G] == pytest.approx(moment, abs=2e-4)
            slots = features[row, G : G + 12 * K].reshape(12, K)[: len(options)]
            assert slots == pytest.approx(np.array(described), abs=2e-4)
            decider = LearnedPolicy(weights, device.profile, device.quality, "learned", *live)
            possible = flight.possible[row, : len(options)]
            assert decider.scores(observation, options)[possible] == pytest.approx(
                scores[row, : len(options)][possible], abs=5e-3
            )
        wishes = np.where(flight.possible, generator.random(flight.possible.shape), -1.0)
        flight.fly(wishes.argmax(axis=1))


@settings(deadline=None)
@given(observation=observations)
def test_whatever_is_seen_a_possible_option_is_taken_and_explained(observation: Observation) -> None:
    possible = mask(OPTIONS, observation, 3)
    choice = policy().choose(observation, possible)
    assert (choice.split, choice.codec) in {(option.split, option.codec) for option in possible}
    assert np.isfinite(list(choice.expected.values())).all()
    assert choice.reason
    assert "\n" not in choice.reason
    assert choice == policy().choose(observation, possible)


@settings(max_examples=25, deadline=None)
@given(observation=observations, order=st.permutations(OPTIONS))
def test_the_order_of_options_does_not_matter_and_others_do_not_change_a_score(
    observation: Observation, order: list[object]
) -> None:
    decider = policy()
    scores = dict(zip(OPTIONS, decider.scores(observation, OPTIONS), strict=True))
    again = dict(zip(order, decider.scores(observation, order), strict=True))  # type: ignore[arg-type]
    assert again == pytest.approx(scores)


def test_a_saved_policy_decides_the_same(tmp_path: Path) -> None:
    weights = scorer().export(Goals(alpha=9.0), "made for tests")
    weights.save(tmp_path / "p.safetensors")
    loaded = load_weights(tmp_path / "p.safetensors")
    assert (loaded.goals, loaded.note) == (Goals(alpha=9.0), "made for tests")
    assert all((loaded.tensors[name] == tensor).all() for name, tensor in weights.tensors.items())
    name = f"learned:{tmp_path / 'p.safetensors'}"
    assert make_decider(name, PROFILE, 3).name == name


def _file(path: Path, tensors: dict[str, np.ndarray], **changed: object) -> Path:
    described = {
        "format_version": 1,
        "layout": LAYOUT,
        "goals": [10.0, 5.0, 3.0, None, None, 4.0],
        "note": "",
    } | changed
    save_file(tensors, path, {FORMAT: json.dumps(described)})
    return path


def test_files_that_are_no_policies_are_named(tmp_path: Path) -> None:
    good = dict(scorer().export(Goals(), "").tensors)
    path = tmp_path / "p.safetensors"
    with pytest.raises(ConfigError, match=r"p.safetensors: cannot be read"):
        load_weights(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match="cannot be read as safetensors"):
        load_weights(path)
    save_file(good, path)
    with pytest.raises(ConfigError, match="expected a streamsplit-policy file"):
        load_weights(path)
    with pytest.raises(ConfigError, match=r"features-1, got 1 with other"):
        load_weights(_file(path, good, layout="other"))
    with pytest.raises(ConfigError, match="damaged description"):
        load_weights(_file(path, good, goals="x"))
    with pytest.raises(ConfigError, match="expected tensors"):
        load_weights(_file(path, good | {"out": np.zeros(3, np.float32)}))
    with pytest.raises(ConfigError, match="expected tensors"):
        load_weights(_file(path, {name: tensor for name, tensor in good.items() if name != "out"}))
    with pytest.raises(ConfigError, match="out: expected finite float32"):
        load_weights(_file(path, good | {"out": np.full(6, np.nan, np.float32)}))
    with pytest.raises(ConfigError, match="scales above 0"):
        load_weights(_file(path, good | {"option_scale": np.zeros(K, np.float32)}))


def test_without_a_profile_of_this_encoder_there_is_no_learned_decider(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"streamsplit profile"):
        make_decider("learned")
    with pytest.raises(ConfigError, match="splits to 4, got one of made-1"):
        make_decider("learned", PROFILE, 4)
    with pytest.raises(ConfigError, match="absent"):
        make_decider(f"learned:{tmp_path / 'absent'}", PROFILE, 3)


def test_weights_hold_for_every_encoder() -> None:
    weights: Weights = scorer().export(Goals(), "")
    for name in ("lte", "cola-loaded", "resnet18-hot"):
        device = make_worlds([shipped_scenarios()[name]], [0], 20).devices[0]
        decider = LearnedPolicy(weights, device.profile)
        seen = Observation(10.0, 50.0, -30.0, True, uncertainty=0.3)
        assert decider.choose(seen, device.ordered()).split in range(device.profile.last_split + 1)


def test_a_policy_needs_neither_gymnasium_nor_its_trainer() -> None:
    import subprocess
    import sys

    code = (
        "import sys, streamsplit.policy.learned, streamsplit.policy.decide, streamsplit.policy.linucb;"
        "print([name for name in ('gymnasium', 'stable_baselines3', 'sb3_contrib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_observations_of_a_replay_leave_most_unknown_and_are_enough() -> None:
    bare = Observation(20.0, 0.0, -40.0, True)
    moment, described = Describer(PROFILE, QUALITY, Goals()).describe(bare, OPTIONS)
    assert np.isfinite(moment).all()
    assert np.isfinite(described).all()
    known = replace(bare, uncertainty=0.4, uplink_bps=1e6, rtt_ms=50.0)
    assert Describer(PROFILE, QUALITY, Goals()).describe(known, OPTIONS) != (moment, described)
