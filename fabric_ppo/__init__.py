"""Fabric PPO: Proximal Policy Optimization in PyTorch.

Three architectures learn the same thing: raw PyTorch, Lightning Fabric, and Fabric with a player
and trainers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fabric_ppo.agents.policy import Policy, load_agent
    from fabric_ppo.api import evaluate, train
    from fabric_ppo.config import Config, TorchConfig
    from fabric_ppo.process.errors import ConfigError, EnvironmentFault, NotAllWrittenError, TrainingError
    from fabric_ppo.run.callbacks import Callback, RunView
    from fabric_ppo.run.result import RunResult, load_run
    from fabric_ppo.run.trackers.tracker import Tracker
    from fabric_ppo.tools.export import export

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "Config",
    "ConfigError",
    "EnvironmentFault",
    "NotAllWrittenError",
    "Policy",
    "RunResult",
    "RunView",
    "TorchConfig",
    "Tracker",
    "TrainingError",
    "__version__",
    "evaluate",
    "export",
    "load_agent",
    "load_run",
    "train",
]

_HOMES = {
    **dict.fromkeys(("Policy", "load_agent"), "fabric_ppo.agents.policy"),
    **dict.fromkeys(("evaluate", "train"), "fabric_ppo.api"),
    **dict.fromkeys(("Config", "TorchConfig"), "fabric_ppo.config"),
    **dict.fromkeys(
        ("ConfigError", "EnvironmentFault", "NotAllWrittenError", "TrainingError"), "fabric_ppo.process.errors"
    ),
    **dict.fromkeys(("Callback", "RunView"), "fabric_ppo.run.callbacks"),
    **dict.fromkeys(("RunResult", "load_run"), "fabric_ppo.run.result"),
    "Tracker": "fabric_ppo.run.trackers.tracker",
    "export": "fabric_ppo.tools.export",
}
"""Public names, and the modules that they are in."""


if not TYPE_CHECKING:  # to a type checker it would mean that every name exists

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first asked for: `--help` need not wait for torch."""
        if name in _HOMES:
            from importlib import import_module

            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names that completion shows: the public ones, none of which is imported by it."""
    return sorted({*globals(), *__all__})
