"""Action distributions against torch.distributions, and their draws against these probabilities."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fabric_ppo.agents.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    make_distribution,
)
from fabric_ppo.envs.spaces import SpaceSpec
from fabric_ppo.seeding import action_uniforms
from tests.fixtures.spaces import ACTIONS

CHOICES, MANY_CHOICES, BITS, NUMBERS = ACTIONS.values()


DRAWS = 40_000


each_space = pytest.mark.parametrize("space", ACTIONS.values(), ids=ACTIONS)


def reference(space, params):
    """A list of torch.distributions objects, and which entry of a flat action each of them takes."""
    if space.kind == "discrete":
        return [(torch.distributions.Categorical(logits=params), 0)]
    if space.kind == "multi_discrete":
        parts = params.split(space.sizes, dim=-1)
        return [(torch.distributions.Categorical(logits=part), k) for k, part in enumerate(parts)]
    if space.kind == "multi_binary":
        return [(torch.distributions.Bernoulli(logits=params[:, k]), k) for k in range(space.size)]
    mean, log_std = params[:, : space.size], params[:, space.size :]
    return [(torch.distributions.Normal(mean[:, k], log_std[:, k].exp()), k) for k in range(space.size)]


def make_params(space, rows, seed=0):
    torch.manual_seed(seed)
    return torch.randn(rows, make_distribution(space).num_params, dtype=torch.float64)


def draw(space, params, update=0):
    """`DRAWS` actions of one row of params."""
    distribution = make_distribution(space)
    uniform = torch.from_numpy(action_uniforms(1, update, 0, 8, DRAWS // 8, distribution.noise_size)).flatten(0, 1)
    return distribution.sample(params.expand(DRAWS, -1), distribution.noise(uniform))


@each_space
def test_log_prob_and_entropy(space):
    distribution, params = make_distribution(space), make_params(space, 50)
    noise = distribution.noise(torch.rand(50, distribution.noise_size, dtype=torch.float64))
    actions = distribution.sample(params, noise)
    flat = actions.reshape(50, -1).double()
    log_prob = sum(part.log_prob(flat[:, k]) for part, k in reference(space, params))
    entropy = sum(part.entropy() for part, _ in reference(space, params))
    got = distribution.log_prob_and_entropy(params, actions)
    torch.testing.assert_close(got, (log_prob, entropy), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(distribution.log_prob(params, actions), log_prob, rtol=1e-12, atol=1e-12)


@each_space
def test_shapes_and_types(space):
    distribution, params = make_distribution(space), make_params(space, 7).float()
    noise = distribution.noise(torch.rand(7, distribution.noise_size, dtype=torch.float64)).float()
    dtype = torch.float32 if space.kind == "box" else torch.int64
    assert (distribution.action_shape, distribution.action_dtype) == (space.shape, dtype)
    for actions in (distribution.sample(params, noise), distribution.mode(params)):
        assert (actions.shape, actions.dtype) == ((7, *space.shape), dtype)
    assert distribution.log_prob(params, actions).shape == (7,)
    assert all(each.shape == (7,) for each in distribution.log_prob_and_entropy(params, actions))
    assert all(each.shape == (0,) for each in distribution.log_prob_and_entropy(params[:0], actions[:0]))


NESTED = SpaceSpec(
    "nested",
    (50,),
    "uint8",
    parts=(
        (("box",), NUMBERS),
        (("one",), CHOICES),
        (("other", 0), SpaceSpec("box", (2,), "float64", low=(None,) * 2, high=(None,) * 2)),
        (("other", 1), MANY_CHOICES),
        (("bits",), BITS),
    ),
)
"""Entries 0 to 5 are the first Box's, 6 a choice, 7 and 8 the second Box's, 9 to 12 choices, 13 to 18 bits.

