"""Faults of an environment: which one, in which episode, at which step."""

from __future__ import annotations

import asyncio

import gymnasium
import numpy as np
import pytest

from fabric_ppo.envs.contract import EnvSettings
from fabric_ppo.envs.episodes import Episodes
from fabric_ppo.envs.gymnasium_env import make_gymnasium_env
from fabric_ppo.process.errors import ConfigError, EnvironmentFault, StoppedBySignal
from fabric_ppo.seeding import episode_seed
from tests.fixtures.envs import SEED, close_or_fail, env_opener, kill_workers, reset, run_into_fault, step, zeros
from tests.fixtures.toy_envs import toy_env


@pytest.fixture
def open_envs(backend):
    """Make environments of each backend as a run does; close them at the end."""
    with env_opener(backend) as open_:
        yield open_
        kill_workers()


@pytest.mark.parametrize("episode", [0, 2])
@pytest.mark.parametrize("fault", ["raise", "nan_obs", "inf_obs", "nan_reward", "inf_reward"])
def test_a_fault_is_named(open_envs, fault, episode):
    """The message's first line names the global environment, the episode's seed and the step (the first is 1)."""
    at, length, env, num_envs = 2, 4, 4, 3  # global environment 4 is local environment 1 of rank 1
    bad_seed = episode_seed(SEED, env, episode, 2 * num_envs)
    env_id = toy_env(length=length, fault=fault, at=at, only_seed=bad_seed)
    envs = open_envs(env_id, num_envs, rank=1, num_ranks=2)
    reset(envs)
    for _ in range(length * episode + at):
        step(envs, zeros(envs))
    with pytest.raises(EnvironmentFault) as caught:
        step(envs, zeros(envs))
    message = str(caught.value)
    first_line = message.splitlines()[0]
    assert first_line.startswith(f"{env_id} environment {env}, episode seed {bad_seed}, step {at + 1}: ")
    if fault == "raise":
        assert first_line.endswith("ToyError: told to raise")
        assert "in _raise_deep_inside" in message  # the environment's own traceback, to its innermost frame
        assert "toy_envs.py" in message
    else:
        assert "not finite" in message
        assert {"n": "nan", "i": "inf"}[fault[0]] in message
    close_or_fail(envs)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("fault", ["nan_obs", "inf_obs"])
def test_one_entry_that_is_not_finite_is_enough(open_envs, kind, fault):
    envs = open_envs(toy_env(observation=kind, fault=fault, at=0), 1)
    assert "not finite" in run_into_fault(envs, steps=1)


@pytest.mark.parametrize("episode", [0, 1])
def test_reset_that_raises_is_named(open_envs, episode):
    bad_seed = episode_seed(SEED, 1, episode, 2)
    env_id = toy_env(length=2, fault="raise_reset", only_seed=bad_seed)
    message = run_into_fault(open_envs(env_id, 2))
    place = f"{env_id} environment 1, episode seed {bad_seed}, step 0: reset raised "
    assert message.splitlines()[0] == place + "ToyError: told to raise in reset"
    assert "in reset" in message


