"""Spaces as plain values: strict JSON there and back, what is refused, and actions that an environment takes."""

from __future__ import annotations

import json
import math

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from fabric_ppo.envs.spaces import SUPPORTED, ActionConverter, EnvSpec, Packer, SpaceSpec, env_spec
from fabric_ppo.process.errors import ConfigError
from tests.fixtures.nested_envs import OBSERVATION
from tests.fixtures.spaces import observation_spec

VECTOR = spaces.Box(-np.inf, np.inf, (3,), np.float32)


OBSERVATIONS = {
    "vector": VECTOR,
    "bounded": spaces.Box(np.array([-1, 0.1], np.float32), np.array([np.inf, 3], np.float32)),
    "float64": spaces.Box(-np.inf, np.inf, (17,), np.float64),
    "pixels": spaces.Box(0, 255, (4, 6, 5), np.uint8),
    "scalar": spaces.Box(0, 1, (), np.float32),
    "discrete": spaces.Discrete(16),
    "discrete from -3": spaces.Discrete(4, start=-3),
}


ACTIONS = {
    "discrete": spaces.Discrete(5),
    "discrete from 3": spaces.Discrete(5, start=3),
    "multi": spaces.MultiDiscrete([3, 2, 4]),
    "multi matrix": spaces.MultiDiscrete(np.array([[3, 2], [4, 5]]), dtype=np.int32, start=np.array([[0, -1], [2, 7]])),
    "bits": spaces.MultiBinary(4),
    "bit matrix": spaces.MultiBinary([2, 3]),
    "box": spaces.Box(np.array([-1, 0.1, -np.inf], np.float32), np.array([1, np.inf, 0.3], np.float32)),
    "box matrix": spaces.Box(-2.0, 0.1, (2, 3), np.float64),
    "unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
}


UNSUPPORTED = {
    "text": spaces.Text(5),
    "sequence": spaces.Sequence(VECTOR),
    "empty": spaces.Box(0, 1, (0,), np.float32),
    "empty dict": spaces.Dict({}),
    "text in a tuple": spaces.Tuple((VECTOR, spaces.Text(5))),
}


each_action = pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)


def refuse(constant):
    raise AssertionError(f"{constant} is not JSON")


