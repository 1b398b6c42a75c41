"""Runs with `--env-preset atari`."""

from __future__ import annotations

import json
import sys

import pytest

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.seeding import evaluation_seed
from fabric_ppo.tools import cli
from tests.fixtures.preprocessing import by_hand
from tests.fixtures.resuming import assert_a_killed_run_goes_on, finish

pytest.importorskip("ale_py", reason="the extra atari")

HAS_ENVPOOL = sys.version_info >= (3, 11)


PONG = {"env_id": "ALE/Pong-v5", "env_preset": "atari", "encoder": "small", "hidden_sizes": (16,)}


@pytest.mark.parametrize(
    ("script", "size", "backend"), [("torch", 1, "async"), ("fabric", 1, "sync"), ("decoupled", 2, "sync")]
)
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, script, size, backend):
    flags = PONG | {"env_backend": backend, "num_steps": 8, "test_step_limit": 100}  # a whole game takes seconds
    assert_a_killed_run_goes_on(tmp_path, monkeypatch, script, size, flags)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run in three updates."""
    return finish("torch", 1, tmp_path_factory.mktemp("atari") / "run", updates=3, **PONG, test_step_limit=100)


def test_a_policy_is_tried_in_full_games_with_the_same_preprocessing(run_dir, capsys):
    """No flag says so: the policy's file does."""
    policy = load_agent(run_dir)
    env, returns = by_hand("ALE/Pong-v5"), []
    obs, _ = env.reset(seed=evaluation_seed(0, 0))
    ended = False
    while not ended:
        obs, reward, terminated, truncated, _ = env.step(policy.act(obs).item())
        ended = terminated or truncated
        returns.append(reward)
    assert cli.main(["evaluate", str(run_dir), "--episodes", "1", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["returns"], printed["length_mean"]) == ([sum(returns)], len(returns))


@pytest.mark.skipif(not HAS_ENVPOOL, reason="EnvPool needs Python 3.11")
def test_envpool_runs_to_the_end(tmp_path):
    run = finish("torch", 1, tmp_path / "run", updates=2, **PONG, env_backend="envpool")
    assert load_agent(run).spec.is_atari
