"""Checks of a checkpoint's contents, and the episodes in progress in it.

A checksum detects only damage: a file of another program, or version, has a valid one too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fabric_ppo.config_info_keys import ONLY_SUCCESS, InfoKey, info_keys_of
from fabric_ppo.envs.action_log import ActionLog
from fabric_ppo.envs.actions import action_converter
from fabric_ppo.envs.contract import PastEpisode
from fabric_ppo.envs.episode_info import sums_for
from fabric_ppo.envs.spaces import SpaceSpec
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.run.info_history import InfoHistory

_NUMBER = (int, float)
_VALUES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("script", "env_spec", "agent"), (str,)),
    **dict.fromkeys(("config", "surroundings"), (dict,)),
    **dict.fromkeys(("world_size", "update", "env_steps", "gradient_steps", "resumes"), (int,)),
    **dict.fromkeys(("train_seconds", "wall_seconds", "learning_rate"), _NUMBER),
    **dict.fromkeys(("return_mean", "best_return"), (*_NUMBER, type(None))),
    **dict.fromkeys(("window", "state_sizes"), (list,)),
    "exact_resume": (bool,),
}
"""Values of a checkpoint, and the types that each may have."""
_MOST = 2**53
"""Bound of all numbers: up to it a float represents every integer."""


def require_values(values: Any) -> None:
    """Check names, types and ranges of a checkpoint's values.

    Raises:
        ValueError: they are not those of `Snapshot.values`; the error names the first wrong one.
    """
    if not isinstance(values, dict):
        raise ValueError("it holds no values")
    # `type(...) in`, not isinstance: True is an int, but not a count
    for name, kinds in _VALUES.items():
        if name not in values or type(values[name]) not in kinds:
            raise ValueError(f"its {name} is of another kind")
    lists = {"window": _NUMBER, "state_sizes": (int,)}
    for name, kinds in lists.items():
        if not all(type(each) in kinds for each in values[name]):
            raise ValueError(f"its {name} is of another kind")
    alone = [each for name, each in values.items() if name in _VALUES and type(each) in _NUMBER]
    if not all(-_MOST < each < _MOST for each in [*alone, *values["window"], *values["state_sizes"]]):
        raise ValueError("it holds numbers that are not finite or too large")
    if "info" in values:
        InfoHistory.from_values(values["info"])
    if values["update"] < 1 or min(values["env_steps"], values["resumes"], values["world_size"]) < 0:
        raise ValueError("its counts cannot be")


def require_tensors(
    checkpoint: Checkpoint,
    agent: nn.Module,
    optimizer: Mapping[str, Tensor],
    buffer: RolloutBuffer,
    num_envs: int,
    overlaps: bool,
) -> None:
    """Check names, types and shapes of a checkpoint's tensors, and that they are finite.

    Args:
        checkpoint: a checkpoint after `require_values`.
        agent: the run's agent.
        optimizer: the tensors of its optimizer's state before the first step.
        buffer: buffer of a rank, for the shapes of environments' tensors.
        num_envs: number of environments on all ranks.
        overlaps: true if rollouts and updates overlap.

    Raises:
        ValueError: they do not fit; the error names the first wrong one.
    """
    weights = agent.state_dict()
    expected = {f"weights.{name}": tensor for name, tensor in weights.items()}
    expected |= {f"in_flight.{name}": tensor for name, tensor in weights.items() if overlaps}
    expected |= {f"optimizer.{name}": tensor for name, tensor in optimizer.items()}
    expected |= {f"env.{name}": tensor for name, tensor in _env_tensors(buffer, num_envs).items()}
    size = sum(checkpoint.values["state_sizes"])
    expected["env.states"] = torch.zeros(size, dtype=torch.uint8)
    tensors = checkpoint.tensors
    # most optimizers have no state before the first step; `OptimizerState.require_fit` has its names
    later = {f"optimizer.{name}" for name in checkpoint.values.get("optimizer", {}).get("tensors", [])}
    if odd := sorted((tensors.keys() ^ expected.keys()) - (later - expected.keys())):
        raise ValueError(f"{odd[0]} is {'missing' if odd[0] in expected else 'unknown'}")
    for name, tensor in tensors.items():
        if name not in expected:
            continue
        shape = expected[name].shape
        # the log of actions is as long as the longest episode in progress
        if name == "env.actions":
            shape = torch.Size((*tensor.shape[:1], *shape[1:]))
        if tensor.dtype != expected[name].dtype or tensor.shape != shape:
            raise ValueError(f"{name} has another type or shape")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} holds numbers that are not finite")
    _require_counts(checkpoint, num_envs)


def _env_tensors(buffer: RolloutBuffer, num_envs: int) -> dict[str, Tensor]:
    """Return zeros with the names, types and shapes of a checkpoint's tensors of environments."""
    counts = torch.zeros(num_envs, dtype=torch.int64)
    tensors = dict.fromkeys(("lengths", "numbers", "logged"), counts)
    tensors |= dict.fromkeys(("returns", "discounted"), counts.double())
    like = {"obs": buffer.obs, "memory": buffer.memory, "actions": buffer.actions}
    for name, array in like.items():
        dtype = buffer.log_dtype if name == "actions" else array.dtype
        tensors[name] = torch.from_numpy(np.zeros((num_envs, *array.shape[2:]), dtype))
    return tensors | {"actions": tensors["actions"][None]}


