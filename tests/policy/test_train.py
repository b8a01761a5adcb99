"""Training: learns what is there to learn, survives a kill, masks, refuses other settings."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamsplit.errors import ConfigError
from streamsplit.policy.dynamics import Simulator
from streamsplit.policy.flight import Flight
from streamsplit.policy.layout import EXPECTED
from streamsplit.policy.learned import load_weights
from streamsplit.policy.power import LAPTOP_WIFI
from streamsplit.policy.scenarios import shipped_scenarios
from streamsplit.policy.scorer import G, K, Scorer
from streamsplit.policy.train import PolicyTrainer
from streamsplit.policy.training_worlds import FIRST_TRAINING_SEED, PolicySettings, validation_worlds
from tests.policy.worlds import LOCAL, slots, timeline, worlds

TINY = PolicySettings(
    steps=256,
    devices=16,
    worlds=8,
    episode_windows=40,
    rollout=8,
    hidden=8,
    middle=4,
    save_every=128,
    validate_every=128,
    rounds=1,
    round_worlds=8,
)


def ignore(done: int, total: int) -> None:
    """No progress bar."""


@pytest.mark.parametrize("algorithm", ["maskable-ppo", "ppo"])
def test_a_training_leaves_a_policy_that_loads_and_nothing_unfinished(algorithm: str, tmp_path: Path) -> None:
    out = tmp_path / "policy.safetensors"
    trainer = PolicyTrainer(replace(TINY, algorithm=algorithm), out)  # type: ignore[arg-type]
    seen: list[tuple[int, int]] = []
    figures = trainer.run(lambda done, total: seen.append((done, total)), "by a test")
    assert load_weights(out).note == "by a test"
    best = max(item["return"] for item in figures["validation"])
    assert figures["validation_return"] == pytest.approx(best, abs=1e-5)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {TINY.decisions} == {256 + 8 * 4}
    assert seen[-1] == (TINY.decisions, TINY.decisions)
    assert figures["rounds"] == len(figures["lost_before_each_round"]) == 1
    assert not (tmp_path / "policy.safetensors.unfinished").exists()


def test_one_seed_makes_one_policy(tmp_path: Path) -> None:
    policies = []
    for name in ("a", "b"):
        PolicyTrainer(TINY, tmp_path / name).run(ignore, "")
        policies.append(load_weights(tmp_path / name).tensors)
    assert all((policies[0][name] == policies[1][name]).all() for name in policies[0])


def test_an_unfinished_training_goes_on_and_no_other_may(tmp_path: Path) -> None:
    out = tmp_path / "p"
    begun = PolicyTrainer(TINY, out)
    begun.model.learn(128, reset_num_timesteps=False)
    begun.validate()
    begun.save()
    with pytest.raises(ConfigError, match="expected the settings it began with"):
        PolicyTrainer(replace(TINY, seed=1), out, resume=True)
    again = PolicyTrainer(TINY, out, resume=True)
    assert again.done == 128
    assert all(
        torch.equal(old, new)
        for old, new in zip(begun.model.policy.parameters(), again.model.policy.parameters(), strict=True)
    )
    assert again.run(ignore, "")["decisions"] == 256
    assert PolicyTrainer(TINY, out, resume=True).done == 0


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="'a2c': expected ppo or maskable-ppo"):
        PolicySettings(algorithm="a2c")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="steps: expected 1 or more, got 0"):
        PolicySettings(steps=0)
    with pytest.raises(ConfigError, match="rounds: expected 0 or more, got -1"):
        PolicySettings(rounds=-1)
    with pytest.raises(ConfigError, match="episode_windows: expected 20"):
        PolicySettings(episode_windows=10)


def test_impossible_options_get_no_chance_and_the_rest_begin_near_what_is_expected_of_them() -> None:
    torch.manual_seed(0)
    norms = [torch.stack([torch.zeros(size), torch.ones(size)]) for size in (G, K)]
    scorer = Scorer(8, 4, (norms[0], norms[1]))
    with torch.no_grad():
        scorer.out.weight.zero_()
    down = worlds(timeline(30, server_up=np.zeros(30, bool)), timeline(30))
    flight = Flight(Simulator(down, np.array([0, 1])))
    for _ in range(2):
        flight.fly(slots(LOCAL, LOCAL))
    features = torch.from_numpy(flight.features())
    with torch.no_grad():
        scores = scorer.forward_actor(features)
    assert ((scores > -1e6).numpy() == flight.possible).all()
    assert flight.possible.sum(axis=1).tolist() == [1, 4]
    expected = features[:, G : G + 12 * K].reshape(2, 12, K)[..., EXPECTED]
    assert scores[1, :4] == pytest.approx(30.0 * expected[1, :4], rel=0.01)


def test_a_policy_of_one_kind_of_device_is_not_chosen_by_what_it_does_on_another() -> None:
    laptops = validation_worlds(replace(TINY, fleet="laptop"))
    assert {device.profile.power.idle_w for device in laptops.devices} == {LAPTOP_WIFI.idle_w}
    names = {device.name for device in validation_worlds(TINY).devices}
    scenarios = [scenario.world(FIRST_TRAINING_SEED, 20)[0] for scenario in shipped_scenarios().values()]
    assert names == {device.name for device in scenarios}


def test_the_command_survives_kill_9(tmp_path: Path) -> None:
    out = tmp_path / "policy.safetensors"
    command = [
        sys.executable,
        "-m",
        "streamsplit",
        "train-policy",
        "--out",
        str(tmp_path),
        "--steps",
        "16384",
    ]
    command += ["--save-every", "8192", "--rounds", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    progress = tmp_path / "policy.safetensors.unfinished" / "progress.json"
    deadline_s = time.monotonic() + 120
    while not progress.exists() and time.monotonic() < deadline_s and running.poll() is None:
        time.sleep(0.1)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert progress.exists()
    done = subprocess.run(
        [*command, "--resume"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "going on after decision" in done.stderr
    assert load_weights(out).note.startswith("streamsplit train-policy")
    assert (tmp_path / "summary.json").exists()
