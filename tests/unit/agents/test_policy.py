"""Policies, as they were and loaded again, held against the agent itself and against PyTorch's LSTM."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from fabric_ppo.agents import policy as policy_module
from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.policy import Policy, load_agent
from fabric_ppo.agents.policy_file import save_policy, start_from
from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.seeding import evaluation_seed
from tests.fixtures.agents import agent_for
from tests.fixtures.configs import TINY, tiny
from tests.fixtures.recurrent import layer_of
from tests.fixtures.spaces import sample_many
from tests.fixtures.toy_envs import ACTIONS, OBSERVATIONS, toy_env

NESTED = "tests.fixtures.nested_envs:Nested-v0"
RECURRENT = tiny(recurrent="lstm", recurrent_size=5, hidden_sizes=(7,), activation_function="tanh")


def save_and_load(agent, folder):
    save_policy(agent, folder)
    return load_agent(folder)


@pytest.mark.parametrize("observation", list(OBSERVATIONS))
@pytest.mark.parametrize("action", list(ACTIONS))
def test_a_loaded_policy_acts_and_values_as_the_agent_did(tmp_path, observation, action):
    """Exactly as in memory, to rounding as the networks' training pass; a batch as each of its rows alone."""
    agent = agent_for(toy_env(observation=observation, action=action), activation="relu")
    kept, loaded = Policy(agent), save_and_load(agent, tmp_path)
    obs = sample_many(OBSERVATIONS[observation], 13)
    actions, values = loaded.act(obs), loaded.value(obs)
    np.testing.assert_array_equal(actions, kept.act(obs))
    np.testing.assert_array_equal(values, kept.value(obs))
    expected = agent(torch.from_numpy(obs), torch.zeros(13, *agent.distribution.action_shape, dtype=torch.int64))
    np.testing.assert_allclose(values, expected.values.detach(), rtol=1e-5, atol=1e-5)
    assert len(np.unique(values)) > 3
    for row in range(13):
        np.testing.assert_array_equal(loaded.act(obs[row]), actions[row])
        np.testing.assert_array_equal(loaded.value(obs[row]), values[row])
        assert loaded.act(obs[row]).shape == ACTIONS[action].shape
        assert loaded.value(obs[row]).shape == ()
    for count in (1, 7, 8):
        np.testing.assert_array_equal(loaded.act(obs[:count]), actions[:count])
        np.testing.assert_array_equal(loaded.value(obs[:count]), values[:count])


class Residual(nn.Module):
    """A network of one's own: no Sequential, with layers of other names."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.into, self.hidden, self.out = nn.Linear(inputs, 9), nn.Linear(9, 9), nn.Linear(9, outputs)

    def forward(self, features):
        first = self.into(features)
        return self.out(first + nn.functional.silu(self.hidden(first)))


class OwnNetworks(Agent):
    """As an edit of `Agent` makes them."""

    def __init__(self, *args):
        super().__init__(*args)
        width = self.encoder.num_features
        self.policy, self.value = Residual(width, self.distribution.num_params), Residual(width, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_policy_of_ones_own_networks_can_be_loaded(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(policy_module, "Agent", OwnNetworks)
    usual = agent_for(toy_env(action="discrete"))
    agent = OwnNetworks(usual.spec, usual.architecture).to(dtype)
    obs = sample_many(OBSERVATIONS["float32"], 13)
    loaded = save_and_load(agent, tmp_path)
    expected = agent.value(agent.encoder(torch.from_numpy(obs), dtype)).squeeze(-1)
    np.testing.assert_allclose(loaded.value(obs), expected.detach(), rtol=1e-5)


@pytest.mark.parametrize("with_noise", [False, True])
@pytest.mark.parametrize("action", list(ACTIONS))
def test_actions_are_ready_for_the_environment(action, with_noise):
    """Each is an element of the action space: choices from `start` up, clipped to the bounds, of the space's type."""
    env_id = toy_env(action=action)
    agent, space = agent_for(env_id), ACTIONS[action]
    with torch.no_grad():  # beyond every bound
        agent.policy.linear_layers[-1].weight *= 100
    policy = Policy(agent)
    obs = sample_many(OBSERVATIONS["float32"], 32)
    uniform = np.random.default_rng(0).uniform(size=(32, policy.noise_size)) if with_noise else None
    actions = policy.act(obs, uniform)
    assert actions.dtype == space.dtype
    assert all(space.contains(each) for each in actions)
    assert len(np.unique(actions, axis=0)) > 1
    if action == "discrete_start":
        logits = agent.policy(agent.encoder(torch.from_numpy(obs), torch.float32)).detach().numpy()
        logits = logits if uniform is None else logits - np.log(-np.log(uniform))
        np.testing.assert_array_equal(actions, 5 + logits.argmax(-1))


