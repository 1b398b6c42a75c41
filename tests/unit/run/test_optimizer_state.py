"""The state of any optimizer goes through a checkpoint's bytes, and its next steps are the same bit for bit."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from fabric_ppo.fast.adam import LeanAdam
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.run.optimizer_state import OptimizerState, load_optimizer, read_optimizer, settings_of
from tests.fixtures.optimizers import OPTIMIZERS

MAKERS = OPTIMIZERS | {"LeanAdam": lambda params, lr: LeanAdam(params, lr, 1e-5)}


def steps(optimizer, parameter, numbers):
    """Take steps with gradients that follow from their numbers."""
    for number in numbers:
        torch.manual_seed(number)
        parameter.grad = torch.randn_like(parameter)
        optimizer.step()


def sent(state: OptimizerState) -> OptimizerState:
    """The state as it comes out of a file."""
    came = Checkpoint.from_bytes(Checkpoint(state.tensors, state.values).to_bytes())
    return OptimizerState(dict(came.tensors), dict(came.values))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("before", [0, 1, 4])
@pytest.mark.parametrize("name", MAKERS)
def test_goes_on_with_the_same_bits(name, before, dtype):
    ours, resumed = (nn.Parameter(torch.linspace(-1, 1, 7, dtype=dtype)) for _ in range(2))
    optimizer, later = (MAKERS[name]([each], 0.01) for each in (ours, resumed))
    steps(optimizer, ours, range(before))
    state = sent(read_optimizer(optimizer))
    steps(later, resumed, [99])  # what was there before goes
    with torch.no_grad():
        resumed.copy_(ours)
    load_optimizer(later, state)
    load_optimizer(later, state)  # loading changes nothing of what is loaded
    for each, number in ((optimizer, 0.003), (later, 0.003)):
        each.param_groups[0]["lr"] = number
    steps(optimizer, ours, range(10, 14))
    steps(later, resumed, range(10, 14))
    assert torch.equal(ours, resumed)


def test_the_learning_rate_is_left_to_the_schedule():
    (one, other) = (torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=rate) for rate in (0.1, 0.2))
    load_optimizer(other, sent(read_optimizer(one)))
    assert other.param_groups[0]["lr"] == 0.2


def test_a_state_of_before_numbers_were_kept_is_loaded():
    """A checkpoint of an older version has tensors only."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = LeanAdam([parameter], 0.01, 1e-5)
    steps(optimizer, parameter, range(2))
    tensors = {name: each.clone() for name, each in read_optimizer(optimizer).tensors.items()}
    assert set(tensors) == {"0.step", "0.exp_avg", "0.exp_avg_sq"}
    later = LeanAdam([parameter], 0.01, 1e-5)
    load_optimizer(later, OptimizerState(tensors, {}))
    assert all(torch.equal(each, tensors[name]) for name, each in read_optimizer(later).tensors.items())


def test_the_state_of_another_optimizer_is_refused():
    state = read_optimizer(torch.optim.AdamW([nn.Parameter(torch.ones(2))]))
    with pytest.raises(ValueError, match=r"its optimizer is torch\.optim\.adamw\.AdamW, this one is .*\.SGD"):
        load_optimizer(torch.optim.SGD([nn.Parameter(torch.ones(2))]), state)


def test_a_tensor_that_the_state_does_not_name_is_refused():
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(2))])
    state = read_optimizer(optimizer)
    with pytest.raises(ValueError, match=r"optimizer\.0\.x is unknown"):
        load_optimizer(optimizer, OptimizerState({"0.x": torch.ones(2)}, state.values))
    with pytest.raises(ValueError, match=r"optimizer\.0\.y is missing"):
        load_optimizer(optimizer, OptimizerState({}, state.values | {"tensors": ["0.y"]}))


@pytest.mark.parametrize(
    "numbers", [{"groups.0.betas": 3}, {"groups.0.eps": "x"}, {"groups.7.eps": 1.0}, {"groups.0.eps": [1.0]}, [], "x"]
)
def test_hostile_numbers_are_refused(numbers):
    optimizer = LeanAdam([nn.Parameter(torch.ones(2))], 0.01, 1e-5)
    state = read_optimizer(optimizer)
    values = state.values | {"numbers": numbers}
    with pytest.raises((ValueError, TypeError, IndexError, AttributeError)):
        load_optimizer(optimizer, OptimizerState(state.tensors, values))


def test_a_state_that_cannot_be_saved_is_named():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter])
    optimizer.state[parameter]["history"] = [torch.ones(2)]
    with pytest.raises(ConfigError, match=r"SGD: its state has a list, history; tensors and numbers can be saved"):
        read_optimizer(optimizer)


def test_settings_are_those_of_the_code_and_state_is_that_of_the_checkpoint():
    """What the optimizer itself has changed since it was made is state, also in a group."""

    def make(weight_decay, betas, **more):
        parameter = torch.nn.Parameter(torch.ones(2))
        group = {"params": [parameter], "count": 0, **more}
        return torch.optim.AdamW([group], 1e-3, weight_decay=weight_decay, betas=betas)

    saved = make(0.1, (0.9, 0.99))
    settings = json.loads(json.dumps(settings_of(saved)))
    saved.param_groups[0]["count"] = 7
    saved.param_groups[0]["params"][0].grad = torch.ones(2)
    saved.step()
    found = read_optimizer(saved)
    state = OptimizerState(found.tensors, json.loads(json.dumps(found.values)))
    edited = make(0.3, (0.8, 0.99), added="yes")
    load_optimizer(edited, state, settings)
    (group,) = edited.param_groups
    assert (group["weight_decay"], group["betas"], group["count"], group["added"]) == (0.3, (0.8, 0.99), 7, "yes")
    assert edited.state[group["params"][0]]["step"] == 1
    unknown = make(0.3, (0.8, 0.99))
    load_optimizer(unknown, state)  # a checkpoint of an older version
    assert unknown.param_groups[0]["weight_decay"] == 0.1
