"""A trained agent as a file for other programs: ONNX or TorchScript, verified before it is written."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fabric_ppo.agents.policy import Policy, load_agent, require_own_modules
from fabric_ppo.agents.policy_file import policy_path
from fabric_ppo.config_call import answering, path_argument
from fabric_ppo.config_values import ATARI
from fabric_ppo.envs.ids import resolve_env_id, single_id
from fabric_ppo.process.errors import ConfigError, first_line
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.run.result import RunResult
from fabric_ppo.tools.export_check import TOLERANCE, Agreement, Runner, compare
from fabric_ppo.tools.export_files import program_path, require_paths, write_both
from fabric_ppo.tools.export_interface import (
    MEMORY,
    NOISE,
    Interface,
    NamedPolicy,
    interface_of,
    metadata_of,
    split_rows,
)
from fabric_ppo.tools.export_observations import of_episodes, of_space
from fabric_ppo.tools.export_onnx import LEAST_OPSET, MOST_OPSET, OnnxRunner, require_packages, to_onnx
from fabric_ppo.tools.export_program import program_of
from fabric_ppo.tools.export_torchscript import TorchScriptRunner, to_torchscript
from fabric_ppo.tools.export_trace import reason_of, silence

Format = Literal["onnx", "torchscript"]
Verify = Literal["episodes", "space", "none"]
FORMATS, WAYS_TO_VERIFY = ("onnx", "torchscript"), ("episodes", "space", "none")
VERIFY_STEPS = 1000
"""Default number of observations of a comparison."""


@dataclass(frozen=True)
class Exported(os.PathLike[str]):
    """The files of an exported policy; it can be used as the policy's path.

    Attributes:
        path: of the policy.
        program: path of the program that plays with it.
        interface: names, types and shapes of inputs and outputs.
        agreement: result of the comparison; None without one.
    """

    path: Path
    program: Path
    interface: Interface
    agreement: Agreement | None

    def __fspath__(self) -> str:
        """Return the policy's path."""
        return os.fspath(self.path)


_RUN_DIR = "the folder of a run, as in export('RUN_DIR', 'onnx', 'agent.onnx'),"
"""Description of the first argument of `export`."""


@answering(_RUN_DIR)
def export(
    run_dir: str | os.PathLike[str],
    to: Format,
    out: str | os.PathLike[str],
    *,
    opset: int | None = None,
    verify: Verify = "episodes",
    verify_steps: int = VERIFY_STEPS,
    own_code: bool = False,
) -> Exported:
    """Write the policy of a run or a checkpoint to a file that does not need this package.

    Before, it is compared with the agent. The actions, greedy and sampled, must be the same, and
    numbers may differ by 1e-5 at most (relative if they are larger than 1). Else nothing is
    written.

    Args:
        run_dir: as in `load_agent`.
        to: `onnx`, or `torchscript`.
        out: file to write, `.onnx`, or `.pt`, `.pth`, `.ts` or `.torchscript`. Beside it a program
            is written that plays with the policy: for `NAME.onnx` it is `NAME_onnx_run.py`.
        opset: version of ONNX's operators; None: 18.
        verify: observations for the comparison: of test `episodes`, drawn from their `space`, or
            `none`.
        verify_steps: number of observations.
        own_code: import the modules of the user's own encoder or environment.

    Raises:
        ConfigError: an argument is invalid, the agent cannot be exported, or the exported policy
            differs from it; nothing has been written.
        EnvironmentFault: the environment failed.

    Example:
        >>> from pathlib import Path
        >>> from fabric_ppo import export
        >>> _ = export("RUN_DIR", to="torchscript", out="agent.pt", verify_steps=10)
        >>> Path("agent.pt").is_file()
        True
    """
    path_argument("export", run_dir, _RUN_DIR)
    path = Path(os.path.abspath(path_argument("export", out, "the file to write")))
    require_arguments(to, path, opset, verify, verify_steps)
    policy, origin = _load(run_dir, own_code)
    interface = interface_of(policy)
    with silence():
        content, run = _exported(policy, interface, to, metadata_of(policy, interface, origin), opset or LEAST_OPSET)
    agreement = None if verify == "none" else _verified(policy, interface, run, run_dir, verify, verify_steps, own_code)
    if agreement is not None and not agreement.holds:
        by = f"{agreement.describe()}; {TOLERANCE:.0e} is allowed"
        raise ConfigError(f"--to {to}: {_what(policy)} is another when exported, and is not written: {by}")
    program = program_path(path)
    write_both(path, content, program_of(policy.spec, interface, to, path.name, program.name))
    return Exported(path, program, interface, agreement)