@each_action
@pytest.mark.parametrize("observation", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_json_there_and_back(observation, space):
    spec = env_spec("Test-v0", observation, space)
    text = spec.to_json()
    json.loads(text, parse_constant=refuse)
    back = EnvSpec.from_json(text)
    assert back == spec
    assert hash(back) == hash(spec)
    assert back.to_json() == text


def test_json_refuses_what_is_not_finite():
    spec = EnvSpec("Test-v0", SpaceSpec("box", (1,), "float32"), SpaceSpec("box", (1,), "float32", low=(math.nan,)))
    with pytest.raises(ValueError, match="JSON"):
        spec.to_json()


@pytest.mark.parametrize("space", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_observations_have_the_shape_and_type_of_a_sample(space):
    spec = env_spec("Test-v0", space, spaces.Discrete(2)).observation
    sample = np.asarray(space.sample())
    assert (spec.shape, spec.dtype, spec.size) == (sample.shape, str(sample.dtype), sample.size)


@each_action
def test_actions_have_the_shape_and_type_of_a_sample(space):
    spec = env_spec("Test-v0", VECTOR, space).action
    sample = np.asarray(space.sample())
    assert (spec.shape, spec.dtype, spec.size) == (sample.shape, str(sample.dtype), sample.size)


def test_fields_of_each_kind():
    specs = {name: env_spec("Test-v0", VECTOR, space).action for name, space in ACTIONS.items()}
    assert (specs["discrete from 3"].sizes, specs["discrete from 3"].start) == ((5,), (3,))
    assert (specs["multi matrix"].sizes, specs["multi matrix"].start) == ((3, 2, 4, 5), (0, -1, 2, 7))
    assert specs["box"].low == (-1.0, float(np.float32(0.1)), None)
    assert specs["box"].high == (1.0, None, float(np.float32(0.3)))
    assert {name: spec.kind for name, spec in specs.items()} == {
        "discrete": "discrete",
        "discrete from 3": "discrete",
        "multi": "multi_discrete",
        "multi matrix": "multi_discrete",
        "bits": "multi_binary",
        "bit matrix": "multi_binary",
        "box": "box",
        "box matrix": "box",
        "unbounded": "box",
    }
    observation = env_spec("Test-v0", OBSERVATIONS["discrete from -3"], spaces.Discrete(2)).observation
    assert (observation.sizes, observation.start) == ((4,), (-3,))


def test_a_real_environment():
    env = gymnasium.make("CartPole-v1")
    spec = env_spec("CartPole-v1", env.observation_space, env.action_space)
    env.close()
    assert spec.env_id == "CartPole-v1"
    assert spec.observation == SpaceSpec("box", (4,), "float32")
    assert spec.action == SpaceSpec("discrete", (), "int64", (2,), (0,))


def assert_refused(observation, action, what):
    with pytest.raises(ConfigError) as caught:
        env_spec("Test-v0", observation, action)
    message = str(caught.value)
    assert message.startswith("--env-id Test-v0: ")
    assert what in message
    assert message.endswith(SUPPORTED)
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize("space", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_observations(space):
    assert_refused(space, spaces.Discrete(2), "observation space")


@pytest.mark.parametrize(
    "space",
    [
        *UNSUPPORTED.values(),
        spaces.Box(0, 9, (2,), np.int64),
        spaces.Box(0, 255, (2,), np.uint8),
        spaces.Dict({"a": VECTOR}),
        spaces.Tuple((VECTOR, spaces.Discrete(2))),
    ],
    ids=[*UNSUPPORTED, "integers", "bytes", "dict", "tuple"],
)
def test_unsupported_actions(space):
    assert_refused(VECTOR, space, "action space")


def test_a_long_space_is_abbreviated():
    many = spaces.Dict({f"sensor_{k}": VECTOR for k in range(50)})
    assert_refused(VECTOR, many, "...")


def stored(space, count):
    """Actions as distributions draw them: choices from 0 up, unbounded numbers."""
    rng = np.random.default_rng(0)
    if isinstance(space, spaces.Discrete):
        return rng.integers(0, space.n, count)
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(0, space.nvec, (count, *space.shape))
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(0, 2, (count, *space.shape))
    return rng.normal(0, 3, (count, *space.shape)).astype(np.float32)


@each_action
def test_an_environment_takes_every_converted_action(space):
    actions = stored(space, 200)
    before = actions.copy()
    converted = ActionConverter(env_spec("Test-v0", VECTOR, space).action)(actions)
    assert converted.shape == actions.shape
    assert converted.dtype == space.dtype
    assert all(space.contains(action) for action in converted)
    assert np.array_equal(actions, before)


def test_choices_start_where_the_space_does():
    convert = ActionConverter(env_spec("Test-v0", VECTOR, ACTIONS["discrete from 3"]).action)
    assert convert(np.array([0, 1, 4])).tolist() == [3, 4, 7]
    convert = ActionConverter(env_spec("Test-v0", VECTOR, ACTIONS["multi matrix"]).action)
    assert convert(np.array([[[0, 0], [1, 2]], [[2, 1], [3, 4]]])).tolist() == [[[0, -1], [3, 9]], [[2, 0], [5, 11]]]


def test_numbers_are_clipped_to_the_bounds_that_there_are():
    convert = ActionConverter(env_spec("Test-v0", VECTOR, ACTIONS["box"]).action)
    got = convert(np.array([[-5, -5, -5], [5, 5, 5], [0.5, 0.5, 0.25]], np.float32))
    expected = np.array([[-1, 0.1, -5], [1, 5, 0.3], [0.5, 0.5, 0.25]], np.float32)
    assert np.array_equal(got, expected)


BOUNDED = spaces.Box(np.array([-2, 0, -np.inf, -1], np.float32), np.array([2, 10, 3, np.inf], np.float32))


@pytest.mark.parametrize(
    ("fit", "expected"),
    [
        ("clip", [[0.5, 0.5, 0.5, 0.5], [-2, 0, -5, -1], [2, 5, 3, 5]]),
        ("rescale", [[1, 7.5, 0.5, 0.5], [-2, 0, -5, -1], [2, 10, 3, 5]]),
        ("squash", [[2 * 0.46211716, 5 + 5 * 0.46211716, 0.5, 0.5], [-1.9998184, 0.00045398, -5, -1]]),
    ],
)
def test_continuous_actions_meet_their_bounds_as_asked(fit, expected):
    """Tanh 0.5 = 0.46211716, tanh 5 = 0.9999092; entries without two bounds are only clipped."""
    convert = ActionConverter(env_spec("Test-v0", VECTOR, BOUNDED, fit).action)
    given = np.array([[0.5] * 4, [-5] * 4, [5] * 4], np.float32)
    assert np.allclose(convert(given)[: len(expected)], expected, rtol=1e-6, atol=1e-6)


def test_the_widest_bounds_are_stretched_over_without_overflow():
    most = np.finfo(np.float32).max
    convert = ActionConverter(env_spec("Test-v0", VECTOR, spaces.Box(-most, most, (1,), np.float32), "rescale").action)
    assert convert(np.array([[-1], [0], [1]], np.float32)).flatten().tolist() == [-most, 0, most]


def test_unbounded_numbers_pass():
    actions = np.array([[-1e30, 1e30], [0.25, -7]], np.float32)
    converted = ActionConverter(env_spec("Test-v0", VECTOR, ACTIONS["unbounded"]).action)(actions)
    assert np.array_equal(converted, actions)


def test_nested_spaces_travel_as_json():
    spec = env_spec("Test-v0", OBSERVATION, spaces.Discrete(3))
    assert EnvSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.zeros((2, 3), np.float32)}, r"whose a has shape \(2, 3\); \(2, 2\) is expected"),
        ({"a": np.full((2, 2), np.nan, np.float32)}, "whose a is not finite"),
        ({"far": {"multi": np.zeros(2, np.int64)}}, r"whose far.big cannot be read \(KeyError\)"),
        ({"b": (5,)}, r"whose b.1 cannot be read \(IndexError\)"),
    ],
)
def test_an_observation_that_does_not_fit_is_named(change, message):
    OBSERVATION.seed(0)
    with pytest.raises(ValueError, match=message):
        Packer(observation_spec(OBSERVATION))({**OBSERVATION.sample(), **change})
