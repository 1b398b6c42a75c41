"""Answers of environments that are no answers: a fault that says what came, and what is expected."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from fabric_ppo.envs.checked_env import CheckedEnv
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.process.errors import EnvironmentFault
from fabric_ppo.process.signals import signals

OBS = np.zeros(2, np.float32)
BOX = spaces.Box(-1, 1, (2,))


class Answers(gymnasium.Env):
    """Returns from `reset` and `step` what it is told to; each observation may come with a mask."""

    action_space = spaces.Discrete(2)

    def __init__(self, first=(OBS, {}), then=(OBS, 0.0, False, False, {}), space=None):
        self.first, self.then, self.observation_space = first, then, space or BOX

    def reset(self, *, seed=None, options=None):
        return self.first

    def step(self, action):
        return self.then


def checked(env):
    return CheckedEnv(env, env_spec("Answers-v0", env.observation_space, env.action_space), "environment 3, episode")


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (OBS, "a single ndarray"),
        (None, "a single NoneType"),
        ({}, "a single dict"),
        ((OBS,), "1 values"),
        ((OBS, {}, 0), "3 values"),
    ],
)
def test_a_reset_that_returns_something_else(answer, what):
    with pytest.raises(EnvironmentFault) as caught:
        checked(Answers(first=answer)).reset(7)
    place = "Answers-v0 environment 3, episode seed 7, step 0: "
    assert str(caught.value) == f"{place}reset returned {what}; observation and info are expected"


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        ((OBS, 0.0, False, {}), "4 values"),
        ((OBS, 0.0, False, False, {}, 1), "6 values"),
        (OBS, "a single ndarray"),
        (None, "a single NoneType"),
    ],
)
def test_a_step_that_returns_something_else(answer, what):
    env = checked(Answers(then=answer))
    env.reset(7)
    with pytest.raises(EnvironmentFault) as caught:
        env.step(0)
    expected = "observation, reward, terminated, truncated and info are expected"
    assert str(caught.value).endswith(f"step 1: step returned {what}; {expected}")


def test_lists_are_taken_for_tuples():
    env = checked(Answers([OBS, {}], [OBS, 1.5, True, False, {}]))
    env.reset(7)
    assert env.step(0)[1:] == (1.5, True, False)


MASKED = spaces.Dict({"action_mask": spaces.MultiBinary(2), "obs": BOX})
FREE, STUCK = ({"action_mask": np.array(mask, np.int8), "obs": OBS} for mask in ([0, 1], [0, 0]))


def test_a_mask_must_allow_an_action_where_one_is_to_be_chosen():
    with pytest.raises(EnvironmentFault, match=r"step 0: reset returned an action_mask that allows no action; "):
        checked(Answers((STUCK, {}), space=MASKED)).reset(7)
    env = checked(Answers((FREE, {}), (STUCK, 0.0, False, False, {}), MASKED))
    env.reset(7)
    with pytest.raises(EnvironmentFault, match=r"step 1: step returned an action_mask that allows no action; "):
        env.step(1)


@pytest.mark.parametrize("ends", [(True, False), (False, True), (1, 0)])
def test_where_an_episode_has_ended_nothing_need_be_possible(ends):
    env = checked(Answers((FREE, {}), (STUCK, 0.0, *ends, {}), MASKED))
    env.reset(7)
    env.step(1)


class Interrupts(Answers):
    """Raises what Ctrl-C raises, as a game does whose window is closed."""

    def step(self, action):
        raise KeyboardInterrupt


@pytest.mark.parametrize(("is_script", "raised"), [(False, KeyboardInterrupt), (True, EnvironmentFault)])
def test_an_interrupt_in_a_script_is_the_environments_own(monkeypatch, is_script, raised):
    """There Ctrl-C raises something else; in a notebook it raises just this."""
    monkeypatch.setattr(signals, "is_script", is_script)
    env = checked(Interrupts())
    env.reset(7)
    with pytest.raises(raised):
        env.step(0)
