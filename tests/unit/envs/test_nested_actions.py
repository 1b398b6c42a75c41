"""Nested actions: whatever a distribution draws arrives as an action that the space contains, in every form."""

from __future__ import annotations

import random

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_ppo.agents.distributions import make_distribution
from fabric_ppo.envs.actions import action_converter, tensor_action_converter
from fabric_ppo.envs.checked_env import CheckedEnv
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.nested_actions import Unpacker, nested, pack_batch
from tests.fixtures.drawn_spaces import draw_action, leaves, part_of
from tests.fixtures.mixed_envs import ACTION
from tests.fixtures.spaces import VECTOR


def draw_nested(seed):
    """A Dict or Tuple, maybe of Dicts and Tuples."""
    rng = random.Random(seed)
    parts = [draw_action(rng, 1) for _ in range(rng.randint(1, 3))]
    return spaces.Tuple(parts) if rng.random() < 0.5 else spaces.Dict({f"z{9 - k}": p for k, p in enumerate(parts)})


def drawn_rows(spec, count):
    """Actions as a rollout stores them, from parameters far apart."""
    distribution, rng = make_distribution(spec), np.random.default_rng(0)
    params = torch.from_numpy(rng.normal(0, 2, (count, distribution.num_params))).float()
    noise = distribution.noise(torch.from_numpy(rng.uniform(0.01, 0.99, (count, distribution.noise_size)))).float()
    return distribution.sample(params, noise)


@given(st.integers(0, 2**32), st.sampled_from(["clip", "rescale", "squash"]))
@settings(max_examples=60, deadline=None)
def test_an_environment_takes_every_action(seed, fit):
    space = draw_nested(seed)
    spec = env_spec("Test-v0", VECTOR, space, fit).action
    rows = drawn_rows(spec, 16)
    packed = action_converter(spec)(rows.numpy())
    assert packed.shape == (16, spec.size)
    unpack = Unpacker(spec)
    actions = [unpack.one(row) for row in packed]
    for action in actions:
        assert space.contains(action), action
        assert_same_types(space, action, space.sample())
    assert np.array_equal(pack_batch(spec, unpack.batch(packed)), packed)
    # a batch has the same, as Gymnasium's own vector environments take it apart
    batch = unpack.batch(packed)
    assert batch_space(space, 16).contains(batch)
    for one, same in zip(actions, iterate(batch_space(space, 16), batch), strict=True):
        assert_equal(space, one, same)


def assert_same_types(space, action, like):
    """Dicts in the same order, tuples, numbers and arrays where a sample has them."""
    assert type(action) is type(like)
    if isinstance(like, dict):
        assert list(action) == list(like)
    for path, leaf in leaves(space):
        ours, theirs = part_of(action, path), part_of(like, path)
        assert type(ours) is type(theirs)
        if isinstance(ours, np.ndarray):
            assert (ours.dtype, ours.shape) == (leaf.dtype, leaf.shape)
            assert ours.flags.writeable
            assert ours.flags.aligned


def assert_equal(space, one, other):
    for path, _ in leaves(space):
        np.testing.assert_array_equal(part_of(one, path), part_of(other, path))


@given(st.integers(0, 2**32), st.sampled_from(["clip", "rescale", "squash"]))
@settings(max_examples=60, deadline=None)
def test_tensors_are_converted_and_put_together_as_arrays_are(seed, fit):
    space = draw_nested(seed)
    spec = env_spec("Test-v0", VECTOR, space, fit).action
    rows = drawn_rows(spec, 5)
    expected = Unpacker(spec).batch(action_converter(spec)(rows.numpy()))
    found = Unpacker(spec).tensors(tensor_action_converter(spec)(rows))
    for path, _ in leaves(space):
        ours, theirs = part_of(found, path), part_of(expected, path)
        assert ours.dtype == torch.from_numpy(theirs).dtype
        if theirs.dtype.kind == "f":
            np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6, atol=1e-3)  # of up to 1000
        else:
            np.testing.assert_array_equal(ours.numpy(), theirs)


