"""Behaviour cloning, where the best policy and the true values are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.spaces import Packer
from fabric_ppo.ppo import behaviour_cloning
from fabric_ppo.ppo.behaviour_cloning import validate, value_targets
from fabric_ppo.ppo.demonstrated import make_episodes
from fabric_ppo.process.errors import ConfigError, TrainingError
from fabric_ppo.rollouts.demonstrations import Demonstrations, checked_actions
from tests.fixtures.spaces import ACTION_SPACES

FAST = {"learning_rate": 0.05, "per_rank_batch_size": 100_000, "max_grad_norm": 1e3}


def clone(agent, found, config, epochs, validation):
    optimizer = torch.optim.Adam(agent.parameters(), config.initial_learning_rate, eps=config.adam_eps)
    return behaviour_cloning.clone(agent, found, optimizer, config, epochs, validation)


def demonstrate(obs, actions, action, *, rewards=None, lengths=None, terminates=True, final=None):
    """Demonstrations of these rows; by default each row is an episode."""
    lengths = np.ones(len(obs), int) if lengths is None else np.asarray(lengths)
    ends = np.cumsum(lengths) - 1
    last, starts = (np.zeros(len(obs), np.bool_) for _ in range(2))
    last[ends], starts[[0, *(ends[:-1] + 1)]] = True, True
    spec = env_spec("Test-v0", spaces.Box(-np.inf, np.inf, obs.shape[1:]), action)
    rewards = np.zeros(len(obs)) if rewards is None else np.asarray(rewards, float)
    final = obs[ends] if final is None else final
    ended = (last, np.zeros_like(last)) if terminates else (np.zeros_like(last), last)
    return Demonstrations(spec, obs.astype(np.float32), actions, rewards, *ended, starts, final.astype(np.float32))


def linear_agent(spec, **options):
    """Linear in the observation: of one-hot states a table."""
    torch.manual_seed(0)
    return Agent(spec, Architecture("tanh", (), **options))


def test_choices_become_as_frequent_as_they_were_demonstrated():
    """In a table the likelihood is largest where probabilities are frequencies."""
    counts = np.array([[5, 3, 2], [1, 8, 1], [4, 4, 2]])
    pairs = [(state, action) for state in range(3) for action in range(3) for _ in range(counts[state, action])]
    states, actions = np.array(pairs).T
    found = demonstrate(np.eye(3)[states], actions, spaces.Discrete(3))
    agent = linear_agent(found.spec)
    results = clone(agent, found, Config(**FAST), epochs=300, validation=0)
    with torch.no_grad():
        probs = agent.policy_params(agent.features(torch.eye(3))).softmax(-1)
    expected = counts / counts.sum(1, keepdims=True)
    np.testing.assert_allclose(probs, expected, atol=1e-3)
    entropy = -(counts / counts.sum() * np.log(expected)).sum()
    assert results[-1].train_nll == pytest.approx(entropy, abs=1e-4)
    assert np.isnan(results[-1].validation_nll)


def test_each_part_of_nested_actions_is_as_it_was_demonstrated():
    """In a table: frequencies of each choice and bit; of numbers their means, and one deviation for all states."""
    space = spaces.Dict(
        speed=spaces.Box(-2, 2, (1,), np.float64), move=spaces.Discrete(2, start=3), lamps=spaces.MultiBinary(1)
    )
    moves, lamps = np.array([[0] * 6 + [1] * 2, [0] * 2 + [1] * 6]), np.array([[0] + [1] * 7, [1, 0] * 4])
    speeds = np.array([[0.5, 1.5] * 4, [-1.0, -0.6] * 4])
    spec = env_spec("Test-v0", spaces.Box(-np.inf, np.inf, (2,)), space, "rescale")
    assert [path for path, _ in spec.action.parts] == [("speed",), ("move",), ("lamps",)]
    parts = {("speed",): speeds.reshape(-1, 1), ("move",): 3 + moves.ravel(), ("lamps",): lamps.reshape(-1, 1)}
    found = demonstrate(np.eye(2).repeat(8, 0), checked_actions(spec.action, parts), space)
    found = dataclasses.replace(found, spec=spec)
    agent = linear_agent(spec)
    results = clone(agent, found, Config(**FAST), epochs=600, validation=0)
    with torch.no_grad():
        params = agent.policy_params(agent.features(torch.eye(2))).numpy()
    shares = [np.exp(params[:, 1]) / np.exp(params[:, :2]).sum(1), 1 / (1 + np.exp(-params[:, 2]))]
    np.testing.assert_allclose(shares, [moves.mean(1), lamps.mean(1)], atol=2e-3)
    # rescale maps -2 .. 2 to -1 .. 1
    np.testing.assert_allclose(params[:, 3] * 2, speeds.mean(1), atol=2e-3)
    variance = speeds.var(1).mean()
    np.testing.assert_allclose(np.exp(params[:, 4]) * 2, np.sqrt(variance), atol=2e-3)
    choices = [moves.mean(1), lamps.mean(1)]
    entropy = -sum((p * np.log(p) + (1 - p) * np.log(1 - p)).mean() for p in choices)
    entropy += 0.5 * np.log(2 * np.pi * np.e * variance / 4)
    assert results[-1].train_nll == pytest.approx(entropy, abs=1e-3)
    # greedily move 0 with the lamp on in state 0, of 8 rows 5; in state 1 the lamp's bit is as often 0 as 1
    episodes = make_episodes(found, agent, found.rewards, 0.9)
    _, accuracy, squared_error = validate(agent, episodes, np.arange(8))
    assert accuracy == np.mean((moves[0] == 0) & (lamps[0] == 1)) != min(np.mean(moves[0] == 0), np.mean(lamps[0]))
    assert squared_error == pytest.approx(speeds[0].var() / 4, abs=1e-3)


def test_the_entropy_bonus_flattens_choices():
    """With weight 1 the maximum of log-likelihood plus entropy is nearer to uniform than the frequencies."""
    found = demonstrate(np.ones((10, 1)), np.array([0] * 9 + [1]), spaces.Discrete(2))
    agent = linear_agent(found.spec)
    clone(agent, found, Config(**FAST, ent_coef=1.0), epochs=300, validation=0)
    logit = agent.policy_params(agent.features(torch.ones(1, 1)))[0].diff().abs().item()
    p = 1 / (1 + np.exp(-logit))
    # the derivative by the logit of 0.9 log p + 0.1 log(1 - p) + H(p) is zero
    assert (0.9 - p) - p * (1 - p) * logit == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("fit", ["clip", "rescale"])
def test_numbers_become_the_least_squares_solution(fit):
    """In a linear Gaussian policy: means of the regression, and the deviation of its residuals."""
    rng = np.random.default_rng(0)
    obs, weights = rng.normal(size=(400, 3)), rng.normal(size=(3, 2))
    actions = obs @ weights + [0.5, -1] + rng.normal(size=(400, 2)) * [0.3, 2.0]
    scale = 20 if fit == "rescale" else 1
    found = demonstrate(obs, actions.astype(np.float32), spaces.Box(-20, 20, (2,)))
    found = dataclasses.replace(
        found, spec=env_spec("Test-v0", spaces.Box(-9, 9, (3,)), spaces.Box(-20, 20, (2,)), fit)
    )
    agent = linear_agent(found.spec)
    clone(agent, found, Config(**FAST), epochs=600, validation=0)
    design = np.column_stack([obs, np.ones(400)])
    solution, _, _, _ = np.linalg.lstsq(design, actions, rcond=None)
    deviation = np.sqrt(np.mean((actions - design @ solution) ** 2, 0))
    (layer,) = agent.policy.linear_layers
    np.testing.assert_allclose(layer.weight.detach().T * scale, solution[:3], atol=0.02)
    np.testing.assert_allclose(layer.bias.detach() * scale, solution[3], atol=0.02)
    np.testing.assert_allclose(agent.log_std.detach().exp() * scale, deviation, rtol=0.02)


def values_of(agent, count):
    return agent.values(torch.eye(count)).detach().numpy()


def test_values_become_mean_returns():
    """Of a table: 0 -> 1 -> end in the first episode, 1 -> end in the second."""
    found = demonstrate(np.eye(2)[[0, 1, 1]], np.zeros(3, int), spaces.Discrete(2), rewards=[1, 2, 6], lengths=[2, 1])
    agent = linear_agent(found.spec)
    clone(agent, found, Config(**FAST, gamma=0.5), epochs=500, validation=0)
    np.testing.assert_allclose(values_of(agent, 2), [1 + 0.5 * 2, (2 + 6) / 2], atol=0.01)


@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_values_of_truncated_episodes_are_those_of_episodes_that_go_on(recurrent):
    """One state for ever, with reward 1: however soon it is cut off, its value is 1 / (1 - gamma)."""
    found = demonstrate(np.ones((12, 1)), np.zeros(12, int), spaces.Discrete(2), lengths=[4] * 3, terminates=False)
    found = dataclasses.replace(found, rewards=np.ones(12))
    agent = linear_agent(found.spec, recurrent=recurrent, recurrent_size=2 if recurrent == "gru" else 0)
    clone(agent, found, Config(**FAST, gamma=0.8), epochs=600, validation=0)
    values = agent.values(torch.ones(1, 1), torch.zeros(1, agent.memory_size))
    assert values.item() == pytest.approx(5, abs=0.1)


def test_targets_of_a_recurrent_agent_have_what_it_remembers_at_the_end():
    obs = np.arange(7)[:, None] / 7
    given = {"lengths": [2, 4, 1], "terminates": False, "final": np.ones((3, 1))}
    found = demonstrate(obs, np.zeros(7, int), spaces.Discrete(2), **given)
    agent = linear_agent(found.spec, recurrent="lstm", recurrent_size=3)
    episodes = make_episodes(found, agent, np.zeros(7), 0.5)
    targets = value_targets(agent, episodes)
    for first, last in zip(episodes.first, episodes.last, strict=True):
        memory = torch.zeros(1, agent.memory_size)
        for row in range(first, last):
            _, memory = agent.act(episodes.obs[row : row + 1], None, memory)
        final = agent.values(episodes.obs[last : last + 1], memory)
        expected = [0.5 ** (last - row) * final.item() for row in range(first, last)]
        np.testing.assert_allclose(targets[first:last].detach(), expected, rtol=1e-5)


def test_what_has_to_be_remembered_is_imitated_with_memory_only():
    """The first observation says which action the last step takes."""
    bits, rng = np.arange(40) % 2, np.random.default_rng(0)
    obs, actions = np.zeros((40, 3, 1)), np.zeros((40, 3), int)
    obs[:, 0, 0], actions[:, 2] = 2 * bits - 1, bits
    order = rng.permutation(40)
    obs, actions = obs[order].reshape(120, 1), actions[order].ravel()
    found = demonstrate(obs, actions, spaces.Discrete(2), lengths=[3] * 40)
    scores = {}
    for recurrent in ("none", "gru"):
        config = Config(
            learning_rate=0.02, per_rank_batch_size=32, recurrent=recurrent, recurrent_size=8, hidden_sizes=(8,)
        )
        results = clone(make_agent(found.spec, config), found, config, epochs=60, validation=0.2)
        scores[recurrent] = results[-1].accuracy
    assert scores["gru"] == 1
    assert scores["none"] < 0.9, "2 of 3 steps are alike, and one of two in the last"


@pytest.mark.parametrize("state_dependent_std", [False, True])
@pytest.mark.parametrize("action", ACTION_SPACES.values(), ids=ACTION_SPACES)
def test_every_kind_of_action_is_imitated(action, state_dependent_std):
    """One action in each of two states, within what the space has."""
    action.seed(3)
    taken = np.stack([np.asarray(action.sample()) for _ in range(2)])
    states = np.arange(64) % 2
    found = demonstrate(np.eye(2)[states], taken[states], action, lengths=[4] * 16)
    config = Config(
        learning_rate=0.05, per_rank_batch_size=16, hidden_sizes=(8,), state_dependent_std=state_dependent_std
    )
    results = clone(make_agent(found.spec, config), found, config, epochs=60, validation=0.25)
    assert results[-1].validation_nll < results[0].validation_nll
    if isinstance(action, spaces.Box):
        assert np.isnan(results[-1].accuracy)
        # deviations that a network gives shrink first, and with them the steps of the means
        assert results[-1].squared_error < (0.5 if state_dependent_std else 0.05)
    else:
        assert np.isnan(results[-1].squared_error)
        assert results[-1].accuracy == 1


def noisy(episodes=30):
    rng = np.random.default_rng(1)
    obs = rng.normal(size=(episodes * 5, 4))
    actions = (obs[:, 0] + rng.normal(size=len(obs)) > 0).astype(int)
    return demonstrate(obs, actions, spaces.Discrete(2), lengths=[5] * episodes)


@pytest.mark.parametrize("recurrent", ["none", "lstm"])
def test_the_weights_of_the_best_epoch_are_kept(recurrent):
    """A large network learns the noise by heart: the held-out episodes are explained worse in the end."""
    found = noisy()
    config = Config(hidden_sizes=(64,), learning_rate=0.02, per_rank_batch_size=32, recurrent=recurrent)
    agent = make_agent(found.spec, config)
    results = clone(agent, found, config, epochs=20, validation=0.3)
    nlls = [each.validation_nll for each in results]
    assert min(nlls) < nlls[-1]
    _, held_out = behaviour_cloning._split(30, 0.3, config.seed)
    episodes = make_episodes(found, agent, found.rewards, config.gamma)
    assert validate(agent, episodes, held_out)[0] == min(nlls)


def test_whole_episodes_are_held_out_another_part_with_another_seed():
    train, held_out = behaviour_cloning._split(20, 0.2, 1)
    assert sorted([*train, *held_out]) == list(range(20))
    assert len(held_out) == 4
    assert set(held_out) != set(behaviour_cloning._split(20, 0.2, 2)[1])
    assert len(behaviour_cloning._split(20, 0.001, 1)[1]) == 1
    assert len(behaviour_cloning._split(20, 0, 1)[1]) == 0


@pytest.mark.parametrize("recurrent", ["none", "gru"])
def test_the_same_seed_gives_the_same_bits(recurrent):
    def result(seed):
        config = Config(seed=seed, recurrent=recurrent, normalize_observations=True, normalize_rewards=True)
        agent = make_agent(noisy().spec, config)
        return clone(agent, noisy(), config, 3, 0.1), agent.state_dict()

    (first, weights), (again, same), (_, other) = result(1), result(1), result(2)
    assert [str(each) for each in first] == [str(each) for each in again]
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert not all(torch.equal(weights[name], other[name]) for name in weights)


def test_a_single_episode_can_not_be_held_out():
    found = demonstrate(np.ones((3, 1)), np.zeros(3, int), spaces.Discrete(2), lengths=[3])
    with pytest.raises(ConfigError, match=r"--validation 0\.1: it holds out 1 of 1 .*--validation 0 holds out none"):
        clone(linear_agent(found.spec), found, Config(), 1, 0.1)


def test_an_action_that_its_mask_excludes_is_refused():
    space = spaces.Dict({"action_mask": spaces.MultiBinary(3), "x": spaces.Box(-1, 1, (1,))})
    spec = env_spec("Test-v0", space, spaces.Discrete(3))
    masks = [[1, 1, 0], [1, 1, 1], [0, 1, 1], [1, 1, 0]]
    obs = np.stack(
        [Packer(spec.observation)({"action_mask": np.array(m, np.int8), "x": np.zeros(1, np.float32)}) for m in masks]
    )
    plain = demonstrate(np.zeros((4, 1)), np.array([0, 2, 1, 1]), spaces.Discrete(3), lengths=[2, 2])
    found = dataclasses.replace(plain, spec=spec, obs=obs, final_obs=obs[:2])
    config = Config(per_rank_batch_size=2)
    results = clone(make_agent(spec, config), found, config, 5, 0)
    assert results[-1].train_nll < results[0].train_nll
    wrong = dataclasses.replace(found, actions=np.array([0, 2, 1, 2]))
    with pytest.raises(
        ConfigError, match="an action that its action_mask excludes, in step 1 of episode 1; a possible"
    ):
        clone(make_agent(spec, config), wrong, config, 5, 0)


def test_a_number_far_from_its_mean_is_no_choice_that_is_excluded():
    """Its density is as small as an impossible choice's probability."""
    actions = spaces.Dict(move=spaces.Discrete(2), far=spaces.Box(-np.inf, np.inf, (1,)))
    seen = spaces.Dict({"action_mask": spaces.MultiBinary(2), "x": spaces.Box(-1, 1, (1,))})
    spec = env_spec("Test-v0", seen, actions)
    row = Packer(spec.observation)({"action_mask": np.array([1, 0], np.int8), "x": np.zeros(1, np.float32)})
    obs = np.stack([row] * 2)

    def taken(move):
        columns = {("move",): np.array([0, move]), ("far",): np.full((2, 1), 1e5)}
        plain = demonstrate(np.zeros((2, 1)), checked_actions(spec.action, columns), actions, lengths=[2])
        return dataclasses.replace(plain, spec=spec, obs=obs, final_obs=obs[:1])

    agent = make_agent(spec, Config())
    clone(agent, taken(0), Config(), 1, 0)
    with pytest.raises(ConfigError, match="its action_mask excludes, in step 1 of episode 0"):
        clone(agent, taken(1), Config(), 1, 0)


def test_a_loss_that_is_not_finite_ends_the_training():
    found = demonstrate(np.full((4, 1), 1e20), np.ones(4, int), spaces.Discrete(2), rewards=[1e30] * 4)
    with pytest.raises(TrainingError, match="the loss is not finite in epoch 1; a smaller --learning-rate"):
        clone(linear_agent(found.spec), found, Config(), 3, 0)


def test_an_atari_game_is_learned_from_by_the_signs_of_its_rewards():
    found = demonstrate(np.ones((2, 1)), np.zeros(2, int), spaces.Discrete(2), rewards=[400, -7])
    found = dataclasses.replace(found, spec=dataclasses.replace(found.spec, wrapper="atari"))
    rewards = behaviour_cloning.take_statistics(linear_agent(found.spec), found, np.arange(2))
    assert rewards.tolist() == [1, -1]
