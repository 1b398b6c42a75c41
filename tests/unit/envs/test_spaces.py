"""Spaces as plain values: strict JSON there and back, what is refused, and observations that are packed."""

from __future__ import annotations

import json
import math

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from fabric_ppo.envs.gymnasium_spaces import SUPPORTED, env_spec
from fabric_ppo.envs.spaces import EnvSpec, Packer, SpaceSpec, mask_paths
from fabric_ppo.process.errors import ConfigError
from tests.fixtures.nested_envs import OBSERVATION
from tests.fixtures.spaces import ACTION_SPACES, VECTOR, observation_spec

OBSERVATIONS = {
    "vector": VECTOR,
    "bounded": spaces.Box(np.array([-1, 0.1], np.float32), np.array([np.inf, 3], np.float32)),
    "float64": spaces.Box(-np.inf, np.inf, (17,), np.float64),
    "pixels": spaces.Box(0, 255, (4, 6, 5), np.uint8),
    "scalar": spaces.Box(0, 1, (), np.float32),
    "discrete": spaces.Discrete(16),
    "discrete from -3": spaces.Discrete(4, start=-3),
}


UNSUPPORTED = {
    "text": spaces.Text(5),
    "sequence": spaces.Sequence(VECTOR),
    "empty": spaces.Box(0, 1, (0,), np.float32),
    "empty dict": spaces.Dict({}),
    "longdouble": spaces.Box(-1, 1, (2,), np.longdouble),
    "countless": spaces.Discrete(2**40),
    "many": spaces.MultiDiscrete([2**19, 2**19, 1]),
}


each_action = pytest.mark.parametrize("space", ACTION_SPACES.values(), ids=ACTION_SPACES)


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
    specs = {name: env_spec("Test-v0", VECTOR, space).action for name, space in ACTION_SPACES.items()}
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
        *(space for name, space in UNSUPPORTED.items() if name != "longdouble"),
        spaces.Box(0, 9, (2,), np.int64),
        spaces.Box(0, 255, (2,), np.uint8),
        spaces.Dict({}),
        spaces.Tuple(()),
    ],
    ids=[*(name for name in UNSUPPORTED if name != "longdouble"), "integers", "bytes", "dict", "tuple"],
)
def test_unsupported_actions(space):
    assert_refused(VECTOR, space, "of its actions (" if getattr(space, "spaces", ()) else "action space")


@pytest.mark.parametrize(
    ("space", "named"),
    [
        (spaces.Dict(go=spaces.Discrete(2), say=spaces.Text(4)), "part say of its actions (Text("),
        (spaces.Tuple((VECTOR, spaces.Dict(a=spaces.Tuple(())))), "part 1.a of its actions (Tuple()) is"),
        (spaces.Dict(a=spaces.Dict(b=spaces.Box(0, 9, (2,), np.int64))), "part a.b of its actions (Box(0, 9, (2,)"),
        (spaces.Dict(a=spaces.Sequence(spaces.Discrete(2))), "part a of its actions (Sequence("),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Discrete(2**20)), f"its actions have {2**20 + 2:,} choices"),
    ],
)
def test_parts_of_actions_that_cannot_be_taken_are_named(space, named):
    assert_refused(VECTOR, space, named)


def test_keys_of_actions_are_texts():
    """A number would stand for a place in a Tuple."""
    with pytest.raises(ConfigError, match="its actions have a part 1; keys that are texts are expected"):
        env_spec("Test-v0", VECTOR, spaces.Dict(a=spaces.Dict({1: spaces.Discrete(2)})))


def test_a_nested_action_is_described_by_its_leaves():
    space = spaces.Tuple((spaces.Dict(b=spaces.Discrete(3, start=2), a=VECTOR), spaces.MultiBinary(2)))
    spec = env_spec("Test-v0", VECTOR, space, "squash")
    parts = dict(spec.action.parts)
    assert {path: leaf.kind for path, leaf in parts.items()} == {
        (0, "a"): "box",
        (0, "b"): "discrete",
        (1,): "multi_binary",
    }
    assert (parts[(0, "a")].fit, spec.action.num_choices) == ("squash", 5)
    assert EnvSpec.from_json(spec.to_json()) == spec