def _require_counts(checkpoint: Checkpoint, num_envs: int) -> None:
    """Raise a ValueError unless counts of episodes, steps and logged actions are possible."""
    # -1 logged actions: an episode that cannot be rebuilt
    tensors, sizes = checkpoint.tensors, checkpoint.values["state_sizes"]
    names = ("env.numbers", "env.lengths", "env.logged")
    numbers, lengths, logged = (tensors[name] for name in names)
    within = bool((logged <= len(tensors["env.actions"])).all()) and bool((logged >= -1).all())
    has_negative = bool((lengths < 0).any()) or bool((numbers < 0).any())
    if not within or has_negative or bool((numbers >= 2**32).any()):
        raise ValueError("its counts of episodes or steps cannot be")
    if any(size < 0 for size in sizes) or len(sizes) not in (0, num_envs):
        raise ValueError("its state_sizes do not fit")


def past_episodes(
    checkpoint: Checkpoint,
    first_env: int,
    num_envs: int,
    action: SpaceSpec,
    info_keys: Sequence[InfoKey] = ONLY_SUCCESS,
) -> list[PastEpisode]:
    """Return the episodes that were in progress in some environments.

    Args:
        checkpoint: a checkpoint after `require_tensors`.
        first_env: global id of the first of these environments.
        num_envs: number of these environments.
        action: the environments' action space.
        info_keys: numbers of `info` that the environments read; they may have changed.
    """
    env = {name: tensor.numpy() for name, tensor in checkpoint.under("env.").items()}
    ends = np.cumsum(checkpoint.values["state_sizes"], dtype=int).tolist()
    states = [env["states"][start:stop].tobytes() for start, stop in zip([0, *ends], ends, strict=False)]
    before = info_keys_of(checkpoint.values.get("config", {}).get("info_keys"))
    states = [sums_for(state, before, info_keys) for state in states]
    to_env, episodes = action_converter(action), []
    for index in range(first_env, first_env + num_envs):
        logged = int(env["logged"][index])
        # the log has a column for each environment, whose last rows are those of its episode
        taken = env["actions"][len(env["actions"]) - logged :, index] if logged >= 0 else None
        drawn_dtype = np.float32 if action.kind in ("box", "nested") else np.int64
        actions = None if taken is None else to_env(taken.astype(drawn_dtype))
        place = (
            env["obs"][index],
            float(env["returns"][index]),
            int(env["lengths"][index]),
            float(env["discounted"][index]),
            env["memory"][index],
        )
        episodes.append(PastEpisode(int(env["numbers"][index]), actions, *place, states[index] if states else b""))
    return episodes


def action_log(checkpoint: Checkpoint, begun_anew: np.ndarray[Any, Any]) -> ActionLog:
    """Return the log of the episodes in progress; those with `begun_anew [N]` are new and empty."""
    names = ("numbers", "logged", "actions")
    numbers, lengths, actions = (checkpoint.tensors[f"env.{name}"].numpy() for name in names)
    return ActionLog(numbers + begun_anew, np.where(begun_anew, 0, lengths), actions)
