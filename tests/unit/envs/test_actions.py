"""Actions on their way to environments: converted so that they are taken, and masks that allow at least one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fabric_ppo.envs.actions import ActionConverter, MaskCheck, TensorActionConverter, is_outside
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.spaces import Packer
from tests.fixtures.spaces import ACTION_SPACES, VECTOR


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


@pytest.mark.parametrize("space", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_an_environment_takes_every_converted_action(space):
    actions = stored(space, 200)
    before = actions.copy()
    converted = ActionConverter(env_spec("Test-v0", VECTOR, space).action)(actions)
    assert converted.shape == actions.shape
    assert converted.dtype == space.dtype
    assert all(space.contains(action) for action in converted)
    assert np.array_equal(actions, before)


def test_choices_start_where_the_space_does():
    convert = ActionConverter(env_spec("Test-v0", VECTOR, ACTION_SPACES["discrete from 3"]).action)
    assert convert(np.array([0, 1, 4])).tolist() == [3, 4, 7]
    convert = ActionConverter(env_spec("Test-v0", VECTOR, ACTION_SPACES["multi matrix"]).action)
    assert convert(np.array([[[0, 0], [1, 2]], [[2, 1], [3, 4]]])).tolist() == [[[0, -1], [3, 9]], [[2, 0], [5, 11]]]


def test_numbers_are_clipped_to_the_bounds_that_there_are():
    convert = ActionConverter(env_spec("Test-v0", VECTOR, ACTION_SPACES["box"]).action)
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
    converted = ActionConverter(env_spec("Test-v0", VECTOR, ACTION_SPACES["unbounded"]).action)(actions)
    assert np.array_equal(converted, actions)


def masked_spec(actions, mask, **others):
    return env_spec("Test-v0", spaces.Dict({"a": VECTOR, "action_mask": mask, **others}), actions)


def check_mask(actions, mask_space, mask):
    spec = masked_spec(actions, mask_space, z=spaces.Discrete(3))
    row = Packer(spec.observation)({"a": np.ones(3, np.float32), "action_mask": mask, "z": 1})
    MaskCheck(spec)(row)


PAIR = spaces.MultiDiscrete([2, 3])
GRID = spaces.MultiDiscrete([[2, 1], [3, 1]])


@pytest.mark.parametrize(
    ("actions", "mask_space", "mask"),
    [
        (spaces.Discrete(3), spaces.MultiBinary(3), [0, 0, 1]),
        (spaces.Discrete(3), spaces.Box(0, 1, (3,), np.float32), [0, 0.5, 0]),
        (spaces.Discrete(3), spaces.Box(-9, 9, (3,), np.float64), [0, -1, 0]),
        (spaces.Discrete(3, start=5), spaces.MultiDiscrete([2, 2, 2]), [1, 1, 1]),
        (PAIR, spaces.Box(0, 1, (5,), np.int16), [0, 1, 1, 0, 0]),
        (GRID, spaces.MultiBinary(7), [1, 0, 1, 0, 0, 1, 1]),
    ],
)
def test_a_mask_that_allows_an_action_passes(actions, mask_space, mask):
    check_mask(actions, mask_space, np.array(mask, mask_space.dtype))


@pytest.mark.parametrize(
    ("actions", "mask_space", "mask"),
    [
        (spaces.Discrete(3), spaces.MultiBinary(3), [0, 0, 0]),
        (spaces.Discrete(3), spaces.Box(-1, 1, (3,), np.float32), [0, -0.0, 0]),
        (PAIR, spaces.Box(0, 1, (5,), np.int16), [0, 0, 1, 1, 1]),
        (PAIR, spaces.MultiBinary(5), [1, 1, 0, 0, 0]),
        (GRID, spaces.MultiBinary(7), [1, 0, 0, 1, 1, 1, 1]),
        (GRID, spaces.MultiBinary(7), [1, 0, 1, 1, 1, 1, 0]),
    ],
)
def test_a_mask_that_leaves_nothing_to_choose_is_refused(actions, mask_space, mask):
    with pytest.raises(ValueError, match="allows no action"):
        check_mask(actions, mask_space, np.array(mask, mask_space.dtype))


MIXED = spaces.Dict(
    b=spaces.Tuple((spaces.Box(-1, 1, (2,)), PAIR)), a=spaces.Discrete(3), c=spaces.MultiBinary(2), d=VECTOR
)
"""Choices in the order of the leaves: three of a, two and three of b.1, two bits of c."""


def mixed_masks(a, first, second, bits):
    """The mask as one array, and as those of the parts, in another order and of other types."""
    order = {"a": a, "b": [*first, *second], "c": bits}
    flat = [entry for key in MIXED.spaces if key in order for entry in order[key]]
    parts = spaces.Dict(
        {"c": spaces.MultiBinary(2), "b": spaces.Dict({1: spaces.Box(0, 1, (5,), np.float64)})},
        a=spaces.Box(0, 1, (3,), np.int16),
    )
    given = {"a": np.array(a, np.int16), "b": {1: np.array(order["b"], np.float64)}, "c": np.array(bits, np.int8)}
    return [(spaces.MultiBinary(10), np.array(flat, np.int8)), (parts, given)]


@pytest.mark.parametrize("form", [0, 1], ids=["flat", "parts"])
@pytest.mark.parametrize(
    ("mask", "is_possible"),
    [
        (([0, 0, 1], [0, 1], [1, 0, 0], [0, 0]), True),
        (([1, 1, 1], [1, 1], [1, 1, 1], [1, 1]), True),
        (([0, 0, 0], [1, 1], [1, 1, 1], [1, 1]), False),
        (([1, 1, 1], [0, 0], [1, 1, 1], [1, 1]), False),
        (([1, 1, 1], [1, 1], [0, 0, 0], [1, 1]), False),
    ],
)
def test_masks_of_nested_actions_leave_each_choice_something(form, mask, is_possible):
    mask_space, given = mixed_masks(*mask)[form]
    assert mask_space.contains(given)
    if is_possible:
        check_mask(MIXED, mask_space, given)
    else:
        with pytest.raises(ValueError, match="allows no action"):
            check_mask(MIXED, mask_space, given)


def test_only_masks_are_looked_at():
    assert masks(masked_spec(spaces.Discrete(3), spaces.MultiBinary(3)))
    assert not masks(masked_spec(spaces.MultiBinary(3), spaces.MultiBinary(3)))  # all zeros is an action
    assert not masks(masked_spec(spaces.Box(-1, 1, (3,)), spaces.MultiBinary(3)))
    assert not masks(env_spec("Test-v0", VECTOR, spaces.Discrete(3)))
    assert not masks(masked_spec(spaces.Dict(a=VECTOR), spaces.MultiBinary(3)))
    assert not masks(masked_spec(spaces.Dict(a=spaces.MultiBinary(3)), spaces.MultiBinary(3)))


def masks(spec):
    return MaskCheck(spec).has_mask


@pytest.mark.parametrize("fit", ["clip", "rescale", "squash"])
@pytest.mark.parametrize("space", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_tensors_are_converted_as_arrays_are(space, fit):
    spec = env_spec("Test-v0", VECTOR, space, fit).action
    actions = stored(space, 200)
    expected = ActionConverter(spec)(actions)
    converted = TensorActionConverter(spec)(torch.from_numpy(actions))
    assert converted.dtype == torch.from_numpy(expected).dtype
    np.testing.assert_allclose(converted.numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fit", ["clip", "rescale", "squash"])
@pytest.mark.parametrize("space", [*ACTION_SPACES.values(), BOUNDED], ids=[*ACTION_SPACES, "bounded"])
def test_what_an_environment_took_is_stored_so_that_it_takes_the_same(space, fit):
    """Actions of its own, within the bounds, and converted ones; bounds themselves but for 1e-6 with the tanh."""
    convert = ActionConverter(env_spec("Test-v0", VECTOR, space, fit).action)
    space.seed(0)
    own = np.stack([np.asarray(space.sample()) for _ in range(50)])
    for actions in (own, convert(stored(space, 200))):
        back = convert.stored(actions)
        assert np.isfinite(back).all()
        np.testing.assert_allclose(convert(back), actions, atol=1e-5, rtol=1e-6)


def test_somebody_elses_actions_are_stored_by_the_inverse_of_each_way():
    actions = np.array([[1, 7.5, 0.5, 3], [-2, 0, -5, -1], [2, 10, 3, 5]], np.float32)
    expected = {
        "clip": actions,
        "rescale": [[0.5, 0.5, 0.5, 3], [-1, -1, -5, -1], [1, 1, 3, 5]],
        # artanh(1 - 1e-6) = log((2 - 1e-6) / 1e-6) / 2
        "squash": [
            [0.54930614, 0.54930614, 0.5, 3],
            [-7.25432865, -7.25432865, -5, -1],
            [7.25432865, 7.25432865, 3, 5],
        ],
    }
    for fit, values in expected.items():
        got = ActionConverter(env_spec("Test-v0", VECTOR, BOUNDED, fit).action).stored(actions)
        np.testing.assert_allclose(got, values, atol=1e-6)


@pytest.mark.parametrize("space", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_what_is_outside_is_what_gymnasiums_space_does_not_contain(space):
    spec = env_spec("Test-v0", VECTOR, space).action
    rng = np.random.default_rng(1)
    drawn = rng.integers(-3, 9, (300, *space.shape)) if spec.kind != "box" else rng.normal(0, 1, (300, *space.shape))
    actions = drawn.astype(space.dtype)
    expected = [not space.contains(action if space.shape else np.int64(action)) for action in actions]
    assert is_outside(spec, actions).tolist() == expected
    assert any(expected) or not np.isfinite(getattr(space, "high", 0)).any()
    assert is_outside(spec, np.where(np.arange(actions.size).reshape(actions.shape) == 0, np.nan, actions))[0]
