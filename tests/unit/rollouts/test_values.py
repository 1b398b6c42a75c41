"""Values and log-probabilities of a rollout, of whichever agent, and the objective that learns from them."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import torch

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.compiled_actor import ActorChoice
from fabric_ppo.ppo.batch import make_batch
from fabric_ppo.ppo.loss import ppo_loss
from fabric_ppo.process.group import ALONE
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.rollouts.values import revalue
from tests.fixtures.agents import random_agent
from tests.fixtures.recurrent import along_episode, make_recurrent, recurrent_config
from tests.fixtures.rollouts import rollouts
from tests.fixtures.toy_envs import ACTIONS, decode, encode, toy_env
from tests.fixtures.updates import coefs_of


def collected_with_another_policy(env_id):
    """A rollout, collected by one agent and revalued by another; the buffer; both agents."""
    config = Config(env_id=env_id, num_envs=3, num_steps=40, normalize_advantages=False)
    envs = make_envs(config, 0, 1)
    behaviour = make_agent(envs.spec, config)
    proximal = make_agent(envs.spec, replace(config, seed=7))
    buffer = RolloutBuffer(envs, behaviour, config.num_steps, ActorChoice(behaviour))
    rollout = collect(behaviour, buffer, config.seed, 0)
    envs.close()
    return config, behaviour, proximal, rollout, revalue(proximal, buffer, rollout)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_revaluing_a_rollout(env_id):
    _, behaviour, proximal, rollout, later = collected_with_another_policy(env_id)
    obs, actions = rollout.obs.flatten(0, 1), rollout.actions.flatten(0, 1)
    with torch.no_grad():
        old, new = (agent.log_probs_and_values(obs, actions)[0].view(40, 3) for agent in (behaviour, proximal))
        values = proximal.values(obs).view(40, 3)
    torch.testing.assert_close(rollout.log_probs, old)
    torch.testing.assert_close(later.log_probs, new)
    torch.testing.assert_close(later.importance, (new - old).exp())
    torch.testing.assert_close(later.values, values)
    inside = ~(rollout.terminated | rollout.truncated)[:-1]
    torch.testing.assert_close(later.next_values[:-1][inside], values[1:][inside])
    assert (rollout.importance == 1).all()


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize("ends", ["terminated", "truncated", "both"])
def test_the_same_policy_sees_a_rollout_as_it_was_collected(ends, shared_trunk):
    """Inside episodes, where they end and where the rollout does."""
    config = Config(env_id=toy_env(length=5, ends=ends), num_envs=3, num_steps=32, shared_trunk=shared_trunk)
    envs = make_envs(config, 0, 1)
    agent = make_agent(envs.spec, config).double()
    buffer = RolloutBuffer(envs, agent, config.num_steps, ActorChoice(agent))
    rollout = collect(agent, buffer, config.seed, 0)
    envs.close()
    unknown = torch.full_like(rollout.values, torch.nan)
    again = revalue(agent, buffer, replace(rollout, values=unknown, next_values=unknown))
    assert rollout.truncated.any() == (ends != "terminated")
    for name in ("log_probs", "importance", "values", "next_values"):
        torch.testing.assert_close(
            getattr(again, name), getattr(rollout, name), msg=lambda text, name=name: name + text
        )


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_the_overlapped_objective_is_the_decoupled_objective(env_id):
    """ArXiv 2110.00641, equation 5, written out: E[prox/behaviour * min(r A, clip(r) A)] with r = policy/prox."""
    config, behaviour, _, rollout, later = collected_with_another_policy(env_id)
    policy = make_agent(behaviour.spec, replace(config, seed=11))
    batch = make_batch(later, config, ALONE, 0, torch.device("cpu"))
    rows = batch.rows._replace(weights=batch.rows.weights / len(batch.rows.weights))
    loss = ppo_loss(rows, policy(rows.obs, rows.actions), coefs_of(config)).policy_loss
    plain = make_batch(replace(later, importance=torch.ones_like(later.importance)), config, ALONE, 0, rows.obs.device)
    with torch.no_grad():
        now = policy.log_probs_and_values(rows.obs, rows.actions)[0]
    r = (now - later.log_probs.flatten()).exp()
    advantages = plain.rows.advantages
    surrogate = torch.minimum(r * advantages, r.clamp(0.8, 1.2) * advantages)
    expected = -((later.log_probs - rollout.log_probs).flatten().exp() * surrogate).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", list(ACTIONS))
def test_values_and_log_probs_are_the_agents(open_envs, kind):
    """Of the observations and actions in the rollout, recomputed row by row."""
    envs = open_envs(toy_env(length=3, ends="truncated", action=kind), 3)
    agent = random_agent(envs.spec)
    for rollout in rollouts(envs, agent, 6, 2):
        for t in range(6):
            with torch.enable_grad():  # the training forward pass, which is another path through the networks
                expected = agent(rollout.obs[t], rollout.actions[t])
            torch.testing.assert_close(rollout.values[t], expected.values, rtol=1e-5, atol=1e-5, check_dtype=True)
            torch.testing.assert_close(rollout.log_probs[t], expected.log_probs, rtol=1e-5, atol=1e-5)
        assert len(rollout.values.unique()) > 6
        assert len(rollout.log_probs.unique()) > 6


def test_revaluing_remembers_with_the_later_weights():
    config = recurrent_config(env_id=toy_env(length=4, ends="truncated"))
    envs, agent = make_recurrent(config)
    buffer = RolloutBuffer(envs, agent, config.num_steps, ActorChoice(agent))
    rollout = collect(agent, buffer, config.seed, 0)  # from the episodes' first steps on
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter *= 1.1
        later = revalue(agent, buffer, rollout)
        for env in range(3):
            outputs = along_episode(agent, rollout.obs[:4, env].numpy())
            log_probs = agent.distribution.log_prob(agent.policy_params(outputs), rollout.actions[:4, env])
            torch.testing.assert_close(later.values[:4, env], agent.state_values(outputs))
            torch.testing.assert_close(later.log_probs[:4, env], log_probs)
            final = [*rollout.obs[:4, env].numpy(), encode("float32", decode("float32", rollout.obs[0, env])[0], 4)]
            torch.testing.assert_close(later.next_values[3, env], agent.state_values(along_episode(agent, final))[-1])
    torch.testing.assert_close(later.memory[4], torch.zeros(3, 10, dtype=torch.float64))
    envs.close()


@pytest.mark.parametrize("encoder", ["small", "impala"])
@pytest.mark.parametrize("flags", [{}, {"recurrent": "gru", "sequence_length": 4, "per_rank_batch_size": 8}])
def test_images_are_encoded_once_in_a_rollout(encoder, flags, monkeypatch):
    """Values are those of the observations, though computed from what acting made of them."""
    env_id = "tests.fixtures.nested_envs:Images-v0"
    config = Config(env_id=env_id, num_envs=3, num_steps=8, encoder=encoder, **flags)
    with contextlib.closing(make_envs(config, 0, 1)) as envs:
        agent = make_agent(envs.spec, config)
        buffer = RolloutBuffer(envs, agent, config.num_steps, ActorChoice(agent))
        calls, inputs = [], type(agent).inputs
        monkeypatch.setattr(type(agent), "inputs", lambda self, obs: calls.append(1) or inputs(self, obs))
        for update in range(2):
            calls.clear()
            rollout = collect(agent, buffer, config.seed, update)
            # also of an observation that cut an episode off, and a recurrent agent's before it
            more = 2 * bool(rollout.truncated.any())
            assert config.num_steps + 1 <= len(calls) <= config.num_steps + 1 + more
            obs, memory = (torch.from_numpy(each).flatten(0, 1) for each in (buffer.obs, buffer.memory))
            with torch.no_grad():
                expected = agent.values(obs, memory).view(config.num_steps + 1, config.num_envs)
            torch.testing.assert_close(rollout.values, expected[:-1])
            inside = ~(rollout.terminated | rollout.truncated)
            torch.testing.assert_close(rollout.next_values[inside], expected[1:][inside])
