"""Device discipline without a device: the update runs on `meta`, where data does not exist.

There an operation that mixes in a CPU tensor fails, and so does whatever must know a value: `.item()`, `.tolist()`,
`.numpy()`, a branch on a tensor.
"""

from __future__ import annotations

import pytest
import torch

from fabric_ppo.agents.make import make_agent
from fabric_ppo.config import Config
from fabric_ppo.envs.spaces import EnvSpec, SpaceSpec
from fabric_ppo.fast.loss_module import PPOLoss, make_optimizer
from fabric_ppo.ppo.batch import make_batch
from fabric_ppo.ppo.update import _value_moments, run_epochs
from fabric_ppo.process.group import Ranks
from fabric_ppo.rollouts.buffer import Rollout

OBS = SpaceSpec("box", (5,), "float32")
ACTIONS = {
    "discrete": SpaceSpec("discrete", (), "int64", (3,), (0,)),
    "box": SpaceSpec("box", (2,), "float32", low=(-1.0, None), high=(1.0, None)),
    "multi_discrete": SpaceSpec("multi_discrete", (2,), "int64", (2, 3), (0, 0)),
    "multi_binary": SpaceSpec("multi_binary", (4,), "int8"),
}
META = torch.device("meta")


def setting(kind, t=6, n=3):
    """An agent moved to the meta device, and a rollout as it comes from the environments: on the CPU."""
    config = Config(per_rank_batch_size=4, update_epochs=2, clip_vloss=True, ent_coef=0.01)
    agent = make_agent(EnvSpec("x", OBS, ACTIONS[kind]), config)
    loss = PPOLoss(agent, config).to(META)
    dtype = agent.distribution.action_dtype
    actions = torch.zeros(t, n, *agent.distribution.action_shape, dtype=dtype)
    numbers = [torch.randn(t, n) for _ in range(4)]
    flags = [torch.zeros(t, n, dtype=torch.bool) for _ in range(2)] + [torch.ones(t, n, dtype=torch.bool)]
    ones = torch.ones(t, n)
    nothing = torch.zeros(0)
    rollout = Rollout(
        torch.randn(t, n, 5),
        actions,
        numbers[0],
        ones,
        *numbers[1:3],
        *flags,
        numbers[3],
        [],
        t * n,
        0.0,
        torch.zeros(t, n, 0),
        flags[0],
        nothing,
        0,
        None,
    )
    return config, loss, rollout


@pytest.mark.parametrize("kind", ACTIONS)
def test_an_update_stays_on_its_device_and_waits_for_nothing(kind):
    config, loss, rollout = setting(kind)
    ranks = Ranks(0, 1, lambda tensor: tensor.unsqueeze(0))
    batch = make_batch(rollout, config, ranks, 0, META)
    assert all(column.device == META for column in batch.rows[:-1])  # the last is for recurrent agents
    optimizer = make_optimizer(loss, config)

    def step(value):
        optimizer.zero_grad()
        value.backward()
        return optimizer.step()

    logged = run_epochs(loss, batch, step, config)
    assert logged.device == META
    assert logged.shape == (7,)
    assert _value_moments(batch).device == META
    assert all(parameter.grad.device == META for parameter in loss.parameters())


def test_the_meta_device_catches_what_it_is_there_to_catch():
    config, loss, rollout = setting("discrete")
    batch = make_batch(rollout, config, Ranks(0, 1, lambda tensor: tensor.unsqueeze(0)), 0, META)
    with pytest.raises(RuntimeError):
        run_epochs(loss, batch, lambda value: torch.tensor(value.item()), config)
    with pytest.raises((RuntimeError, TypeError)):
        run_epochs(loss, batch, lambda value: torch.tensor(value.detach().numpy()), config)
    rows = next(iter(batch.minibatches(range(1), 4)))
    with pytest.raises(RuntimeError):
        loss(rows._replace(obs=torch.zeros(rows.obs.shape)))
