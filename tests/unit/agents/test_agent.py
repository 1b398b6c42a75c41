"""Agents: networks, deviations, action masks and normalised observations."""

from __future__ import annotations

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.distributions import Categorical as Reference
from torch.distributions import Normal
from torch.utils._pytree import tree_map

from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.policy import load_agent
from fabric_ppo.api import train
from fabric_ppo.config import Config
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.envs.spaces import Packer
from fabric_ppo.fast.compiled_actor import ActorChoice
from fabric_ppo.rollouts.actor import Actor
from tests.fixtures.agents import masked_agent
from tests.fixtures.configs import TINY
from tests.fixtures.spaces import BOX, BOX_SPEC, CHOICE_SPEC, observe, packed


def test_a_trunk_is_shared():
    """Two hidden layers, once: 5 x 64 + 64, 64 x 64 + 64; heads 64 x 3 + 3, 64 + 1. Values move the policy's layers."""
    agent = make_agent(CHOICE_SPEC, Config(shared_trunk=True))
    assert sum(each.numel() for each in agent.parameters()) == 384 + 4160 + 195 + 65
    obs = observe(BOX, 4, seed=0)
    hidden = torch.relu(agent.trunk[2](torch.relu(agent.trunk[0](obs))))
    evaluation = agent(obs, torch.tensor([0, 1, 2, 0]))
    torch.testing.assert_close(evaluation.values, agent.value[0](hidden).squeeze(-1))
    (grad,) = torch.autograd.grad(evaluation.values.sum(), agent.trunk[0].weight)
    assert grad.abs().sum() > 0


def test_the_deviation_follows_the_state():
    agent = make_agent(BOX_SPEC, Config(state_dependent_std=True, log_std_init=-0.5))
    obs, actions = observe(BOX, 7, seed=0), torch.randn(7, 2)
    out = agent.policy(obs)
    expected = Normal(out[:, :2], out[:, 2:].exp())
    evaluation = agent(obs, actions)
    torch.testing.assert_close(evaluation.log_probs, expected.log_prob(actions).sum(-1))
    torch.testing.assert_close(evaluation.entropy, expected.entropy().sum(-1))
    assert out[:, 2:].std(0).min() > 0
    assert out[:, 2:].mean().item() == pytest.approx(-0.5, abs=0.3)


@pytest.mark.parametrize(("bias", "deviation"), [(100.0, math.exp(2)), (-100.0, math.exp(-20))])
def test_the_deviation_stays_within_bounds(bias, deviation):
    agent = make_agent(BOX_SPEC, Config(state_dependent_std=True))
    nn.init.constant_(agent.policy.linear_layers[-1].bias[2:], bias)
    params = agent.policy_params(agent.features(observe(BOX, 3, seed=0)))
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
    obs, actions, noise = observe(BOX, 8, seed=0), torch.randn(8, 3), torch.randn(1, 8, 3)
    mean = agent.policy(obs)[:, :3]
    expected = Normal(mean, torch.tensor([-2.0, -1.0, 0.5]).exp())
    evaluation = agent(obs, actions)
    torch.testing.assert_close(evaluation.log_probs, expected.log_prob(actions).sum(-1))
    torch.testing.assert_close(evaluation.entropy, expected.entropy().sum(-1))
    weight = agent.policy.linear_layers[-1].bias if depends else agent.log_std
    (grad,) = torch.autograd.grad(evaluation.log_probs.sum() + evaluation.entropy.sum(), weight)
    assert (grad[-3:] != 0).tolist() == [False, True, False]
    with torch.no_grad():
        drawn = mean + noise[0] * torch.tensor([-2.0, -1.0, 0.5]).exp()
        for actor in (Actor(agent, noise), ActorChoice(agent)(agent, noise, obs)):
            np.testing.assert_allclose(actor.act(obs.numpy()), drawn, rtol=1e-5, atol=1e-6)


