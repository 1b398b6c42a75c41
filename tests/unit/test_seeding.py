"""Draws without state: who shares a number with whom, and that a slice of a stream is the stream's slice."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fabric_ppo import seeding
from fabric_ppo.agents.distributions import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical
from fabric_ppo.seeding import (
    Stream,
    action_uniforms,
    episode_seed,
    evaluation_seed,
    init_seed,
    minibatch_order,
    raw_words,
    uniforms,
)

LARGEST_SEED = 2**32 - 1


RUN_SEEDS = (0, 1, 42, LARGEST_SEED)


TEST_BIT = 2**30


def generated(seed, stream, index, count):
    """The stream from its start, without `advance`: NumPy's generator asked for one word after the other."""
    philox = np.random.Philox(key=[seed, stream], counter=[0, 0, *index])
    return np.array([philox.random_raw() for _ in range(count)], np.uint64)


@pytest.mark.parametrize("seed", RUN_SEEDS)
def test_words_are_a_slice_of_one_sequence(seed):
    whole = generated(seed, Stream.ACTION, (3, 1), 40)
    for start, count in itertools.product(range(20), range(20)):
        assert np.array_equal(raw_words(seed, Stream.ACTION, (3, 1), start, count), whole[start : start + count])


def test_streams_and_indices_have_nothing_in_common():
    names = itertools.product((0, 1, LARGEST_SEED), Stream, ((0, 0), (1, 0), (0, 1), (2, 5)))
    words = np.concatenate([raw_words(seed, stream, index, 0, 500) for seed, stream, index in names])
    assert len(np.unique(words)) == len(words)


def test_uniforms_are_the_top_bits_of_the_words():
    words = generated(7, Stream.ACTION, (0, 0), 1000)
    expected = [((int(word) >> 12) + 0.5) / 2**52 for word in words]
    assert uniforms(7, Stream.ACTION, (0, 0), 0, 1000).tolist() == expected


@pytest.mark.parametrize(("word", "expected"), [(0, 2.0**-53), (2**64 - 1, 1 - 2.0**-53)])
def test_uniforms_lie_strictly_inside(word, expected, monkeypatch):
    """Even the least and the largest word: the logarithms that follow stay finite."""
    monkeypatch.setattr(seeding, "raw_words", lambda *_: np.array([word], np.uint64))
    (draw,) = uniforms(0, Stream.ACTION, (0, 0), 0, 1)
    assert draw == expected
    assert 0 < draw < 1


def test_uniforms_are_uniform():
    """Kolmogorov-Smirnov, 0.1 % level, of the draws and of the lags between them."""
    draws = action_uniforms(5, 2, 0, 10, 500, 4)
    for sample in (draws.ravel(), (draws[1:] - draws[:-1]).ravel() % 1, (draws[:, 1:] - draws[:, :-1]).ravel() % 1):
        ranks = (np.arange(sample.size) + 0.5) / sample.size
        assert np.abs(np.sort(sample) - ranks).max() < 1.95 / math.sqrt(sample.size)


