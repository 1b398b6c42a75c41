"""Acting in compiled code, held against the agent's own distribution and against itself with other rows around."""

from __future__ import annotations

import pytest
import torch

from fabric_ppo.envs.spaces import SpaceSpec
from fabric_ppo.fast.compiled_actor import ActorChoice, CompiledActor, has_compiled_actor
from fabric_ppo.rollouts.actor import Actor
from tests.fixtures.acting import ROWS, STEPS, assert_draws_are_the_agents
from tests.fixtures.agents import build_acting_agent, masked_agent
from tests.fixtures.spaces import ACTIONS, MIXED, OBSERVATIONS, observe


@pytest.mark.parametrize("shared_trunk", [False, True], ids=["apart", "trunk"])
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "normalized"])
@pytest.mark.parametrize("action", [*ACTIONS.values(), MIXED], ids=[*ACTIONS, "mixed"])
@pytest.mark.parametrize("observation", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_actions_are_samples_with_the_noise_given(normalize, action, observation, shared_trunk):
    agent = build_acting_agent(action, observation, normalize_observations=normalize, shared_trunk=shared_trunk)
    assert_draws_are_the_agents(CompiledActor, agent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("sizes", [(2, (), 2), (3, (64, 64), 2), (17, (128,), 9), (348, (), 17)], ids=str)
@torch.no_grad()
def test_a_row_gives_the_same_bits_whatever_is_around_it(sizes, activation, dtype):
    """So a run's first rollout does not depend on how its environments are spread over ranks."""
    inputs, hidden_sizes, choices = sizes
    observation = SpaceSpec("box", (inputs,), str(dtype).removeprefix("torch."))
    action = SpaceSpec("discrete", (), "int64", (choices,), (0,))
    agent = build_acting_agent(action, observation, hidden_sizes=hidden_sizes, activation=activation).to(dtype)
    rows = torch.randn(256, inputs, dtype=dtype)

    def outputs(rows):
        actor = CompiledActor(agent, torch.zeros(1, len(rows), choices, dtype=dtype))
        actor.act(rows.numpy())
        return torch.cat([actor.params()[0], actor.values(rows).unsqueeze(-1)], dim=-1)

    expected = outputs(rows)
    plain = torch.cat([agent.policy_params(agent.features(rows)), agent.values(rows).unsqueeze(-1)], dim=-1)
    torch.testing.assert_close(expected, plain, rtol=1e-4, atol=1e-5)
    elsewhere = torch.randperm(256)
    assert torch.equal(outputs(rows[elsewhere]), expected[elsewhere])
    for count in (1, 2, 5, 7, 64, 65):
        assert torch.equal(outputs(rows[:count].clone()), expected[:count])


@torch.no_grad()
def test_what_does_not_fit_the_rollout_is_refused():
    agent = build_acting_agent(ACTIONS["box"])
    actor, obs = choose(agent, 6), observe(agent.spec.observation, ROWS).numpy()
    for few in (obs[:-1], obs[:0]):
        with pytest.raises(IndexError, match="observations"):
            actor.act(few)
    for _ in range(STEPS):
        actor.act(obs)
    with pytest.raises(IndexError, match=f"step {STEPS} of {STEPS}"):
        actor.act(obs)


def choose(agent, size=5):
    """The actor of a rollout, as the scripts choose it."""
    obs = observe(agent.spec.observation, ROWS)
    return ActorChoice(agent)(agent, torch.zeros(STEPS, ROWS, size, dtype=agent.dtype), obs)


@torch.no_grad()
def test_small_networks_act_in_compiled_code():
    small = build_acting_agent(ACTIONS["discrete"])
    assert type(choose(small)) is CompiledActor
    assert type(choose(small.double())) is CompiledActor
    assert type(choose(small.bfloat16())) is Actor
    assert type(choose(build_acting_agent(MIXED), 17)) is CompiledActor
    own_std = build_acting_agent(MIXED, state_dependent_std=True)
    assert type(choose(own_std, 17)) is Actor
    wide = build_acting_agent(ACTIONS["discrete"], hidden_sizes=(256, 512))
    assert type(choose(wide)) is Actor
    trunk = build_acting_agent(ACTIONS["discrete"], shared_trunk=True)
    assert type(choose(trunk)) is CompiledActor
    wide = build_acting_agent(ACTIONS["discrete"], hidden_sizes=(256, 512), shared_trunk=True)
    assert type(choose(wide)) is Actor
    own = build_acting_agent(ACTIONS["discrete"])
    own.distribution.fast_forms = frozenset({"loss"})
    assert not has_compiled_actor(own)
    assert type(choose(own)) is Actor


@torch.no_grad()
def test_agents_without_a_compiled_form_act_plainly():
    plain = {
        "norm": build_acting_agent(ACTIONS["discrete"], layer_norm=True),
        "std": build_acting_agent(ACTIONS["box"], state_dependent_std=True),
        "memory": build_acting_agent(ACTIONS["discrete"], recurrent="gru", recurrent_size=5),
        "mask": masked_agent()[1],
    }
    for name, agent in plain.items():
        assert not has_compiled_actor(agent), name
        assert type(choose(agent, agent.distribution.noise_size)) is Actor, name


@torch.no_grad()
def test_acting_leaves_the_weights_alone():
    agent = build_acting_agent(ACTIONS["box"])
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    actor = choose(agent, 6)
    assert type(actor) is CompiledActor
    actor.act(observe(agent.spec.observation, ROWS).numpy())
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
