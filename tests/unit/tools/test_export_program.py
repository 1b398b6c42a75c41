"""Programs beside policies of batches of environments, which nothing single may stand for."""

from __future__ import annotations

import re
import runpy
import sys

import gymnasium
import pytest

from fabric_ppo.agents.policy import load_agent
from fabric_ppo.agents.policy_file import save_policy
from fabric_ppo.config import Config
from fabric_ppo.envs.make import make_envs
from fabric_ppo.envs.tensor.cartpole import CartPole
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.tools.export import export
from tests.fixtures.exported import agent_of

pytestmark = pytest.mark.filterwarnings("ignore")
FORMATS = [("onnx", "onnx"), ("torchscript", "pt")]


def own_batch() -> CartPole:
    """What `--env-id module:function` names."""
    return CartPole()


def policy_of(env_id, folder):
    """The folder of a policy for a batch of environments, which has not been trained."""
    config = Config(env_id=env_id, env_backend="vector")
    envs = make_envs(config, 0, 1, "")
    save_policy(agent_of(envs.spec), folder)
    return folder


@pytest.mark.parametrize(("to", "ending"), FORMATS)
def test_tensor_code_is_played_as_gymnasiums_environment(to, ending, tmp_path, monkeypatch, capsys):
    exported = export(policy_of("tensor/CartPole-v1", tmp_path), to, tmp_path / f"p.{ending}", verify_steps=30)
    monkeypatch.setattr(sys, "argv", [str(exported.program), "3"])
    runpy.run_path(str(exported.program))
    agent, env, total = load_agent(tmp_path), gymnasium.make("CartPole-v1"), 0.0
    obs, ended = env.reset(seed=3)[0], False
    while not ended:
        obs, reward, terminated, truncated, _ = env.step(agent.act(obs))
        total, ended = total + reward, terminated or truncated
    assert capsys.readouterr().out == f"seed 3: return {total}\n"


@pytest.mark.parametrize(("to", "ending"), FORMATS)
def test_the_program_of_a_function_acts_on_zeros(to, ending, tmp_path, capsys):
    folder = policy_of(f"{__name__}:own_batch", tmp_path)
    with pytest.raises(ConfigError, match=re.escape("own_batch makes a batch") + ".*--verify space does without"):
        export(folder, to, tmp_path / f"p.{ending}", own_code=True)
    exported = export(folder, to, tmp_path / f"p.{ending}", verify="space", verify_steps=30)
    runpy.run_path(str(exported.program))
    assert capsys.readouterr().out.strip() in ("[0]", "[1]")
