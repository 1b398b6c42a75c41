"""One update against a plain PyTorch implementation, its statistics, and what happens when it goes wrong."""

import copy
import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from fabric_ppo.agents import agent as agents
from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.config import Config
from fabric_ppo.envs.spaces import EnvSpec, SpaceSpec, env_spec
from fabric_ppo.fast.flat_weights import FlatWeights
from fabric_ppo.fast.loss_module import PPOLoss, compile_loss, make_optimizer
from fabric_ppo.ppo.batch import Batch, Rows
from fabric_ppo.ppo.loss import autograd_loss
from fabric_ppo.ppo.schedules import begin_update
from fabric_ppo.ppo.update import Stats, ppo_update
from fabric_ppo.process.errors import TrainingError
from fabric_ppo.process.group import ALONE
from fabric_ppo.run.guard import Guard
from fabric_ppo.seeding import minibatch_order

BOX = SpaceSpec("box", (5,), "float32")
ACTIONS = {
    "discrete": SpaceSpec("discrete", (), "int64", (3,), (0,)),
    "multi": SpaceSpec("multi_discrete", (2,), "int64", (3, 2), (0, 0)),
    "bits": SpaceSpec("multi_binary", (3,), "int8"),
    "box": SpaceSpec("box", (2, 2), "float32", low=(None,) * 4, high=(None,) * 4),
}
CONFIG = Config(
    learning_rate=0.01,
    update_epochs=3,
    per_rank_batch_size=8,
    clip_coef=0.1,
    vf_coef=0.7,
    ent_coef=0.02,
    max_grad_norm=0.4,
    seed=11,
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
each_action = pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)


def make_agent(action, hidden_sizes=(6, 4)):
    torch.manual_seed(3)
    return Agent(EnvSpec("Test-v0", BOX, action), Architecture("tanh", hidden_sizes)).double()


def make_rows(agent, count):
    torch.manual_seed(5)
    obs = torch.randn(count, 5)
    with torch.no_grad():
        noise = agent.distribution.noise(torch.rand(count, agent.distribution.noise_size, dtype=torch.float64))
        actions = agent.act(obs, noise)[0].to(agent.distribution.action_dtype)
        log_probs, values = agent.log_probs_and_values(obs, actions)
    advantages, returns = torch.randn(2, count, dtype=torch.float64)
    return Rows(obs, actions, log_probs, values, advantages, returns, torch.ones(count, dtype=torch.float64))


def make_step(module, config):
    """What every script's `step` does."""
    optimizer = make_optimizer(module, config)

    def step(loss):
        optimizer.zero_grad()
        loss.backward()
        return optimizer.step()

    return step


def train(agent, rows, config, update=2):
    module = PPOLoss(agent, config)
    return ppo_update(module, Batch(rows, 0, 1, config.seed, update), make_step(module, config), config)


def torch_distribution(agent, obs):
    """The policy with torch.distributions; a list of distributions, one for each entry of a flat action."""
    space, out = agent.spec.action, nn.Sequential(*agent.policy)(obs.double())
    if space.kind == "box":
        return list(map(torch.distributions.Normal, out.unbind(-1), agent.log_std.exp()))
    if space.kind == "multi_binary":
        return [torch.distributions.Bernoulli(logits=each) for each in out.unbind(-1)]
    return [torch.distributions.Categorical(logits=each) for each in out.split(space.sizes, -1)]


def plain_update(agent, rows, config, update=2):
    """PPO's update as a textbook has it; minibatches of equal size. The logged quantities of every minibatch."""
    optimizer = torch.optim.Adam(agent.parameters(), config.learning_rate, eps=config.adam_eps, foreach=False)
    logged, eps = [], config.clip_coef
    for epoch in range(config.update_epochs):
        order = torch.from_numpy(minibatch_order(config.seed, update, epoch, len(rows.weights)))
        for index in order.view(-1, config.per_rank_batch_size):
            policy = torch_distribution(agent, rows.obs[index])
            entries = rows.actions[index].view(len(index), -1).double().unbind(-1)
            log_prob = sum(part.log_prob(entry) for part, entry in zip(policy, entries, strict=True))
            entropy = sum(part.entropy() for part in policy).mean()
            values = nn.Sequential(*agent.value)(rows.obs[index].double()).squeeze(-1)
            ratio = torch.exp(log_prob - rows.log_probs[index])
            advantages = rows.advantages[index]
            policy_loss = torch.max(-advantages * ratio, -advantages * ratio.clamp(1 - eps, 1 + eps)).mean()
            unclipped = (values - rows.returns[index]) ** 2
            if config.clip_vloss:
                old = rows.values[index]
                clipped = (old + (values - old).clamp(-eps, eps) - rows.returns[index]) ** 2
                unclipped = torch.max(unclipped, clipped)
            value_loss = 0.5 * unclipped.mean()
            optimizer.zero_grad()
            (policy_loss + config.vf_coef * value_loss - config.ent_coef * entropy).backward()
            norm = nn.utils.clip_grad_norm_(agent.parameters(), config.max_grad_norm)
            optimizer.step()
            kl = (ratio - 1 - ratio.log()).mean()
            outside = ((ratio < 1 - eps) | (ratio > 1 + eps)).double().mean()
            logged.append([each.item() for each in (policy_loss, value_loss, entropy, kl, outside, norm)])
    return logged