Parameters are 5 and 11 logits of choices, 6 of bits, 6 and 2 means, 6 and 2 log standard deviations.
"""


def nested_reference(params):
    """A list of torch.distributions objects and the entry of an action that each takes, by hand."""
    parts = [(torch.distributions.Categorical(logits=params[:, :5]), 6)]
    ends = [5, 8, 10, 14, 16]
    for k in range(4):
        parts.append((torch.distributions.Categorical(logits=params[:, ends[k] : ends[k + 1]]), 9 + k))
    parts += [(torch.distributions.Bernoulli(logits=params[:, 16 + k]), 13 + k) for k in range(6)]
    means, deviations = params[:, 22:30], params[:, 30:].exp()
    for k, entry in enumerate([0, 1, 2, 3, 4, 5, 7, 8]):
        parts.append((torch.distributions.Normal(means[:, k], deviations[:, k]), entry))
    return parts


def test_a_product_is_that_of_the_leaves():
    distribution, params = make_distribution(NESTED), make_params(NESTED, 50)
    assert (distribution.num_params, distribution.noise_size) == (38, 30)
    assert (distribution.num_free, distribution.num_log_std) == (8, 8)
    assert (distribution.action_shape, distribution.action_dtype) == ((19,), torch.float32)
    noise = distribution.noise(torch.rand(50, 30, dtype=torch.float64))
    actions = distribution.sample(params, noise)
    log_prob = sum(part.log_prob(actions[:, k]) for part, k in nested_reference(params))
    entropy = sum(part.entropy() for part, _ in nested_reference(params))
    got = distribution.log_prob_and_entropy(params, actions)
    torch.testing.assert_close(got, (log_prob, entropy), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(distribution.log_prob(params, actions), log_prob, rtol=1e-12, atol=1e-12)
    assert all(each.shape == (0,) for each in distribution.log_prob_and_entropy(params[:0], actions[:0]))


def test_a_product_draws_its_leaves_independently():
    params = make_params(NESTED, 1)
    actions = draw(NESTED, params).double()
    parts = nested_reference(params)
    for part, entry in parts:
        drawn = actions[:, entry]
        if isinstance(part, torch.distributions.Normal):
            normal = (drawn - part.mean) / part.stddev
            assert abs(normal.mean()) < 4 / math.sqrt(DRAWS)
            assert abs(normal.std() - 1) < 4 / math.sqrt(2 * DRAWS)
        else:
            for choice, probability in enumerate(part.enumerate_support().flatten().tolist()):
                assert_frequencies(drawn == choice, part.log_prob(torch.tensor(probability)).exp().item())
    correlation = torch.corrcoef(actions.T).fill_diagonal_(0)
    assert correlation.abs().max() < 4.5 / math.sqrt(DRAWS)  # of 171 pairs


def test_the_mode_of_a_product_is_that_of_each_leaf():
    distribution, params = make_distribution(NESTED), make_params(NESTED, 20)
    expected = torch.empty(20, 19, dtype=torch.float64)
    for part, entry in nested_reference(params):
        if isinstance(part, torch.distributions.Normal):
            expected[:, entry] = part.mean
        else:
            expected[:, entry] = part.probs.argmax(-1) if part.probs.ndim > 1 else (part.probs > 0.5).double()
    assert torch.equal(distribution.mode(params), expected)
    # what acting in compiled code does: the mode of perturbed logits and means
    noise = distribution.noise(torch.rand(20, 30, dtype=torch.float64))
    scale = torch.cat([torch.ones(20, 22), params[:, 30:].exp()], dim=-1)
    torch.testing.assert_close(distribution.mode(params[:, :30] + scale * noise), distribution.sample(params, noise))


def test_a_product_acts_fast_where_all_its_leaves_do():
    assert make_distribution(NESTED).fast_forms == {"acting"}
    assert make_distribution(NESTED, state_dependent_std=True).fast_forms == frozenset()


def test_params_and_noise_that_each_needs():
    widths = {name: make_distribution(space) for name, space in ACTIONS.items()}
    assert {name: (d.num_params, d.num_free, d.noise_size) for name, d in widths.items()} == {
        "discrete": (5, 0, 5),
        "multi_discrete": (11, 0, 11),
        "multi_binary": (6, 0, 6),
        "box": (12, 6, 6),
    }
    assert [type(d) for d in widths.values()] == [Categorical, MultiCategorical, Bernoulli, DiagonalGaussian]


def assert_frequencies(hits, probability):
    """A share of `DRAWS` within 4 standard errors of its probability."""
    error = math.sqrt(probability * (1 - probability) / DRAWS)
    assert abs(hits.double().mean().item() - probability) < 4 * error


def test_categorical_frequencies():
    params = make_params(CHOICES, 1)
    actions = draw(CHOICES, params)
    for choice, probability in enumerate(params.softmax(-1)[0].tolist()):
        assert_frequencies(actions == choice, probability)


def test_multi_categorical_frequencies_and_independence():
    params = make_params(MANY_CHOICES, 1)
    actions = draw(MANY_CHOICES, params).flatten(1)
    tables = [part.probs[0] for part, _ in reference(MANY_CHOICES, params)]
    for first, second in itertools.combinations(range(4), 2):
        for a, b in itertools.product(range(len(tables[first])), range(len(tables[second]))):
            joint = (tables[first][a] * tables[second][b]).item()
            assert_frequencies((actions[:, first] == a) & (actions[:, second] == b), joint)


def test_bernoulli_frequencies_and_independence():
    params = make_params(BITS, 1)
    actions = draw(BITS, params).flatten(1)
    p = params.sigmoid()[0].tolist()
    for k in range(6):
        assert_frequencies(actions[:, k] == 1, p[k])
    for j, k in itertools.combinations(range(6), 2):
        assert_frequencies((actions[:, j] == 1) & (actions[:, k] == 1), p[j] * p[k])


def test_gaussian_mean_std_shape_and_independence():
    params = make_params(NUMBERS, 1)
    actions = draw(NUMBERS, params).flatten(1)
    mean, std = params[0, :6], params[0, 6:].exp()
    normal = (actions - mean) / std
    assert (normal.mean(0).abs() < 4 / math.sqrt(DRAWS)).all()
    assert ((normal.std(0) - 1).abs() < 4 / math.sqrt(2 * DRAWS)).all()
    correlation = normal.T @ normal / DRAWS
    assert ((correlation - torch.eye(6)).abs().fill_diagonal_(0) < 4 / math.sqrt(DRAWS)).all()
    # Kolmogorov-Smirnov, 0.1 % level
    expected = torch.distributions.Normal(0.0, 1.0).cdf(normal.sort(0).values)
    ranks = (torch.arange(DRAWS) + 0.5).unsqueeze(-1) / DRAWS
    assert ((expected - ranks).abs().max(0).values < 1.95 / math.sqrt(DRAWS)).all()


@each_space
def test_rows_do_not_depend_on_each_other(space):
    """An action depends on its own row of params and noise alone."""
    distribution, params = make_distribution(space), make_params(space, 9)
    noise = distribution.noise(torch.rand(9, distribution.noise_size, dtype=torch.float64))
    whole = distribution.sample(params, noise)
    one_by_one = [distribution.sample(params[k : k + 1], noise[k : k + 1]) for k in range(9)]
    assert torch.equal(whole, torch.cat(one_by_one))


@each_space
@pytest.mark.parametrize("uniform", [2.0**-53, 1 - 2.0**-53])
def test_noise_is_finite_at_the_ends(space, uniform):
    """The least and the largest number that `seeding.uniforms` draws, in float32 too."""
    noise = make_distribution(space).noise(torch.tensor([uniform], dtype=torch.float64))
    assert torch.isfinite(noise).all()
    assert torch.isfinite(noise.float()).all()


@pytest.mark.parametrize("space", [CHOICES, MANY_CHOICES, BITS], ids=["categorical", "multi", "bernoulli"])
def test_mode_is_the_most_probable_of_all_actions(space):
    distribution, params = make_distribution(space), make_params(space, 20)
    sizes = space.sizes or (2,) * space.size
    every = torch.tensor(list(itertools.product(*(range(n) for n in sizes)))).view(-1, *space.shape)
    log_probs = torch.stack([distribution.log_prob(params, action.expand(20, *space.shape)) for action in every])
    torch.testing.assert_close(log_probs.exp().sum(0), torch.ones(20, dtype=torch.float64), rtol=1e-12, atol=0)
    assert torch.equal(distribution.mode(params), every[log_probs.argmax(0)])


def test_mode_of_a_gaussian_is_its_mean():
    distribution, params = make_distribution(NUMBERS), make_params(NUMBERS, 4)
    assert torch.equal(distribution.mode(params).flatten(1), params[:, :6])


@each_space
def test_certain_where_logits_are_extreme(space):
    """Logits of +-1e4 and a deviation of e-40 give no NaN, and leave one action."""
    distribution, params = make_distribution(space), make_params(space, 6).sign() * 1e4
    if space.kind == "box":
        params[:, 6:] = -40.0
    noise = distribution.noise(torch.rand(6, distribution.noise_size, dtype=torch.float64))
    actions = distribution.sample(params, noise)
    log_prob, entropy = distribution.log_prob_and_entropy(params, actions)
    assert torch.isfinite(log_prob).all()
    assert torch.isfinite(entropy).all()
    if space.kind in ("multi_binary", "box"):
        torch.testing.assert_close(actions, distribution.mode(params), rtol=1e-12, atol=1e-12)
