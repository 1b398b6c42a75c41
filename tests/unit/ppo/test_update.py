"""One update against a plain PyTorch implementation, and without a wait for its device."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.fast.loss_module import PPOLoss
from fabric_ppo.ppo.batch import Batch, make_batch
from fabric_ppo.ppo.loss import minibatch_loss
from fabric_ppo.ppo.update import _is_too_far, _value_sums, ppo_update, run_epochs
from fabric_ppo.process.group import ALONE, Ranks
from fabric_ppo.seeding import minibatch_order
from tests.fixtures.agents import build_agent
from tests.fixtures.recurrent import make_recurrent, recurrent_config
from tests.fixtures.rollouts import make_rollout, rollouts
from tests.fixtures.rows import make_rows
from tests.fixtures.spaces import ACTIONS, BOX
from tests.fixtures.toy_envs import toy_env
from tests.fixtures.updates import CONFIG, coefs_of, make_step, train_on

each_action = pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)


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
            logged.append([each.item() for each in (policy_loss, value_loss, -entropy, kl, outside, norm)])
    return logged


@pytest.mark.parametrize("max_grad_norm", [0.05, 50.0])
@pytest.mark.parametrize("clip_vloss", [False, True])
@each_action
def test_equals_a_plain_implementation(action, clip_vloss, max_grad_norm):
    config = dataclasses.replace(CONFIG, clip_vloss=clip_vloss, max_grad_norm=max_grad_norm)
    agent = build_agent(action)
    plain, start = copy.deepcopy(agent), copy.deepcopy(agent)
    rows = make_rows(agent, 32)
    stats = train_on(agent, rows, config)
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
    alone = build_agent(action)
    shared = copy.deepcopy(alone)
    rows = make_rows(alone, count)
    train_on(alone, rows, dataclasses.replace(CONFIG, per_rank_batch_size=16))
    module = PPOLoss(shared, CONFIG)
    step, coefs = make_step(shared, module, CONFIG), coefs_of(CONFIG)
    batches = [Batch(rows, share, 2, CONFIG.seed, 2) for share in range(2)]
    for epoch in range(CONFIG.update_epochs):
        for parts in zip(*(batch.minibatches(range(epoch, epoch + 1), 8) for batch in batches), strict=True):
            slopes = [torch.autograd.grad(module(part, coefs).loss, module.weights.flat)[0] for part in parts]
            step((module.weights.flat * ((slopes[0] + slopes[1]) / 2)).sum())
    for got, want in zip(shared.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_shares", [1, 3])
def test_value_sums_cover_every_transition_once(num_shares):
    """From the sums over all ranks follows the explained variance; rows that are no transition stay out."""
    agent = build_agent(ACTIONS["discrete"])
    rows = make_rows(agent, 20)
    rows = rows._replace(weights=(torch.arange(20) % 4 != 0).double())
    config = dataclasses.replace(CONFIG, update_epochs=1)

    def losses(part, coefs):
        return minibatch_loss(agent, part, coefs)

    shares = [
        ppo_update(losses, Batch(rows, share, num_shares, 11, 0), torch.detach, coefs_of(config), config)
        for share in range(num_shares)
    ]
    names = ("num_rows", "return_sum", "return_squares", "error_sum", "error_squares")
    n, r, r2, d, d2 = (sum(getattr(stats, name) for stats in shares) for name in names)
    seen = rows.weights > 0
    returns, missed = rows.returns[seen], (rows.returns - rows.values)[seen]
    assert n == 15
    assert r2 / n - (r / n) ** 2 == pytest.approx(returns.var(correction=0).item(), rel=1e-12)
    assert d2 / n - (d / n) ** 2 == pytest.approx(missed.var(correction=0).item(), rel=1e-12)


@pytest.mark.parametrize(("here", "there", "ends"), [(0.02, 0.0, False), (0.0, 0.02, False), (0.031, 0.0, True)])
def test_target_kl_compares_the_mean_over_ranks(here, there, ends):
    """Both ranks see the same, whichever has moved further: beyond 1.5 times the target of 0.01 in the mean."""
    for own, other in ((here, there), (there, here)):
        ranks = Ranks(0, 2, lambda tensor, other=other: torch.stack([tensor, torch.tensor(other)]))
        assert _is_too_far(torch.tensor(own), Config(target_kl=0.01), ranks) is ends


# Device discipline without a device: on `meta` there is no data. An operation that mixes in a CPU tensor fails there,
# and so does whatever must know a value: `.item()`, `.tolist()`, `.numpy()`, a branch on a tensor.
META = torch.device("meta")


def on_meta(kind, t=6, n=3):
    """A configuration, the loss of an agent moved to the meta device, and a rollout on the CPU, as it is collected."""
    config = Config(per_rank_batch_size=4, update_epochs=2, clip_vloss=True, ent_coef=0.01)
    agent = make_agent(EnvSpec("Test-v0", BOX, ACTIONS[kind]), config)
    loss = PPOLoss(agent, config).to(META)
    actions = torch.zeros(t, n, *agent.distribution.action_shape, dtype=agent.distribution.action_dtype)
    rollout = make_rollout(t, n, dtype=torch.float32)
    return config, loss, dataclasses.replace(rollout, obs=torch.randn(t, n, *BOX.shape), actions=actions)


@pytest.mark.parametrize("kind", ACTIONS)
def test_an_update_stays_on_its_device_and_waits_for_nothing(kind):
    config, loss, rollout = on_meta(kind)
    ranks = Ranks(0, 1, lambda tensor: tensor.unsqueeze(0))
    batch = make_batch(rollout, config, ranks, 0, META)
    assert all(column.device == META for column in batch.rows[:-1])  # the last is for recurrent agents
    step = make_step(loss._agent[0], loss, config)

    logged = run_epochs(loss, batch, step, coefs_of(config), config)
    assert logged.device == META
    assert logged.shape == (7,)
    assert _value_sums(batch).device == META
    assert all(parameter.grad.device == META for parameter in loss.parameters())


def test_the_meta_device_catches_a_wait_and_a_tensor_from_elsewhere():
    config, loss, rollout = on_meta("discrete")
    batch = make_batch(rollout, config, Ranks(0, 1, lambda tensor: tensor.unsqueeze(0)), 0, META)
    with pytest.raises(RuntimeError):
        run_epochs(loss, batch, lambda value: torch.tensor(value.item()), coefs_of(config), config)
    with pytest.raises((RuntimeError, TypeError)):
        run_epochs(loss, batch, lambda value: torch.tensor(value.detach().numpy()), coefs_of(config), config)
    rows = next(iter(batch.minibatches(range(1), 4)))
    with pytest.raises(RuntimeError):
        loss(rows._replace(obs=torch.zeros(rows.obs.shape)), coefs_of(config))


def test_a_recurrent_minibatch_waits_for_no_device():
    """On the meta device, where tensors have no data, looking at a value fails."""
    config = recurrent_config(env_id=toy_env(length=4))
    envs, agent = make_recurrent(config)
    (rollout,) = rollouts(envs, agent, config.num_steps, 1, seed=config.seed)
    envs.close()
    loss = PPOLoss(agent, config).to("meta")
    for rows in make_batch(rollout, config, ALONE, 0, torch.device("meta")).minibatches(range(1), 6):
        loss(rows, coefs_of(config)).loss.backward()
    assert loss.weights.flat.grad.is_meta