@pytest.mark.parametrize("max_grad_norm", [0.05, 50.0])
@pytest.mark.parametrize("clip_vloss", [False, True])
@each_action
def test_equals_a_plain_implementation(action, clip_vloss, max_grad_norm):
    config = dataclasses.replace(CONFIG, clip_vloss=clip_vloss, max_grad_norm=max_grad_norm)
    agent = make_agent(action)
    plain, start = copy.deepcopy(agent), copy.deepcopy(agent)
    rows = make_rows(agent, 32)
    stats = train(agent, rows, config)
    logged = plain_update(plain, rows, config)
    for (name, got), want, before in zip(agent.named_parameters(), plain.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
        assert not torch.equal(got, before)
    means = torch.tensor(logged, dtype=torch.float64).mean(0).tolist()
    assert dataclasses.astuple(stats)[:6] == pytest.approx(means, rel=1e-9, abs=1e-12)
    assert stats.gradient_steps == len(logged) == 12
    assert all((each[-1] > max_grad_norm) == (max_grad_norm == 0.05) for each in logged)  # clipped, or not at all
    assert 0 < stats.clip_fraction < 1


@each_action
@pytest.mark.parametrize("count", [31, 13])
def test_ranks_that_share_equal_one_rank(action, count):
    """Two ranks with batch b, gradients averaged, equal one rank with batch 2b; odd counts of rows (H2)."""
    alone = make_agent(action)
    together = copy.deepcopy(alone)
    rows = make_rows(alone, count)
    train(alone, rows, dataclasses.replace(CONFIG, per_rank_batch_size=16))
    module = PPOLoss(together, CONFIG)
    step = make_step(module, CONFIG)
    batches = [Batch(rows, share, 2, CONFIG.seed, 2) for share in range(2)]
    for epoch in range(CONFIG.update_epochs):
        for parts in zip(*(batch.minibatches(range(epoch, epoch + 1), 8) for batch in batches), strict=True):
            slopes = [torch.autograd.grad(module(part).loss, module.weights.flat)[0] for part in parts]
            step((module.weights.flat * ((slopes[0] + slopes[1]) / 2)).sum())
    for got, want in zip(together.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@each_action
def test_loss_module_equals_autograd_for_every_distribution(action):
    agent = make_agent(action)
    free = copy.deepcopy(agent)
    rows = make_rows(agent, 16)
    rows = rows._replace(log_probs=rows.log_probs + 0.3 * torch.randn(16, dtype=torch.float64))
    module = PPOLoss(agent, CONFIG)
    assert [name for name, _ in module.named_parameters()] == ["weights.flat"]
    got, want = module(rows), autograd_loss(free, rows, CONFIG)
    torch.testing.assert_close(tuple(got), tuple(want), rtol=1e-12, atol=1e-12)
    got.loss.backward()
    want.loss.backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in free.parameters()])
    torch.testing.assert_close(module.weights.flat.grad, expected, rtol=1e-12, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("action", ["discrete", "multi"])
def test_the_compiled_loss_is_the_loss(action):
    """Compiled once, before the first minibatch: other sizes, and weights that move, need no further compiling."""
    agent = make_agent(ACTIONS[action])
    weights, rows = PPOLoss(agent, CONFIG), make_rows(agent, 40)
    compiled = PPOLoss(free := copy.deepcopy(agent), dataclasses.replace(CONFIG, compile=True))
    before = copy.deepcopy(free.state_dict())
    compile_loss(nn.Sequential(compiled), ALONE, dataclasses.replace(CONFIG, compile=True))
    assert all(torch.equal(value, before[name]) for name, value in free.state_dict().items())
    assert compiled.weights.flat.grad is None
    steps = [make_step(module, CONFIG) for module in (weights, compiled)]
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in (8, 7, 3, 7):
            part = Rows(*(column[:size] for column in rows))
            want, got = weights(part), compiled(part)
            torch.testing.assert_close(tuple(got), tuple(want), rtol=1e-9, atol=1e-9)
            steps[0](want.loss)
            steps[1](got.loss)
            torch.testing.assert_close(compiled.weights.flat, weights.weights.flat, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_shares", [1, 3])
def test_value_moments_cover_every_transition_once(num_shares):
    """From the sums over all ranks follows the explained variance; rows that are no transition stay out."""
    agent = make_agent(ACTIONS["discrete"])
    rows = make_rows(agent, 20)
    rows = rows._replace(weights=(torch.arange(20) % 4 != 0).double())
    config = dataclasses.replace(CONFIG, update_epochs=1)

    def losses(part):
        return autograd_loss(agent, part, config)

    shares = [
        ppo_update(losses, Batch(rows, share, num_shares, 11, 0), lambda loss: loss.detach(), config)
        for share in range(num_shares)
    ]
    n, r, r2, d, d2 = (sum(each) for each in zip(*(stats.value_moments for stats in shares), strict=True))
    seen = rows.weights > 0
    returns, missed = rows.returns[seen], (rows.returns - rows.values)[seen]
    assert n == 15
    assert r2 / n - (r / n) ** 2 == pytest.approx(returns.var(correction=0).item(), rel=1e-12)
    assert d2 / n - (d / n) ** 2 == pytest.approx(missed.var(correction=0).item(), rel=1e-12)


def test_learning_rate_falls_linearly_to_zero():
    config = dataclasses.replace(CONFIG, anneal_lr=True)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    for update, expected in enumerate([0.01, 0.008, 0.006, 0.004, 0.002]):
        now = begin_update(nn.Linear(2, 2), optimizer, config, update, 5)
        assert now.learning_rate == pytest.approx(expected, rel=1e-12)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected], rel=1e-12)


