"""Fabric PPO: Proximal Policy Optimization in PyTorch, in three architectures that learn the same thing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric_ppo.api import train
    from fabric_ppo.config import Config
    from fabric_ppo.errors import ConfigError
    from fabric_ppo.evaluate import load_agent

__version__ = "0.1.0"
__all__ = ["Config", "ConfigError", "load_agent", "train"]

_HOMES = {
    "Config": "fabric_ppo.config",
    "ConfigError": "fabric_ppo.launch",
    "load_agent": "fabric_ppo.evaluate",
    "train": "fabric_ppo.api",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for only then, so that `--help` need not wait for torch."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
