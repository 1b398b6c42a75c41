"""Rollouts, held against toy environments and agents that are known in advance, and against the definitions."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.fast.compiled_actor import ActorChoice
from fabric_ppo.rollouts.actor import make_plain_actor
from fabric_ppo.seeding import Stream, uniforms
from tests.fixtures.agents import known_agent, random_agent
from tests.fixtures.envs import SEED
from tests.fixtures.recurrent import KINDS, along_episode, make_recurrent, recurrent_config
from tests.fixtures.rollouts import rollouts
from tests.fixtures.toy_envs import ACTIONS, decode, encode, toy_env, toy_reward

each_actor = pytest.mark.parametrize(
    "make_actor", [ActorChoice, lambda agent: make_plain_actor], ids=["chosen", "plain"]
)


@pytest.mark.parametrize("observation", ["float64", "uint8", "discrete"])
def test_observations_keep_their_type(open_envs, backend, observation):
    envs = open_envs(toy_env(length=3, observation=observation), 2, backend=backend)
    dtype = {"float64": torch.float64, "uint8": torch.uint8, "discrete": torch.int64}[observation]
    (rollout,) = rollouts(envs, random_agent(envs.spec), 5, 1)
    assert rollout.obs.dtype == dtype
    assert [decode(observation, obs)[1] for obs in rollout.obs[:, 1].numpy()] == [0, 1, 2, 0, 1]
    assert {each.dtype for each in (rollout.rewards, rollout.values, rollout.next_values, rollout.log_probs)} == {
        torch.float32
    }


def test_actions_are_the_largest_of_logit_plus_gumbel_noise(open_envs):
    """Noise of (seed, ACTION, update), of which global environment i has the i-th block of T x (choices) draws."""
    num_steps, num_envs, first_env, choices = 16, 3, 6, 3
    envs = open_envs(toy_env(length=5), num_envs, rank=2, num_ranks=4)
    agent = random_agent(envs.spec, hidden_sizes=())
    (layer,) = agent.policy.linear_layers
    weight, bias = (parameter.detach().numpy().astype(np.float64) for parameter in (layer.weight, layer.bias))
    drawn = []
    for update, rollout in enumerate(rollouts(envs, agent, num_steps, 2)):
        for env in range(num_envs):
            for t in range(num_steps):
                start = ((first_env + env) * num_steps + t) * choices
                uniform = uniforms(SEED, Stream.ACTION, (update, 0), start, choices)
                logits = weight @ rollout.obs[t, env].numpy().astype(np.float64).flatten() + bias
                action = int(np.argmax(logits - np.log(-np.log(uniform))))
                assert rollout.actions[t, env] == action
                drawn.append(action)
    assert min(np.bincount(drawn, minlength=choices)) > 5


def test_gaussian_actions_are_mean_plus_deviation_times_noise(open_envs):
    """Noise by the inverse of the normal distribution function; the rollout keeps what was drawn."""
    from statistics import NormalDist

    num_steps, num_envs, size = 8, 2, 2
    envs = open_envs(toy_env(length=5, action="box"), num_envs)
    agent = known_agent(envs.spec)
    with torch.no_grad():
        agent.policy.linear_layers[0].bias[:] = torch.tensor([0.5, -2.0])
        agent.log_std[:] = torch.tensor([0.0, 1.0])
    (rollout,) = rollouts(envs, agent, num_steps, 1)
    low, high = ACTIONS["box"].low, ACTIONS["box"].high
    assert ((rollout.actions.numpy() < low) | (rollout.actions.numpy() > high)).any()
    for env in range(num_envs):
        for t in range(num_steps):
            uniform = uniforms(SEED, Stream.ACTION, (0, 0), (env * num_steps + t) * size, size)
            normal = np.array([NormalDist().inv_cdf(u) for u in uniform])
            expected = np.array([0.5, -2.0]) + np.exp([0.0, 1.0]) * normal
            np.testing.assert_allclose(rollout.actions[t, env], expected, rtol=1e-5, atol=1e-5)
            middle, half = (low + high) / 2, (high - low) / 2
            taken = np.clip(middle + half * rollout.actions[t, env].numpy(), low, high)
            assert rollout.rewards[t, env] == pytest.approx(toy_reward(t % 5, taken), rel=1e-6)


def test_an_environment_that_overwrites_its_action_changes_nothing(open_envs, backend):
    """The rollout holds what was drawn: it explains the rewards, which `Toy` gives before it scribbles."""
    envs = open_envs(toy_env(length=3, action="multi_binary", scribbles=True), 2, backend=backend)
    agent = random_agent(envs.spec)
    (rollout,) = rollouts(envs, agent, 6, 1)
    expected = [[toy_reward(t % 3, action) for action in rollout.actions[t]] for t in range(6)]
    np.testing.assert_array_equal(rollout.rewards, expected)
    assert not rollout.actions.bool().all()


class Scalars(gymnasium.Env):
    """A Box without dimensions to see and another to act in: the reward is the action, which follows as observation."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (), np.float32)

    def __init__(self, render_mode=None):
        pass

    def reset(self, *, seed=None, options=None):
        return np.float32(0), {}

    def step(self, action):
        return np.float32(action), float(action), False, False, {}


def test_spaces_without_dimensions(open_envs, backend):
    """`Box(..., shape=())` is taken as any other: either it works or it is refused when the environment is made."""
    gymnasium.registry.pop("Scalars-v0", None)
    gymnasium.register("Scalars-v0", Scalars)
    envs = open_envs("Scalars-v0", 3, backend=backend)
    (rollout,) = rollouts(envs, random_agent(envs.spec), 4, 1)
    assert rollout.obs.shape == rollout.actions.shape == rollout.log_probs.shape == (4, 3)
    torch.testing.assert_close(rollout.rewards, rollout.actions.clamp(-1, 1))
    torch.testing.assert_close(rollout.obs[1:], rollout.rewards[:-1])