def test_learning_rate_stays_without_annealing():
    config = dataclasses.replace(CONFIG, anneal_lr=False)
    optimizer = make_optimizer(nn.Linear(2, 2), config)
    optimizer.param_groups[0]["lr"] = 7.0  # as after a resume
    assert begin_update(nn.Linear(2, 2), optimizer, config, 4, 5) == config
    assert optimizer.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("action", [spaces.Discrete(3), spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)])
def test_clip_and_entropy_coefficients_fall_linearly_to_zero(action):
    """The loss in update 3 of 5 is that of a run whose coefficients are two fifths."""
    spec = env_spec("Test-v0", spaces.Box(-1, 1, (3,)), action)
    flags = {"clip_coef": 0.3, "ent_coef": 0.5, "clip_vloss": True}
    config = Config(**flags, anneal_clip_coef=True, anneal_ent_coef=True)
    losses = PPOLoss(agents.make_agent(spec, config), config)
    torch.manual_seed(0)
    actions = torch.from_numpy(np.stack([action.sample() for _ in range(16)]))
    rows = Rows(torch.randn(16, 3), actions, *torch.randn(4, 16), torch.ones(16) / 16)
    losses(rows)
    now = begin_update(losses, make_optimizer(losses, config), config, 3, 5)
    assert (now.clip_coef, now.ent_coef) == pytest.approx((0.12, 0.2), rel=1e-12)
    constant = Config(clip_coef=now.clip_coef, ent_coef=now.ent_coef, clip_vloss=True)
    expected = PPOLoss(agents.make_agent(spec, constant), constant)(rows)
    assert torch.equal(losses(rows).loss, expected.loss)
    assert not torch.equal(PPOLoss(agents.make_agent(spec, config), config)(rows).loss, expected.loss)


FINE = Stats(0.1, 0.2, 0.3, 0.01, 0.1, 1.0, (1.0,) * 5, 4, 0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["policy_loss", "value_loss", "entropy", "grad_norm"])
def test_guard_restores_when_a_statistic_is_not_finite(name, value):
    agent = make_agent(ACTIONS["box"])
    before = copy.deepcopy(agent.state_dict())
    guard = Guard(agent)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(1.0)
    with pytest.raises(TrainingError, match=rf"update 7: {name} not finite"):
        guard.check(dataclasses.replace(FINE, **{name: value}), 6)
    assert all(torch.equal(agent.state_dict()[key], kept) for key, kept in before.items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["policy.0.weight", "value.4.bias", "log_std"])
def test_guard_restores_when_a_weight_is_not_finite(key, value):
    """Through FlatWeights as in a run: the vector that is optimised is restored too."""
    agent = make_agent(ACTIONS["box"])
    weights = FlatWeights(agent)
    before = weights.flat.detach().clone()
    guard = Guard(agent)
    with torch.no_grad():
        weights.flat.mul_(2.0)
        agent.state_dict()[key].flatten()[-1:].fill_(value)
    assert not torch.isfinite(weights.flat).all()
    with pytest.raises(TrainingError, match="update 1: weights not finite"):
        guard.check(FINE, 0)
    assert torch.equal(weights.flat.detach(), before)


def test_guard_goes_back_to_the_last_good_update():
    agent = make_agent(ACTIONS["discrete"])
    weights = FlatWeights(agent)
    guard = Guard(agent)
    with torch.no_grad():
        weights.flat.mul_(2.0)
    good = weights.flat.detach().clone()
    guard.check(FINE, 0)
    assert torch.equal(weights.flat.detach(), good)
    with torch.no_grad():
        weights.flat.fill_(math.nan)
    with pytest.raises(TrainingError) as caught:
        guard.check(dataclasses.replace(FINE, policy_loss=math.nan), 1)
    assert torch.equal(weights.flat.detach(), good)
    assert "policy_loss, weights" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_diverging_update_is_caught():
    """A learning rate that nobody can train with ends in TrainingError with the weights that the update began with."""
    agent = make_agent(ACTIONS["box"])
    guard = Guard(agent)
    before = copy.deepcopy(agent.state_dict())
    stats = train(agent, make_rows(agent, 32), dataclasses.replace(CONFIG, learning_rate=1e30))
    with pytest.raises(TrainingError):
        guard.check(stats, 0)
    assert all(torch.equal(agent.state_dict()[key], kept) for key, kept in before.items())