@pytest.mark.parametrize("num_envs", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
@pytest.mark.parametrize(("num_steps", "size"), [(1, 1), (3, 1), (5, 3), (4, 2), (7, 18)])
def test_a_ranks_noise_is_its_slice_of_the_whole(num_envs, num_ranks, num_steps, size):
    whole = action_uniforms(42, 9, 0, num_ranks * num_envs, num_steps, size)
    assert whole.shape == (num_steps, num_ranks * num_envs, size)
    parts = [action_uniforms(42, 9, rank * num_envs, num_envs, num_steps, size) for rank in range(num_ranks)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize(
    "distribution",
    [Categorical(3), MultiCategorical((3, 2), (2,)), Bernoulli((5,)), DiagonalGaussian((3,))],
    ids=lambda distribution: type(distribution).__name__,
)
@pytest.mark.parametrize("num_envs", [1, 2, 3, 5])
def test_transformed_noise_of_a_slice_is_the_slice_bit_for_bit(distribution, num_envs):
    """H2 needs it: vectorised logarithms may round the last few entries of an array in another way."""
    num_ranks, num_steps = 3, 7
    arguments = (num_steps, distribution.noise_size)
    whole = distribution.noise(torch.from_numpy(action_uniforms(1, 0, 0, num_ranks * num_envs, *arguments)))
    for rank in range(num_ranks):
        first = rank * num_envs
        part = distribution.noise(torch.from_numpy(action_uniforms(1, 0, first, num_envs, *arguments)))
        expected = whole[:, first : first + num_envs]
        assert torch.equal(part.view(torch.int64), expected.contiguous().view(torch.int64))
        assert torch.equal(part.float(), expected.float())


@pytest.mark.parametrize("rows", [1, 2, 3, 64, 1001])
def test_minibatch_order_is_a_permutation(rows):
    assert np.array_equal(np.sort(minibatch_order(42, 3, 1, rows)), np.arange(rows))


def test_minibatch_order_is_a_function_of_seed_update_and_epoch():
    names = list(itertools.product((0, 42, LARGEST_SEED), (0, 1, 10), (0, 1, 10)))
    orders = {name: tuple(minibatch_order(*name, 100)) for name in names}
    assert len(set(orders.values())) == len(names)
    assert all(tuple(minibatch_order(*name, 100)) == orders[name] for name in reversed(names))


def test_minibatch_order_favours_no_permutation():
    """Each of the 24 orders of four rows within 4 standard errors of its share."""
    draws = 4800
    counts = {order: 0 for order in itertools.permutations(range(4))}
    for epoch in range(draws):
        counts[tuple(minibatch_order(1, epoch // 10, epoch % 10, 4).tolist())] += 1
    error = math.sqrt(draws * (1 / 24) * (23 / 24))
    assert max(abs(count - draws / 24) for count in counts.values()) < 4 * error


def test_init_seed():
    seeds = [init_seed(seed) for seed in range(1000)]
    assert len(set(seeds)) == 1000
    assert 0 <= min(seeds) <= max(seeds) < 2**63  # what torch.manual_seed takes
    torch.manual_seed(max(seeds))


def test_an_episode_seed_can_be_undone():
    """So it is a permutation of the 30-bit numbers: the index comes back from the seed, all over the range."""
    mask = 2**30 - 1
    words = [int(word) for word in generated(42, Stream.ENV, (0, 0), 4)]
    for index in [*range(100), *range(mask - 100, mask + 1), *(k * 7919 * 1009 % mask for k in range(500))]:
        value = episode_seed(42, 0, index, 1)
        for word in reversed(words):
            value ^= value >> 15
            value = value * pow(word >> 32 | 1, -1, 2**30) & mask
            value ^= word & mask
        assert value == index


def test_episode_seeds_do_not_depend_on_the_rank():
    """Environment `i` of W x M is the same on whatever rank: only its global id and how many there are count."""
    assert [episode_seed(42, env, 0, 8) for env in range(8)] == [episode_seed(42, k, 0, 8) for k in range(8)]
    assert episode_seed(42, 3, 2, 8) == episode_seed(42, 0, 2 * 8 + 3, 1)


def test_runs_have_episodes_of_their_own():
    runs = [[episode_seed(seed, 0, episode, 1) for episode in range(1000)] for seed in range(20)]
    everything = list(itertools.chain(*runs))
    # 20,000 random numbers below 2**30 have 0.19 pairs in common on average
    assert len(everything) - len(set(everything)) <= 3
    # neighbours are not simply one apart, nor is one run another one shifted
    for run in runs:
        steps = {b - a for a, b in itertools.pairwise(run)}
        assert len(steps) > 900
    shifts = {b - a for a, b in zip(*runs[:2], strict=True)}
    assert len(shifts) > 900


@pytest.mark.parametrize("seed", RUN_SEEDS)
def test_training_cannot_draw_a_test_seed(seed):
    seeds = [evaluation_seed(seed, episode) for episode in range(2000)]
    assert len(set(seeds)) == len(seeds)
    assert all(each & TEST_BIT for each in seeds)
    assert max(seeds) < 2**31


def test_tests_of_other_seeds_have_other_episodes():
    runs = [{evaluation_seed(seed, episode) for episode in range(100)} for seed in RUN_SEEDS]
    assert len(set.union(*runs)) == 400


def test_test_episodes_are_not_training_episodes_with_a_bit():
    training = {episode_seed(42, 0, episode, 1) for episode in range(2000)}
    assert not training & {evaluation_seed(42, episode) ^ TEST_BIT for episode in range(100)}
