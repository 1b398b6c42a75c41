"""`fabric run --precision`: mixed precision is for the networks, and what they learn from stays as it was collected."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric import Fabric

from fabric_ppo.agents.make import make_agent
from fabric_ppo.architectures.lightning_module import PPOModule, loss_through
from fabric_ppo.config import Config
from fabric_ppo.envs.spaces import EnvSpec, SpaceSpec
from fabric_ppo.fast.loss_module import PPOLoss
from fabric_ppo.ppo.batch import Rows
from tests.fixtures.updates import coefs_of

OBS = SpaceSpec("box", (5,), "float32")


ACTIONS = {
    "discrete": SpaceSpec("discrete", (), "int64", (3,), (0,)),
    "box": SpaceSpec("box", (2,), "float32", low=(-1.0, -1.0), high=(1.0, 1.0)),
}


def make_rows(agent, count=64) -> Rows:
    """Numbers that 16 bits would round visibly."""
    torch.manual_seed(0)
    obs = torch.randn(count, 5)
    params = agent.policy_params(agent.features(obs)).detach()
    actions = agent.distribution.sample(
        params, agent.distribution.noise(torch.rand(count, agent.distribution.noise_size))
    )
    log_probs = agent.distribution.log_prob(params, actions) + 0.1 * torch.randn(count)
    numbers = 300 + torch.randn(count), torch.randn(count), 300 + torch.randn(count)
    return Rows(obs, actions, log_probs, *numbers, torch.ones(count) / count)


@pytest.mark.parametrize("kind", list(ACTIONS))
def test_mixed_precision_rounds_the_networks_and_not_what_they_learn_from(kind, monkeypatch):
    config = Config(ent_coef=0.01)
    agent = make_agent(EnvSpec("x", OBS, ACTIONS[kind]), config)
    rows = make_rows(agent)
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    module = PPOModule(agent, config)
    seen, forward = [], PPOLoss.forward
    coefs = coefs_of(config)
    expected = forward(module.loss, rows, coefs)
    (wanted,) = torch.autograd.grad(expected.loss, module.loss.weights.flat)

    def spied(self, rows, coefs):
        seen.append((rows, coefs))
        return forward(self, rows, coefs)

    monkeypatch.setattr(PPOLoss, "forward", spied)
    got = loss_through(fabric.setup_module(module))(rows, coefs)
    fabric.backward(got.loss)
    grad = module.loss.weights.flat.grad
    ((seen_rows, seen_coefs),) = seen
    assert all(
        torch.equal(ours, theirs) and ours.dtype == theirs.dtype for ours, theirs in zip(seen_rows, rows, strict=True)
    )
    assert seen_coefs == coefs
    assert not torch.equal(got.loss, expected.loss)  # it is in force
    assert got.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
    assert torch.cosine_similarity(grad, wanted, dim=0) > 0.99
    assert grad.dtype == torch.float32
