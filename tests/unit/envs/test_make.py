"""Environments that can be made, and wrapped by name, and those that cannot."""

from __future__ import annotations

import multiprocessing
import sys

import gymnasium
import numpy as np
import pytest

import tests.fixtures.toy_envs  # noqa: F401 - registers environments
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.rollouts.evaluate import evaluate
from tests.fixtures.configs import TINY
from tests.fixtures.envs import env_opener, reset
from tests.fixtures.habit_envs import Alone
from tests.fixtures.habit_envs import env_id as id_of


@pytest.fixture
def open_envs(backend):
    """Make environments of each backend as a run does; close them at the end."""
    with env_opener(backend) as open_:
        yield open_


def test_an_environment_need_not_know_of_rendering(open_envs):
    """`gymnasium.make` passes on what it is given: an environment without a `render_mode` gets none."""
    envs = open_envs("NoArguments-v0", 1)
    assert np.abs(reset(envs)).max() > 0


def test_environments_that_cannot_all_be_made_are_closed(tmp_path, monkeypatch):
    """In this process the first would stay open otherwise, and be in the way of another try."""
    monkeypatch.setenv("ALONE_LOG", str(tmp_path / "log"))
    with env_opener("sync") as open_:
        with pytest.raises(ConfigError, match="port 5005 is in use"):
            open_(id_of(Alone), 2)
        assert reset(open_(id_of(Alone), 1)).shape[0] == 1


@pytest.mark.parametrize(
    ("env_id", "reason"),
    [("BrokenConstructor-v0", "told to raise"), ("TextInDict-v0", "part b of its observations (Text)")],
)
def test_an_environment_that_cannot_be_made_is_a_config_error(open_envs, env_id, reason):
    with pytest.raises(ConfigError) as caught:
        open_envs(env_id, 2)
    message = str(caught.value)
    assert message.startswith(f"--env-id {env_id}: ")
    assert "\n" not in message
    assert reason in message
    assert not multiprocessing.active_children()


WRAPPERS = """
import gymnasium, numpy as np

class Doubled(gymnasium.ObservationWrapper):
    def __init__(self, env):
        super().__init__(env)
        box = env.observation_space
        self.observation_space = gymnasium.spaces.Box(
            np.tile(box.low, 2), np.tile(box.high, 2), (2 * box.shape[0],), box.dtype)
    def observation(self, obs):
        return np.tile(obs, 2)

def nothing(env): return None
def fails(env): raise KeyError("no such thing")
number = 7
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a module of wrappers."""
    (tmp_path / "wrappers_of_mine.py").write_text(WRAPPERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wrappers_of_mine", raising=False)
    return tmp_path


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_wrapper_goes_round_every_environment_and_into_the_policy(here, backend):
    config = Config(**TINY, env_wrapper="wrappers_of_mine:Doubled", env_backend=backend, run_dir=str(here / "run"))
    policy = load_agent(train(config))
    assert policy.spec.observation.shape == (8,)
    assert policy.spec.wrapper == "wrappers_of_mine:Doubled"
    played = evaluate(policy, 1, 0)
    env = gymnasium.make("CartPole-v1")
    assert played.lengths[0] >= 1
    env.close()


def test_wrappers_go_round_each_other_in_order(here):
    """The image of MiniGrid's Dict exists once one-hot cells have been made of it."""
    wrappers = "minigrid.wrappers:OneHotPartialObsWrapper,minigrid.wrappers:ImgObsWrapper"
    env_id = "minigrid:MiniGrid-Empty-5x5-v0"
    policy = load_agent(train(Config(**TINY, env_id=env_id, env_wrapper=wrappers, run_dir=str(here / "run"))))
    assert policy.spec.observation.shape == (7, 7, 20)
    assert evaluate(policy, 1, seed=0).lengths


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ("nothing", "module:name is expected"),
        ("no_such_module:f", r"cannot be imported \(No module named 'no_such_module'\)"),
        ("wrappers_of_mine:missing", "cannot be imported .*has no attribute 'missing'.*"),
        ("wrappers_of_mine:number", "is a int; a function is expected"),
        ("wrappers_of_mine:nothing", "it returned NoneType; an environment is expected"),
        ("wrappers_of_mine:fails", "it raised KeyError: 'no such thing'"),
    ],
)
def test_wrong_wrappers_are_refused(here, wrapper, message):
    with pytest.raises(ConfigError, match=f"^--env-wrapper {wrapper}: {message}$"):
        train(Config(**TINY, env_wrapper=wrapper, run_dir=str(here / "run")))
