"""Rollouts, held against what is known of toy environments and agents, and against the definitions."""

from __future__ import annotations

import dataclasses

import gymnasium
import numpy as np
import pytest
import torch

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.make import make_envs
from fabric_ppo.fast.loss_module import PPOLoss, make_optimizer
from fabric_ppo.ppo.advantages import gae
from fabric_ppo.ppo.batch import make_batch
from fabric_ppo.ppo.update import ppo_update
from fabric_ppo.process.group import Ranks
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from fabric_ppo.seeding import Stream, episode_seed, uniforms
from tests.toy_envs import ACTIONS, decode, toy_env, toy_reward

SEED = 11
ALONE = Ranks(rank=0, size=1, all_gather=lambda tensor: tensor.unsqueeze(0))


@pytest.fixture(params=["sync", "async"])
def backend(request):
    return request.param


@pytest.fixture
def open_envs():
    """Make environments as a run does; close them at the end."""
    opened = []

    def open_(env_id, num_envs, rank=0, num_ranks=1, backend="sync", seed=SEED):
        config = Config(env_id=env_id, env_backend=backend, num_envs=num_envs, seed=seed)
        opened.append(make_envs(config, rank, num_ranks))
        return opened[-1]

    yield open_
    for envs in opened:
        envs.close()


def known_value(obs):
    """V of `known_agent`, exactly representable: 1000 (steps so far) + (seed modulo 512) + 1."""
    seed, step = decode("float32", obs)
    return 1000.0 * step + seed % 1024 + 1


def known_agent(spec):
    """Draws uniformly among its choices; values an observation of `Toy-v0` by `known_value`."""
    agent = Agent(spec, Architecture("tanh", ()))
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.zero_()
        (layer,) = agent.value.linear_layers
        layer.weight[:] = torch.tensor([1.0, 0.0, 0.0, 1000.0])
        layer.bias.fill_(1.0)
    return agent


def random_agent(spec, seed=0, hidden_sizes=(16,)):
    """An agent whose choices depend on what it sees; inputs up to 1000 do not saturate it."""
    torch.manual_seed(seed)
    agent = Agent(spec, Architecture("tanh", hidden_sizes))
    with torch.no_grad():
        for network in (agent.policy, agent.value):
            network.linear_layers[0].weight *= 0.01 if "Toy" in spec.env_id else 1.0
    return agent


def rollouts(envs, agent, num_steps, count, first_env=0, seed=SEED):
    """Consecutive rollouts, each a copy of its own."""
    buffer = RolloutBuffer(envs, agent, num_steps, first_env)
    for update in range(count):
        rollout = collect(envs, agent, buffer, seed, update)
        fields = {field.name: getattr(rollout, field.name) for field in dataclasses.fields(rollout)}
        yield dataclasses.replace(
            rollout, **{name: value.clone() for name, value in fields.items() if isinstance(value, torch.Tensor)}
        )


# H6: what follows a transition


@pytest.mark.parametrize("ends", ["terminated", "truncated", "both"])
@pytest.mark.parametrize("length", [3, 4], ids=["inside", "at the edge"])
def test_a_rollout_is_what_happened(open_envs, backend, ends, length):
    """Rows, flags and V of the true successors, in rollouts of 8 steps: of episodes of 4 one ends at the edge."""
    num_envs, num_steps = 3, 8
    envs = open_envs(toy_env(length=length, ends=ends), num_envs, backend=backend)
    agent = known_agent(envs.spec)
    for update, rollout in enumerate(rollouts(envs, agent, num_steps, 3)):
        assert rollout.valid.all()
        for t in range(num_steps):
            episode, at = divmod(update * num_steps + t, length)
            is_last = at == length - 1
            for env in range(num_envs):
                here, row = episode_seed(SEED, env, episode, num_envs), (t, env)
                assert decode("float32", rollout.obs[row]) == (here, at)
                assert rollout.rewards[row] == toy_reward(at, rollout.actions[row])
                assert rollout.terminated[row] == (is_last and ends != "truncated")
                assert rollout.truncated[row] == (is_last and ends != "terminated")
                assert rollout.values[row] == 1000 * at + here % 1024 + 1
                if ends == "truncated" or not is_last:
                    # the episode's own next observation, also after its last step; never the next episode's first
                    assert rollout.next_values[row] == 1000 * (at + 1) + here % 1024 + 1


