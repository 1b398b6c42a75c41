"""A gradient step that is recorded once and replayed; a recorder of PyTorch's operations stands for CUDA graphs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fabric_ppo.config import Config
from fabric_ppo.fast import adam, gradient_clip
from fabric_ppo.fast.captured_step import CapturedStep
from fabric_ppo.fast.loss_module import PPOLoss, make_optimizer
from fabric_ppo.ppo.batch import Batch
from fabric_ppo.ppo.schedules import coefficients, set_learning_rate
from fabric_ppo.ppo.update import ppo_update
from fabric_ppo.process.group import ALONE, Ranks
from tests.fixtures.agents import build_agent
from tests.fixtures.recorded import Counted, record
from tests.fixtures.rows import make_rows
from tests.fixtures.spaces import ACTIONS
from tests.fixtures.updates import CONFIG, make_step

COMPILED = dataclasses.replace(CONFIG, compile=True, anneal_lr=True)
UPDATES = 3


@pytest.fixture(autouse=True)
def operations_only(monkeypatch):
    """Without the functions of C, which a recorder does not see."""
    for module in (adam, gradient_clip):
        monkeypatch.setattr(module, "kernels_for", lambda tensors: None)
    monkeypatch.setattr(PPOLoss, "_fast_loss", lambda *args: None)


class Trained:
    """An agent on its way through some updates of 30 rows, in minibatches of 7 and 8."""

    def __init__(self, kind, config, recorder, change=lambda step: step, ranks=ALONE, optimizer=None):
        self.agent = build_agent(ACTIONS[kind], log_std_min=-0.7, log_std_max=0.4)
        self.module = PPOLoss(self.agent, config)
        self.optimizer = (optimizer or make_optimizer)(self.module, config)
        step = make_step(self.agent, self.module, config, self.optimizer)
        self.captured = CapturedStep(self.module, change(step), self.optimizer, config, ranks, record=recorder)
        self.stats = []
        for update in range(UPDATES):
            set_learning_rate(self.optimizer, config, update, UPDATES)
            batch = Batch(make_rows(self.agent, 30, 0.1), 0, 1, config.seed, update)
            given = (self.captured.loss, batch, self.captured.step, coefficients(config, update, UPDATES), config)
            self.stats.append(dataclasses.replace(ppo_update(*given), seconds=0.0))


@pytest.mark.parametrize("kind", ACTIONS)
def test_replayed_steps_give_the_bits_of_steps_one_by_one(kind):
    """With a learning rate that falls, two sizes of minibatches, and Adam's count of steps, which is a state."""
    counted = Counted()
    one_by_one, replayed = Trained(kind, CONFIG, None), Trained(kind, COMPILED, counted)
    assert counted.recordings == 2  # a graph of each size
    assert counted.replays > UPDATES * CONFIG.update_epochs
    assert CONFIG.anneal_lr == COMPILED.anneal_lr
    for mine, theirs in zip(replayed.agent.parameters(), one_by_one.agent.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)  # the rate is rounded to float32 in a tensor
    for mine, theirs in zip(replayed.stats, one_by_one.stats, strict=True):
        assert mine.tagged() == pytest.approx(theirs.tagged(), rel=1e-6, abs=1e-9)
    (step,) = {float(state["step"]) for state in replayed.optimizer.state.values()}
    assert step == UPDATES * CONFIG.update_epochs * 4


def test_a_graph_reads_coefficients_that_change():
    """A clipping range and an entropy bonus that fall need no graphs of their own in each update."""
    falling = {"anneal_clip_coef": True, "anneal_ent_coef": True, "clip_vloss": True}
    counted, config = Counted(), dataclasses.replace(COMPILED, **falling)
    one_by_one = Trained("box", dataclasses.replace(CONFIG, **falling), None)
    replayed = Trained("box", config, counted)
    assert counted.recordings == 2
    torch.testing.assert_close(replayed.module.weights.flat, one_by_one.module.weights.flat, rtol=1e-5, atol=1e-8)
    for mine, theirs in zip(replayed.stats, one_by_one.stats, strict=True):
        assert mine.tagged() == pytest.approx(theirs.tagged(), rel=1e-5, abs=1e-8)


def test_a_replayed_step_is_that_of_tensors_one_by_one_bit_for_bit(monkeypatch):
    monkeypatch.setattr("fabric_ppo.fast.captured_step._WARM_UP", 10**9)
    one_by_one = Trained("box", COMPILED, record)
    monkeypatch.undo()
    for module in (adam, gradient_clip):
        monkeypatch.setattr(module, "kernels_for", lambda tensors: None)
    monkeypatch.setattr(PPOLoss, "_fast_loss", lambda *args: None)
    replayed = Trained("box", COMPILED, record)
    assert torch.equal(one_by_one.module.weights.flat, replayed.module.weights.flat)
    assert one_by_one.stats == replayed.stats


def test_a_step_that_a_graph_cannot_take_is_taken_one_by_one(capfd):
    """One whose numbers change outside of tensors: a graph would keep those of the recording.

    (Its recording counts as a call of the step, so that the two runs differ.)
    """

    def growing(step):
        calls = []

        def take(loss):
            calls.append(loss)
            return step(loss * len(calls))

        return take

    counted = Counted()
    odd = Trained("discrete", COMPILED, counted, growing)
    assert (counted.recordings, counted.replays) == (1, 1)
    assert [each.gradient_steps for each in odd.stats] == [12] * UPDATES
    assert odd.module.weights.flat.isfinite().all()
    said = capfd.readouterr()
    assert (said.out + said.err).count("--compile: gradient steps are not one CUDA graph (its step differs") == 1


def test_a_step_that_cannot_be_recorded_is_taken_one_by_one(capfd):
    def refuse(run):
        run()
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be reported")

    plain, odd = Trained("discrete", CONFIG, None), Trained("discrete", COMPILED, refuse)
    torch.testing.assert_close(plain.module.weights.flat, odd.module.weights.flat, rtol=1e-6, atol=1e-9)
    said = capfd.readouterr()
    assert "(operation not permitted when stream is capturing); their kernels" in said.out + said.err


def test_what_is_not_recorded_stays_as_it_is(capfd):
    """Without --compile, on the CPU, among several ranks, and with an optimizer of another class."""
    two = Ranks(0, 2, lambda tensor: torch.stack([tensor, tensor]))

    def adam_of_pytorch(module, config):
        return torch.optim.Adam(module.parameters(), lr=config.learning_rate)

    for config, recorder, options in (
        (CONFIG, record, {}),
        (COMPILED, None, {}),
        (COMPILED, record, {"ranks": two}),
        (COMPILED, record, {"optimizer": adam_of_pytorch}),
    ):
        trained = Trained("discrete", config, recorder, **options)
        assert trained.captured.loss is trained.module
    said = capfd.readouterr()
    assert (said.out + said.err).count("gradient steps are not one CUDA graph (an optimizer of your own, Adam)") == 1


def test_fabrics_wrapper_of_an_optimizer_is_looked_into():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    module = PPOLoss(build_agent(ACTIONS["discrete"]), Config())
    wrapped = Wrapper(make_optimizer(module, Config()))
    assert CapturedStep(module, torch.detach, wrapped, COMPILED, ALONE, record=record).loss is not module
