"""The loss as a module: compiled, and by autograd where no faster form is known."""

from __future__ import annotations

import copy
import dataclasses
import shutil

import pytest
import torch

from fabric_ppo.config import Config
from fabric_ppo.fast.loss_module import PPOLoss, compile_loss
from fabric_ppo.ppo import loss as plain
from fabric_ppo.ppo.batch import Rows, blank_rows
from fabric_ppo.ppo.loss import minibatch_loss
from tests.fixtures.agents import build_agent, masked_agent
from tests.fixtures.rows import make_rows
from tests.fixtures.spaces import ACTIONS
from tests.fixtures.updates import CONFIG, coefs_of, make_step

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@needs_compiler
@pytest.mark.parametrize("action", ["discrete", "multi_discrete"])
def test_the_compiled_loss_is_the_loss(action):
    """Compiled once, before the first minibatch: other sizes, moved weights and annealed coefficients need no more."""
    agent = build_agent(ACTIONS[action])
    weights, rows = PPOLoss(agent, CONFIG), make_rows(agent, 40)
    compiled = PPOLoss(free := copy.deepcopy(agent), dataclasses.replace(CONFIG, compile=True))
    before = copy.deepcopy(free.state_dict())
    compile_loss(compiled, dataclasses.replace(CONFIG, compile=True))
    assert all(torch.equal(value, before[name]) for name, value in free.state_dict().items())
    assert compiled.weights.flat.grad is None
    steps = [make_step(owner, module, CONFIG) for owner, module in ((agent, weights), (free, compiled))]
    with torch.compiler.set_stance("fail_on_recompile"):
        for size in (8, 7, 3, 7):
            coefs = coefs_of(CONFIG)._replace(clip_coef=size / 100, ent_coef=size / 50)
            part = Rows(*(column[:size] for column in rows))
            want, got = weights(part, coefs), compiled(part, coefs)
            torch.testing.assert_close(got[:4], want[:4], rtol=1e-9, atol=1e-9)
            steps[0](want.loss)
            steps[1](got.loss)
            torch.testing.assert_close(compiled.weights.flat, weights.weights.flat, rtol=1e-9, atol=1e-9)


def test_the_compiled_loss_is_not_used_for_other_coefficients(monkeypatch):
    """It holds those that no flag anneals as constants; they may change along a run of a changed script."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    agent, config = build_agent(ACTIONS["discrete"]), dataclasses.replace(CONFIG, compile=True)
    compiled, rows = PPOLoss(agent, config), make_rows(agent, 16, 0.3)
    compile_loss(compiled, config)
    for coefs in (coefs_of(config), coefs_of(config)._replace(vf_coef=0.5)):
        torch.testing.assert_close(compiled(rows, coefs).loss, minibatch_loss(compiled.weights, rows, coefs).loss)


def beside(agent, rows):
    """Terms of parts of an agent, of a weight by its name, and of all weights."""
    values = agent.value(agent.inputs(rows.obs))
    weight = agent.policy.linear_layers[0].weight
    return values.square().mean() + weight.abs().sum() + sum(each.square().sum() for each in agent.parameters())


@pytest.mark.parametrize("compiles", [False, pytest.param(True, marks=needs_compiler)])
def test_what_an_edited_loss_computes_of_parts_of_the_agent_trains(compiles, monkeypatch):
    """All attributes of the agent are there, and gradients through them are those of a copy with weights of its own."""

    def mine(agent, rows, coefs):
        found = minibatch_loss(agent, rows, coefs)
        return found._replace(loss=found.loss + 0.1 * beside(agent, rows))

    monkeypatch.setattr(plain, "minibatch_loss", mine)
    agent = build_agent(ACTIONS["box"])
    free, rows, config = copy.deepcopy(agent), make_rows(agent, 16), dataclasses.replace(CONFIG, compile=compiles)
    loss = PPOLoss(agent, config)
    compile_loss(loss, config)
    loss(rows, coefs_of(config)).loss.backward()
    mine(free, rows, coefs_of(config)).loss.backward()
    for name, grad in loss.weights.views(loss.weights.flat.grad).items():
        torch.testing.assert_close(grad, free.get_parameter(name).grad, rtol=1e-9, atol=1e-9)


def test_an_attribute_that_the_agent_does_not_have_is_named_as_one_of_the_agent(monkeypatch):
    monkeypatch.setattr(plain, "minibatch_loss", lambda agent, rows, coefs: agent.head(rows.obs))
    agent = build_agent(ACTIONS["box"])
    with pytest.raises(AttributeError, match=r"^'Agent' object has no attribute 'head'$"):
        PPOLoss(agent, CONFIG)(make_rows(agent, 16), coefs_of(CONFIG))


def test_an_agent_that_has_no_compiled_loss_goes_by_autograd():
    _, agent = masked_agent()
    config = Config(per_rank_batch_size=8)
    loss = PPOLoss(agent, config)
    value = loss(blank_rows(agent, 8), coefs_of(config)).loss
    value.backward()
    assert loss.weights.flat.grad is not None
