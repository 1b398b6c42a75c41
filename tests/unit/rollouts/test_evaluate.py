"""Test episodes: held against a plain loop over Gymnasium."""

from __future__ import annotations

import json

import gymnasium
import numpy as np
import pytest
import torch

from fabric_ppo.agents.policy import Policy
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.process.errors import EnvironmentFault
from fabric_ppo.rollouts import evaluate as evaluation
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.seeding import Stream, episode_seed, evaluation_seed, uniforms
from tests.fixtures.agents import agent_for
from tests.fixtures.toy_envs import ACTIONS, OBSERVATIONS, decode, encode, toy_env

SEED = 5


def plain_loop(agent, episodes, seed, is_stochastic=False):
    """Returns and lengths, from the definition: one environment, one episode after the other."""
    space, returns, lengths = agent.spec.action, [], []
    env = gymnasium.make(agent.spec.env_id)
    for episode in range(episodes):
        obs, _ = env.reset(seed=evaluation_seed(seed, episode))
        ret, length, ended = 0.0, 0, False
        while not ended:
            with torch.no_grad():
                features = torch.from_numpy(np.asarray(obs)).float().flatten()
                out = torch.nn.Sequential(*agent.policy)(features[None])[0].double().numpy()
            if is_stochastic:
                uniform = uniforms(seed, Stream.TEST_ACTION, (episode, length), 0, len(out))
                assert space.kind == "discrete"
                out = out - np.log(-np.log(uniform))
            action = int(out.argmax()) if space.kind == "discrete" else np.clip(np.float32(out), -2, 2)
            obs, reward, terminated, truncated, _ = env.step(action)
            ret, length, ended = ret + float(reward), length + 1, terminated or truncated
        returns.append(ret)
        lengths.append(length)
    return returns, lengths


@pytest.mark.parametrize("is_stochastic", [False, True])
def test_results_are_those_of_a_plain_loop(monkeypatch, is_stochastic):
    """However many environments play at once, and however many episodes follow."""
    agent = agent_for("CartPole-v1", seed=4)
    returns, lengths = plain_loop(agent, 19, SEED, is_stochastic)
    assert len(set(returns)) > 5
    for slots in (8, 1, 3, 16, 64):
        monkeypatch.setattr(evaluation, "_SLOTS", slots)
        got = evaluate(Policy(agent), 19, SEED, stochastic=is_stochastic)
        assert (got.returns, got.lengths) == (returns, lengths), slots
    monkeypatch.undo()
    for episodes in (1, 2, 8, 9):
        got = evaluate(Policy(agent), episodes, SEED, stochastic=is_stochastic)
        assert (got.returns, got.lengths) == (returns[:episodes], lengths[:episodes])


def test_an_episode_does_not_depend_on_those_before_it():
    """BipedalWalker's world outlives `reset`: what was played before in the same environment must not show."""
    policy = Policy(agent_for("BipedalWalker-v3", (64, 64), seed=1))
    side_by_side = evaluate(policy, 6, 0)
    in_turn = evaluate(policy, 6, 0, render_mode="rgb_array")  # which takes one environment
    assert len(set(side_by_side.returns)) == 6
    assert in_turn == side_by_side


class BoundedPolicy(Policy):
    """Gives up after a thousand calls, where an episode that was cut is not taken for one that ended."""

    calls = 0

    def act(self, obs, noise=None, memory=None):
        self.calls += 1
        assert self.calls < 1000
        return super().act(obs, noise, memory)


def test_continuous_actions_are_clipped_as_the_environment_wants():
    agent = agent_for("Pendulum-v1", seed=3)
    with torch.no_grad():
        agent.policy.linear_layers[-1].weight *= 30
    returns, lengths = plain_loop(agent, 2, SEED)
    got = evaluate(BoundedPolicy(agent), 2, SEED)
    assert got.lengths == lengths == [200, 200]
    np.testing.assert_allclose(got.returns, returns, rtol=1e-4)