TWO = spaces.Dict(a=spaces.Discrete(2), b=spaces.MultiDiscrete([2, 3]), c=VECTOR)


@pytest.mark.parametrize(
    ("mask", "named"),
    [
        (spaces.MultiBinary(6), "its masks are action_mask of 6 entries; action_mask of 7, or "),
        (spaces.Dict(a=spaces.MultiBinary(2)), "its masks are action_mask.a of 2 entries; "),
        (spaces.Dict(a=spaces.MultiBinary(5), b=spaces.MultiBinary(2)), "action_mask.a of 5, action_mask.b of 2 ent"),
        (
            spaces.Dict(a=spaces.MultiBinary(2), b=spaces.MultiBinary(5), c=spaces.MultiBinary(3)),
            "or action_mask.a of 2, action_mask.b of 5 are expected, one a choice",
        ),
    ],
)
def test_masks_that_do_not_fit_the_parts_of_actions_are_refused(mask, named):
    with pytest.raises(ConfigError) as caught:
        env_spec("Test-v0", spaces.Dict(x=VECTOR, action_mask=mask), TWO)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_masks_of_parts_are_taken_with_whatever_keys():
    masks = spaces.Dict(b=spaces.MultiBinary(5), a=spaces.MultiBinary(2))
    seen = spaces.Dict(action_mask=masks, x=VECTOR, y=VECTOR)
    spec = env_spec("Test-v0", seen, TWO, obs_keys="y")
    assert {path for path, _ in spec.observation.parts} == {("action_mask", "a"), ("action_mask", "b"), ("y",)}
    assert mask_paths(spec) == [("action_mask", "a"), ("action_mask", "b")]
    numbers = spaces.Dict(c=VECTOR)  # which cannot be masked
    assert mask_paths(env_spec("Test-v0", seen, numbers)) == []


def test_a_long_space_is_abbreviated():
    many = spaces.Dict({f"sensor_{k}": spaces.Tuple([spaces.Text(3)] * 50) for k in range(50)})
    assert_refused(VECTOR, many, "...")


def test_nested_spaces_travel_as_json():
    spec = env_spec("Test-v0", OBSERVATION, spaces.Discrete(3))
    assert EnvSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.zeros((2, 3), np.float32)}, r"whose a is of shape \(2, 3\); \(2, 2\) is expected"),
        ({"a": np.full((2, 2), np.nan, np.float32)}, "whose a is not finite"),
        ({"a": np.full((2, 2), 1e39)}, r"whose a is not finite as float32: 1e\+39 in entry \[0, 0\]"),
        ({"a": np.full((2, 2), "x")}, "whose a is array.* of dtype float32 are expected"),
        ({"b": (8, np.zeros(2, np.int8))}, "whose b.0 is 8; a whole number from 5 to 7 is expected"),
        ({"b": (5, np.array([0, 2], np.int8))}, r"whose b.1 is 2 in entry \[1\]; a whole number from 0 to 1"),
        ({"far": {"multi": np.array([0, 4]), "big": np.zeros(3)}}, r"whose far.multi is 4 in entry \[1\]"),
        ({"far": 3}, r"whose far.big cannot be read \(TypeError\)"),
        ({"bool": np.array([0, 0.5, 1])}, r"whose bool is of dtype float64, of which the declared int8"),
        ({"far": {"multi": np.zeros(2, np.int64)}}, r"whose far.big cannot be read \(KeyError\)"),
        ({"b": (5,)}, r"whose b.1 cannot be read \(IndexError\)"),
    ],
)
def test_an_observation_that_does_not_fit_is_named(change, message):
    OBSERVATION.seed(0)
    with pytest.raises(ValueError, match=message):
        Packer(observation_spec(OBSERVATION))({**OBSERVATION.sample(), **change})