class Odd(gymnasium.Env):
    """Returns given values: `obs` and `reward` of every step, and `first` from reset."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, obs=(0, 0, 0), reward=0.0, first=(0, 0, 0), render_mode=None):
        self.obs, self.reward, self.first = obs, reward, first

    def reset(self, *, seed=None, options=None):
        return np.array(self.first, np.float32), {}

    def step(self, action):
        return np.array(self.obs, np.float32), self.reward, False, False, {}


def odd_env(**options):
    gymnasium.registry.pop("Odd-v0", None)
    gymnasium.register("Odd-v0", entry_point=Odd, kwargs=options)
    return "Odd-v0"


def test_large_numbers_are_finite(open_envs):
    """Entries whose squares overflow are no fault."""
    envs = open_envs(odd_env(obs=(1e30, -3e38, 0), first=(3e38, 3e38, 3e38)), 1)
    np.testing.assert_array_equal(reset(envs), np.float32([[3e38, 3e38, 3e38]]))
    np.testing.assert_array_equal(step(envs, [0]).obs, np.float32([[1e30, -3e38, 0]]))


@pytest.mark.parametrize(
    "options",
    [
        {"first": (0, np.nan, 0)},
        {"reward": 1e39},  # infinite as float32, which is what a rollout keeps
        {"reward": None},
        {"obs": (1, 2)},
        {"obs": (1,)},  # NumPy would broadcast it
        {"first": (1, 2, 3, 4)},
    ],
    ids=str,
)
def test_invalid_observations_and_rewards_are_faults(open_envs, options):
    """A nan at reset, a reward that is no float32, an observation of another shape than the space's."""
    message = run_into_fault(open_envs(odd_env(**options), 2), steps=1)
    assert "environment 0, episode seed " in message


