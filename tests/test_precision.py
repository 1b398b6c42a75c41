"""`fabric run --precision`: mixed precision is for the networks, and what they learn from stays as it was collected."""

from __future__ import annotations

import pytest
import torch
from lightning.fabric import Fabric
from safetensors.torch import load_file

from fabric_ppo.agents.make import make_agent
from fabric_ppo.architectures.lightning_module import PPOModule, SealsRows
from fabric_ppo.config import Config
from fabric_ppo.envs.make import make_envs
from fabric_ppo.envs.spaces import ActionConverter, EnvSpec, SpaceSpec
from fabric_ppo.fast.loss_module import PPOLoss
from fabric_ppo.ppo.batch import Rows
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.rollouts.collect import collect
from tests.resuming import finish
from tests.toy_envs import toy_env

OBS = SpaceSpec("box", (5,), "float32")
ACTIONS = {
    "discrete": SpaceSpec("discrete", (), "int64", (3,), (0,)),
    "box": SpaceSpec("box", (2,), "float32", low=(-1.0, -1.0), high=(1.0, 1.0)),
}


def make_rows(agent, count=64) -> Rows:
    """Numbers that 16 bits would round visibly."""
    torch.manual_seed(0)
    obs = torch.randn(count, 5)
    params = agent.policy_params(agent.encode(obs)).detach()
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
    expected = forward(module.loss, rows)
    (wanted,) = torch.autograd.grad(expected.loss, module.loss.weights.flat)

    def spied(self, rows):
        seen.append(rows)
        return forward(self, rows)

    monkeypatch.setattr(PPOLoss, "forward", spied)
    got = SealsRows(fabric.setup_module(module))(rows)
    fabric.backward(got.loss)
    grad = module.loss.weights.flat.grad
    assert all(
        torch.equal(ours, theirs) and ours.dtype == theirs.dtype for ours, theirs in zip(seen[0], rows, strict=True)
    )
    assert not torch.equal(got.loss, expected.loss)  # it is in force
    assert got.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
    assert torch.cosine_similarity(grad, wanted, dim=0) > 0.99
    assert grad.dtype == torch.float32


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "tests.nested_envs:Masked-v0"])
@pytest.mark.parametrize(("script", "size"), [("fabric", 2), ("decoupled", 3)])
def test_a_run_in_mixed_precision(tmp_path, script, size, env_id):
    """Weights stay in 32 bits, and are others than without."""
    runs = [
        finish(script, size, tmp_path / str(precision), 2, precision=precision, env_id=env_id)
        for precision in ("bf16-mixed", None)
    ]
    mixed, single = (load_file(run / "policy.safetensors") for run in runs)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in mixed.values())
    assert any(not torch.equal(mixed[name], single[name]) for name in mixed)


def test_what_acts_is_what_is_stored():
    """An agent of 64 bits draws actions that an environment of 64 bits must not see before they are rounded."""
    config = Config(env_id=toy_env(action="box_half"), num_envs=2, num_steps=4)
    envs = make_envs(config, 0, 1, "")
    assert envs.spec.action.dtype == "float64"
    agent = make_agent(envs.spec, config).double()
    buffer = RolloutBuffer(envs, agent, 4, first_env=0)
    taken, step = [], envs.step

    def spied(actions, *into):
        taken.append(actions.copy())
        return step(actions, *into)

    envs.step = spied
    collect(envs, agent, buffer, 1, 0)
    envs.close()
    convert = ActionConverter(envs.spec.action)
    assert all((got == convert(stored)).all() for got, stored in zip(taken, buffer.actions, strict=True))