SCALED = {
    "bits": (spaces.Box(0, 1, (3,), np.uint8), (0,), (1,)),
    "signed": (spaces.Box(-100, 100, (3,), np.int8), (-100,), (100,)),
    "words": (spaces.Box(0, 60000, (3,), np.uint16), (0,), (60000,)),
    "large": (spaces.Box(-(2**62), 2**62, (2,), np.int64), (-(2**62),), (2**62,)),
    "each its own": (spaces.Box(np.array([0, -5]), np.array([1, 5]), (2,), np.int64), (0, -5), (1, 5)),
    "bytes with a bit": (spaces.Box(np.array([0, 0]), np.array([1, 255]), (2,), np.uint8), (0, 0), (1, 255)),
    "no bound of one": (spaces.Box(np.array([0, 0]), np.array([1, 2**31 - 1]), (2,), np.int64), (0, None), (1, None)),
    "binary image": (spaces.Box(0, 1, (84, 84, 4), np.uint8), (0,), (1,)),
}
UNSCALED = {
    "bytes": spaces.Box(0, 255, (4, 6, 5), np.uint8),
    "no bounds": spaces.Box(-np.inf, np.inf, (3,), np.int64),
    "limits of a type": spaces.Box(np.iinfo(np.int32).min, np.iinfo(np.int32).max, (27,), np.int64),
    "counter": spaces.Box(0, np.iinfo(np.uint64).max, (1,), np.uint64),
    "bool": spaces.Box(0, 1, (3,), bool),
    "floats": spaces.Box(-3, 7, (3,), np.float32),
}


@pytest.mark.parametrize(("space", "low", "high"), SCALED.values(), ids=SCALED)
def test_whole_numbers_are_described_with_their_bounds(space, low, high):
    """Once for all entries where they are the same, exactly, also in nested spaces and as JSON."""
    spec = env_spec("Test-v0", space, spaces.Discrete(2))
    assert (spec.observation.low, spec.observation.high) == (low, high)
    assert all(type(bound) in (int, type(None)) for bound in (*low, *high))
    assert EnvSpec.from_json(spec.to_json()) == spec
    ((_, part),) = env_spec("Test-v0", spaces.Dict(a=space), spaces.Discrete(2)).observation.parts
    assert (part.low, part.high) == (low, high)


@pytest.mark.parametrize("space", UNSCALED.values(), ids=UNSCALED)
def test_what_is_not_scaled_is_described_as_before(space):
    """Bytes have their scale without bounds, and the limits of a type of 32 or 64 bits are none."""
    assert env_spec("Test-v0", space, spaces.Discrete(2)).observation == SpaceSpec("box", space.shape, str(space.dtype))


def test_a_description_without_bounds_is_read_as_before():
    """As policy files have it that were written before there were any."""
    text = (
        '{"env_id": "Test-v0", "observation": {"kind": "box", "shape": [3], "dtype": "int8"}, '
        '"action": {"kind": "discrete", "shape": [], "dtype": "int64", "sizes": [2], "start": [0]}}'
    )
    assert EnvSpec.from_json(text).observation == SpaceSpec("box", (3,), "int8")


def test_the_order_of_bytes_is_the_machines():
    space = spaces.Box(0, 1, (2,), np.dtype(np.float32).newbyteorder())
    spec = env_spec("Test-v0", space, spaces.Discrete(2)).observation
    assert spec.dtype == "float32"
    assert Packer(spec)(np.array([0.5, 1], space.dtype)).tolist() == [0.5, 1]


WITH_TEXT = spaces.Dict(
    {
        "image": spaces.Box(0, 255, (3, 3), np.uint8),
        "mission": spaces.Text(5),
        "arm": spaces.Dict(
            {"left": VECTOR, "name": spaces.Text(3), "right": spaces.Tuple((VECTOR, spaces.Discrete(2)))}
        ),
        "action_mask": spaces.MultiBinary(2),
    }
)


def keys_of(spec):
    return [".".join(map(str, path)) for path, _ in spec.observation.parts]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("image", ["action_mask", "image"]),
        ("image,arm.left", ["action_mask", "arm.left", "image"]),
        ("arm.left,image,image", ["action_mask", "arm.left", "image"]),
        ("arm.right", ["action_mask", "arm.right.0", "arm.right.1"]),
        ("arm.right.1,action_mask", ["action_mask", "arm.right.1"]),
    ],
)
def test_keys_take_parts_of_an_observation(keys, expected):
    """In the order of the space, and with the mask."""
    assert keys_of(env_spec("Test-v0", WITH_TEXT, spaces.Discrete(2), obs_keys=keys)) == expected


