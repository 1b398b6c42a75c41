"""Readers of observations and rewards, against what NumPy says each value is."""

from __future__ import annotations

import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fabric_ppo.envs.reading import all_finite, read_flag, read_reward
from fabric_ppo.envs.spaces import reader_of
from tests.fixtures.spaces import observation_spec

LARGEST = float(np.finfo(np.float32).max)


def read(space, obs):
    """Read an observation of a Gymnasium space; warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return reader_of(observation_spec(space))(obs)


def box(dtype, low=-50, high=50, shape=(2,)):
    if np.dtype(dtype).kind in "ub":
        low, high = 0, min(high, np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1)
    return spaces.Box(low, high, shape, dtype)


DTYPES = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
]


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("declared", DTYPES)
def test_numbers_that_the_declared_type_holds_are_taken_in_any_type(declared, given):
    obs = np.array([0, 1], given)
    got = read(box(declared), obs)
    assert got.dtype == declared
    assert got.tolist() == [0, 1]


@pytest.mark.parametrize(
    "obs", [[0, 1], (0, 1), [False, True], torch.tensor([0, 1]), [np.int8(0), np.float64(1)]], ids=str
)
@pytest.mark.parametrize("declared", DTYPES)
def test_lists_and_tensors_are_arrays(declared, obs):
    assert read(box(declared), obs).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("declared", "obs", "lost"),
    [
        ("uint8", np.array([0, 0.5], np.float32), "0.5"),
        ("int32", np.array([0, 0.5]), "0.5"),
        ("bool", np.array([0, 0.5]), "0.5"),
        ("int64", np.array([0, np.nan]), "nan"),
        ("int16", np.array([np.inf, 0], np.float16), "inf"),
        ("int8", np.array([1e30, 0]), "1e+30"),
        ("uint8", np.array([300, 0]), "300"),
        ("uint8", np.array([0, -1]), "-1"),
        ("uint8", [0, 256], "256"),
        ("bool", np.array([0, 2]), "2"),
        ("int8", np.array([0, 128], np.uint8), "128"),
        ("uint64", np.array([0, -1]), "-1"),
        ("int64", np.array([2**63, 0], np.uint64), str(2**63)),
        ("uint16", np.array([2**16, 0], np.int32), "65536"),
    ],
)
def test_numbers_that_the_declared_type_cannot_hold_are_refused(declared, obs, lost):
    dtype = np.asarray(obs).dtype
    with pytest.raises(ValueError, match=rf"^an observation that is of dtype {dtype}, of which the") as caught:
        read(box(declared), obs)
    assert str(caught.value).endswith(
        f"the declared {declared} cannot hold {lost}; declare {dtype}, or return {declared}"
    )


class Hostile:
    """Raises where NumPy asks for an array."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("told to raise\nin two lines")

    def __repr__(self):
        return "hostile"


@pytest.mark.parametrize(
    "obs",
    [
        None, "ab", b"ab", ["a", "b"], [None, 1], {"a": 1}, {1, 2}, [1, 2j], np.array([1, 2], complex),
        np.array([1, 2], object), np.array(["2020-01-01"] * 2, "datetime64[D]"), [[1], [1, 2]], [1, [2]], Hostile(),
        np.zeros(2, [("a", "f4")]), [2**70, 0],
    ],
    ids=repr,
)  # fmt: skip
@pytest.mark.parametrize("space", [box("float32"), box("uint8"), spaces.Discrete(3), spaces.MultiBinary(2)], ids=str)
def test_what_is_no_array_of_numbers_is_refused_in_one_line(space, obs):
    with pytest.raises(ValueError, match=r"^an observation that is ") as caught:
        read(space, obs)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("obs", [np.zeros(3), np.zeros((2, 1)), 0.0, [], np.zeros((1, 2), np.float32)], ids=str)
def test_another_shape_is_refused(obs):
    with pytest.raises(ValueError, match=r"that is of shape \(.*\); \(2,\) is expected$"):
        read(box("float32"), obs)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "longdouble"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("declared", ["float16", "float32", "float64"])
