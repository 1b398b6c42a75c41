"""A trained policy as a file: `policy.safetensors`, or inside a checkpoint. Reading one runs no code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.process.errors import ConfigError, first_line
from fabric_ppo.process.files import Checkpoint, write_atomically

if TYPE_CHECKING:
    from fabric_ppo.agents.agent import Agent
from fabric_ppo.agents.agent import Agent, Architecture

POLICY_FILE = "policy.safetensors"


def policy_path(run_dir: str | Path) -> Path:
    """The file that holds the policy of a run folder; a checkpoint's is its own.

    Raises:
        ConfigError: there is none.
    """
    path = Path(run_dir)
    if path.suffix != ".ckpt":
        path /= POLICY_FILE
    if not path.is_file():
        raise ConfigError(
            f"{run_dir}: no {POLICY_FILE} in it; the folder of a finished run, or a checkpoint, is expected"
        )
    return path


def read_policy(path: Path) -> tuple[Mapping[str, str], dict[str, torch.Tensor]]:
    """What rebuilds the agent, `env_spec` and `agent` as JSON, and its weights; a damaged file fails in many ways."""
    from safetensors import safe_open

    if path.suffix == ".ckpt":
        checkpoint = Checkpoint.from_bytes(path.read_bytes())
        return checkpoint.values, checkpoint.under("weights.")
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def require_weights(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """See that a file's weights have the names and shapes of an agent's, and are finite.

    Raises:
        ValueError: they do not fit; says which.
    """
    if odd := sorted(weights.keys() ^ expected.keys()):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in expected else 'unknown'}")
    for name, tensor in weights.items():
        like = expected[name]
        if tensor.shape != like.shape or tensor.is_floating_point() != like.is_floating_point():
            raise ValueError(f"{name} has another type or shape")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds numbers that are not finite")


def save_policy(agent: Agent, run_dir: Path) -> None:
    """Write `policy.safetensors`: the weights without prefix, and what rebuilds the agent around them, as JSON."""
    from safetensors.torch import save

    metadata = {"env_spec": agent.spec.to_json(), "agent": agent.architecture.to_json()}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in agent.state_dict().items()}
    write_atomically(run_dir / POLICY_FILE, _in_order(save(weights, metadata)))


def _in_order(content: bytes) -> bytes:
    """The same safetensors file with its header's keys sorted: the library writes metadata in random order."""
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def start_from(agent: Agent, run_dir: str) -> None:
    """Take over the weights and running statistics of a trained policy (`--init-from`).

    Raises:
        ConfigError: it cannot be read, or is the policy of another kind of agent.
    """
    try:
        path = policy_path(run_dir)
        metadata, weights = read_policy(path)
        spec, architecture = EnvSpec.from_json(metadata["env_spec"]), Architecture.from_json(metadata["agent"])
    except Exception as error:  # a damaged file fails in many ways
        reason = first_line(error)
        raise ConfigError(f"--init-from {run_dir}: not a policy of this program ({reason})") from None
    pairs = {
        "observations": (spec.observation, agent.spec.observation),
        "actions": (spec.action, agent.spec.action),
        "networks": (architecture, agent.architecture),
    }
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise ConfigError(f"--init-from {run_dir}: its {what} are {theirs}; this run's, {ours}, are expected")
    try:
        require_weights(weights, agent.state_dict())
    except ValueError as error:
        raise ConfigError(f"--init-from {run_dir}: not a policy of this program ({error})") from None
    agent.load_state_dict(weights)