@given(st.integers(0, 2**32), st.sampled_from(["clip", "rescale", "squash"]))
@settings(max_examples=60, deadline=None)
def test_what_an_environment_took_is_stored_so_that_it_takes_the_same(seed, fit):
    """The space's own samples come back, choices exactly; what a rollout stores is stored again."""
    space = draw_nested(seed)
    spec = env_spec("Test-v0", VECTOR, space, fit).action
    convert, unpack = action_converter(spec), Unpacker(spec)
    space.seed(seed)
    samples = [space.sample() for _ in range(5)]
    own = np.concatenate([pack_batch(spec, nested_batch(spec, each)) for each in samples])
    rows = convert.stored(own)
    assert np.isfinite(rows).all()
    for sample, back in zip(samples, (unpack.one(row) for row in convert(rows)), strict=True):
        for path, leaf in leaves(space):
            ours, theirs = part_of(back, path), part_of(sample, path)
            # the inverse tanh ends 1e-6 before a bound, of up to 1000
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-3 if isinstance(leaf, spaces.Box) else 0)
    inside = np.clip(drawn_rows(spec, 5).numpy(), -0.9, None)
    again = convert.stored(convert(inside))
    for column, (path, kind) in enumerate((path, leaf.kind) for path, leaf in spec.parts for _ in range(leaf.size)):
        if kind != "box":
            assert np.array_equal(again[:, column], np.maximum(inside[:, column], 0).astype(int)), path


def nested_batch(spec, action):
    """A batch of one action."""
    return nested([path for path, _ in spec.parts], [np.asarray(part_of(action, path))[None] for path, _ in spec.parts])


@pytest.mark.parametrize("fit", ["clip", "rescale", "squash"])
def test_what_is_drawn_within_the_bounds_is_stored_again(fit):
    """The identity, but for rounding; a Box of -2 to 2, two choices, one, two bits, and a Box of 0 to 1."""
    convert = action_converter(env_spec("Test-v0", VECTOR, ACTION, fit).action)
    rng = np.random.default_rng(0)
    columns = [*rng.uniform(-0.95, 0.95, (2, 50)), *rng.integers(0, [[2], [3], [3], [2], [2]], (5, 50))]
    columns.append(rng.uniform(0.05, 0.95, 50))
    order = {"tools": 0, "move": 4, "lamps": 5, "throttle": 7}
    assert list(dict.fromkeys(path[0] for path, _ in env_spec("Test-v0", VECTOR, ACTION).action.parts)) == list(order)
    rows = np.stack(columns, axis=1).astype(np.float32)
    np.testing.assert_allclose(convert.stored(convert(rows)), rows, atol=1e-6)


def test_choices_and_numbers_are_exact():
    """The largest choice that there can be, a start that no float holds, and a double's bounds."""
    most = 2**19
    space = spaces.Dict(a=spaces.Discrete(most, start=2**60 + 1), b=spaces.Box(-0.1, 0.1, (1,), np.float64))
    spec = env_spec("Test-v0", VECTOR, space).action
    rows = torch.tensor([[most - 1.0, 5.0], [most - 2.0, -5.0]])
    for unpacked in (
        Unpacker(spec).batch(action_converter(spec)(rows.numpy())),
        Unpacker(spec).tensors(tensor_action_converter(spec)(rows)),
    ):
        assert unpacked["a"].tolist() == [2**60 + most, 2**60 + most - 1]
        assert unpacked["b"].tolist() == [[0.1], [-0.1]]


def test_an_episode_without_a_step_has_no_actions():
    spec = env_spec("Test-v0", VECTOR, ACTION).action
    nothing = drawn_rows(spec, 1)[:0]
    assert action_converter(spec)(nothing.numpy()).shape == (0, spec.size)
    assert tensor_action_converter(spec)(nothing).shape == (0, spec.size)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ([()], 0),
        ([("a",), ("b",)], {"a": 0, "b": 1}),
        ([(0,), (1,)], (0, 1)),
        ([("x", 0), ("x", 1, "y"), ("1",)], {"x": (0, {"y": 1}), "1": 2}),
    ],
)
def test_values_are_put_at_their_paths(paths, expected):
    assert nested(paths, range(len(paths))) == expected


def test_an_environment_may_keep_and_change_its_action():
    """The memory is its own: not that of the rollout, nor of another part."""

    class Keeps(gymnasium.Env):
        observation_space, action_space = spaces.Discrete(2), ACTION

        def __init__(self):
            self.kept = []

        def reset(self, *, seed=None, options=None):
            return 0, {}

        def step(self, action):
            self.kept.append(action)
            action["tools"][0][:] = 1.5
            return 0, 0.0, False, False, {}

    env = Keeps()
    spec = env_spec("Test-v0", env.observation_space, env.action_space)
    checked, rows = CheckedEnv(env, spec), action_converter(spec.action)(drawn_rows(spec.action, 2).numpy())
    before = rows.copy()
    checked.reset(0)
    for row in rows:
        checked.step(row)
    assert np.array_equal(rows, before)
    first, second = env.kept
    second["tools"][0][:] = -1
    assert first["tools"][0].tolist() == [1.5, 1.5]
