"""Numbers in the `info` of an episode: held against what Python and NumPy hold them for."""

from __future__ import annotations

import math
from collections import UserDict
from fractions import Fraction
from types import MappingProxyType

import numpy as np
import pytest
import torch

from fabric_ppo.config_info_keys import info_keys_of
from fabric_ppo.envs.episode_info import (
    MISSING,
    NO_NUMBER,
    NOT_FINITE,
    NUMBER,
    EpisodeInfo,
    PoolInfo,
    number_names,
    numbers_of,
    read_info,
    sums_for,
)


class Raises:
    """Whatever is asked of it, it raises."""

    def __float__(self):
        raise RuntimeError("no")

    def __eq__(self, other):
        raise RuntimeError("no")

    __hash__ = None


@pytest.mark.parametrize(
    ("value", "number"),
    [
        *[(1.5, 1.5), (3, 3.0), (True, 1.0), (False, 0.0), (np.bool_(True), 1.0), (np.float32(0.25), 0.25)],
        *[(np.int8(-3), -3.0), (np.array(2.5), 2.5), (np.array(True), 1.0), (np.array([4]), 4.0)],
        *[(np.float16(2), 2.0), (np.uint64(2**60), 2.0**60), (Fraction(1, 4), 0.25), (torch.tensor(3.5), 3.5)],
    ],
)
def test_numbers_are_read(value, number):
    assert read_info({"x": value}, "x") == (number, NUMBER)


@pytest.mark.parametrize("value", [math.nan, -math.inf, np.float32("nan"), np.array(np.inf), 1e39, 10**400, -1e300])
def test_what_float32_does_not_hold_is_not_finite(value):
    assert read_info({"x": value}, "x") == (0.0, NOT_FINITE)


@pytest.mark.parametrize(
    "value",
    [
        *["fast", "1.0", None, [1.0], (1, 2), {"y": 1}, np.zeros(3), np.zeros(0), np.array("1"), b"1", 1j, object()],
        *[np.complex64(1), np.datetime64("2026-01-01"), np.array([None]), Raises(), torch.zeros(2), np.zeros((2, 2))],
    ],
)
def test_anything_else_is_no_number(value):
    assert read_info({"x": value}, "x") == (0.0, NO_NUMBER)


@pytest.mark.parametrize("info", [{}, {"y": 1}, None, [], "x", 3, UserDict(), {"X": 1}, Raises(), {"x.y": 1}])
def test_what_is_not_there_is_missing(info):
    assert read_info(info, "x") == (0.0, MISSING)


def test_paths_lead_into_mappings():
    """A key with dots is itself first; a path ends at what is no mapping."""
    info = {"a": {"b": {"c": 1.0}, "b.d": 2.0}, "a.b.e": 3.0, "f": MappingProxyType({"g": UserDict(h=4)}), "i": [5]}
    found = {key: read_info(info, key)[0] for key in ("a.b.c", "a.b.d", "a.b.e", "f.g.h")}
    assert found == {"a.b.c": 1.0, "a.b.d": 2.0, "a.b.e": 3.0, "f.g.h": 4.0}
    for key in ("a.b.x", "a.x", "x.b", "i.0", "a.b.c.d", ".", "a.", ".a"):
        assert read_info(info, key)[1] == MISSING, key
    assert read_info(info, "a.b")[1] == NO_NUMBER
    assert number_names(info) == ["a.b.c", "a.b.d", "a.b.e", "f.g.h"]
    assert number_names(UserDict(x=1, y="z")) == ["x"]
    assert number_names(None) == number_names(Raises()) == []


STEPS = [
    {"x": 1.5, "n": 1, "text": 1, "some": 2},
    {"x": -4, "n": math.nan, "text": "a"},
    {"x": 0.1, "n": 1, "text": math.nan, "some": 0.5},
]


def summed(keys, steps):
    info = EpisodeInfo(keys)
    for step in steps:
        info.add(step)
    return info


def test_sums_are_over_all_steps_of_an_episode():
    """A number that is missing in some steps is the sum of the others; one that is not finite spoils it."""
    keys = info_keys_of("sum:x,sum:n,sum:text,sum:some,sum:never,x")
    info = summed(keys, STEPS)
    _, x, n, text, some, never, last = info.ending(STEPS[-1])
    assert x == (1.5 - 4 + 0.1, NUMBER)
    assert (n[1], text[1], some, never[1]) == (NOT_FINITE, NO_NUMBER, (2.5, NUMBER), MISSING)
    assert last == (0.1, NUMBER)
    assert numbers_of(info.ending({})) == (None, 1.5 - 4 + 0.1, None, None, 2.5, None, None)
    info.clear()
    assert numbers_of(info.ending({})) == ()


def test_without_keys_only_success_is_read():
    info = EpisodeInfo(info_keys_of(None))
    assert not info.adds
    assert info.ending({"x": 1}) is info.ending(None) is None
    assert info.ending({"is_success": np.True_}) == [(1.0, NUMBER)]
    assert info.ending({"is_success": "yes"}) == [(0.0, NO_NUMBER)]


def test_sums_go_on_from_a_state():
    """Also where other keys are read than before: what was not summed up is lost, not wrong."""
    keys = info_keys_of("sum:x,x,sum:n")
    state = summed(keys, STEPS[:1]).state() + b"rest"
    info = EpisodeInfo(keys)
    assert info.restore(state) == b"rest"
    info.add({"x": -4, "n": 2})
    assert info.ending({}) == [(0.0, MISSING), (-2.5, NUMBER), (0.0, MISSING), (3.0, NUMBER)]
    others = info_keys_of("sum:some,sum:n")
    info = EpisodeInfo(others)
    assert info.restore(sums_for(state, keys, others)) == b"rest"
    info.add({"some": 1, "n": 2})
    assert [(number, kind) for number, kind in info.ending({})[1:]][1] == (3.0, NUMBER)
    assert info.ending({})[1][1] == NOT_FINITE
    assert sums_for(state, keys, info_keys_of(None)) == b"rest"
    assert sums_for(b"rest", info_keys_of(None), info_keys_of("x")) == b"rest"
    with pytest.raises(ValueError, match="reshape"):
        EpisodeInfo(keys).restore(b"12345678")


def test_arrays_of_many_environments_are_read_as_each_alone():
    """The same readings as of one environment after the other, with rows that are no transition left out."""
    rng = np.random.default_rng(3)
    num_envs, keys = 4, info_keys_of("sum:x,x,sum:wide,column,wide,never,sum:never,flag")
    pool, alone = PoolInfo(keys, num_envs), [EpisodeInfo(keys) for _ in range(num_envs)]
    for _ in range(60):
        x = rng.choice([0.5, -3.25, 7.0, np.nan, np.inf], num_envs, p=[0.4, 0.3, 0.26, 0.02, 0.02])
        arrays = {"x": x, "wide": rng.random((num_envs, 3)), "column": rng.random((num_envs, 1))}
        arrays["flag"] = rng.random(num_envs) < 0.5
        valid, ended = rng.random((2, num_envs)) < 0.7
        ended &= valid
        columns = [arrays.get(key.key) for key in keys]
        pool.add(columns, valid)
        got = pool.endings(columns, ended)
        expected = []
        for env, each in enumerate(alone):
            info = {key: array[env] for key, array in arrays.items()}
            if valid[env]:
                each.add(info)
            if ended[env]:
                expected.append((env, each.ending(info)))
                each.clear()
        assert got == expected
