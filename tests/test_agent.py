"""Ways to build the networks: a shared trunk, layer norm, a deviation that depends on the state."""

import math
import shutil

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.distributions import Normal

from fabric_ppo import Config, ConfigError, load_agent, train
from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.mlp import MLP
from fabric_ppo.agents.policy_file import start_from
from fabric_ppo.config import SCRIPT_CONFIGS
from fabric_ppo.envs.spaces import env_spec
from fabric_ppo.fast.array_actor import make_actor
from tests.runs import run_ranks

BOX = env_spec("Test-v0", spaces.Box(-1, 1, (5,)), spaces.Box(-1, 1, (2,)))
CHOICE = env_spec("Test-v0", spaces.Box(-1, 1, (5,)), spaces.Discrete(3))
OPTIONS = {
    "trunk": {"shared_trunk": True},
    "norm": {"layer_norm": True},
    "std": {"state_dependent_std": True, "log_std_init": -0.5},
    "bounded": {"log_std_init": -0.5, "log_std_min": -0.501, "log_std_max": -0.499},
    "all": {"shared_trunk": True, "layer_norm": True, "state_dependent_std": True, "normalize_observations": True},
}
TINY = {"num_steps": 32, "num_envs": 2, "total_timesteps": 192, "update_epochs": 2, "test_episodes": 1}


def observations(count):
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32))


