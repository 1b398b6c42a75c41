"""Attributes of environments: which can be set, how they are written, and who has which."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
import torch

from fabric_ppo.config import Config
from fabric_ppo.envs.attributes import AttributeLog, attributes_text, set_attributes, why_not_set
from fabric_ppo.envs.make import make_envs
from fabric_ppo.process.errors import ConfigError, EnvironmentFault
from tests.fixtures import curriculum
from tests.fixtures.curriculum import BEFORE, LENGTH, Scaled, Steered


@pytest.mark.parametrize(
    ("value", "as_json"),
    [
        (0.5, 0.5),
        (3, 3),
        (True, True),
        (None, None),
        ("hard", "hard"),
        ((1, [2, "a"]), [1, [2, "a"]]),
        ({"a": {"b": 1}}, {"a": {"b": 1}}),
        (np.float32(0.25), 0.25),
        (np.int64(4), 4),
        (np.bool_(True), True),
        (np.array([[1, 2]]), [[1, 2]]),
        (torch.tensor([0.5]), [0.5]),
    ],
    ids=str,
)
def test_a_value_arrives_as_json_has_it(value, as_json):
    env = Steered()
    set_attributes(env, attributes_text("", {"difficulty": value}))
    assert env.difficulty == as_json
    assert type(env.difficulty) is type(as_json)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}, b"x", {1: 2}, lambda: 0, 1j, np.nan])
def test_other_values_are_refused_in_one_line(value):
    with pytest.raises(ConfigError, match=r"^envs\.set\(difficulty=\.\.\.\): .*are expected$") as caught:
        attributes_text("", {"difficulty": value})
    assert "\n" not in str(caught.value)


def test_a_later_value_takes_the_place_of_an_earlier_one_and_others_stay():
    text = attributes_text(attributes_text("", {"a": 1, "b": 2}), {"c": 3, "a": 4})
    assert list(json.loads(text).items()) == [("a", 4), ("b", 2), ("c", 3)]
    assert attributes_text("", {}) == ""


def test_an_environment_cannot_spoil_a_value_for_the_next_episode():
    env, text = Steered(), attributes_text("", {"names": ["b"]})
    set_attributes(env, text)
    env.names.append("c")
    set_attributes(env, text)
    assert env.names == ["b"]


def test_the_outermost_wrapper_that_has_an_attribute_gets_it():
    env = gymnasium.wrappers.TimeLimit(Scaled(Steered()), 100)
    set_attributes(env, '{"difficulty": 2, "scale": 3, "speed": 4, "_max_episode_steps": 7}')
    assert (env.env.difficulty, env.unwrapped.difficulty) == (2, BEFORE)
    assert (env.env.scale, env.unwrapped.speed, env._max_episode_steps) == (3, 4, 7)


class Redirected(gymnasium.Wrapper):
    """Sets attributes in its own way, as Gymnasium lets it."""

    def has_wrapper_attr(self, name):
        return name == "virtual" or super().has_wrapper_attr(name)

    def get_wrapper_attr(self, name):
        return 0 if name == "virtual" else super().get_wrapper_attr(name)

    def set_wrapper_attr(self, name, value, *, force=True):
        if name == "virtual":
            self.env.unwrapped.difficulty = value
            return None
        return super().set_wrapper_attr(name, value, force=force)


def test_a_wrapper_may_set_attributes_in_its_own_way():
    env = Redirected(Steered())
    assert why_not_set(env, ["virtual", "difficulty"]) == ""
    set_attributes(env, '{"virtual": 6}')
    assert env.unwrapped.difficulty == 6


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("difficluty", "has no such attribute; did you mean difficulty?"),
        ("nothing_like_it", "has no such attribute"),
        ("a.b", "has no such attribute"),
        ("step", "it is a method of "),
        ("observation_space", "it is a Box of "),
        ("fixed", "has it as a property that cannot be set"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_what_cannot_be_set_is_named(name, why, wrapped):
    env = Scaled(Steered()) if wrapped else Steered()
    told = why_not_set(env, ["difficulty", name])
    assert told.startswith(f"envs.set({name}=...): ")
    assert why in told


@pytest.mark.parametrize("name", ["difficulty", "names", "none", "speed", "spoilt"])
def test_what_can_be_set(name):
    assert why_not_set(gymnasium.wrappers.OrderEnforcing(Steered()), [name]) == ""


def played(envs, steps):
    """First numbers of the observations of all environments, step after step: what their episodes began with."""
    seen = []
    obs, reward, *flags = (
        np.zeros((envs.num_envs, 4), np.float32),
        *np.zeros((1, 2), np.float32),
        *np.zeros((3, 2), bool),
    )
    for _ in range(steps):
        envs.step(np.zeros(envs.num_envs, np.int64), obs, reward, *flags)
        seen.append(obs[:, 0].tolist())
    return seen


@pytest.mark.parametrize(
    "flags", [{}, {"capture_video": True}, {"env_wrapper": f"{curriculum.MODULE}:Scaled"}], ids=str
)
def test_an_episode_keeps_what_it_began_with(tmp_path, flags):
    config = Config(env_id=curriculum.ENV_ID, num_envs=2, num_steps=4, **flags)
    envs = make_envs(config, 0, 1, str(tmp_path / "videos") if "capture_video" in flags else "")
    envs.reset(np.zeros((2, 4), np.float32))
    envs.check_attributes(["difficulty"])
    envs.set_attributes('{"difficulty": 3}')
    # a wrapper that hides the attribute has it set instead, and this environment never sees it
    then = BEFORE if "env_wrapper" in flags else 3.0
    assert played(envs, LENGTH - 1) == [[BEFORE] * 2] * (LENGTH - 1)
    assert played(envs, LENGTH) == [[then] * 2] * LENGTH
    envs.reset(obs := np.zeros((2, 4), np.float32))
    assert obs[:, 0].tolist() == [then] * 2
    envs.close()


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_value_that_an_environment_refuses_is_its_fault_by_name(backend):
    envs = make_envs(Config(env_id=curriculum.ENV_ID, num_envs=2, env_backend=backend), 0, 1)
    envs.reset(np.zeros((2, 4), np.float32))
    envs.set_attributes('{"speed": 10}')
    with pytest.raises(EnvironmentFault) as caught:
        played(envs, LENGTH)
    first = str(caught.value).splitlines()[0]
    assert f"{curriculum.ENV_ID} environment " in first
    assert first.endswith('step 0: setting {"speed": 10} raised ValueError: too fast')
    assert " seed " in first
    envs.close()


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_an_attribute_that_is_not_there_is_refused_in_one_line(backend):
    envs = make_envs(Config(env_id=curriculum.ENV_ID, num_envs=2, env_backend=backend), 0, 1)
    with pytest.raises(ConfigError, match=r"^envs\.set\(hardness=\.\.\.\): .*Steered-v0 has no such attribute$"):
        envs.check_attributes(["difficulty", "hardness"])
    envs.close()


def test_envpool_has_none_to_set():
    envs = make_envs(Config(env_id="CartPole-v1", env_backend="envpool", num_envs=2), 0, 1)
    with pytest.raises(ConfigError, match=r"^envs\.set\(gravity\): --env-backend sync or async is needed"):
        envs.check_attributes(["gravity"])
    envs.close()


def test_the_log_has_what_each_episode_began_with():
    """Against a list that is kept step by step."""
    drawn = np.random.default_rng(3)
    log, expected = AttributeLog(4), [""] * 4
    for update in range(20):
        log.current = f'{{"a": {update // 3}}}'
        ended = drawn.random((5, 4)) < 0.1
        for row in ended:
            expected = [log.current if ends else before for ends, before in zip(row, expected, strict=True)]
        log.append(ended)
        assert log.of_episodes == expected
        again = AttributeLog(4)
        again.load_values(json.loads(json.dumps(log.to_values())))
        assert (again.current, again.of_episodes) == (log.current, log.of_episodes)


@pytest.mark.parametrize(
    "values",
    [
        {"texts": [], "of_episodes": []},
        {"texts": [""], "of_episodes": [0]},
        {"texts": [""], "of_episodes": [0, 1]},
        {"texts": [""], "of_episodes": [0, -1]},
        {"texts": [""], "of_episodes": [0, False]},
        {"texts": ["[1]"], "of_episodes": [0, 0]},
        {"texts": [3], "of_episodes": [0, 0]},
        {"texts": ["{"], "of_episodes": [0, 0]},
    ],
    ids=str,
)
def test_values_of_another_kind_are_refused(values):
    with pytest.raises(ValueError, match=r"attributes of environments|Expecting"):
        AttributeLog(2).load_values(values)