def test_sampling_depends_on_the_seed_and_on_nothing_else():
    policy = Policy(agent_for("CartPole-v1", seed=4))
    greedy, first, again, other = (
        evaluate(policy, 10, seed, stochastic=is_stochastic).returns
        for seed, is_stochastic in ((SEED, False), (SEED, True), (SEED, True), (SEED + 1, True))
    )
    assert first == again
    assert first != greedy
    assert first != other


class Recorder:
    """A policy that keeps the observations it is given."""

    def __init__(self, env_id):
        self.spec = env_spec(env_id, OBSERVATIONS["float32"], ACTIONS["discrete"])
        self.noise_size = 3
        self.new_memory = lambda: np.zeros(0)
        self.seen = []

    def act(self, obs, noise, memory):
        self.seen += [decode("float32", row) for row in obs]
        assert len(self.seen) < 1000
        return np.zeros(len(obs), np.int64)


@pytest.mark.parametrize("ends", ["terminated", "truncated", "both"])
def test_each_episode_is_played_once_from_a_seed_of_its_own(ends):
    """The k-th from `evaluation_seed(seed, k)`, to its end, with seeds that no training episode can have."""
    length, episodes = 4, 11
    policy = Recorder(toy_env(length=length, ends=ends))
    result = evaluate(policy, episodes, SEED)
    seeds = [evaluation_seed(SEED, episode) for episode in range(episodes)]
    assert sorted(policy.seen) == sorted((seed, step) for seed in seeds for step in range(length))
    assert result.lengths == [length] * episodes
    assert result.returns == [sum(100.0 * step for step in range(length))] * episodes
    assert len(set(seeds)) == episodes
    training = {episode_seed(SEED, env, episode, 8) for env in range(8) for episode in range(500)}
    assert not training & set(seeds)
    assert decode("float32", encode("float32", max(seeds), 0))[0] == max(seeds) >= 2**30


def test_the_summary_of_a_result():
    """Mean and population deviation of returns, mean length; plain numbers that JSON takes."""
    result = evaluation.TestResult([1.0, 2.0, 6.0], [1, 2, 3])
    got = json.loads(json.dumps(result.to_dict()))
    assert got.pop("returns") == [1.0, 2.0, 6.0]
    assert got == pytest.approx(
        {"episodes": 3, "cut_off": 0, "return_mean": 3, "return_std": (14 / 3) ** 0.5, "length_mean": 2}
    )


@pytest.mark.parametrize("fault", ["nan_obs", "inf_obs", "nan_reward", "inf_reward"])
def test_values_that_are_not_finite_are_faults(fault):
    """NaN is no JSON, and a policy makes something of any observation."""
    env_id = toy_env(length=5, fault=fault, at=2, only_seed=evaluation_seed(SEED, 1))
    where = f"test episode 1, seed {evaluation_seed(SEED, 1)}, step 3: step returned .* not finite"
    with pytest.raises(EnvironmentFault, match=where):
        evaluate(Recorder(env_id), 3, SEED)


def test_an_environment_that_fails_is_named():
    """As in training: which episode, from which seed, so that it can be rebuilt; with the environment's own error."""
    policy = Recorder(toy_env(length=5, fault="raise", at=2, only_seed=evaluation_seed(SEED, 1)))
    with pytest.raises(Exception, match="told to raise") as caught:
        evaluate(policy, 3, SEED)
    assert str(evaluation_seed(SEED, 1)) in str(caught.value).replace(policy.spec.env_id, "")


def test_the_error_of_an_environment_is_shown_where_it_was_raised():
    with pytest.raises(EnvironmentFault) as caught:
        evaluate(Recorder(toy_env(length=5, fault="raise", at=2)), 1, SEED)
    place, *trace = str(caught.value).splitlines()
    assert "step 3: step raised " in place
    assert any("toy_envs.py" in line for line in trace)
