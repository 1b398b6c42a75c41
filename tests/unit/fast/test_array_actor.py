"""Acting in NumPy, held against the agent's own distribution and against itself with other rows around."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fabric_ppo.agents.mlp import MLP
from fabric_ppo.fast.array_actor import ActorChoice, ArrayActor, array_forward, can_act_in_arrays
from fabric_ppo.rollouts.actor import Actor
from tests.fixtures.acting import ROWS, STEPS, assert_draws_are_the_agents
from tests.fixtures.agents import build_acting_agent, masked_agent
from tests.fixtures.spaces import ACTIONS, OBSERVATIONS, observe


@pytest.mark.parametrize("shared_trunk", [False, True], ids=["apart", "trunk"])
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalized"])
@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("observation", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_actions_are_samples_with_the_noise_given(normalize, action, observation, shared_trunk):
    agent = build_acting_agent(action, observation, normalize_observations=normalize, shared_trunk=shared_trunk)
    assert_draws_are_the_agents(ArrayActor, agent)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("widths", [(2, (), 1), (3, (64, 64), 2), (17, (128,), 9), (348, (), 17)], ids=str)
def test_a_row_gives_the_same_bits_whatever_is_around_it(widths, activation, dtype):
    """So a run's first rollout does not depend on how its environments are spread over ranks."""
    torch.manual_seed(0)
    network = MLP(*widths, activation).to(torch.from_numpy(np.zeros(0, dtype)).dtype)
    forward = array_forward(network)
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


def choose(agent, size=5):
    """The actor of a rollout, as the scripts choose it."""
    obs = observe(agent.spec.observation, ROWS).numpy()
    return ActorChoice()(agent, torch.zeros(STEPS, ROWS, size, dtype=agent.dtype), obs)


@torch.no_grad()
def test_small_networks_act_in_numpy():
    small = build_acting_agent(ACTIONS["discrete"])
    assert type(choose(small)) is ArrayActor
    assert type(choose(small.double())) is ArrayActor
    assert type(choose(small.bfloat16())) is Actor
    wide = build_acting_agent(ACTIONS["discrete"], hidden_sizes=(256, 256))
    assert type(choose(wide)) is Actor
    trunk = build_acting_agent(ACTIONS["discrete"], shared_trunk=True)
    assert type(choose(trunk)) is ArrayActor
    wide = build_acting_agent(ACTIONS["discrete"], hidden_sizes=(256, 256), shared_trunk=True)
    assert type(choose(wide)) is Actor
    own = build_acting_agent(ACTIONS["discrete"])
    own.distribution.fast_forms = frozenset({"closed"})
    assert not can_act_in_arrays(own)
    assert type(choose(own)) is Actor


@torch.no_grad()
def test_agents_without_an_array_form_act_plainly():
    plain = {
        "norm": build_acting_agent(ACTIONS["discrete"], layer_norm=True),
        "std": build_acting_agent(ACTIONS["box"], state_dependent_std=True),
        "memory": build_acting_agent(ACTIONS["discrete"], recurrent="gru", recurrent_size=5),
        "mask": masked_agent()[1],
    }
    for name, agent in plain.items():
        assert not can_act_in_arrays(agent), name
        assert type(choose(agent, agent.distribution.noise_size)) is Actor, name


@torch.no_grad()
def test_acting_leaves_the_weights_alone():
    agent = build_acting_agent(ACTIONS["box"])
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    actor = choose(agent, 6)
    assert type(actor) is ArrayActor
    actor.act(observe(agent.spec.observation, ROWS).numpy())
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
