"""What docs/architecture.md says that a program may replace takes effect in its run, also where it shows late."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fabric_ppo import Config, train
from fabric_ppo.agents.distributions import Categorical
from fabric_ppo.agents.mlp import MLP
from fabric_ppo.ppo import advantages, loss
from fabric_ppo.rollouts.actor import Actor
from tests.fixtures.launching import printed_in_fork

pytestmark = pytest.mark.processes

MINIBATCHES = 2 * 4
"""Of an update of the runs below: epochs by minibatches."""


def late(usual, other, calls):
    """A function that does as `usual` in its first calls, and later as `other`."""
    made = []

    def function(*args):
        made.append(None)
        return usual(*args) if len(made) <= calls else other(*args)

    return function


def without_loss(rows, new, coefs):
    losses = USUAL["ppo_loss"](rows, new, coefs)
    return losses._replace(loss=0 * losses.loss, policy_loss=torch.full((), 0.125))


def without_gradient(agent, rows, coefs):
    found = USUAL["minibatch_loss"](agent, rows, coefs)
    return found._replace(loss=0 * found.loss)


USUAL = {"ppo_loss": loss.ppo_loss, "minibatch_loss": loss.minibatch_loss}
Actor_act, MLP_forward = Actor.act, MLP.forward
REPLACED = {
    "ppo_loss": (loss, late(loss.ppo_loss, without_loss, MINIBATCHES), ["training"]),
    "minibatch_loss": (loss, late(loss.minibatch_loss, without_gradient, MINIBATCHES), ["training"]),
    "gae": (advantages, late(advantages.gae, lambda rewards, *_: (rewards, rewards), 1), []),
    "Categorical.sample": (
        Categorical,
        late(Categorical.sample, lambda self, params, _: params.argmin(-1), 40),
        ["acting", "training"],
    ),
    "Actor.act": (Actor, late(Actor.act, lambda self, obs: 0 * Actor_act(self, obs), 40), ["acting"]),
    "MLP.forward": (MLP, late(MLP.forward, lambda self, x: MLP_forward(self, x) / 2, 150), ["acting", "training"]),
}
"""Name -> owner, replacement, and what a line is printed of."""


def trained(run_dir, name=""):
    """Train in one process, with a function replaced."""
    if name:
        owner, function, _ = REPLACED[name]
        setattr(owner, name.rpartition(".")[2], function)
    flags = {"total_timesteps": 256, "num_steps": 64, "num_envs": 2, "update_epochs": 2, "per_rank_batch_size": 32}
    train(Config(**flags, test_episodes=1, quiet=True, num_threads=1, run_dir=str(run_dir)))


@pytest.mark.parametrize("name", REPLACED)
def test_it_takes_effect(name, tmp_path):
    weights = []
    for replaced in ("", name):
        run_dir = tmp_path / f"run_{replaced}"
        _, _, err = printed_in_fork(trained, run_dir, replaced)
        weights.append(torch.cat([each.flatten() for each in load_file(run_dir / "policy.safetensors").values()]))
    assert not torch.equal(*weights)
    lines = [line.partition(f" ({name}); ")[2].partition(" follows")[0] for line in err.splitlines() if name in line]
    assert all(line.startswith("replaced: ") for line in err.splitlines() if name in line)
    assert sorted(lines) == REPLACED[name][-1]
