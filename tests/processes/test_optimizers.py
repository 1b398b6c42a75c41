"""Any of PyTorch's optimizers, from `make_optimizer`, trains in all three scripts, and a killed run goes on exactly."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fabric_ppo.architectures.exchange import Exchange
from fabric_ppo.fast import loss_module
from fabric_ppo.run.run import Run
from tests.fixtures.launching import SCRIPTS
from tests.fixtures.optimizers import OPTIMIZERS, use_optimizer
from tests.fixtures.resuming import NUM_UPDATES, assert_same_run, die, finish, metrics, on_call, train

pytestmark = pytest.mark.processes

RANKS = {"torch": 1, "fabric": 2, "decoupled": 3}
FEW = ["AdamW", "SGD", "of one's own"]
ADAPTED = {"desired_kl": 2e-3, "anneal_lr": False}


def weights(run_dir):
    return torch.cat([each.flatten() for each in load_file(run_dir / "policy.safetensors").values()])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trains_and_is_not_adam(tmp_path, monkeypatch, name):
    usual = weights(finish("torch", 1, tmp_path / "usual", updates=2))
    use_optimizer(monkeypatch, name)
    own = weights(finish("torch", 1, tmp_path / "own", updates=2))
    assert bool(own.isfinite().all())
    assert not torch.allclose(own, usual, atol=1e-6)  # also of Adam: it has another epsilon


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("flags", [{}, ADAPTED], ids=["annealed", "adapted"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, script, name, flags):
    use_optimizer(monkeypatch, name)
    size = RANKS[script]
    expected = finish(script, size, tmp_path / "expected", **flags)
    rates = [line["Info/learning_rate"] for line in metrics(expected)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[-1] != rates[0]
    with monkeypatch.context() as patch:
        patch.setattr(Run, "merge", on_call(4, 0, die, Run.merge))
        assert train(script, size, tmp_path / "run", **flags)[0] == "exit code 9"
    finish(script, size, tmp_path / "run", resume=True, **flags)
    assert_same_run(tmp_path / "run", expected, resumes=1)


NAMED = {
    "adamw": {
        "optimizer": "adamw",
        "optimizer_kwargs": {"weight_decay": 0.1},
        "learning_rate": "cosine:1e-3:warmup=0.3",
    },
    "a class": {
        "optimizer": "torch.optim:RMSprop",
        "optimizer_kwargs": {"momentum": 0.5},
        "clip_coef": "linear:0.3:0.1",
    },
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("name", NAMED)
def test_those_with_names_go_on_to_the_same_bits(tmp_path, monkeypatch, script, name):
    """And with schedules of learning rate and clipping."""
    size = RANKS[script]
    expected = finish(script, size, tmp_path / "expected", **NAMED[name])
    with monkeypatch.context() as patch:
        patch.setattr(Run, "merge", on_call(4, 0, die, Run.merge))
        assert train(script, size, tmp_path / "run", **NAMED[name])[0] == "exit code 9"
    finish(script, size, tmp_path / "run", resume=True, **NAMED[name])
    assert_same_run(tmp_path / "run", expected, resumes=1)
    if script == "torch":
        theirs = finish("fabric", 1, tmp_path / "fabric", **NAMED[name])
        assert torch.equal(weights(expected), weights(theirs))
        plain = NAMED[name] | {"optimizer": "adam", "optimizer_kwargs": None}
        assert not torch.equal(weights(expected), weights(finish("torch", 1, tmp_path / "adam", **plain)))


@pytest.mark.parametrize("name", ["AdamW", "of one's own"])
@pytest.mark.parametrize("script", ["fabric", "decoupled"])
def test_the_scripts_agree(tmp_path, monkeypatch, script, name):
    """H1 and H3, with another optimizer."""
    use_optimizer(monkeypatch, name)
    size = {"fabric": 1, "decoupled": 2}[script]
    ours, theirs = finish("torch", 1, tmp_path / "torch"), finish(script, size, tmp_path / script)
    assert torch.allclose(weights(ours), weights(theirs), atol=0 if script == "fabric" else 1e-5)


def test_a_run_of_another_optimizer_is_refused(tmp_path, monkeypatch):
    finish("torch", 1, tmp_path / "run", updates=2)
    use_optimizer(monkeypatch, "AdamW")
    (said,) = train("torch", 1, tmp_path / "run", resume=True)
    assert "ConfigError: --resume: the checkpoint in" in said
    assert "(its optimizer is fabric_ppo.fast.adam.LeanAdam, this one is torch.optim.adamw.AdamW)" in said


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_resumed_run_has_the_settings_of_the_code(tmp_path, monkeypatch, script):
    """As after an edit of `make_optimizer`: a decay of 0.1 a step leaves nothing of weights."""
    size = RANKS[script]
    run_dir = tmp_path / "run"
    flags = {"anneal_lr": False, "learning_rate": 1e-3}
    for decay, updates in ((0.01, 2), (100.0, NUM_UPDATES)):
        monkeypatch.setitem(
            OPTIMIZERS, "decaying", lambda params, lr, decay=decay: torch.optim.AdamW(params, lr, weight_decay=decay)
        )
        use_optimizer(monkeypatch, "decaying")
        finish(script, size, run_dir, updates=updates, resume=updates > 2, **flags)
    assert weights(run_dir).norm() < 0.5 * weights(finish("torch", 1, tmp_path / "begun", updates=2)).norm()


def plain_adam(module, config):
    return torch.optim.Adam(module.parameters(), config.learning_rate, eps=config.adam_eps)


class PlainClip:
    """PyTorch's own clipping, with the arguments of ours."""

    def __init__(self, module, max_grad_norm):
        self.module, self.most = module, max_grad_norm

    def __call__(self):
        return nn.utils.clip_grad_norm_(self.module.parameters(), self.most)


def test_plain_clipping_and_adam_train_the_same(tmp_path, monkeypatch):
    """To rounding, in float64: H8 for a whole run."""
    flags = {"precision": "64-true", "max_grad_norm": 0.05}
    ours = weights(finish("fabric", 1, tmp_path / "ours", **flags))
    monkeypatch.setattr(loss_module, "make_optimizer", plain_adam)
    monkeypatch.setattr("fabric_ppo.architectures.lightning_module.make_optimizer", plain_adam)
    monkeypatch.setattr(SCRIPTS["fabric"], "GradientClip", PlainClip)
    plain = weights(finish("fabric", 1, tmp_path / "plain", **flags))
    assert ours.dtype == torch.float64
    assert (ours - plain).abs().max() < 1e-9
    assert not torch.equal(ours, weights(finish("fabric", 1, tmp_path / "looser", **flags | {"max_grad_norm": 5.0})))


def test_the_optimizer_costs_one_message(tmp_path, monkeypatch):
    """After the first update, in which its state appears."""
    use_optimizer(monkeypatch, "AdamW")
    path, receive = tmp_path / "sizes", Exchange._receive_state

    def counted(exchange, transmit):
        calls = []

        def noted(content):
            calls.append(len(content))
            transmit(content)

        try:
            return receive(exchange, noted)
        finally:
            with path.open("a") as file:
                file.write(f"{exchange._world.rank} {len(calls)}\n")

    monkeypatch.setattr(Exchange, "_receive_state", counted)
    finish("decoupled", 2, tmp_path / "run")
    of_player = [line.split()[1] for line in path.read_text().splitlines() if line.startswith("0")]
    assert of_player[0] in ("1", "2")
    assert of_player[1:] == ["1"] * 5
