"""Optimizers by name."""

from __future__ import annotations

import pytest
import torch

from fabric_ppo.config import Config
from fabric_ppo.fast.adam import LeanAdam
from fabric_ppo.fast.optimizers import named_optimizer, require_optimizer
from fabric_ppo.process.errors import ConfigError


def make(**flags):
    return named_optimizer([torch.nn.Parameter(torch.ones(3))], Config(**flags))


@pytest.mark.parametrize(
    ("flags", "kind", "settings"),
    [
        ({"adam_eps": 1e-7}, LeanAdam, {"eps": 1e-7, "betas": (0.9, 0.999), "weight_decay": 0, "lr": 1e-3}),
        ({"optimizer": "adamw"}, LeanAdam, {"eps": 1e-5, "betas": (0.9, 0.999), "weight_decay": 0.01}),
        ({"optimizer": "adam", "optimizer_kwargs": {"betas": [0.5, 0.6]}}, LeanAdam, {"betas": (0.5, 0.6)}),
        ({"optimizer": "adamw", "optimizer_kwargs": '{"weight_decay": 2}'}, LeanAdam, {"weight_decay": 2}),
        ({"optimizer": "torch.optim:SGD", "learning_rate": "cosine:0.5"}, torch.optim.SGD, {"lr": 0.5}),
        (
            {"optimizer": "torch.optim:RMSprop", "optimizer_kwargs": {"alpha": 0.9, "momentum": 0.1}},
            torch.optim.RMSprop,
            {"alpha": 0.9, "momentum": 0.1, "lr": 1e-3},
        ),
    ],
)
def test_is_made_with_its_settings(flags, kind, settings):
    optimizer = make(**flags)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in settings} == settings


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"optimizer_kwargs": {"weight_decay": 1}},
            "^--optimizer-kwargs weight_decay: adam takes betas; --optimizer adamw takes it$",
        ),
        ({"optimizer": "adamw", "optimizer_kwargs": {"x": 1}}, "^--optimizer-kwargs x: adamw takes betas and weight_"),
        ({"optimizer": "adamw", "optimizer_kwargs": {"betas": 3}}, "^--optimizer adamw --optimizer-kwargs .*cannot be"),
        ({"optimizer": "torch.optim:SGD", "optimizer_kwargs": {"x": 1}}, "^--optimizer torch.optim:SGD .*unexpected"),
        ({"optimizer": "torch.optim:Nope"}, "^--optimizer torch.optim:Nope: cannot be imported"),
        ({"optimizer": "torch.optim:LBFGS"}, "LBFGS, whose step.. needs a closure"),
        ({"optimizer": "collections:Counter"}, "returned .*: a torch.optim.Optimizer is expected"),
    ],
)
def test_what_cannot_be_made_is_refused(flags, said):
    with pytest.raises(ConfigError, match=said):
        make(**flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"optimizer": "torch.optim:SparseAdam"},
        {"optimizer": "torch.optim:RAdam", "optimizer_kwargs": {"capturable": True}},
    ],
)
def test_what_cannot_take_a_step_is_refused_before_a_run(flags):
    config = Config(**flags)
    with pytest.raises(ConfigError, match=rf"^--optimizer {flags['optimizer']}.*: cannot be used \("):
        require_optimizer(config, takes_step=True)
    require_optimizer(config, takes_step=False)  # on a GPU it may


@pytest.mark.parametrize("flags", [{"optimizer": "sgd"}, {"optimizer": ""}, {"optimizer": torch.optim.SGD}])
def test_what_is_no_name_is_refused(flags):
    with pytest.raises(ConfigError, match=r"^--optimizer.* is expected"):
        Config(**flags)


@pytest.mark.parametrize("given", ["[1]", "{", {"lr": 1}, {"params": []}, 3, {"x": float("nan")}])
def test_settings_that_are_none_are_refused(given):
    with pytest.raises(ConfigError, match=r"^--optimizer-kwargs "):
        Config(optimizer_kwargs=given)
