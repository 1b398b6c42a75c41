"""Names of runs: their order, and how they are shortened."""

from __future__ import annotations

import math
import random

import pytest

from fabric_ppo.tools.run_names import elided, in_numeric_order, name_key, ranks, short_names


@pytest.mark.parametrize(
    "names",
    [
        ["seed_1", "seed_2", "seed_10", "seed_100"],
        ["lr_0.001", "lr_0.002", "lr_0.01", "lr_0.1", "lr_1"],
        ["lr_1e-4", "lr_3e-4", "lr_1e-3", "lr_0.01"],
        ["1", "2", "a", "a1", "b"],
        ["x/9/1", "x/10/1", "x/10/2"],
        ["2026-01-02_a_1", "2026-01-02_a_2", "2026-01-10_a_1"],
        ["run_01", "run_1", "run_1_b"],
    ],
)
def test_names_are_in_the_order_of_their_numbers(names):
    for seed in range(5):
        assert sorted(random.Random(seed).sample(names, len(names)), key=name_key) == names


def test_only_the_order_of_a_shell_is_replaced():
    assert in_numeric_order(["s_1", "s_10", "s_2"]) == ["s_1", "s_2", "s_10"]
    assert in_numeric_order(["s_2", "s_10", "s_1"]) == ["s_2", "s_10", "s_1"]


@pytest.mark.parametrize(
    ("values", "order"),
    [
        ([0.01, 0.001, 1, 1e-5], [1e-5, 0.001, 0.01, 1]),
        ([10, None, 9], [None, 9, 10]),
        ([True, False], [False, True]),
        ([[64, 64], [64], [8, 8]], [[8, 8], [64], [64, 64]]),
        ([math.inf, -math.inf, 0], [-math.inf, 0, math.inf]),
        (["b", "a", "b"], ["b", "b", "a"]),
        (["10", "9"], ["10", "9"]),
        ([10, "a", 9], [10, "a", 9]),
        ([{"a": 1}, 3], [{"a": 1}, 3]),
        ([math.nan, 2, 1], [math.nan, 2, 1]),
    ],
)
def test_values_are_in_order_of_size_or_as_they_come(values, order):
    found = [value for _, _, value in sorted(zip(ranks(values), range(len(values)), values, strict=True))]
    assert repr(found) == repr(order)


def test_names_lose_what_all_share():
    names = [f"2026-11-27_15-04-{seconds}_CartPole-v1_default_{seed}" for seconds, seed in ((10, 1), (10, 2), (23, 3))]
    assert short_names(names) == ["15-04-10_1", "15-04-10_2", "15-04-23_3"]
    assert short_names([*names, "many_1", "many_2"]) == ["15-04-10_1", "15-04-10_2", "15-04-23_3", "many_1", "many_2"]
    assert short_names(["a/seed_1", "b/seed_1", "a/seed_2"], 7) == ["a_1", "b_1", "a_2"]
    assert short_names(["a/seed_1", "b/seed_1", "a/seed_2"]) == ["a/seed_1", "b/seed_1", "a/seed_2"]
    assert short_names(["one"]) == ["one"]
    assert short_names([]) == []
    assert short_names(["seed_1", "other"]) == ["seed_1", "other"]


@pytest.mark.parametrize("longest", [7, 10, 32])
def test_long_names_lose_their_middle_and_stay_different(longest):
    names = [f"{'x' * 100}{end}" for end in "abc"]
    shorter = short_names(names, longest)
    assert len(set(shorter)) == 3
    assert max(map(len, shorter)) <= longest
    middles = [f"{'x' * 50}{middle}{'y' * 50}" for middle in "abc"]
    assert len(set(short_names(middles, longest))) == 3
    assert max(map(len, short_names(middles, longest))) <= longest
    assert elided("a" * 9 + "b", 7) == "aaa…aab"
    assert short_names(["y" * 90])[0] == elided("y" * 90)