@pytest.mark.parametrize("ends", ["terminated", "truncated", "both"])
@pytest.mark.parametrize("length", [3, 4], ids=["inside", "at the edge"])
def test_returns_bootstrap_where_an_episode_was_only_cut(open_envs, backend, ends, length):
    """With lambda 1 the target is the discounted sum of rewards, plus V(final observation) unless that is terminal."""
    num_steps, gamma = 8, 0.5
    envs = open_envs(toy_env(length=length, ends=ends), 2, backend=backend)
    agent = known_agent(envs.spec)
    for rollout in rollouts(envs, agent, num_steps, 2):
        flags = rollout.terminated, rollout.truncated
        _, returns = gae(rollout.rewards, rollout.values, rollout.next_values, *flags, gamma, 1.0)
        for env in range(2):
            for t in range(num_steps):
                seed, at = decode("float32", rollout.obs[t, env])
                steps = min(length - at, num_steps - t)  # to the end of the episode, or of the rollout
                expected = sum(gamma**k * rollout.rewards[t + k, env].item() for k in range(steps))
                if at + steps < length or ends == "truncated":
                    expected += gamma**steps * (1000 * (at + steps) + seed % 1024 + 1)
                assert returns[t, env].item() == pytest.approx(expected, rel=1e-6)


def test_environments_end_at_different_times(open_envs, backend):
    """Each final observation is valued in the row of its own environment: CartPole, cut or fallen."""
    name = "CutCartPole-v0"
    if name not in gymnasium.registry:
        gymnasium.register(name, gymnasium.spec("CartPole-v1").entry_point, max_episode_steps=10)
    num_envs, num_steps = 5, 64
    envs = open_envs(name, num_envs, backend=backend)
    agent = random_agent(envs.spec)
    (rollout,) = rollouts(envs, agent, num_steps, 1)
    cut, fallen = rollout.truncated & ~rollout.terminated, rollout.terminated
    assert cut.any()
    assert fallen.any()
    assert (cut.any(1) & ~cut.all(1)).any()
    twin = gymnasium.make(name)
    for env in range(num_envs):
        episode, obs = 0, twin.reset(seed=episode_seed(SEED, env, 0, num_envs))[0]
        for t in range(num_steps):
            np.testing.assert_array_equal(rollout.obs[t, env], obs)
            obs, _, terminated, truncated, _ = twin.step(rollout.actions[t, env].item())
            if not terminated:
                expected = agent.values(torch.from_numpy(obs)[None]).item()
                assert rollout.next_values[t, env].item() == pytest.approx(expected, abs=1e-5)
            if terminated or truncated:
                episode += 1
                obs, _ = twin.reset(seed=episode_seed(SEED, env, episode, num_envs))


def test_episodes_carry_over_the_edges_of_rollouts(open_envs, backend):
    """Returns and lengths of episodes that span up to three rollouts, keyed by global environment, in order."""
    length, num_steps, num_envs, rank = 7, 3, 2, 1
    envs = open_envs(toy_env(length=length, ends="truncated"), num_envs, rank, 2, backend)
    rewards = np.zeros((0, num_envs))
    ended = 0
    for update, rollout in enumerate(rollouts(envs, known_agent(envs.spec), num_steps, 10, rank * num_envs)):
        rewards = np.concatenate([rewards, rollout.rewards.numpy().astype(np.float64)])
        expected = []
        for t in range(num_steps):
            total = update * num_steps + t + 1
            if total % length == 0:
                returns = rewards[total - length : total].sum(0)
                expected += [(t, rank * num_envs + env, returns[env], length) for env in range(num_envs)]
        assert [dataclasses.astuple(episode) for episode in rollout.episodes] == expected
        ended += len(expected)
    assert ended == 30 // length * num_envs