def test_loading_opens_no_environment(tmp_path, monkeypatch):
    agent = agent_for()
    save_policy(agent, tmp_path)
    monkeypatch.setattr(gymnasium, "make", lambda *args, **kwargs: pytest.fail("opened an environment"))
    assert load_agent(tmp_path).spec == agent.spec


@pytest.mark.parametrize(
    ("env_id", "expected"), [("CartPole-v1", "(4,)"), ("Toy-v0", "(2, 2)"), ("ToyUint8-v0", "(2, 3)")]
)
def test_observations_of_another_shape_are_refused(env_id, expected):
    """With the shape that they have, and the one that is expected."""
    policy = Policy(agent_for(env_id))
    for shape in [(), (3,), (5, 3), (2, 2, 2, 2)]:
        for method in (policy.act, policy.value):
            with pytest.raises(ValueError, match="shape") as caught:
                method(np.zeros(shape))
            assert str(shape) in str(caught.value)
            assert expected in str(caught.value)


def test_a_policy_takes_nested_observations_one_or_many(tmp_path):
    policy = load_agent(train(Config(**TINY, env_id=NESTED, run_dir=str(tmp_path / "run"))))
    env = gymnasium.make(NESTED)
    obs = [env.observation_space.sample() for _ in range(11)]
    assert [policy.act(each) for each in obs] == policy.act(obs).tolist()
    rows = np.stack([policy.pack(each) for each in obs])
    assert np.array_equal(policy.value(rows), policy.value(obs))


def test_a_trained_agent_remembers(tmp_path):
    """`load_agent` and `evaluate`, against PyTorch's LSTM along the same episodes."""
    run_dir = train(Config(**RECURRENT | {"total_timesteps": 512}, run_dir=str(tmp_path / "run")))
    policy = load_agent(run_dir)
    assert policy.memory_size == 10
    played = evaluate(policy, 3, seed=5)
    agent, layer = policy._agent, layer_of(policy._agent.memory)
    for episode, length in enumerate(played.lengths):
        env, seen, ended = gymnasium.make("CartPole-v1"), [], False
        obs, _ = env.reset(seed=evaluation_seed(5, episode))
        memory, batch_memory = policy.new_memory(), policy.new_memory(2)
        while not ended:
            seen.append(obs)
            with torch.no_grad():
                outputs = layer(torch.from_numpy(np.stack(seen))[None])[0][0]
                expected = agent.distribution.mode(agent.policy_params(outputs))[-1].item()
                value = agent.state_values(outputs)[-1].item()
            assert policy.value(obs, memory) == pytest.approx(value, rel=1e-4, abs=1e-5)
            action = policy.act(obs, memory=memory)
            assert action == expected
            np.testing.assert_array_equal(policy.act(np.stack([obs, obs]), memory=batch_memory), [expected] * 2)
            obs, _, terminated, truncated, _ = env.step(action.item())
            ended = terminated or truncated
        assert len(seen) == length
        np.testing.assert_allclose(batch_memory, np.stack([memory, memory]))
    assert Policy(agent).act(obs) == policy.act(obs, memory=policy.new_memory())
    with pytest.raises(ValueError, match=r"memory has shape \(10,\): \(2, 10\), from new_memory, is expected"):
        policy.act(np.stack([obs, obs]), memory=policy.new_memory())


@pytest.mark.parametrize(
    ("space", "obs", "message"),
    [
        (spaces.Box(-9, 9, (2,), np.float32), np.array([1e39, 0]), r"not finite as float32: 1e\+39 in entry \[0\]$"),
        (
            spaces.Box(-9, 9, (2,), np.float64),
            np.array([[0, 1e39]]),
            r"not finite as float32: 1e\+39 in entry \[0, 1\]$",
        ),
        (spaces.Box(-9, 9, (2,), np.float32), [np.nan, 0], r"not finite: nan in entry \[0\]$"),
        (spaces.Box(0, 9, (2,), np.uint8), np.array([0.5, 0]), r"declared uint8 cannot hold 0\.5; declare float64, .*"),
        (spaces.Box(0, 9, (2,), np.uint8), [300, 0], r"declared uint8 cannot hold 300; .*"),
        (spaces.Box(-9, 9, (2,), np.float32), None, r"None \(NoneType\); .*"),
        (spaces.Discrete(4), 7, r"that is 7; a whole number from 0 to 3 is expected$"),
        (spaces.Discrete(4), [1, 7], r"that is 7 in entry \[1\]; a whole number from 0 to 3 is expected$"),
        (spaces.Dict(a=spaces.Discrete(4)), {"a": 7}, r"whose a is 7; .*"),
    ],
)
def test_observations_that_the_space_cannot_hold_are_refused(space, obs, message):
    policy = Policy(Agent(env_spec("Test-v0", space, spaces.Discrete(2)), Architecture("tanh", (4,))))
    for method in (policy.act, policy.value):
        with pytest.raises(ValueError, match=f"^an observation .*{message}"):
            method(obs)


