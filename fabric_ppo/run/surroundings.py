"""Everything besides flags on which the last bits of a run depend, and changes of it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch

from fabric_ppo.agents.agent import Agent
from fabric_ppo.config import Config
from fabric_ppo.fast.compiled_actor import has_compiled_actor
from fabric_ppo.fast.kernels import kernels, origin
from fabric_ppo.process.devices import gpu_name
from fabric_ppo.process.launch import read_launch
from fabric_ppo.process.machine import machine
from fabric_ppo.run.code import changed_files, code_of, own_modules

_LIBRARIES = (
    *("torch", "numpy", "gymnasium", "lightning", "mujoco", "Box2D", "ale_py", "minigrid"),
    "envpool",
)
"""Modules on whose versions the last bits of a run depend, besides those of the user's parts."""
_LATER = {"device": "cpu", "precision": "32-true"}
"""Values that a checkpoint of an older version does not have."""
_LAST_BITS = "the result will not be the same bit for bit"


def surroundings(config: Config, agent: Agent) -> dict[str, Any]:
    """Return everything on which the last bits of a run depend besides its flags, by name.

    Args:
        config: the run's configuration, resolved: its environment is imported.
        agent: this rank's, on its device.
    """
    libraries = sorted({*_LIBRARIES, *(module.partition(".")[0] for module in own_modules(config))})
    return {
        "code": code_of(config),
        "versions": {name: version for name in libraries if (version := _version(name)) is not None},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": machine(),
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "threads": torch.get_num_threads(),
        "ranks": read_launch().world_size,
        "device": agent.device.type,
        "gpu": gpu_name() if agent.device.type == "cuda" or getattr(config, "cuda", False) else "none",
        "precision": os.environ.get("LT_PRECISION", "32-true"),
        "kernels": _compiled_functions(agent),
    }


def _compiled_functions(agent: Agent) -> str:
    """Return a name for the compiled functions that act with an agent and train it, or `none`."""
    library = kernels(agent.dtype) if has_compiled_actor(agent) else None
    return "none" if library is None else origin(library)


def _version(module: str) -> str | None:
    version = getattr(sys.modules.get(module), "__version__", None)
    return None if version is None else str(version)


def changes(before: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return a line for each reason why a resumed run may not end with the same bits.

    Args:
        before: the surroundings in the checkpoint, perhaps of an older version of this program.
        current: those of this process.
    """
    before = _LATER | {name: current[name] for name in ("kernels", "gpu")} | dict(before)
    if "versions" not in before:  # an older version had them side by side, and one digest of all code
        before |= {"code": {}, "versions": {name: before[name] for name in _LIBRARIES if name in before}}
    lines = []
    if before["code"] != current["code"]:
        files = changed_files(before["code"], current["code"]) if before["code"] else "another version of this program"
        lines.append(f"resumed with changed code ({files}): the run goes on with the code as it is now")
    old, new = before["versions"], current["versions"]
    if others := [f"{name} {new[name]} (before {old.get(name, 'none')})" for name in new if old.get(name) != new[name]]:
        lines.append(f"resumed with other libraries, {', '.join(others)}: {_LAST_BITS}")
    values = {"processor": "on another processor", "device": "on another device", "precision": "in another precision"}
    values |= {"kernels": "with other compiled functions", "gpu": "on another GPU"}
    values |= {"threads": "with another number of threads", "ranks": "with another number of ranks"}
    for name, text in values.items():
        if before.get(name) != current[name]:
            lines.append(f"resumed {text}, {current[name]} (before {before.get(name)}): {_LAST_BITS}")
    return lines