def test_a_run_brings_the_deviation_back_to_its_bounds(tmp_path):
    """Adam's steps of 0.01 go far beyond bounds 0.002 apart; at a bound there is a gradient, beyond it none."""
    bounds = {"log_std_init": -0.5, "log_std_min": -0.501, "log_std_max": -0.499}
    flags = TINY | bounds | {"learning_rate": 0.01, "env_id": "Pendulum-v1"}
    agent = load_agent(train(Config(**flags, run_dir=str(tmp_path / "run"))))._agent
    assert agent.log_std.item() in torch.tensor([-0.501, -0.499]).tolist()


def test_impossible_actions_have_probability_zero_everywhere():
    space, agent = masked_agent()
    space.seed(3)
    samples = [space.sample() for _ in range(200)]
    for sample in samples:
        sample["action_mask"][np.random.default_rng(0).integers(6)] = 1
    mask = torch.from_numpy(np.stack([sample["action_mask"] for sample in samples])).bool()
    obs = packed(space, samples)
    plain = torch.from_numpy(np.stack([sample["observation"] for sample in samples]))
    logits = agent.policy(plain)
    expected = Reference(logits=logits.masked_fill(~mask, -torch.inf))
    noise = agent.distribution.noise(torch.rand(200, 6))
    drawn, greedy = agent.act(obs, noise)[0], agent.act(obs, None)[0]
    assert mask.gather(1, drawn.unsqueeze(1)).all()
    assert torch.equal(greedy, expected.probs.argmax(-1))
    evaluation = agent(obs, drawn)
    torch.testing.assert_close(evaluation.log_probs, expected.log_prob(drawn))
    p = expected.probs
    torch.testing.assert_close(evaluation.entropy, -(p * p.clamp(min=1e-38).log()).sum(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(evaluation.values, agent.value(plain).squeeze(-1))
    assert torch.isfinite(torch.autograd.grad(evaluation.entropy.sum(), agent.policy.linear_layers[0].weight)[0]).all()


def test_each_part_of_an_action_has_its_part_of_the_mask():
    space, agent = masked_agent(spaces.MultiDiscrete([2, 4]))
    sample = {"action_mask": np.array([0, 1, 0, 0, 1, 0], np.int8), "observation": np.zeros(3, np.float32)}
    obs = packed(space, [sample] * 50)
    drawn, _ = agent.act(obs, agent.distribution.noise(torch.rand(50, 6)))
    assert drawn.unique(dim=0).tolist() == [[1, 2]]
    torch.testing.assert_close(agent(obs, drawn).log_probs, torch.zeros(50))


ACTIONS = spaces.Dict(
    push=spaces.Box(-1, 1, (2,)), go=spaces.Discrete(3), rest=spaces.Tuple((spaces.MultiBinary(2), spaces.Discrete(2)))
)
"""Choices 0 to 2 are those of go, 3 and 4 bits, 5 and 6 the last; an action is two numbers and four choices."""


@pytest.mark.parametrize("depends", [False, True], ids=["free", "depends"])
@pytest.mark.parametrize("in_parts", [False, True], ids=["flat", "parts"])
def test_masks_of_nested_actions_are_for_their_choices(in_parts, depends):
    """The mask in one array or by parts, these in another order; numbers have none."""
    assert list(ACTIONS.spaces) == ["push", "go", "rest"]
    flat = torch.tensor([[0, 1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 0, 1], [1, 1, 1, 0, 0, 1, 1]])
    parts = {"rest": (flat[:, 3:5], flat[:, 5:]), "go": flat[:, :3]}
    bits, three = spaces.MultiBinary(2), spaces.MultiBinary(3)
    mask = spaces.Dict(rest=spaces.Tuple((bits, bits)), go=three) if in_parts else spaces.MultiBinary(7)
    space = spaces.Dict(action_mask=mask, observation=spaces.Box(-1, 1, (3,)))
    flags = {"ortho_init": True, "state_dependent_std": depends, "log_std_init": -0.5}
    agent = make_agent(env_spec("Test-v0", space, ACTIONS), Config(**flags))
    seen = torch.rand(3, 3)
    given, pack = parts if in_parts else flat, Packer(agent.spec.observation)
    masks = [tree_map(lambda each, k=k: each[k].numpy(), given) for k in range(3)]
    rows = [pack({"observation": seen[k].numpy(), "action_mask": masks[k]}) for k in range(3)]
    obs = torch.from_numpy(np.stack(rows))
    params, plain = agent.policy_params(agent.features(obs)), agent.policy(seen)
    assert params.shape == (3, 11)
    assert (params[:, :7][flat == 0] < -1e7).all()
    torch.testing.assert_close(params[:, :7][flat == 1], plain[:, :7][flat == 1])
    torch.testing.assert_close(params[:, 7:9], plain[:, 7:9])
    # weights of the head begin small: the deviation is what it is told to begin with
    torch.testing.assert_close(params[:, 9:], torch.full((3, 2), -0.5), atol=0.02, rtol=0)
    for _ in range(20):
        drawn, _ = agent.act(obs, agent.distribution.noise(torch.rand(3, agent.distribution.noise_size)))
        assert flat.gather(1, drawn[:, 2:3].long()).all()
        assert (drawn[:, 3:5] <= flat[:, 3:5]).all()
        assert flat[:, 5:].gather(1, drawn[:, 5:].long()).all()
    gradients = torch.autograd.grad(agent(obs, drawn).log_probs.sum(), list(agent.policy.parameters()))
    assert all(torch.isfinite(each).all() for each in gradients)


MIXED = "tests.fixtures.nested_envs:Mixed-v0"


def seen_by(env_id, count):
    """An environment, and `count` observations of consecutive episodes."""
    env, seen = gymnasium.make(env_id), []
    while len(seen) < count:
        obs, ended = env.reset(seed=len(seen))[0], False
        while not ended and len(seen) < count:
            seen.append(obs)
            mask = obs.get("action_mask", np.ones(3, np.int8))
            obs, _, ended, *_ = env.step(int(mask.argmax()))
    return env, seen


@pytest.mark.parametrize(
    ("env_id", "encoder"), [("tests.fixtures.nested_envs:Nested-v0", "flatten"), (MIXED, "flatten"), (MIXED, "impala")]
)
def test_the_boxes_of_nested_observations_are_normalised(env_id, encoder):
    """Each part as Gymnasium flattens it; Boxes less their mean over their deviation, choices and masks as they are."""
    env, obs = seen_by(env_id, 40)
    spec = env_spec(env_id, env.observation_space, env.action_space)
    agent = make_agent(spec, Config(env_id=env_id, encoder=encoder, normalize_observations=True))
    rows = packed(env.observation_space, obs)
    agent.update_statistics(agent.obs_moments.sums(agent.encoder.boxes(rows, torch.float64)))
    expected = []
    for path, part in spec.observation.parts:
        space, values = env.observation_space, obs
        for key in path:
            space, values = space[key], [each[key] for each in values]
        flat = np.stack([spaces.flatten(space, each) for each in values]).astype(np.float64)
        if path == ("camera",):
            if encoder == "impala":
                continue
            flat = flat / 255
        if part.kind == "box" and path != ("action_mask",):
            flat = ((flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-8)).clip(-10, 10)
        expected.append((path == ("action_mask",), flat))
    expected = np.concatenate([flat for _, flat in sorted(expected, key=lambda pair: pair[0])], 1)
    with torch.no_grad():
        got = agent.inputs(rows)
        own = got.shape[1] - expected.shape[1]  # the network's features, of the first part
        assert own == (256 if encoder == "impala" else 0)
        np.testing.assert_allclose(got[:, own:], expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(agent.features(rows), got)
    assert agent.obs_moments.count.item() == 40