def require_arguments(to: str, out: Path, opset: int | None, verify: str, verify_steps: int) -> None:
    """Raise a ConfigError for invalid arguments of `export`."""
    for name, value, expected in (("--to", to, FORMATS), ("--verify", verify, WAYS_TO_VERIFY)):
        if value not in expected:
            raise ConfigError(f"{name} {value}: {', '.join(expected)} is expected")
    if opset is not None and to != "onnx":
        raise ConfigError(f"--opset {opset}: only --to onnx has one")
    if opset is not None and not LEAST_OPSET <= opset <= MOST_OPSET:
        raise ConfigError(f"--opset {opset}: a whole number from {LEAST_OPSET} to {MOST_OPSET} is expected")
    if verify_steps < 1:
        raise ConfigError(f"--verify-steps {verify_steps}: a whole number from 1 up is expected; see --verify none")
    require_paths(to, out)
    if to == "onnx":
        require_packages()


def _load(run_dir: str | os.PathLike[str], own_code: bool) -> tuple[Policy, dict[str, Any]]:
    """Return a policy, and of its run `seed`, `env_steps` and `updates`, None where not known."""
    path = policy_path(run_dir)
    if path.suffix == ".ckpt":
        policy = load_agent(path, own_code)
        values = Checkpoint.from_bytes(path.read_bytes()).values
        config = values.get("config")
        seed = config.get("seed") if isinstance(config, dict) else None
        return policy, {"seed": seed, "env_steps": values.get("env_steps"), "updates": values.get("update")}
    summary = RunResult(run_dir).summary
    return load_agent(run_dir, own_code), {name: summary.get(name) for name in ("seed", "env_steps", "updates")}


def _exported(
    policy: Policy, interface: Interface, to: str, metadata: Mapping[str, str], opset: int
) -> tuple[bytes, Runner]:
    """Return a policy's file, and what runs it.

    Raises:
        ConfigError: the agent cannot be exported, or the file cannot be loaded.
    """
    moments = list(itertools.islice(of_space(policy), 3))
    inputs = split_rows(policy.spec.observation, interface, np.stack([each.obs for each in moments]))
    number = interface.inputs[interface.num_parts].dtype
    inputs[NOISE] = np.stack([each.noise for each in moments]).astype(number)
    if interface.has_memory:
        inputs[MEMORY] = np.stack([each.memory for each in moments])
    example, module = {name: torch.from_numpy(each) for name, each in inputs.items()}, NamedPolicy(policy, interface)
    try:
        if to == "onnx":
            content = to_onnx(module, interface, example, metadata, opset)
            return content, _checked(OnnxRunner(content), policy, to)
        content = to_torchscript(module, example, metadata)
        return content, _checked(TorchScriptRunner(content), policy, to)
    except Exception as error:  # of many kinds
        raise ConfigError(f"--to {to}: {_what(policy)} cannot be exported: {reason_of(error)}") from None


def _checked(run: Callable[..., Any], policy: Policy, to: str) -> Runner:
    """Return a runner whose errors are ConfigErrors."""

    def checked(inputs: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
        try:
            outputs: Mapping[str, NDArray[Any]] = run(inputs)
        except Exception as error:
            size, reason = len(inputs[NOISE]), first_line(error)
            raise ConfigError(
                f"--to {to}: {_what(policy)} cannot be run with a batch of {size} when exported ({reason})"
            ) from None
        return outputs

    return checked


def _what(policy: Policy) -> str:
    """Return what an error is about: an encoder of the user's own by its name, or this agent."""
    encoder = policy.module.agent.architecture.encoder
    return f"the encoder {encoder}" if ":" in encoder else "this agent"


def _verified(
    policy: Policy,
    interface: Interface,
    run: Runner,
    run_dir: str | os.PathLike[str],
    verify: str,
    steps: int,
    own_code: bool,
) -> Agreement:
    """Compare on `steps` observations, of episodes or drawn.

    Raises:
        ConfigError: the environment cannot be made.
        EnvironmentFault: the environment failed.
    """
    if verify == "space":
        return compare(policy, interface, run, itertools.islice(of_space(policy), steps))
    with contextlib.closing(of_episodes(policy)) as moments:
        try:
            require_own_modules(policy.spec, run_dir, own_code)
            if env_id := single_id(policy.spec.env_id):
                resolve_env_id(env_id, ATARI if policy.spec.is_atari else "")  # registers it
            first = next(moments)
        except ConfigError as error:
            raise ConfigError(f"{error}; --verify space does without the environment") from None
        return compare(policy, interface, run, itertools.islice(itertools.chain([first], moments), steps))
