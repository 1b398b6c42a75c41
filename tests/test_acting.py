"""Acting step by step, held against the agent's own distribution and against itself with other rows around."""

import numpy as np
import pytest
import torch

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.mlp import MLP
from fabric_ppo.envs.spaces import EnvSpec, SpaceSpec
from fabric_ppo.fast.array_actor import ArrayActor, make_actor
from fabric_ppo.rollouts.actor import Actor
from tests.test_distributions import SPACES

OBSERVATIONS = {
    "float32": SpaceSpec("box", (5,), "float32"),
    "float64": SpaceSpec("box", (2, 3), "float64"),
    "bytes": SpaceSpec("box", (4,), "uint8"),
    "choice": SpaceSpec("discrete", (), "int64", (6,), (2,)),
}
STEPS, ROWS = 4, 16


def make_agent(observation, action, normalize=False, hidden_sizes=(16, 8), shared_trunk=False):
    torch.manual_seed(0)
    architecture = Architecture("tanh", hidden_sizes, normalize, shared_trunk=shared_trunk)
    agent = Agent(EnvSpec("Toy-v0", observation, action), architecture)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.uniform_(-0.7, 0.7)
    if agent.obs_moments is not None:
        agent.absorb(agent.obs_moments.sums(agent.encoder(observe(observation, 100), torch.float64)))
    return agent


def observe(space, rows, seed=1):
    rng = np.random.default_rng(seed)
    if space.kind == "discrete":
        return torch.from_numpy(rng.integers(space.start[0], space.start[0] + space.sizes[0], rows))
    if space.dtype == "uint8":
        return torch.from_numpy(rng.integers(0, 256, (rows, *space.shape), np.uint8))
    return torch.from_numpy(rng.normal(size=(rows, *space.shape)).astype(space.dtype))


@pytest.mark.parametrize("kind", [Actor, ArrayActor])
@pytest.mark.parametrize("shared_trunk", [False, True], ids=["apart", "trunk"])
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalized"])
@pytest.mark.parametrize("action", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("observation", OBSERVATIONS.values(), ids=OBSERVATIONS)
@torch.no_grad()
def test_actions_are_samples_with_the_noise_given(kind, normalize, action, observation, shared_trunk):
    agent = make_agent(observation, action, normalize, shared_trunk=shared_trunk)
    distribution = agent.distribution
    noise = distribution.noise(torch.rand(STEPS, ROWS, distribution.noise_size))
    actor = kind(agent, noise)
    seen = [observe(observation, ROWS, seed) for seed in range(STEPS)]
    actions = [actor.act(obs.numpy()) for obs in seen]
    params = torch.stack([agent.policy_params(agent.encode(obs)) for obs in seen])
    torch.testing.assert_close(actor.params(), params)
    for got, each, drawn in zip(actions, params, noise, strict=True):
        expected = distribution.sample(each, drawn)
        assert (got.shape, got.dtype) == (expected.shape, expected.numpy().dtype)
        torch.testing.assert_close(torch.from_numpy(got), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("widths", [(2, (), 1), (3, (64, 64), 2), (17, (128,), 9), (348, (), 17)], ids=str)
def test_a_row_gives_the_same_bits_whatever_is_around_it(widths, activation, dtype):
    """What makes a run's first rollout independent of how its environments are spread over ranks."""
    torch.manual_seed(0)
    network = MLP(*widths, activation).to(torch.from_numpy(np.zeros(0, dtype)).dtype)
    forward = network.frozen()
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(256, widths[0])).astype(dtype)
    expected = forward(rows)
    with torch.no_grad():
        np.testing.assert_allclose(expected, network(torch.from_numpy(rows)).numpy(), rtol=1e-4, atol=1e-5)
    elsewhere = rng.permutation(256)
    assert np.array_equal(forward(rows[elsewhere]), expected[elsewhere])
    for count in (1, 5, 8, 13, 64):
        padded = np.zeros((-(-count // 8) * 8, widths[0]), dtype)
        padded[:count] = rows[:count]
        kept = padded.copy()
        assert np.array_equal(forward(padded)[:count], expected[:count])
        assert np.array_equal(padded, kept)


def test_small_networks_act_in_numpy():
    noise = torch.zeros(STEPS, ROWS, 5)
    small = make_agent(OBSERVATIONS["float32"], SPACES["categorical"])
    assert type(make_actor(small, noise)) is ArrayActor
    assert type(make_actor(small.double(), noise.double())) is ArrayActor
    assert type(make_actor(small.bfloat16(), noise.bfloat16())) is Actor
    wide = make_agent(OBSERVATIONS["float32"], SPACES["categorical"], hidden_sizes=(256, 256))
    assert type(make_actor(wide, noise)) is Actor
    trunk = make_agent(OBSERVATIONS["float32"], SPACES["categorical"], shared_trunk=True)
    assert type(make_actor(trunk, noise)) is ArrayActor
    wide = make_agent(OBSERVATIONS["float32"], SPACES["categorical"], hidden_sizes=(256, 256), shared_trunk=True)
    assert type(make_actor(wide, noise)) is Actor
    own = make_agent(OBSERVATIONS["float32"], SPACES["categorical"])
    own.distribution.sample_is_perturbed_mode = False
    assert type(make_actor(own, noise)) is Actor


@torch.no_grad()
def test_acting_leaves_the_weights_alone():
    agent = make_agent(OBSERVATIONS["float32"], SPACES["gaussian"])
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    actor = make_actor(agent, torch.zeros(STEPS, ROWS, 6))
    actor.act(observe(agent.spec.observation, ROWS).numpy())
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
