"""Policies, saved, loaded and tried: held against the agent itself and against a plain loop over Gymnasium."""

from __future__ import annotations

import json
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.policy import Policy, load_agent
from fabric_ppo.agents.policy_file import POLICY_FILE, save_policy
from fabric_ppo.envs.spaces import env_spec
from fabric_ppo.process.errors import ConfigError, EnvironmentFault
from fabric_ppo.rollouts import evaluate as evaluation
from fabric_ppo.rollouts.evaluate import evaluate
from fabric_ppo.seeding import Stream, episode_seed, evaluation_seed, uniforms
from tests.toy_envs import ACTIONS, OBSERVATIONS, decode, encode, toy_env

SEED = 5


def make_agent(env_id="CartPole-v1", seed=0, hidden_sizes=(16,), activation="tanh"):
    """An agent for an environment, with weights whose choices depend on what it sees."""
    with gymnasium.make(env_id) as env:
        spec = env_spec(env_id, env.observation_space, env.action_space)
    torch.manual_seed(seed)
    agent = Agent(spec, Architecture(activation, hidden_sizes))
    if env_id.startswith("Toy") and spec.observation.dtype.startswith("float"):
        with torch.no_grad():  # inputs up to 1000 would saturate it
            for network in (agent.policy, agent.value):
                network.linear_layers[0].weight *= 0.01
    return agent


def save_and_load(agent, folder):
    save_policy(agent, folder)
    return load_agent(folder)


def some_obs(space, count, seed=0):
    """Observations, `[count, ...]`."""
    if isinstance(space, gymnasium.spaces.Box) and np.isinf(space.high).any():
        return np.random.default_rng(seed).uniform(0, 1000, (count, *space.shape)).astype(space.dtype)
    space.seed(seed)
    return np.stack([np.asarray(space.sample()) for _ in range(count)])


# what a saved policy is


@pytest.mark.parametrize("observation", list(OBSERVATIONS))
@pytest.mark.parametrize("action", list(ACTIONS))
def test_a_loaded_policy_acts_and_values_as_the_agent_did(tmp_path, observation, action):
    """Exactly as in memory, to rounding as the networks' training pass; a batch as each of its rows alone."""
    agent = make_agent(toy_env(observation=observation, action=action), activation="relu")
    kept, loaded = Policy(agent), save_and_load(agent, tmp_path)
    obs = some_obs(OBSERVATIONS[observation], 13)
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


