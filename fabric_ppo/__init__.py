"""Fabric PPO: Proximal Policy Optimization in PyTorch.

Three architectures learn the same thing: raw PyTorch, Lightning Fabric, and Fabric with a player
and trainers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric_ppo.agents.policy import load_agent
    from fabric_ppo.api import train
    from fabric_ppo.config import Config
    from fabric_ppo.process.errors import ConfigError

__version__ = "0.1.0"
__all__ = ["Config", "ConfigError", "load_agent", "train"]

_HOMES = {
    "Config": "fabric_ppo.config",
    "ConfigError": "fabric_ppo.process.errors",
    "load_agent": "fabric_ppo.agents.policy",
    "train": "fabric_ppo.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `--help` need not wait for torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
