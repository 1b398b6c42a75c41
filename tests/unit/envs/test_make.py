"""Environments that can be made, and wrapped by name, and those that cannot."""

from __future__ import annotations

import multiprocessing
import re
import sys

import gymnasium
import numpy as np
import pytest

import tests.fixtures.toy_envs  # noqa: F401 - registers environments
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.envs.gymnasium_env import renders
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.seeding import episode_seed, evaluation_seed
from tests.fixtures import argument_envs
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
        ("no_such_module:f", r"cannot be imported \(No module named 'no_such_module'\), not to be found in .*"),
        ("wrappers_of_mine:missing", "cannot be imported .*has no attribute 'missing'.*"),
        ("wrappers_of_mine:number", "is a int; a function or class is expected"),
        ("wrappers_of_mine:nothing", "it returned NoneType; an environment is expected"),
        ("wrappers_of_mine:fails", "it raised KeyError: 'no such thing'"),
    ],
)
def test_wrong_wrappers_are_refused(here, wrapper, message):
    with pytest.raises(ConfigError, match=f"^--env-wrapper {wrapper}: {message}$"):
        train(Config(**TINY, env_wrapper=wrapper, run_dir=str(here / "run")))


LANDER = {"env_id": "LunarLander-v3", "env_kwargs": {"gravity": -4.5, "enable_wind": True}}


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_arguments_reach_every_environment_and_the_policy(here, backend):
    """The same episodes as Gymnasium's with these arguments, and others than without."""
    config = Config(**TINY, **LANDER, env_backend=backend, eval_every=1, eval_episodes=1, run_dir=str(here / "run"))
    policy = load_agent(train(config))
    assert policy.spec.env_kwargs == LANDER["env_kwargs"]
    returns = {}
    for kwargs in ({}, LANDER["env_kwargs"]):
        env = gymnasium.make("LunarLander-v3", **kwargs)
        obs, _ = env.reset(seed=evaluation_seed(3, 0))
        score, ended = 0.0, False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(policy.act(obs))
            score, ended = score + float(reward), terminated or truncated
        returns[bool(kwargs)] = score
    assert evaluate(policy, 1, seed=3).returns == [pytest.approx(returns[True])]
    assert returns[True] != pytest.approx(returns[False])
    with env_opener(backend, seed=7) as open_envs:
        obs = reset(open_envs(**LANDER, num_envs=2))
    for index in range(2):
        env = gymnasium.make("LunarLander-v3", **LANDER["env_kwargs"])
        np.testing.assert_array_equal(obs[index], env.reset(seed=episode_seed(7, index, 0, 2))[0])


def test_an_environment_cannot_change_the_arguments_of_the_next_one(here):
    flags = {"env_id": f"{argument_envs.MODULE}:TakesList-v0", "env_kwargs": {"lengths": [3]}}
    policy = load_agent(train(Config(**TINY, **flags, run_dir=str(here / "run"))))
    assert evaluate(policy, 3, seed=0).lengths == [3, 3, 3]


def test_the_limit_of_steps_may_be_given(here):
    """`gymnasium.make` takes it itself."""
    config = Config(**TINY, env_id="Pendulum-v1", env_kwargs={"max_episode_steps": 9}, run_dir=str(here / "run"))
    assert evaluate(load_agent(train(config)), 2, seed=0).lengths == [9, 9]


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("Takes", {"sise": 4}, "--env-kwargs sise: ID does not take that; it takes size"),
        ("Takes", {"sise": 4, "size": 4, "x": 1}, "--env-kwargs sise, x: ID does not take that; it takes size"),
        ("TakesNothing", {"size": 4}, "--env-kwargs size: ID does not take that; it takes none"),
        ("TakesByFunction", {"sise": 4}, "--env-kwargs sise: ID does not take that; it takes size"),
        ("TakesByName", {"sise": 4}, "--env-kwargs sise: ID does not take that; it takes size"),
        ("TakesAnything", {"size": 4}, '--env-id ID --env-kwargs {"size": 4}: cannot be made (.*size.*)'),
        ("Takes", {"max_episode_steps": 0}, "--env-id ID --env-kwargs {.*: 0}: cannot be made (.*positive.*)"),
        ("TakesAnything", {"action": "x"}, "--env-id ID --env-kwargs {.action.: .x.}: cannot be made ('x')"),
    ],
)
def test_arguments_that_a_constructor_does_not_take_are_refused(here, name, kwargs, message, backend):
    env_id = f"{argument_envs.MODULE}:{name}-v0"
    with pytest.raises(ConfigError) as caught:
        train(Config(**TINY, env_id=env_id, env_kwargs=kwargs, env_backend=backend, log_dir=str(here / "logs")))
    pattern = re.sub(r"([(){}])", r"\\\1", message.replace("ID", env_id))
    assert re.fullmatch(pattern, str(caught.value)), str(caught.value)
    assert not list((here / "logs").rglob("*.yaml"))


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"render_modes": ["human", "rgb_array"]}, True),
        ({"render_modes": ("rgb_array",)}, True),
        ({"render_modes": {"rgb_array": "a picture"}}, True),
        ({"render_modes": ["human"]}, False),
        ({"render_modes": None}, False),
        ({"render_modes": 3}, False),
        ({}, False),
        (["render_modes", "rgb_array"], False),
        (None, False),
        ("rgb_array", False),
    ],
)
def test_an_environment_renders_what_it_declares(metadata, expected):
    """Its metadata is whatever its author has written."""
    env = gymnasium.make("CartPole-v1").unwrapped
    env.metadata = metadata
    assert renders(env, "rgb_array") is expected
