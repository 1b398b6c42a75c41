"""Reasons why plain code runs where a fast part could, for the line that says so."""

from __future__ import annotations

from torch import nn

from fabric_ppo.agents.agent import Agent, declared_forms, is_altered
from fabric_ppo.agents.mlp import MLP, Linear, Tanh
from fabric_ppo.fast.flat_weights import frozen_weights
from fabric_ppo.fast.written_for import edited, replaced

_LAYERS = (nn.Linear, Linear, nn.ReLU, Tanh, nn.LayerNorm)
"""Layers of the perceptrons that flags can name."""


def reasons_for_plain(agent: Agent, form: str, files: tuple[str, ...]) -> list[str]:
    """Return what a user has changed that a fast form does not know, as in `edited: ppo/loss.py`.

    Args:
        agent: what acts, or is trained.
        form: `acting` or `loss`.
        files: those that the fast form stands for.
    """
    found = {"edited": edited(files), "replaced": replaced(files)}
    parts = [part for part in (agent, *agent.parts) if form not in declared_forms(part)]
    layers = [layer for part in parts if isinstance(part, MLP) for layer in part if type(layer) not in _LAYERS]
    found["changed"] = list(dict.fromkeys(type(part).__name__ for part in [*filter(is_altered, parts), *layers]))
    found["your own"] = [type(part).__name__ for part in parts if not type(part).__module__.startswith("fabric_ppo.")]
    if form == "loss" and (frozen := list(frozen_weights(agent))):
        found["frozen"] = [frozen[0] + (f" and {len(frozen) - 1} more" if len(frozen) > 1 else "")]
    return [f"{how}: {', '.join(names)}" for how, names in found.items() if names]