def test_several_episodes_in_one_rollout(open_envs, backend):
    """Episodes of one step: each has its own return, and none has another's."""
    envs = open_envs(toy_env(length=1), 2, backend=backend)
    for rollout in rollouts(envs, known_agent(envs.spec), 4, 2):
        expected = [(t, env, rollout.rewards[t, env].item(), 1) for t in range(4) for env in range(2)]
        assert [dataclasses.astuple(episode) for episode in rollout.episodes] == expected


# what the agent adds


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
    for update, rollout in enumerate(rollouts(envs, agent, num_steps, 2, first_env)):
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


# H2, H5: where environments live does not matter


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Toy-v0", "ToyMultiDiscrete-v0"])
def test_how_environments_are_spread_over_ranks_does_not_matter(open_envs, env_id):
    """1 rank of 4 environments, 2 of 2, 4 of 1, and 1 rank in worker processes: bit for bit the same rollouts."""
    num_steps, total = 64, 4
    by_layout = {}
    for num_ranks, backend in ((1, "sync"), (1, "async"), (2, "sync"), (4, "sync")):
        num_envs = total // num_ranks
        ranks = []
        for rank in range(num_ranks):
            envs = open_envs(env_id, num_envs, rank, num_ranks, backend)
            agent = random_agent(envs.spec, hidden_sizes=(64, 64))
            ranks.append(list(rollouts(envs, agent, num_steps, 2, first_env=rank * num_envs)))
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


def test_any_number_of_environments_chooses_alike(open_envs):
    """Environment 0's first episode is the same beside 0 to 8 others, to the last bit of its Gaussian actions."""
    seen = []
    for num_envs in (1, 2, 3, 5, 7, 8, 9):
        envs = open_envs("Pendulum-v1", num_envs)
        agent = make_agent(envs.spec, Config(env_id="Pendulum-v1", seed=SEED))
        (rollout,) = rollouts(envs, agent, 150, 1)
        seen.append(rollout.actions[:, 0])
    assert all(torch.equal(each, seen[0]) for each in seen[1:])


# an endless environment has an endless value


def learned_value(envs, treat_truncation_as_termination):
    """V(0) after training on `Endless-v0` by the scripts' loop, without Fabric."""
    config = Config(
        env_id="Endless-v0",
        gamma=0.9,
        num_envs=4,
        num_steps=50,
        learning_rate=1e-2,
        anneal_lr=False,
        update_epochs=10,
        per_rank_batch_size=50,
        max_grad_norm=10.0,
        hidden_sizes=(16,),
        seed=SEED,
    )
    agent = make_agent(envs.spec, config)
    loss_fn = PPOLoss(agent, config)
    optimizer = make_optimizer(loss_fn, config)

    def step(loss):
        optimizer.zero_grad()
        loss.backward()
        return optimizer.step()

    buffer = RolloutBuffer(envs, agent, config.num_steps, first_env=0)
    for update in range(15):
        rollout = collect(envs, agent, buffer, config.seed, update)
        if treat_truncation_as_termination:
            rollout = dataclasses.replace(rollout, terminated=rollout.terminated | rollout.truncated)
        batch = make_batch(rollout, config, ALONE, update, agent.device)
        ppo_update(loss_fn, batch, step, config)
    return agent.values(torch.zeros(1, 2)).item()


def test_a_time_limit_does_not_lower_the_value(open_envs):
    """Reward 1 for ever is worth 1 / (1 - gamma) = 10, though each episode is cut after 20 steps."""
    assert learned_value(open_envs("Endless-v0", 4), treat_truncation_as_termination=False) == pytest.approx(
        10, rel=0.05
    )


def test_a_time_limit_taken_for_an_end_would_lower_the_value(open_envs):
    """The control of the test above: by then the mean over 20 steps of (1 - 0.9^k) / 0.1 = 6.0 would be learned."""
    expected = np.mean([(1 - 0.9**k) / 0.1 for k in range(1, 21)])
    value = learned_value(open_envs("Endless-v0", 4), treat_truncation_as_termination=True)
    assert value == pytest.approx(expected, rel=0.15)