def test_entries_that_are_not_finite_are_refused(declared, bad, dtype):
    with pytest.raises(ValueError, match=rf"^an observation that is not finite: {bad} in entry \[1\]$"):
        read(box(declared), np.array([0, bad], dtype))


@pytest.mark.parametrize(
    ("declared", "obs", "kind"),
    [
        ("float32", np.array([1e39, 0]), "float32"),
        ("float64", np.array([1e39, 0]), "float32"),
        ("float64", np.array([-1e300, 0]), "float32"),
        ("float32", [1e300, 0], "float32"),
        ("float64", np.array([1e39, 0], np.longdouble), "float32"),
        ("float16", np.array([7e4, 0], np.float32), "float16"),
        ("float16", np.array([70000, 0]), "float16"),
    ],
)
def test_entries_beyond_what_a_network_computes_with_are_refused(declared, obs, kind):
    """Also where the space's own type holds them."""
    with pytest.raises(ValueError, match=rf"^an observation that is not finite as {kind}: .* in entry \[0\]$"):
        read(box(declared), obs)


@pytest.mark.parametrize("declared", ["float32", "float64"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_numbers_of_float32_are_finite(declared, dtype):
    obs = np.full(2, LARGEST, dtype)
    np.testing.assert_array_equal(read(box(declared), obs), obs)
    assert not all_finite(np.array([0, LARGEST * 1.001]))
    assert all_finite(np.array([1e38] * 50))


def test_numbers_are_rounded_to_the_declared_type():
    values = np.random.default_rng(0).normal(size=2)
    assert read(box("float32"), values).tolist() == np.float32(values).tolist()
    assert read(box("float32"), np.array([2**40 + 1, 3])).tolist() == [2**40, 3]


CHOICES = {
    "discrete": (spaces.Discrete(4), [0, 3], [-1, 4, 7]),
    "discrete from -3": (spaces.Discrete(3, start=-3), [-3, -1], [-4, 0]),
    "multi": (spaces.MultiDiscrete([2, 3], start=[0, 5]), [[0, 5], [1, 7]], [[0, 4], [2, 5], [0, 8], [-1, 5]]),
    "multi matrix": (spaces.MultiDiscrete([[2], [4]]), [[[1], [3]]], [[[1], [4]], [[-1], [0]]]),
    "bits": (spaces.MultiBinary(2), [[0, 1]], [[0, 2], [-1, 0]]),
    "bit matrix": (spaces.MultiBinary((1, 2)), [[[1, 1]]], [[[1, 3]]]),
}


@pytest.mark.parametrize("dtype", ["int8", "int64", "float64", None])
@pytest.mark.parametrize(("space", "inside", "outside"), CHOICES.values(), ids=CHOICES)
def test_choices_are_those_of_the_space(space, inside, outside, dtype):
    """In any type, and as Python's own numbers and lists."""
    for each in inside:
        assert np.asarray(read(space, each if dtype is None else np.array(each, dtype))).tolist() == each
    for each in outside:
        with pytest.raises(ValueError, match=r"^an observation that is .*a whole number from .* to .* is expected$"):
            read(space, each if dtype is None else np.array(each, dtype))


@pytest.mark.parametrize("space", [spaces.Discrete(2), spaces.MultiBinary(2)])
def test_a_choice_is_a_whole_number(space):
    assert np.asarray(read(space, np.ones(space.shape, bool))).tolist() == np.ones(space.shape).tolist()
    with pytest.raises(ValueError, match=r"that is 0\.5; whole numbers are expected$"):
        read(space, np.full(space.shape, 0.5))


def test_a_choice_that_the_space_lacks_is_named_with_its_range():
    with pytest.raises(ValueError, match=r"^an observation that is 7; a whole number from 0 to 3 is expected$"):
        read(spaces.Discrete(4), 7)
    message = r"^an observation that is 9 in entry \[1\]; a whole number from 5 to 7 is expected$"
    with pytest.raises(ValueError, match=message):
        read(spaces.MultiDiscrete([2, 3], start=[0, 5]), np.array([0, 9]))
    with pytest.raises(ValueError, match=r"of shape \(1,\); \(\) is expected$"):
        read(spaces.Discrete(4), np.array([1]))


def test_an_array_of_the_usual_kind_is_not_copied():
    """Backends copy; a step costs no second one."""
    obs = np.zeros(2, np.float32)
    assert read(box("float32"), obs) is obs


@pytest.mark.parametrize(
    "reward",
    [
        1, 1.0, True, np.float16(1), np.float32(1), np.float64(1), np.int8(1), np.uint64(1), np.bool_(True),
        np.array(1.0), np.array([1]), np.array([[1.0]], np.float32), torch.tensor(1.0), torch.tensor([1.0]),
        Fraction(1), Decimal(1),
    ],
    ids=repr,
)  # fmt: skip
def test_a_reward_is_a_number_or_an_array_of_one(reward):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_reward(reward) == 1.0
        assert type(read_reward(reward)) is float


@pytest.mark.parametrize(
    ("reward", "shown"),
    [
        ([1.0], r"\[1\.0\] \(list\)"),
        ((1.0,), r"\(1\.0,\) \(tuple\)"),
        (None, r"None \(NoneType\)"),
        ("1.0", r"'1\.0' \(str\)"),
        (np.str_("1.0"), r"np\.str_\('1\.0'\) \(str_\)"),
        (1j, r"1j \(complex\)"),
        (np.complex128(1), r"np\.complex128\(1\+0j\) \(complex128\)"),
        ({"a": 1.0}, r"\{'a': 1\.0\} \(dict\)"),
        (np.zeros(2), r"array\(\[0\., 0\.\]\) \(ndarray\)"),
        (np.zeros(0), r"array\(\[\], dtype=float64\) \(ndarray\)"),
        (np.array([None]), r"array\(\[None\], dtype=object\) \(ndarray\)"),
        (torch.zeros(2), r"tensor\(\[0\., 0\.\]\) \(Tensor\)"),
    ],
)
def test_what_is_no_reward_is_named_in_one_line(reward, shown):
    with pytest.raises(ValueError, match=rf"^reward {shown}; a number is expected$"):
        read_reward(reward)


@pytest.mark.parametrize(
    "reward", [np.nan, np.inf, -1e39, 10**400, np.array([1e39]), np.float32(np.inf)], ids=lambda x: str(x)[:9]
)
def test_a_reward_is_finite_as_float32(reward):
    with pytest.raises(ValueError, match=r"^reward .*, which is not finite as float32$"):
        read_reward(reward)


FLAGS = [True, 1, 1.0, np.True_, np.array(True), np.array([True]), np.array([[2]]), torch.tensor(True), np.float32(1)]


@pytest.mark.parametrize("flag", FLAGS, ids=repr)
def test_a_flag_is_a_number_an_array_of_one_or_none(flag):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_flag(flag, "terminated") is True
        assert read_flag(flag * 0, "terminated") is False
        assert read_flag(None, "terminated") is False


@pytest.mark.parametrize(
    ("flag", "shown"),
    [
        ("False", r"'False' \(str\)"),
        ([False], r"\[False\] \(list\)"),
        ({}, r"\{\} \(dict\)"),
        (np.zeros(2, bool), r"array\(\[False, False\]\) \(ndarray\)"),
        (np.zeros(0), r"array\(\[\], dtype=float64\) \(ndarray\)"),
        (float("nan"), r"nan \(float\)"),
        (np.array([None]), r"array\(\[None\], dtype=object\) \(ndarray\)"),
    ],
)
def test_what_is_no_flag_is_named_in_one_line(flag, shown):
    with pytest.raises(ValueError, match=rf"^truncated {shown}; True or False is expected$"):
        read_flag(flag, "truncated")