def test_a_mask_is_a_part_like_others_where_actions_cannot_be_masked():
    spec = env_spec("Test-v0", WITH_TEXT, spaces.Box(-1, 1, (2,)), obs_keys="image")
    assert keys_of(spec) == ["image"]


def test_keys_with_dots_are_names_too():
    space = spaces.Dict({"a.b": VECTOR, "a": spaces.Dict({"c": VECTOR})})
    assert keys_of(env_spec("Test-v0", space, spaces.Discrete(2), obs_keys="a")) == ["a.c"]
    assert keys_of(env_spec("Test-v0", space, spaces.Discrete(2), obs_keys="a.b")) == ["a.b"]
    assert keys_of(env_spec("Test-v0", spaces.Tuple((VECTOR, VECTOR)), spaces.Discrete(2), obs_keys="1")) == ["1"]


@pytest.mark.parametrize(
    ("space", "keys", "message"),
    [
        (
            WITH_TEXT,
            "",
            "--env-id Test-v0: parts arm.name, mission of its observations (Text, Text) are not supported; "
            "--obs-keys arm.left,arm.right.0,arm.right.1,image takes the others",
        ),
        (
            WITH_TEXT,
            "arm",
            "--obs-keys arm: part arm.name of its observations (Text) is not supported; "
            "--obs-keys arm.left,arm.right.0,arm.right.1 takes the others",
        ),
        (
            WITH_TEXT,
            "mission",
            "--obs-keys mission: part mission of its observations (Text) is not supported; "
            "--obs-keys arm.left,arm.right.0,arm.right.1,image takes the others",
        ),
        (
            spaces.Dict({"a.b": VECTOR, "a": spaces.Dict({"b": VECTOR})}),
            "a.b",
            "--obs-keys a.b: Test-v0 has several observations a.b; unique names are expected",
        ),
        (
            WITH_TEXT,
            "image,imag",
            "--obs-keys image,imag: Test-v0 has no observation imag; "
            "it has action_mask, arm.left, arm.name, arm.right.0, arm.right.1, image, mission",
        ),
        (
            spaces.Dict(a=spaces.Box(0, 1, (2,), np.longdouble), b=VECTOR),
            "",
            "--env-id Test-v0: part a of its observations (Box(0.0, 1.0, (2,), float128)) is not supported; "
            "--obs-keys b takes the others",
        ),
        (
            spaces.Tuple((VECTOR, spaces.Text(5))),
            "",
            "--env-id Test-v0: part 1 of its observations (Text) is not supported; --obs-keys 0 takes the others",
        ),
        (
            spaces.Dict(a=spaces.Text(3)),
            "",
            f"--env-id Test-v0: part a of its observations (Text) is not supported; {SUPPORTED}",
        ),
        (
            VECTOR,
            "a",
            "--obs-keys a: observations of Test-v0 are Box(-inf, inf, (3,), float32), which has no parts",
        ),
    ],
)
def test_parts_that_cannot_be_taken_are_named_with_those_that_can(space, keys, message):
    with pytest.raises(ConfigError) as caught:
        env_spec("Test-v0", space, spaces.Discrete(2), obs_keys=keys)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("obs_keys", "critic_keys", "policy", "critic"),
    [
        ("image", "arm.left", ["action_mask", "image"], ["arm.left"]),
        ("image", "arm.right.1,arm.left", ["action_mask", "image"], ["arm.left", "arm.right.1"]),
        ("arm.left", "image,arm.right", ["action_mask", "arm.left"], ["arm.right.0", "arm.right.1", "image"]),
        ("action_mask,image", "arm.right.0", ["action_mask", "image"], ["arm.right.0"]),
    ],
)
def test_parts_for_the_value_network_alone_come_last(obs_keys, critic_keys, policy, critic):
    """A row of what the policy takes begins each row."""
    spec = env_spec("Test-v0", WITH_TEXT, spaces.Discrete(2), obs_keys=obs_keys, critic_keys=critic_keys)
    assert keys_of(spec) == [*policy, *critic]
    assert EnvSpec.from_json(spec.to_json()) == spec
    alone = env_spec("Test-v0", WITH_TEXT, spaces.Discrete(2), obs_keys=obs_keys).observation
    assert spec.observation.for_policy == alone
    assert [".".join(map(str, path)) for path, _ in spec.observation.for_critic.parts] == critic
    whole = {
        "image": np.arange(9, dtype=np.uint8).reshape(3, 3),
        "arm": {"left": np.ones(3), "right": (np.full(3, 2.0), 1)},
        "action_mask": np.array([0, 1], np.int8),
    }
    row, begin = Packer(spec.observation)(whole), alone.size
    assert row[:begin].tobytes() == Packer(alone)(whole).tobytes()
    assert row[begin:].tobytes() == Packer(spec.observation.for_critic)(whole).tobytes()


