"""Weights that are frozen, and learning rates of their own for some, in all three scripts."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from fabric_ppo.agents.make import make_agent
from fabric_ppo.architectures import lightning_module
from fabric_ppo.fast import loss_module
from fabric_ppo.fast.adam import LeanAdam
from fabric_ppo.fast.flat_weights import split_weights
from fabric_ppo.ppo import loss as loss_file
from fabric_ppo.ppo.loss import minibatch_loss
from fabric_ppo.run.run import Run
from tests.fixtures.launching import SCRIPTS
from tests.fixtures.resuming import assert_same_run, die, finish, on_call, train

pytestmark = pytest.mark.processes

RANKS = {"torch": 1, "fabric": 2, "decoupled": 3}
FROZEN = ("policy.0.weight", "policy.0.bias")


def frozen_agent(spec, config):
    """The agent of a run, as after an edit of `make_agent`."""
    agent = make_agent(spec, config)
    agent.policy.linear_layers[0].requires_grad_(False)
    return agent


def use(monkeypatch, make_optimizer=None, agent=None):
    """Have all scripts train with these, as after an edit."""
    for module in (loss_module, lightning_module, *SCRIPTS.values()):
        if make_optimizer is not None and hasattr(module, "make_optimizer"):
            monkeypatch.setattr(module, "make_optimizer", make_optimizer)
        if agent is not None and hasattr(module, "make_agent"):
            monkeypatch.setattr(module, "make_agent", agent)


def of_parts(make, factor):
    """A `make_optimizer` with another rate for the value function."""

    def make_optimizer(module, config):
        value, others = split_weights(module, "value.")
        groups = [
            {"params": others, "lr": config.learning_rate},
            {"params": value, "lr": factor * config.learning_rate},
        ]
        return make(groups, config)

    return make_optimizer


def adamw(groups, config):
    return torch.optim.AdamW(groups, weight_decay=0.3)


def lean(groups, config):
    return LeanAdam(groups, config.learning_rate, config.adam_eps)


def weights(run_dir):
    return load_file(run_dir / "policy.safetensors")


@pytest.mark.parametrize("script", SCRIPTS)
def test_frozen_weights_stay_and_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, script):
    """Of another run's policy, which the trainers of the decoupled script do not have; with weight decay."""
    begun = finish("torch", 1, tmp_path / "begun", updates=2)
    use(monkeypatch, of_parts(adamw, 3), frozen_agent)
    size, flags = RANKS[script], {"init_from": str(begun), "desired_kl": 2e-3, "anneal_lr": False}
    expected = finish(script, size, tmp_path / "expected", **flags)
    before, after = weights(begun), weights(expected)
    assert before.keys() == after.keys()
    assert {name for name in before if torch.equal(before[name], after[name])} == set(FROZEN)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "merge", on_call(4, 0, die, Run.merge))
        assert train(script, size, tmp_path / "run", **flags)[0] == "exit code 9"
    finish(script, size, tmp_path / "run", resume=True, **flags)
    assert_same_run(tmp_path / "run", expected, resumes=1)


@pytest.mark.parametrize("script", ["fabric", "decoupled"])
def test_the_scripts_agree(tmp_path, monkeypatch, script):
    """H1 and H3, with the same optimizer in all."""
    use(monkeypatch, of_parts(lean, 0.1), frozen_agent)
    size = {"fabric": 1, "decoupled": 2}[script]
    ours, theirs = (
        weights(finish(*run, updates=2)) for run in (("torch", 1, tmp_path / "t"), (script, size, tmp_path / "s"))
    )
    for name, weight in ours.items():
        assert torch.allclose(weight, theirs[name], atol=0 if script == "fabric" else 1e-5), name


def test_rates_are_those_of_the_parts(tmp_path, monkeypatch):
    """A first step of Adam is as long as the rate for every weight with a gradient that is not tiny."""
    moved = []
    flags = {"update_epochs": 1, "per_rank_batch_size": 64, "anneal_lr": False, "max_grad_norm": 1e6}
    for factor in (1, 10):
        with monkeypatch.context() as patch:
            use(patch, of_parts(lean, factor))
            moved.append(weights(finish("torch", 1, tmp_path / str(factor), updates=1, **flags)))
    start = weights(finish("torch", 1, tmp_path / "start", updates=1, learning_rate=1e-30, **flags))
    for name, before in start.items():
        steps = [(run[name] - before).norm() for run in moved]
        assert steps[1] / steps[0] == pytest.approx(10 if name.startswith("value.") else 1, rel=1e-3), name


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_optimizer_that_leaves_weights_out_is_refused(tmp_path, monkeypatch, script):
    """In one line of every rank, before anything is written."""
    use(monkeypatch, lambda module, config: torch.optim.Adam(split_weights(module, "policy.")[0]))
    said = train(script, RANKS[script], tmp_path / "run")
    for each in said:
        assert "ConfigError: the optimizer does not hold value.0.weight and 5 more of the agent's 12 weights" in each
    assert not (tmp_path / "run").exists()


REFUSED = {
    "None: a torch.optim.Optimizer is expected": lambda module, config: None,
    "LBFGS, whose step() needs a closure: ": lambda module, config: torch.optim.LBFGS(module.parameters()),
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_take_a_step_is_refused(tmp_path, monkeypatch, script, said):
    """In one line of every rank, before Fabric looks at it and before anything is written."""
    use(monkeypatch, REFUSED[said])
    printed = train(script, RANKS[script], tmp_path / "run")
    assert len(printed) == RANKS[script]
    for each in printed:
        assert f"ConfigError: make_optimizer returned {said}" in each
    assert not (tmp_path / "run").exists()


def adapt(monkeypatch):
    """Have all scripts train with a coefficient of the loss that changes in each update, a buffer of the agent."""
    made = []

    def agent_with_coefficient(spec, config):
        agent = make_agent(spec, config)
        agent.register_buffer("beta", torch.ones(()))
        made[:] = [agent]
        return agent

    def with_penalty(agent, rows, coefs):
        loss = minibatch_loss(agent, rows, coefs)
        return loss._replace(loss=loss.loss + agent.beta * (rows.weights @ agent.values(rows.obs).square()))

    use(monkeypatch, agent=agent_with_coefficient)
    monkeypatch.setattr(loss_file, "minibatch_loss", with_penalty)
    for module in SCRIPTS.values():  # what each rank calls after an update, the player too
        monkeypatch.setattr(module, "adapt_learning_rate", lambda *_: made[0].beta.mul_(0.5))


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_buffer_of_the_agents_own_goes_on_in_a_killed_run(tmp_path, monkeypatch, script):
    adapt(monkeypatch)
    expected = finish(script, RANKS[script], tmp_path / "expected")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "merge", on_call(4, 0, die, Run.merge))
        assert train(script, RANKS[script], tmp_path / "run")[0] == "exit code 9"
    finish(script, RANKS[script], tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", expected, resumes=1)