@each_actor
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Toy-v0", "ToyMultiDiscrete-v0"])
def test_how_environments_are_spread_over_ranks_does_not_matter(open_envs, env_id, make_actor):
    """1 rank of 4 environments, 2 of 2, 4 of 1, and 1 rank in worker processes: bit for bit the same rollouts."""
    num_steps, total = 64, 4
    by_layout = {}
    for num_ranks, backend in ((1, "sync"), (1, "async"), (2, "sync"), (4, "sync")):
        num_envs = total // num_ranks
        ranks = []
        for rank in range(num_ranks):
            envs = open_envs(env_id, num_envs, rank, num_ranks, backend)
            agent = random_agent(envs.spec, hidden_sizes=(64, 64))
            ranks.append(list(rollouts(envs, agent, num_steps, 2, make_actor=make_actor(agent))))
        by_layout[num_ranks, backend] = [
            {
                name: torch.cat([getattr(each, name) for each in one], dim=1)
                for name in ("obs", "actions", "rewards", "terminated", "truncated", "valid")
            }
            | {"episodes": sorted(episode for each in one for episode in each.episodes)}
            for one in zip(*ranks, strict=True)
        ]
    reference = by_layout.pop((1, "sync"))
    for layout, got in by_layout.items():
        for update in range(2):
            for name, expected in reference[update].items():
                same = got[update][name] == expected if name == "episodes" else torch.equal(got[update][name], expected)
                assert same, (layout, update, name)
    if env_id == "CartPole-v1":
        assert len(reference[0]["episodes"]) > 4
    # no two environments, and no two rollouts of one, draw the same actions
    drawn = [each["actions"][:, env].flatten().tolist() for each in reference for env in range(total)]
    assert len(set(map(tuple, drawn))) == 2 * total


@each_actor
def test_any_number_of_environments_chooses_alike(open_envs, make_actor):
    """Environment 0's first episode is the same beside 0 to 16 others, to the last bit of its Gaussian actions."""
    seen = []
    for num_envs in (1, 2, 3, 5, 7, 8, 9, 15, 16, 17):
        envs = open_envs("Pendulum-v1", num_envs)
        agent = make_agent(envs.spec, Config(env_id="Pendulum-v1", seed=SEED))
        (rollout,) = rollouts(envs, agent, 150, 1, make_actor=make_actor(agent))
        seen.append(rollout.actions[:, 0])
    assert all(torch.equal(each, seen[0]) for each in seen[1:])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(("length", "ends"), [(4, "terminated"), (4, "truncated"), (3, "truncated"), (20, "truncated")])
def test_rollouts_remember_whole_episodes(kind, backend, length, ends):
    """Values, successors' values and log-probabilities, over the edges of rollouts and up to final observations."""
    config = recurrent_config(kind, env_id=toy_env(length=length, ends=ends), env_backend=backend)
    envs, agent = make_recurrent(config)
    seen = {env: [] for env in range(3)}
    with torch.no_grad():
        for rollout in rollouts(envs, agent, config.num_steps, 5, seed=config.seed):
            for t in range(6):
                for env in range(3):
                    seen[env].append(rollout.obs[t, env].numpy())
                    seed, step = decode("float32", seen[env][-1])
                    assert step == len(seen[env]) - 1
                    following = encode("float32", seed, step + 1)
                    *_, here, after = along_episode(agent, [*seen[env], following])
                    torch.testing.assert_close(rollout.values[t, env], agent.state_values(here[None])[0])
                    if not rollout.terminated[t, env]:
                        torch.testing.assert_close(rollout.next_values[t, env], agent.state_values(after[None])[0])
                    log_prob = agent.distribution.log_prob(
                        agent.policy_params(here[None]), rollout.actions[t, env][None]
                    )
                    torch.testing.assert_close(rollout.log_probs[t, env], log_prob[0])
                    if rollout.terminated[t, env] or rollout.truncated[t, env]:
                        seen[env] = []
    envs.close()


def test_envpools_extra_rows_are_between_two_memories():
    """EnvPool's row that starts an episode: what was remembered reaches the final observation, and not beyond it."""
    pytest.importorskip("envpool")
    config = recurrent_config(env_id="Pendulum-v1", env_backend="envpool", num_steps=150, num_envs=2)
    envs, agent = make_recurrent(config)
    seen, cut = {env: [] for env in range(2)}, 0
    with torch.no_grad():
        for rollout in rollouts(envs, agent, config.num_steps, 3, seed=config.seed):
            for env in range(2):
                for t in range(150):
                    seen[env].append(rollout.obs[t, env].numpy())
                    if not rollout.valid[t, env]:
                        seen[env] = []
                        continue
                    if rollout.truncated[t, env] and t + 1 < 150:
                        *_, here, after = along_episode(agent, [*seen[env], rollout.obs[t + 1, env].numpy()])
                        torch.testing.assert_close(rollout.values[t, env], agent.state_values(here[None])[0])
                        torch.testing.assert_close(rollout.next_values[t, env], agent.state_values(after[None])[0])
                        cut += 1
                    elif len(seen[env]) == 3:
                        here = along_episode(agent, seen[env])[-1]
                        torch.testing.assert_close(rollout.values[t, env], agent.state_values(here[None])[0])
    envs.close()
    assert cut == 4
