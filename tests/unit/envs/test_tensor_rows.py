"""Batches of observations as rows: those that packing one after the other gives, or an error that names what is odd."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.spaces import Packer
from fabric_ppo.envs.tensor_rows import RowMaker
from tests.fixtures.batches import KINDS, as_kind
from tests.fixtures.drawn_spaces import draw_observation
from tests.fixtures.toy_envs import OBSERVATIONS


def space_of(space):
    return env_spec("Test-v0", space, spaces.Discrete(2)).observation


def batched(observations, kind):
    """Observations one by one as a batch, of arrays of a kind."""
    first = observations[0]
    if isinstance(first, dict):
        return {key: batched([each[key] for each in observations], kind) for key in first}
    if isinstance(first, tuple):
        return tuple(batched([each[index] for each in observations], kind) for index in range(len(first)))
    return as_kind(np.stack([np.asarray(each) for each in observations]), kind)


def assert_rows_are_those_of_single_observations(space, kind):
    space.seed(3)
    observations, spec = [space.sample() for _ in range(5)], space_of(space)
    rows = RowMaker(spec)(batched(observations, kind), 5)
    expected = np.stack([np.asarray(Packer(spec)(each), spec.dtype) for each in observations])
    assert rows.dtype == torch.from_numpy(expected).dtype
    np.testing.assert_array_equal(rows.numpy(), expected)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("space", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_rows_are_those_of_single_observations(space, kind):
    assert_rows_are_those_of_single_observations(space, kind)


def test_rows_of_drawn_spaces_are_those_of_single_observations():
    for seed in range(200):
        assert_rows_are_those_of_single_observations(draw_observation(random.Random(seed)), "numpy")


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_arrays_is_noted(kind):
    make = RowMaker(space_of(spaces.Box(-1, 1, (2,))))
    make(as_kind(np.zeros((3, 2), np.float32), kind), 3)
    assert make.kind == kind


PAIR = spaces.Dict(a=spaces.Discrete(3, start=2), b=spaces.Box(0, 255, (2,), np.uint8))


@pytest.mark.parametrize(
    ("space", "obs", "said"),
    [
        (spaces.Discrete(3, start=2), np.array([2, 4, 5]), "with a choice that the space does not have, in row 2"),
        (spaces.Discrete(3, start=2), np.array([1, 4, 2]), "with a choice that the space does not have, in row 0"),
        (spaces.MultiDiscrete([2, 9]), np.array([[1, 8], [2, 0], [0, 0]]), "does not have, in row 1"),
        (spaces.MultiBinary(2), np.array([[1, 0], [0, 0], [1, 2]]), "does not have, in row 2"),
        (spaces.Box(0, 255, (1,), np.uint8), np.array([[3], [300], [1]]), "of numbers that torch.uint8 cannot hold"),
        (spaces.Box(-9, 9, (1,), np.int64), np.array([[0.5], [1], [1]]), "of numbers that torch.int64 cannot hold"),
        (spaces.Box(-1, 1, (2,)), np.zeros((3, 1)), r"of shape \(3, 1\); \(3, 2\) is expected"),
        (spaces.Box(-1, 1, (2,)), "walk", r"that cannot be read \("),
        (PAIR, {"a": np.array([2, 2, 2])}, r"whose b cannot be read \(KeyError"),
        (PAIR, {"a": np.array([2, 9, 2]), "b": np.zeros((3, 2))}, "that the space of a does not have, in row 1"),
    ],
)
def test_what_is_not_of_the_space_is_named(space, obs, said):
    with pytest.raises(ValueError, match=f"^{said}|{said}$"):
        RowMaker(space_of(space))(obs, 3)
