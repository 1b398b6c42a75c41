"""Files of trained policies, `policy.safetensors` and checkpoints; reading one runs no code."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.code import agent_code, other_code
from fabric_ppo.agents.hub import HubAddress, is_hub_address, pull
from fabric_ppo.envs.space_text import format_space
from fabric_ppo.envs.spaces import EnvSpec, SpaceSpec, path_name
from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.process.errors import ConfigError, HubError, first_line
from fabric_ppo.process.files import Checkpoint, newest_first, run_around, update_of, write_atomically

POLICY_FILE = "policy.safetensors"
_HUB_FILES = ("config.yaml",)
"""Files that are pulled beside a policy, for the flags of its run."""


def policy_path(run_dir: str | os.PathLike[str]) -> Path:
    """Return the file that holds the policy of a run; print a line if it is a checkpoint's.

    Args:
        run_dir: the folder of a run: the file is `policy.safetensors`, or the newest undamaged
            checkpoint if the run was stopped or is still training. Or a checkpoint or a
            `.safetensors` file, which is returned. Or `hf://USER/NAME`, whose policy is downloaded
            into the Hub's cache.

    Raises:
        ConfigError: there is no such file.
        HubError: the network or the Hub failed.
    """
    if is_hub_address(run_dir):
        return pull(HubAddress.parse(os.fspath(run_dir)), POLICY_FILE, _HUB_FILES)
    path = Path(run_dir)
    if path.suffix == ".ckpt":
        if not path.is_file():
            raise ConfigError(f"{run_dir}: there is no such checkpoint; a file in a run's checkpoints is expected")
        return path
    if path.suffix == ".safetensors" and path.is_file():
        return path
    around = run_around(path)
    if path.is_file():
        hint = "the folder of a run is expected" if around is None else f"did you mean the run, {around}?"
        raise ConfigError(f"{run_dir}: is a file, but no policy of this program; {hint}")
    if is_finished(path):
        return path / POLICY_FILE
    newest = newest_whole(path / "checkpoints")
    if newest is None:
        where = "the folder of a run, or a checkpoint, is expected"
        if (path / "config.yaml").is_file() and not any(newest_first(path / "checkpoints")):
            where = "while a run still trains, its first checkpoint comes after about a minute"
        elif around is not None:
            is_there = "is a part of a run" if path.exists() else "there is no such file or folder in the run"
            raise ConfigError(f"{run_dir}: {is_there}; did you mean {around}?")
        elif not path.exists():
            raise ConfigError(f"{run_dir}: there is no such folder, and so no {POLICY_FILE} in it; {where}")
        elif runs := [each.parent for depth in ("*", "*/*") for each in path.glob(f"{depth}/{POLICY_FILE}")]:
            where = f"the newest run in it is {max(runs, key=lambda each: (each / POLICY_FILE).stat().st_mtime)}"
        raise ConfigError(f"{run_dir}: no {POLICY_FILE} and no whole checkpoint in it; {where}")
    has_ended = (path / "summary.json").is_file() and not has_gone_on(path)
    reason = f"{POLICY_FILE} is missing" if has_ended else "the run has not finished"
    print_from_rank_zero(f"{run_dir}: {reason}: the policy is that of its newest checkpoint, {newest.name}")
    return newest


def is_finished(run_dir: Path) -> bool:
    """Return True if a folder has the policy of a finished run that has not been continued since."""
    return (run_dir / POLICY_FILE).is_file() and not has_gone_on(run_dir)


def has_gone_on(run_dir: Path) -> bool:
    """Return True if a run has a checkpoint that is newer than its summary."""
    newest = newest_whole(run_dir / "checkpoints")
    return newest is not None and update_of(newest) > _updates_of(run_dir)


def newest_whole(folder: Path) -> Path | None:
    """Return the newest checkpoint that is not damaged; None for none."""
    for path in newest_first(folder):
        # one may be dropped meanwhile, by a run that trains
        with contextlib.suppress(OSError, ConfigError):
            Checkpoint.from_bytes(path.read_bytes())
            return path
    return None


def _updates_of(run_dir: Path) -> float:
    """Return the number of updates of a finished run; infinite if its summary cannot be read."""
    try:
        return float(json.loads((run_dir / "summary.json").read_bytes())["updates"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return math.inf


def read_policy(path: Path) -> tuple[Mapping[str, str], dict[str, torch.Tensor]]:
    """Read a policy: `env_spec` and `agent` as JSON, from which an agent is built, and its weights.

    Raises:
        Exception: of many kinds, where the file is damaged.
    """
    from safetensors import safe_open

    if path.suffix == ".ckpt":
        checkpoint = Checkpoint.from_bytes(path.read_bytes())
        return checkpoint.values, checkpoint.under("weights.")
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def described(metadata: Mapping[str, str]) -> tuple[EnvSpec, Architecture]:
    """Return the spaces and the architecture of the agent in a file, from what `read_policy` returned.

    Raises:
        ValueError: the file lacks them, like one of another program.
        Exception: of many kinds, if it is damaged.
    """
    if missing := [name for name in ("env_spec", "agent") if name not in metadata]:
        raise ValueError(f"its metadata has no {' and no '.join(missing)}")
    try:
        return EnvSpec.from_json(metadata["env_spec"]), Architecture.from_json(metadata["agent"])
    except KeyError as error:
        raise ValueError(f"its metadata lacks {error.args[0]}") from None


def no_policy(error: Exception) -> str:
    """Return the end of a message about a file that cannot be read as a policy."""
    written = f"a training writes them into the folder of its run, {POLICY_FILE} and checkpoints"
    return f"not a policy of this program ({first_line(error)}); {written}"


def policy_bytes(path: Path) -> bytes:
    """Return a policy as the content of a `policy.safetensors`, also from a checkpoint.

    Raises:
        Exception: of many kinds, where the file is damaged.
    """
    if path.suffix != ".ckpt":
        return path.read_bytes()
    from safetensors.torch import save

    values, weights = read_policy(path)
    metadata = {name: values[name] for name in ("env_spec", "agent")}
    return _in_order(save(weights, metadata | {"code": json.dumps(_code_of(values), sort_keys=True)}))


def _code_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the agent's files in a checkpoint; empty for one of an older version."""
    code = values.get("surroundings", {}).get("code")
    return {name: code[name] for name in agent_code() if name in code} if isinstance(code, dict) else {}


