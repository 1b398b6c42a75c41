"""Networks whose numbers depend on chance, on other observations or on the mode are refused in one line."""

from __future__ import annotations

import pytest
import torch
from gymnasium import spaces
from torch import nn

from fabric_ppo.agents import agent as agent_file
from fabric_ppo.agents.make import make_agent
from fabric_ppo.agents.mlp import MLP
from fabric_ppo.agents.repeatable import require_repeatable
from fabric_ppo.config import Config
from fabric_ppo.envs.gymnasium_spaces import env_spec
from fabric_ppo.process.errors import ConfigError

SPEC = env_spec("Test-v0", spaces.Box(-1, 1, (3,)), spaces.Discrete(4))


class Drops(nn.Module):
    """Dropout without a layer of its own."""

    def __init__(self, always):
        super().__init__()
        self.always = always

    def forward(self, features):
        return nn.functional.dropout(features, 0.3, self.always or self.training)


class Counts(nn.Module):
    """Running statistics of one's own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, features):
        if self.training:
            self.seen += 1
        return features + self.seen


class DropsInUpdates(nn.Module):
    """Dropout that looks for gradients instead of the mode, which `eval()` would not switch off."""

    def forward(self, features):
        return nn.functional.dropout(features, 0.3, torch.is_grad_enabled())


class ScalesInUpdates(nn.Module):
    """Other numbers in updates, without chance."""

    def forward(self, features):
        return 1.1 * features if torch.is_grad_enabled() else features


class DropsWhatHasGradients(nn.Module):
    def forward(self, features):
        return nn.functional.dropout(features, 0.3, features.requires_grad)


LAYERS = {
    "Dropout": lambda: nn.Dropout(0.1),
    "AlphaDropout": lambda: nn.AlphaDropout(0.1),
    "BatchNorm1d": lambda: nn.BatchNorm1d(8),
    "RReLU": nn.RReLU,
    "_SpectralNorm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)),
}
SILENT = {
    **{"chance": lambda: Drops(True), "the mode": lambda: Drops(False), "what was seen": Counts},
    **{"updates": DropsInUpdates, "updates, not chance": ScalesInUpdates, "gradients": DropsWhatHasGradients},
}
FINE = {
    "no dropout": lambda: nn.Dropout(0.0),
    "LayerNorm": lambda: nn.LayerNorm(8),
    "GroupNorm": lambda: nn.GroupNorm(2, 8),
    "SiLU": nn.SiLU,
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)),
}


def with_layer(monkeypatch, make):
    """`make_agent` after an edit of the perceptrons; they are called with widths 3 -> 8 -> n."""

    class Edited(MLP):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.insert(1, make())

    monkeypatch.setattr(agent_file, "MLP", Edited)
    return make_agent(SPEC, Config(hidden_sizes=(8,)))


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_named(monkeypatch, name):
    with pytest.raises(
        ConfigError,
        match=rf"^the agent's {name} makes of an observation what depends on others, on chance, or on earlier calls; ",
    ) as caught:
        with_layer(monkeypatch, LAYERS[name])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SILENT)
def test_what_only_shows_in_numbers(monkeypatch, name):
    state = torch.get_rng_state()
    with pytest.raises(ConfigError, match=r"^the agent's outputs for the same observation differ from call to call"):
        with_layer(monkeypatch, SILENT[name])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", FINE)
def test_what_does_not_depend_on_them_is_fine(monkeypatch, name):
    assert with_layer(monkeypatch, FINE[name]).training


@pytest.mark.parametrize(
    "flags", [{}, {"recurrent": "lstm"}, {"recurrent": "gru", "shared_trunk": True}, {"layer_norm": True}]
)
@pytest.mark.parametrize("action", [spaces.Discrete(4), spaces.Box(-1, 1, (2,)), spaces.MultiBinary(3)], ids=str)
def test_every_kind_of_agent_is_repeatable(flags, action):
    make_agent(env_spec("Test-v0", spaces.Box(-1, 1, (3,)), action), Config(**flags))
    masked = spaces.Dict({"action_mask": spaces.MultiBinary(4), "x": spaces.Box(-1, 1, (3,))})
    make_agent(env_spec("Test-v0", masked, spaces.Discrete(4)), Config(**flags))


def test_the_network_itself_is_not_called():
    network = nn.Sequential(Counts(), nn.Identity())
    with pytest.raises(ConfigError, match="its outputs"):
        require_repeatable(network, lambda twin: twin(torch.ones(2, 3)), "its")
    assert network[0].seen == 0
    assert network.training