def test_layer_norm_lies_between_product_and_activation():
    """(x - mean) / sqrt(var + 1e-5), the layer's own variance without correction."""
    network = MLP(5, (4, 3), 2, "tanh", layer_norm=True)
    values = observations(6).double()
    network.double()
    first, second, last = network.linear_layers
    for layer in (first, second):
        values = values @ layer.weight.T + layer.bias
        values = (values - values.mean(1, keepdim=True)) / (values.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        values = values.tanh()
    torch.testing.assert_close(network(observations(6).double()), values @ last.weight.T + last.bias)


def test_a_trunk_is_shared():
    """Two hidden layers, once: 5 x 64 + 64, 64 x 64 + 64; heads 64 x 3 + 3, 64 + 1. Values move the policy's layers."""
    agent = make_agent(CHOICE, Config(shared_trunk=True))
    assert sum(each.numel() for each in agent.parameters()) == 384 + 4160 + 195 + 65
    obs = observations(4)
    hidden = torch.relu(agent.trunk[2](torch.relu(agent.trunk[0](obs))))
    now = agent(obs, torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(now.values, agent.value[0](hidden).squeeze(-1))
    (grad,) = torch.autograd.grad(now.values.sum(), agent.trunk[0].weight)
    assert grad.abs().sum() > 0


def test_the_deviation_follows_the_state():
    agent = make_agent(BOX, Config(state_dependent_std=True, log_std_init=-0.5))
    obs, actions = observations(7), torch.randn(7, 2)
    out = agent.policy(obs)
    expected = Normal(out[:, :2], out[:, 2:].exp())
    now = agent(obs, actions)
    torch.testing.assert_close(now.log_probs, expected.log_prob(actions).sum(-1))
    torch.testing.assert_close(now.entropy, expected.entropy().sum(-1))
    assert out[:, 2:].std(0).min() > 0
    assert out[:, 2:].mean().item() == pytest.approx(-0.5, abs=0.3)


@pytest.mark.parametrize(("bias", "deviation"), [(100.0, math.exp(2)), (-100.0, math.exp(-20))])
def test_the_deviation_stays_within_bounds(bias, deviation):
    agent = make_agent(BOX, Config(state_dependent_std=True))
    nn.init.constant_(agent.policy.linear_layers[-1].bias[2:], bias)
    params = agent.policy_params(agent.encode(observations(3)))
    torch.testing.assert_close(params[:, 2:].exp(), torch.full((3, 2), deviation))


@pytest.mark.parametrize("depends", [False, True])
def test_bounds_hold_whichever_way_the_deviation_is_given(depends):
    """Entries of -3, -1 and 1 within -2 .. 0.5, against a Normal of -2, -1 and 0.5; gradients from autograd."""
    spec = env_spec("Test-v0", spaces.Box(-1, 1, (5,)), spaces.Box(-1, 1, (3,)))
    flags = {"log_std_min": -2.0, "log_std_max": 0.5, "state_dependent_std": depends}
    agent = make_agent(spec, Config(**flags))
    given = torch.tensor([-3.0, -1.0, 1.0])
    if depends:
        nn.init.zeros_(agent.policy.linear_layers[-1].weight)
        agent.policy.linear_layers[-1].bias.data[3:] = given
    else:
        agent.log_std.data = given.clone()
    obs, actions, noise = observations(8), torch.randn(8, 3), torch.randn(1, 8, 3)
    mean = agent.policy(obs)[:, :3]
    expected = Normal(mean, torch.tensor([-2.0, -1.0, 0.5]).exp())
    now = agent(obs, actions)
    torch.testing.assert_close(now.log_probs, expected.log_prob(actions).sum(-1))
    torch.testing.assert_close(now.entropy, expected.entropy().sum(-1))
    weight = agent.policy.linear_layers[-1].bias if depends else agent.log_std
    (grad,) = torch.autograd.grad(now.log_probs.sum() + now.entropy.sum(), weight)
    assert (grad[-3:] != 0).tolist() == [False, True, False]
    with torch.no_grad():
        drawn = mean + noise[0] * torch.tensor([-2.0, -1.0, 0.5]).exp()
        np.testing.assert_allclose(make_actor(agent, noise).act(obs.numpy()), drawn, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", [BOX, CHOICE], ids=["box", "choice"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_acts_is_the_agent(spec, options):
    """A rollout's actions and parameters are those of `act` and `policy_params`."""
    agent = make_agent(spec, Config(**options))
    noise = torch.randn(3, 8, agent.distribution.noise_size)
    with torch.no_grad():
        actor = make_actor(agent, noise)
        for t in range(3):
            obs = observations(8) + t
            np.testing.assert_allclose(actor.act(obs.numpy()), agent.act(obs, noise[t])[0], rtol=1e-5, atol=1e-6)
        expected = torch.stack([agent.policy_params(agent.encode(observations(8) + t)) for t in range(3)])
        torch.testing.assert_close(actor.params(), expected)


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "tests.nested_envs:Masked-v0"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_architectures_learn_the_same_and_go_on_exactly(tmp_path, env_id, options):
    def result(script, world_size, name, **flags):
        config = SCRIPT_CONFIGS[script](env_id=env_id, **TINY | options | flags, run_dir=str(tmp_path / name))
        assert run_ranks(script, [config] * world_size) == [""] * world_size
        return (tmp_path / name / "policy.safetensors").read_bytes()

    whole = result("torch", 1, "torch", anneal_lr=False)
    assert result("fabric", 1, "fabric", anneal_lr=False) == whole
    assert result("decoupled", 2, "decoupled", anneal_lr=False) == whole
    result("torch", 1, "parts", anneal_lr=False, total_timesteps=64)
    assert result("torch", 1, "parts", anneal_lr=False, resume=True) == whole


@pytest.mark.parametrize("env_id", ["Pendulum-v1", "tests.nested_envs:Masked-v0"])
def test_two_ranks_learn_the_same_in_torch_and_fabric(tmp_path, env_id):
    """Trunk and layer norm under DDP, from a trained policy on, which every rank reads."""
    start = config_of(tmp_path, "torch", "start", env_id=env_id, **OPTIONS["all"])
    assert run_ranks("torch", [start]) == [""]
    policies = []
    for script, init_from in (("torch", "start"), ("fabric", "start"), ("fabric", None)):
        flags = OPTIONS["all"] | {"init_from": init_from and str(tmp_path / init_from)}
        config = config_of(tmp_path, script, f"{script} {init_from}", env_id=env_id, **flags)
        assert run_ranks(script, [config] * 2) == ["", ""]
        policies.append((tmp_path / f"{script} {init_from}" / "policy.safetensors").read_bytes())
    assert policies[0] == policies[1] != policies[2]


@pytest.mark.parametrize(("script", "size"), [("torch", 1), ("decoupled", 2)])
def test_a_resumed_run_needs_its_start_no_more(tmp_path, script, size):
    """The policy that a run started with may be gone. Trainers have got it from their player."""
    flags = {"env_id": "Pendulum-v1", "anneal_lr": False, "init_from": str(tmp_path / "start")}
    assert run_ranks("torch", [config_of(tmp_path, "torch", "start", **flags | {"init_from": None})]) == [""]

    def result(name, script=script, size=size, **more):
        assert run_ranks(script, [config_of(tmp_path, script, name, **flags | more)] * size) == [""] * size
        return (tmp_path / name / "policy.safetensors").read_bytes()

    whole = result("whole")
    assert result("fabric", "fabric", 1) == whole != result("new", init_from=None)
    result("parts", total_timesteps=64)
    shutil.rmtree(tmp_path / "start")
    assert result("parts", resume=True) == whole


def config_of(tmp_path, script, name, **flags):
    return SCRIPT_CONFIGS[script](**TINY | flags, run_dir=str(tmp_path / name))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_policy_comes_back(tmp_path, options):
    config = Config(env_id="Pendulum-v1", **TINY, **options, run_dir=str(tmp_path / "run"))
    policy = load_agent(train(config))
    again = make_agent(policy.spec, Config(env_id="Pendulum-v1", **options))
    start_from(again, str(tmp_path / "run"))
    obs = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    with torch.no_grad():
        np.testing.assert_allclose(policy.value(obs), again.values(torch.from_numpy(obs)), rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"log_std_min": -21.0}, "--log-std-min -21.0: a number from -20 to 2, or None is expected"),
        ({"log_std_max": math.nan}, "--log-std-max nan: a number from -20 to 2, or None is expected"),
        ({"log_std_min": 0.5, "log_std_max": -0.5}, "--log-std-max -0.5: at least --log-std-min is expected"),
        ({"log_std_max": -0.5}, "--log-std-init 0.0: a number from -20 to -0.5 is expected"),
    ],
)
def test_bounds_that_cannot_be_are_refused(flags, message):
    with pytest.raises(ConfigError) as caught:
        Config(**flags)
    assert str(caught.value) == message