def test_without_keys_the_policy_takes_what_the_value_network_has_not_alone():
    space = spaces.Dict(a=VECTOR, b=spaces.Dict(c=VECTOR, d=VECTOR), e=spaces.Discrete(2))
    spec = env_spec("Test-v0", space, spaces.Discrete(2), critic_keys="b.d,e")
    assert keys_of(spec) == ["a", "b.c", "b.d", "e"]
    assert spec.observation.num_critic == 2
    tuples = env_spec("Test-v0", spaces.Tuple((VECTOR, VECTOR)), spaces.Discrete(2), critic_keys="0")
    assert keys_of(tuples) == ["1", "0"]


@pytest.mark.parametrize(
    ("space", "obs_keys", "critic_keys", "message"),
    [
        (VECTOR, "", "a", "observations of Test-v0 are Box(-inf, inf, (3,), float32), which has no parts"),
        (
            WITH_TEXT,
            "image",
            "arm.lef",
            "Test-v0 has no observation arm.lef; it has action_mask, arm.left, arm.name, arm.right.0, arm.right.1, "
            "image, mission",
        ),
        (
            WITH_TEXT,
            "image,arm.left",
            "arm.left",
            "--obs-keys image,arm.left has arm.left, which the value network takes, too; other parts are expected",
        ),
        (
            WITH_TEXT,
            "arm.left",
            "arm",
            "--obs-keys arm.left has arm.left, which the value network takes, too; other parts are expected",
        ),
        (
            WITH_TEXT,
            "",
            "image,arm,mission",
            "the policy has no observation left; "
            "some of arm.left, arm.name, arm.right.0, arm.right.1, image, mission are expected",
        ),
        (WITH_TEXT, "image", "action_mask", "the policy needs action_mask; other parts are expected"),
        (
            WITH_TEXT,
            "image",
            "arm",
            "part arm.name of its observations (Text) is not supported; "
            "--critic-keys arm.left,arm.right.0,arm.right.1 takes the others",
        ),
        (
            WITH_TEXT,
            "image",
            "mission",
            "part mission of its observations (Text) is not supported; "
            "--critic-keys arm.left,arm.right.0,arm.right.1 takes the others",
        ),
    ],
)
def test_parts_that_the_value_network_cannot_have_alone_are_refused(space, obs_keys, critic_keys, message):
    with pytest.raises(ConfigError) as caught:
        env_spec("Test-v0", space, spaces.Discrete(2), obs_keys=obs_keys, critic_keys=critic_keys)
    assert str(caught.value) == f"--critic-keys {critic_keys}: {message}"


def test_the_policys_unsupported_parts_are_named_without_those_of_the_value_network():
    with pytest.raises(ConfigError) as caught:
        env_spec("Test-v0", WITH_TEXT, spaces.Discrete(2), critic_keys="arm.left")
    assert str(caught.value).endswith("; --obs-keys arm.right.0,arm.right.1,image takes the others")


def test_a_part_that_is_not_taken_may_be_anything():
    spec = env_spec("Test-v0", WITH_TEXT, spaces.Discrete(2), obs_keys="image").observation
    whole = {
        "image": np.arange(9, dtype=np.uint8).reshape(3, 3),
        "mission": object(),
        "action_mask": np.ones(2, np.int8),
    }
    assert Packer(spec)(whole).tolist() == [1, 1, *range(9)]