@pytest.mark.parametrize("with_noise", [False, True])
@pytest.mark.parametrize("action", list(ACTIONS))
def test_actions_are_ready_for_the_environment(action, with_noise):
    """Each is an element of the action space: choices from `start` up, clipped to the bounds, of the space's type."""
    env_id = toy_env(action=action)
    agent, space = make_agent(env_id), ACTIONS[action]
    with torch.no_grad():  # beyond every bound
        agent.policy.linear_layers[-1].weight *= 100
    policy = Policy(agent)
    obs = some_obs(OBSERVATIONS["float32"], 32)
    uniform = np.random.default_rng(0).uniform(size=(32, policy.noise_size)) if with_noise else None
    actions = policy.act(obs, uniform)
    assert actions.dtype == space.dtype
    assert all(space.contains(each) for each in actions)
    assert len(np.unique(actions, axis=0)) > 1
    if action == "discrete_start":
        logits = agent.policy(agent.encoder(torch.from_numpy(obs), torch.float32)).detach().numpy()
        logits = logits if uniform is None else logits - np.log(-np.log(uniform))
        np.testing.assert_array_equal(actions, 5 + logits.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_file_is_the_state_dict_and_what_rebuilds_the_agent(tmp_path, dtype):
    """Names without prefix, and JSON beside them; every bit and the type come back, the activation too."""
    agent = make_agent("Pendulum-v1", activation="relu", hidden_sizes=(8, 4)).to(dtype)
    save_policy(agent, tmp_path)
    with safe_open(tmp_path / POLICY_FILE, framework="pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    assert weights.keys() == agent.state_dict().keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in agent.state_dict().items())
    assert all(tensor.dtype == dtype for tensor in weights.values())
    assert json.loads(metadata["env_spec"])["env_id"] == "Pendulum-v1"
    assert json.loads(metadata["agent"]) == {
        "activation_function": "relu",
        "hidden_sizes": [8, 4],
        "normalize_observations": False,
        "reward_discount": None,
        "encoder": "flatten",
        "shared_trunk": False,
        "layer_norm": False,
        "state_dependent_std": False,
        "log_std_min": None,
        "log_std_max": None,
        "recurrent": "none",
        "recurrent_size": 0,
    }
    obs = some_obs(gymnasium.make("Pendulum-v1").observation_space, 8)
    np.testing.assert_array_equal(load_agent(tmp_path).value(obs), Policy(agent).value(obs))
    before = (tmp_path / POLICY_FILE).read_bytes()
    save_policy(agent, tmp_path)
    assert (tmp_path / POLICY_FILE).read_bytes() == before


def test_loading_opens_no_environment(tmp_path, monkeypatch):
    agent = make_agent()
    save_policy(agent, tmp_path)
    monkeypatch.setattr(gymnasium, "make", lambda *args, **kwargs: pytest.fail("opened an environment"))
    assert load_agent(tmp_path).spec == agent.spec


# what cannot be loaded


def refusal(folder):
    """The one line that `load_agent` raises."""
    with pytest.raises(ConfigError) as caught:
        load_agent(folder)
    message = str(caught.value)
    assert message.startswith(str(folder))
    assert "\n" not in message
    return message


def test_a_folder_without_a_policy_is_refused(tmp_path):
    assert POLICY_FILE in refusal(tmp_path)
    refusal(tmp_path / "missing")
    (tmp_path / POLICY_FILE).mkdir()
    refusal(tmp_path)


def test_a_truncated_policy_is_refused(tmp_path):
    """Wherever it was cut."""
    save_policy(make_agent(), tmp_path)
    content = (tmp_path / POLICY_FILE).read_bytes()
    for size in [0, 1, 7, 8, 9, *range(20, len(content), 97), len(content) - 1]:
        (tmp_path / POLICY_FILE).write_bytes(content[:size])
        refusal(tmp_path)


def test_a_damaged_header_never_shows_a_traceback(tmp_path):
    """Any byte of the header changed: it loads, or it is refused in one line."""
    save_policy(make_agent(hidden_sizes=(3,)), tmp_path)
    content = (tmp_path / POLICY_FILE).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    refused = 0
    for position in range(header):
        for mask in (0x01, 0x12):
            damaged = bytearray(content)
            damaged[position] ^= mask
            (tmp_path / POLICY_FILE).write_bytes(damaged)
            try:
                load_agent(tmp_path)
            except ConfigError as error:
                refused += 1
                assert "\n" not in str(error)  # noqa: PT017
    assert refused > header


@pytest.mark.parametrize(
    "change",
    [
        lambda weights, metadata: ({}, metadata),
        lambda weights, metadata: (weights, None),
        lambda weights, metadata: (weights, {"env_spec": metadata["env_spec"]}),
        lambda weights, metadata: (weights, metadata | {"env_spec": "[]"}),
        lambda weights, metadata: (weights, metadata | {"env_spec": "{"}),
        lambda weights, metadata: (weights, metadata | {"env_spec": '{"env_id": "a", "observation": 1, "action": 2}'}),
        lambda weights, metadata: (
            weights,
            metadata | {"agent": '{"activation_function": "sine", "hidden_sizes": [16]}'},
        ),
        lambda weights, metadata: (weights, metadata | {"agent": "null"}),
        lambda weights, metadata: (weights | {"extra": torch.zeros(1)}, metadata),
        lambda weights, metadata: (weights | {"value.0.weight": torch.zeros(1)}, metadata),
        lambda weights, metadata: ({name: tensor.long() for name, tensor in weights.items()}, metadata),
    ],
    ids=[
        "no weights",
        "no metadata",
        "no agent",
        "no spec",
        "no JSON",
        "no spaces",
        "unknown activation",
        "no architecture",
        "extra weight",
        "wrong shape",
        "integers",
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, change):
    save_policy(make_agent(), tmp_path)
    with safe_open(tmp_path / POLICY_FILE, framework="pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    weights, metadata = change(weights, metadata)
    save_file(weights, tmp_path / POLICY_FILE, metadata)
    refusal(tmp_path)


@pytest.mark.parametrize(
    ("env_id", "expected"), [("CartPole-v1", "(4,)"), ("Toy-v0", "(2, 2)"), ("ToyUint8-v0", "(2, 3)")]
)
def test_observations_of_another_shape_are_refused(env_id, expected):
    """With the shape that they have, and the one that is expected."""
    policy = Policy(make_agent(env_id))
    for shape in [(), (3,), (5, 3), (2, 2, 2, 2)]:
        for method in (policy.act, policy.value):
            with pytest.raises(ValueError, match="shape") as caught:
                method(np.zeros(shape))
            assert str(shape) in str(caught.value)
            assert expected in str(caught.value)


# test episodes


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
    agent = make_agent("CartPole-v1", seed=4)
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
    policy = Policy(make_agent("BipedalWalker-v3", seed=1, hidden_sizes=(64, 64)))
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
    agent = make_agent("Pendulum-v1", seed=3)
    with torch.no_grad():
        agent.policy.linear_layers[-1].weight *= 30
    returns, lengths = plain_loop(agent, 2, SEED)
    got = evaluate(BoundedPolicy(agent), 2, SEED)
    assert got.lengths == lengths == [200, 200]
    np.testing.assert_allclose(got.returns, returns, rtol=1e-4)


def test_sampling_depends_on_the_seed_and_on_nothing_else():
    policy = Policy(make_agent("CartPole-v1", seed=4))
    greedy, first, again, other = (
        evaluate(policy, 10, seed, stochastic=is_stochastic).returns
        for seed, is_stochastic in ((SEED, False), (SEED, True), (SEED, True), (SEED + 1, True))
    )
    assert first == again
    assert first != greedy
    assert first != other


class Recorder:
    """A policy that keeps what it is shown."""

    def __init__(self, env_id):
        self.spec = SimpleNamespace(env_id=env_id, wrapper="")
        self.noise_size = 3
        self.pack = np.asarray
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
    assert got == pytest.approx({"episodes": 3, "return_mean": 3, "return_std": (14 / 3) ** 0.5, "length_mean": 2})


@pytest.mark.parametrize("fault", ["nan_obs", "inf_obs", "nan_reward", "inf_reward"])
def test_what_is_not_finite_is_no_result(fault):
    """NaN is no JSON, and a policy makes something of any observation."""
    env_id = toy_env(length=5, fault=fault, at=2, only_seed=evaluation_seed(SEED, 1))
    where = f"^test episode 1, seed {evaluation_seed(SEED, 1)}: step returned .* not finite"
    with pytest.raises(EnvironmentFault, match=where):
        evaluate(Recorder(env_id), 3, SEED)


def test_an_environment_that_fails_is_named():
    """As in training: which episode, from which seed, so that it can be rebuilt; with the environment's own error."""
    policy = Recorder(toy_env(length=5, fault="raise", at=2, only_seed=evaluation_seed(SEED, 1)))
    with pytest.raises(Exception, match="told to raise") as caught:
        evaluate(policy, 3, SEED)
    assert str(evaluation_seed(SEED, 1)) in str(caught.value).replace(policy.spec.env_id, "")