def test_a_policy_takes_the_whole_of_an_observation_of_which_it_sees_parts(tmp_path):
    """The file says which parts: a run with another choice is not to be gone on with from it."""
    space = spaces.Dict(
        image=spaces.Box(0, 255, (8, 8, 3), np.uint8), text=spaces.Text(3), more=spaces.Box(-1, 1, (2,))
    )
    spec = env_spec("Test-v0", space, spaces.Discrete(5), obs_keys="image")
    agent = Agent(spec, Architecture("tanh", (4,), encoder="impala"))
    policy = save_and_load(agent, tmp_path)
    assert policy.spec == spec
    obs = [{**space.sample(), "text": each} for each in ("a", None, 3)]
    images = torch.from_numpy(np.stack([each["image"] for each in obs]))
    alone = Agent(env_spec("Test-v0", space["image"], spaces.Discrete(5)), agent.architecture)
    alone.load_state_dict(agent.state_dict())
    torch.testing.assert_close(torch.from_numpy(policy.value(obs)), alone.values(images).detach())
    assert policy.act(obs).tolist() == alone.act(images, None)[0].tolist()
    other = Agent(env_spec("Test-v0", space, spaces.Discrete(5), obs_keys="image,more"), agent.architecture)
    with pytest.raises(ConfigError, match=r"^--init-from .*: its observations are .* are expected$"):
        start_from(other, str(tmp_path))


def test_a_run_goes_on_only_from_a_policy_whose_value_network_takes_the_same(tmp_path):
    """From one without parts of its own, with them, and with others: each is named."""
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Box(-1, 1, (2,)), c=spaces.Discrete(3))
    keys = ("", "c", "b,c", "b")
    specs = [env_spec("Test-v0", space, spaces.Discrete(5), critic_keys=each) for each in keys]
    agents = [Agent(spec, Architecture("tanh", (4,))) for spec in specs]
    for trained in agents:
        save_policy(trained, tmp_path)
        for agent in agents:
            if agent is trained:
                start_from(agent, str(tmp_path))
                continue
            with pytest.raises(ConfigError, match=r"^--init-from .*: its observations are (.*); this run's, (.*), are"):
                start_from(agent, str(tmp_path))


def test_a_tuple_may_end_with_a_dict_that_the_policy_does_not_see():
    """It is no pair of an observation and its `info`; where the policy's part is later, something stands before it."""
    space = spaces.Tuple((spaces.Box(-1, 1, (2,)), spaces.Dict(a=spaces.Discrete(3))))
    for keys, without in (("1", (np.ones(2, np.float32),)), ("0", (None, {"a": 2}))):
        agent = Agent(env_spec("Test-v0", space, spaces.Discrete(5), critic_keys=keys), Architecture("tanh", (4,)))
        policy, whole = Policy(agent), (np.ones(2, np.float32), {"a": 2})
        assert policy.act(whole) == policy.act(without)
        assert np.isfinite(policy.value(whole))
        with pytest.raises(ValueError, match=r"has no 1.a: a tuple with 0, 1.a|whose 0 is None"):
            policy.value(without)


def test_tensors_with_a_gradient_are_observations():
    """One, a batch, one as a list of its numbers, and parts of a Dict."""
    policy, obs = Policy(agent_for(toy_env(), activation="relu")), sample_many(OBSERVATIONS["float32"], 3)
    expected, with_gradient = policy.value(obs), torch.from_numpy(obs).requires_grad_()
    np.testing.assert_array_equal(policy.value(with_gradient), expected)
    np.testing.assert_array_equal(policy.value(torch.nn.Parameter(with_gradient)), expected)
    np.testing.assert_array_equal(policy.value(with_gradient[0]), policy.value(obs[0]))
    np.testing.assert_array_equal(policy.value(list(with_gradient[0])), policy.value(obs[0]))
    np.testing.assert_array_equal(policy.act(with_gradient), policy.act(obs))
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Tuple([spaces.Box(-1, 1, (3,))]))
    architecture = Architecture(activation_function="relu", hidden_sizes=(8,), encoder="auto")
    nested = Policy(Agent(env_spec("Test-v0", space, spaces.Discrete(2)), architecture))
    parts = {"a": torch.ones(4, 2, requires_grad=True), "b": (torch.ones(4, 3, requires_grad=True),)}
    arrays = {"a": np.ones((4, 2), np.float32), "b": (np.ones((4, 3), np.float32),)}
    np.testing.assert_array_equal(nested.value(parts), nested.value(arrays))