def require_weights(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Check that weights have the names and shapes of the expected ones, and are finite.

    Raises:
        ValueError: they do not; the error names the first wrong tensor.
    """
    if odd := sorted(weights.keys() ^ expected.keys()):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in expected else 'unknown'}")
    for name, tensor in weights.items():
        like = expected[name]
        if tensor.shape != like.shape or tensor.is_floating_point() != like.is_floating_point():
            raise ValueError(f"{name} has another type or shape")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds numbers that are not finite")


def _differing_text(theirs: Any, ours: Any) -> tuple[str, str]:
    """Return two spaces or architectures in short, with the entries in which they differ."""
    texts = [format_space(each) if isinstance(each, SpaceSpec) else "" for each in (theirs, ours)]
    if texts[0] != texts[1]:
        return texts[0], texts[1]
    if isinstance(theirs, SpaceSpec) and theirs.parts != ours.parts:
        before, current = dict(theirs.parts), dict(ours.parts)
        path = next(each for each in before | current if before.get(each) != current.get(each))
        if path not in before or path not in current:
            found = [f"{texts[0]} with{'' if path in each else 'out'} {path_name(path)}" for each in (before, current)]
            return found[0], found[1]
        its, own = _differing_text(before[path], current[path])
        return f"{texts[0]} with {path_name(path)} {its}", f"{texts[0]} with {path_name(path)} {own}"
    names = [each.name for each in fields(theirs) if getattr(theirs, each.name) != getattr(ours, each.name)]
    named = [", ".join(f"{name} {getattr(each, name)}" for name in names) for each in (theirs, ours)]
    its, own = (f"{text} with {name}" if text else name for text, name in zip(texts, named, strict=True))
    return its, own


def save_policy(agent: Agent, run_dir: Path) -> None:
    """Write `policy.safetensors`: the weights, and spaces, architecture and digests of the code as JSON.

    Raises:
        OSError: it cannot be written.
    """
    from safetensors.torch import save

    metadata = {"env_spec": agent.spec.to_json(), "agent": agent.architecture.to_json()}
    metadata["code"] = json.dumps(agent_code(), sort_keys=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in agent.state_dict().items()}
    write_atomically(run_dir / POLICY_FILE, _in_order(save(weights, metadata)))


def _in_order(content: bytes) -> bytes:
    """Return a safetensors file with the keys of its header sorted."""
    # the library writes metadata in random order, but equal policies must give equal files
    size = int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8 : 8 + size]), sort_keys=True, separators=(",", ":")).encode()
    # the format wants tensors to begin at a multiple of 8 bytes
    header = header.ljust(-(-len(header) // 8) * 8)
    return len(header).to_bytes(8, "little") + header + content[8 + size :]


def start_from(agent: Agent, run_dir: str | os.PathLike[str]) -> None:
    """Load the weights and running statistics of a trained policy (`--init-from`) into `agent`.

    Raises:
        ConfigError: the policy cannot be read, or its spaces or architecture are others.
    """
    path = None
    try:
        path = policy_path(run_dir)
        metadata, weights = read_policy(path)
        spec, architecture = described(metadata)
    except Exception as error:  # a damaged file fails in many ways
        is_named = path is None and isinstance(error, (ConfigError, HubError))
        raise ConfigError(f"--init-from {error if is_named else f'{run_dir}: {no_policy(error)}'}") from None
    # not the whole EnvSpec: a policy may go on in another environment with the same spaces
    pairs = {
        "observations": (spec.observation, agent.spec.observation),
        "actions": (spec.action, agent.spec.action),
        "networks": (architecture, agent.architecture),
    }
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            its, own = _differing_text(theirs, ours)
            raise ConfigError(f"--init-from {run_dir}: its {what} are {its}; this run's, {own}, are expected")
    try:
        require_weights(weights, agent.state_dict())
    except ValueError as error:
        raise ConfigError(f"--init-from {run_dir}: {no_policy(error)}") from None
    agent.load_state_dict(weights)
    if other := other_code(metadata):
        print_from_rank_zero(f"--init-from {run_dir}: {other}")
