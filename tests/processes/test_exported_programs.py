"""The program beside an exported policy, where this package cannot be imported: it plays as `evaluate` does."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.agents.policy_file import save_policy
from fabric_ppo.envs.frame_stack import with_frames
from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.seeding import evaluation_seed
from fabric_ppo.tools.export import export
from tests.fixtures.exported import ENV_ID, agent_of, one_table_of_operators, save
from tests.fixtures.launching import ROOT
from tests.fixtures.processes import PATIENCE

__all__ = ["one_table_of_operators"]
pytestmark = pytest.mark.usefixtures("one_table_of_operators")

EPISODES = 3
ALONE = "import runpy, sys; sys.modules['fabric_ppo'] = None; sys.argv = sys.argv[1:]; " + (
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)
"""Program that runs another one, in which `import fabric_ppo` raises an error."""


def returns_of(program):
    seeds = [str(evaluation_seed(0, episode)) for episode in range(EPISODES)]
    words = [sys.executable, "-c", ALONE, str(program), *seeds]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^seed (\d+): return (\S+)$", done.stdout, re.MULTILINE)
    assert [seed for seed, _ in found] == seeds
    return [float(each) for _, each in found]


def require_same(run_dir, to, exact=True, verify_steps=50):
    exported = export(
        run_dir,
        to,
        run_dir / {"onnx": "policy.onnx", "torchscript": "policy.pt"}[to],
        verify_steps=verify_steps,
        own_code=True,
    )
    expected = evaluate(load_agent(run_dir), EPISODES).returns
    np.testing.assert_allclose(returns_of(exported.program), expected, rtol=0 if exact else 1e-5)


def saved(folder, env_id, wrapper="", frames=1, **architecture):
    """The policy of a random agent for an environment that is wrapped."""
    env = make_gymnasium_env(env_id, wrapper)
    spec = env_spec(env_id, env.observation_space, env.action_space, wrapper=wrapper)
    env.close()
    save_policy(agent_of(with_frames(spec, frames), **architecture), folder)
    return folder


CHOICES = ["discrete from 3", "dict", "lstm", "bits", "frames, mask", "choice", "one part"]
NUMBERS = ["squashed", "gru", "parts", "parts, lstm"]


@pytest.mark.parametrize(
    ("name", "to"), [*((name, "onnx") for name in CHOICES), ("lstm", "torchscript"), ("frames, mask", "torchscript")]
)
def test_choices_and_returns_are_the_same(name, to, tmp_path):
    require_same(save(tmp_path, name), to)


@pytest.mark.parametrize(
    ("name", "to"), [*((name, "onnx") for name in NUMBERS), ("squashed", "torchscript"), ("parts", "torchscript")]
)
def test_numbers_are_the_same_to_rounding(name, to, tmp_path):
    require_same(save(tmp_path, name), to, exact=False)


@pytest.mark.parametrize(
    ("env_id", "options"),
    [
        ("CartPole-v1", {"frames": 3}),
        ("LunarLander-v3", {"normalize_observations": True}),
        ("FrozenLake-v1", {}),
        ("ALE/Pong-v5", {"wrapper": "atari", "encoder": "nature"}),
    ],
)
def test_environments_of_gymnasium(env_id, options, tmp_path, monkeypatch):
    if env_id.startswith("ALE/"):  # whole games take minutes
        monkeypatch.setattr("tests.processes.test_exported_programs.EPISODES", 1)
    require_same(saved(tmp_path, env_id, **options), "onnx")


@pytest.mark.parametrize("name", ["discrete", "parts"])
def test_a_mask_that_comes_with_info(name, tmp_path):
    wrapper = "fabric_ppo.envs.masks:action_mask_from_info"
    arguments = f'{{"name": "{name}", "mask_in_info": true}}'
    env = make_gymnasium_env(ENV_ID, wrapper, env_kwargs=arguments)
    spec = env_spec(ENV_ID, env.observation_space, env.action_space, wrapper=wrapper)
    save_policy(agent_of(replace(spec, make_args=arguments)), tmp_path)
    require_same(tmp_path, "onnx", exact=name == "discrete")