class Returns(gymnasium.Env):
    """Returns given values: `first` from reset, `obs` and `reward` from every step."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, space, first, obs, reward=0.0, flags=(False, False), render_mode=None):
        self.observation_space, self.first, self.obs, self.reward, self.flags = space, first, obs, reward, flags

    def reset(self, *, seed=None, options=None):
        return self.first, {}

    def step(self, action):
        return self.obs, self.reward, *self.flags, {}


def returning(space, first, obs, reward=0.0, flags=(False, False)):
    gymnasium.registry.pop("Returns-v0", None)
    options = {"space": space, "first": first, "obs": obs, "reward": reward, "flags": flags}
    gymnasium.register("Returns-v0", entry_point=Returns, kwargs=options, disable_env_checker=True, order_enforce=False)
    return "Returns-v0"


ZERO, FLOATS = np.zeros(2, np.float32), gymnasium.spaces.Box(-9, 9, (2,), np.float32)
BYTES = gymnasium.spaces.Box(0, 1, (2,), np.uint8)
CHOICE = gymnasium.spaces.Discrete(4)
WRONG = {
    "floats as bytes": (
        BYTES,
        np.zeros(2, np.uint8),
        np.array([0, 0.5], np.float32),
        "float32, of which the declared uint8",
    ),
    "nan as integers": (
        gymnasium.spaces.Box(0, 9, (2,), np.int32),
        [0, 0],
        [0, np.nan],
        "declared int32 cannot hold nan",
    ),
    "beyond float32": (FLOATS, ZERO, np.array([1e39, 0]), "not finite as float32: 1e+39 in entry [0]"),
    "none": (FLOATS, ZERO, None, "that is None (NoneType)"),
    "ragged": (FLOATS, ZERO, [[1], [1, 2]], "that is no array ("),
    "text": (CHOICE, 0, "x", "that is 'x' (str)"),
    "out of range": (CHOICE, np.int64(3), np.int64(4), "that is 4; a whole number from 0 to 3 is expected"),
    "in a list": (CHOICE, 0, [1], "of shape (1,); () is expected"),
    "part": (
        gymnasium.spaces.Dict(a=BYTES, b=FLOATS),
        {"a": [0, 1], "b": ZERO},
        {"a": [0, 1], "b": [0, 1e300]},
        "whose b is not finite as float32: 1e+300 in entry [1]",
    ),
}


@pytest.mark.parametrize(("space", "right", "wrong", "what"), WRONG.values(), ids=WRONG)
def test_an_observation_that_its_space_cannot_hold_is_a_fault(open_envs, space, right, wrong, what):
    """In one line, at the very reset and step that return it."""
    for call, step_number, env_id in (("reset", 0, returning(space, wrong, right)), ("step", 1, None)):
        envs = open_envs(env_id or returning(space, right, wrong), 1)
        message = run_into_fault(envs, steps=1)
        seed = episode_seed(SEED, 0, 0, 1)
        assert message.startswith(
            f"Returns-v0 environment 0, episode seed {seed}, step {step_number}: {call} returned "
        )
        assert what in message
        assert "\n" not in message


@pytest.mark.parametrize("reward", [[1.0], None, "1.0", 1j, {"a": 1}, np.zeros(2), 1e39, np.nan], ids=str)
def test_what_is_no_reward_is_a_fault(open_envs, reward):
    message = run_into_fault(open_envs(returning(FLOATS, ZERO, ZERO, reward), 1), steps=1)
    assert "step 1: step returned reward " in message
    assert "\n" not in message


@pytest.mark.parametrize("reward", [2, np.array([2.0]), np.float16(2), np.array(2)], ids=repr)
def test_a_reward_may_be_an_array_of_one_number(open_envs, reward):
    envs = open_envs(returning(FLOATS, ZERO, ZERO, reward), 2)
    reset(envs)
    assert step(envs, [0, 0]).rewards.tolist() == [2, 2]


@pytest.mark.parametrize("flag", ["False", [False], np.zeros(2, bool), np.nan], ids=str)
@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_what_is_no_flag_is_a_fault(open_envs, flag, name):
    flags = (flag, False) if name == "terminated" else (False, flag)
    message = run_into_fault(open_envs(returning(FLOATS, ZERO, ZERO, flags=flags), 1), steps=1)
    assert f"step 1: step returned {name} " in message
    assert "\n" not in message


@pytest.mark.parametrize("flag", [1, np.array([True]), np.array(True)], ids=repr)
def test_a_flag_may_be_an_array_of_one(open_envs, flag):
    envs = open_envs(returning(FLOATS, ZERO, ZERO, flags=(None, flag)), 1)
    reset(envs)
    result = step(envs, [0])
    assert (result.terminated.tolist(), result.truncated.tolist()) == ([False], [True])


class Panic(BaseException):
    """As extensions written in Rust raise it: no Exception."""


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")


class Raises(Returns):
    """Raises an error of a given type in its constructor, in `reset`, in `step` or in `observation_space`."""

    observation_space = property(lambda self: self.fail("observation_space") or FLOATS)

    def __init__(self, error, where, render_mode=None):
        self.error, self.where = error, where
        self.fail("constructor")

    def fail(self, where):
        if where == self.where:
            raise self.error

    def reset(self, *, seed=None, options=None):
        self.fail("reset")
        return ZERO, {}

    def step(self, action):
        self.fail("step")


def raising(error, where):
    gymnasium.registry.pop("Raises-v0", None)
    gymnasium.register("Raises-v0", entry_point=Raises, kwargs={"error": error, "where": where})
    return "Raises-v0"


ODD_ERRORS = [Panic, GeneratorExit, asyncio.CancelledError, Unprintable, StopIteration, SystemExit]


@pytest.mark.parametrize("error", ODD_ERRORS)
@pytest.mark.parametrize("where", ["reset", "step"])
def test_errors_of_odd_types_are_faults(open_envs, error, where):
    line = run_into_fault(open_envs(raising(error, where), 1), steps=1).splitlines()[0]
    assert f"step {int(where == 'step')}: {where} raised {error.__name__}" in line


@pytest.mark.parametrize("error", ODD_ERRORS)
@pytest.mark.parametrize("where", ["constructor", "observation_space"])
def test_an_environment_that_cannot_say_what_it_is_is_refused(error, where):
    with pytest.raises(ConfigError, match=rf"^--env-id Raises-v0: .*{error.__name__}"):
        make_gymnasium_env(raising(error, where))


@pytest.mark.parametrize("where", ["constructor", "reset", "step"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt, StoppedBySignal])
def test_a_signal_is_no_fault(where, stop):
    settings = EnvSettings(raising(stop, where), seed=1, num_envs=1, first_env=0, total_envs=1)

    def play():
        env = Episodes(settings, 0)
        env.begin()
        env.step(0)

    with pytest.raises(stop):
        play()
