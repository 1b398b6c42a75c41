"""Resuming of a run (`--resume`): finding its checkpoint, checking it, restoring everything."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import json
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from fabric_ppo.agents.agent import Agent
from fabric_ppo.agents.policy_file import require_weights
from fabric_ppo.config import MAY_DIFFER, Config, EnvironmentFlags, NetworkFlags
from fabric_ppo.config_schedule import SCHEDULED, flag_schedule
from fabric_ppo.config_values import LEARNING_RATES
from fabric_ppo.envs.action_log import ActionLog
from fabric_ppo.envs.contract import PastEpisode
from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.ppo.schedules import coefficients, put_learning_rate, set_learning_rate
from fabric_ppo.process.console import print_from_rank_zero, print_line
from fabric_ppo.process.errors import ConfigError, first_line, flag
from fabric_ppo.process.files import Checkpoint
from fabric_ppo.process.group import Ranks, from_rank_zero
from fabric_ppo.process.launch import read_launch
from fabric_ppo.rollouts.buffer import RolloutBuffer
from fabric_ppo.run.checkpoint import newest_intact
from fabric_ppo.run.commands import begin_from
from fabric_ppo.run.contents import action_log, past_episodes, require_tensors, require_values
from fabric_ppo.run.counts import Counts
from fabric_ppo.run.env_attributes import EnvAttributes
from fabric_ppo.run.optimizer_state import NO_SETTINGS, OptimizerState, load_optimizer, read_optimizer
from fabric_ppo.run.surroundings import changes, surroundings

_SECONDS_OF_TRIAL, _SECONDS_OF_SILENCE = 10.0, 5.0
"""Time for the trial whether episodes repeat, and time after which a line reports a slow step."""
_NOT_OF_ITS_POLICY = {
    *(field.name for flags in (EnvironmentFlags, NetworkFlags) for field in fields(flags)),
    *("normalize_observations", "normalize_rewards"),
} - {"num_envs", "env_kwargs", "init_from", "sequence_length"}
"""Flags whose change makes a run's policy unsuitable as the start of a new run."""
_DAMAGED = (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError)
"""Errors that the contents of a checkpoint can cause when they are used."""


def find_checkpoint(run_dir: Path, config: Config, ranks: Ranks) -> Checkpoint | None:
    """Return the newest checkpoint of a run, the same on all ranks; None if there is none.

    Raises:
        ConfigError: all checkpoints are damaged, or the newest does not fit this run.
    """
    # rank 0 reads and sends it, for other hosts may not have the folder; an error is sent, too, so
    # that all ranks end alike: "+" comes before a checkpoint, "-" before an error
    content = b""
    if ranks.rank == 0:
        try:
            found, refused = newest_intact(run_dir / "checkpoints")
            content = b"+" + found
            for each in refused:
                print_from_rank_zero(f"not used: {each}")
        except ConfigError as error:
            content = b"-" + str(error).encode()
    content = from_rank_zero(content, ranks)
    if content[:1] == b"-":
        raise ConfigError(content[1:].decode())
    if len(content) == 1:
        return None
    checkpoint, num_updates = Checkpoint.from_bytes(content[1:]), config.num_updates(ranks.size)
    with _fitting(run_dir):
        require_values(checkpoint.values)
        require_same_run(config, read_launch().world_size, checkpoint.values)
        _print_new_schedule(config, checkpoint.values, ranks.size)
        if checkpoint.values["update"] > num_updates:
            raise ValueError(f"it is of update {checkpoint.values['update']} of {num_updates}")
    return checkpoint


def _print_new_schedule(config: Config, values: Mapping[str, Any], num_ranks: int) -> None:
    """Print a line if a new `--total-timesteps` changes annealed values."""
    before, update = values["config"]["total_timesteps"], values["update"]
    if config.quiet or config.total_timesteps == before:
        return
    updates = [
        replace(config, total_timesteps=each).num_updates(num_ranks) for each in (before, config.total_timesteps)
    ]
    # a schedule of the user's own need not be defined at the end of a run
    with contextlib.suppress(ArithmeticError, ValueError):
        old, new = (_scheduled(config, update, number) for number in updates)
        end = _scheduled(config, updates[1], updates[1])
        moved: dict[tuple[str, str, bool], list[str]] = {}
        for name in (each for each in new if old[each] != new[each]):
            moved.setdefault((f"{new[name]:.0%}", f"{old[name]:.0%}", end[name] == 0), []).append(flag(name))
        for (share, instead, falls), names in moved.items():
            how = "falls to zero over the new total" if falls else "follows the new total"
            print_from_rank_zero(
                f"--total-timesteps {config.total_timesteps}, before {before}: now {', '.join(names)} "
                f"{how}, and goes on from {share} of its value instead of {instead}"
            )


def _scheduled(config: Config, update: int, num_updates: int) -> dict[str, float]:
    """Return the scheduled values of flags in an update, as shares of their start values."""
    optimizer = torch.optim.SGD([torch.zeros(1)], config.initial_learning_rate)
    rate = set_learning_rate(optimizer, config, update, num_updates)
    values = {"learning_rate": rate, **coefficients(config, update, num_updates)._asdict()}
    whole = {
        name: flag_schedule(config, name).start if name in SCHEDULED else getattr(config, name, None)
        for name in values  # all, for a schedule of the user's own may change any
    }
    return {name: values[name] / float(each) for name, each in whole.items() if each}


@contextlib.contextmanager
def _fitting(run_dir: Path, instead: Callable[[], str] = str) -> Iterator[None]:
    """Turn an error of a checkpoint's contents within the block into a ConfigError that ends with `instead`."""
    try:
        yield
    except ConfigError:
        raise
    except _DAMAGED as error:
        unfit = f"--resume: the checkpoint in {run_dir} does not fit this run ({first_line(error)})"
        raise ConfigError(unfit + instead()) from None


def restore(
    checkpoint: Checkpoint,
    run_dir: Path,
    config: Config,
    ranks: Ranks,
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    buffer: RolloutBuffer,
    attributes: EnvAttributes,
) -> tuple[Counts, ActionLog]:
    """Restore agent, optimizer and environments from a checkpoint; every rank must call this.

    Args:
        checkpoint: result of `find_checkpoint`.
        run_dir: the run's folder.
        config: the run's configuration.
        ranks: the ranks with environments.
        agent, optimizer, buffer, attributes: objects to restore.

    Returns:
        The run's counts, and the log of the actions of all environments.

    Raises:
        ConfigError: the checkpoint does not fit.
    """
    num_envs, values = buffer.num_envs * ranks.size, checkpoint.values
    # code may have been edited since, such as that of the optimizer
    with _fitting(run_dir, lambda: _new_run(config, values["config"], _has_policy_for(agent, checkpoint))):
        state = OptimizerState(checkpoint.under("optimizer."), values.get("optimizer", {}))
        state.require_fit(optimizer)
        expected = read_optimizer(optimizer).tensors
        require_tensors(checkpoint, agent, expected, buffer, num_envs, config.overlaps)
        if values["env_spec"] != agent.spec.to_json():
            raise ValueError("the environment has other spaces now")
        agent.load_state_dict(checkpoint.under("weights."))
        load_optimizer(optimizer, state, values.get("optimizer_settings", NO_SETTINGS))
        if config.desired_kl is not None:
            _restore_learning_rate(optimizer, values["learning_rate"])
        action = buffer.envs.spec.action
        attributes.load_values(values.get("attributes"))
        past = past_episodes(checkpoint, buffer.first_env, buffer.num_envs, action, buffer.envs.info_keys)
        past = [replace(each, attributes=text) for each, text in zip(past, attributes.of_episodes(), strict=True)]
    counts = Counts()
    counts.resume_from(values)
    attributes.hand_to_next_rollout()
    # exact only if every episode was rebuilt, and nothing has changed that rounding depends on
    with _printing_after(_SECONDS_OF_SILENCE, f"rebuilding episodes of up to {_longest(past)} steps"):
        begun_anew = _rebuild_episodes(buffer, past, ranks, config.timeout)
    changed = changes(values["surroundings"], surroundings(config, agent))
    for line in changed:
        print_from_rank_zero(line)
    counts.is_exact = counts.is_exact and not changed and not bool(begun_anew.any())
    anew = begun_anew[:, 1:].flatten().numpy()
    attributes.begin_anew(anew)
    return counts, action_log(checkpoint, anew)


def _has_policy_for(agent: Agent, checkpoint: Checkpoint) -> bool:
    """Return True if `--init-from` can start this run with the policy in a checkpoint."""
    try:
        spec = EnvSpec.from_json(checkpoint.values["env_spec"])
        require_weights(checkpoint.under("weights."), agent.state_dict())
    except _DAMAGED:
        return False
    return (spec.observation, spec.action) == (agent.spec.observation, agent.spec.action)


def _restore_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate that `--desired-kl` had reached; raise a ValueError if it is invalid."""
    if not LEARNING_RATES[0] <= rate <= LEARNING_RATES[1]:
        raise ValueError(f"its learning_rate is {rate}")
    put_learning_rate(optimizer, rate)


def _rebuild_episodes(buffer: RolloutBuffer, past: list[PastEpisode], ranks: Ranks, timeout: float) -> torch.Tensor:
    """Rebuild this rank's episodes in progress, and print why that failed (one collective).

    Other ranks wait for the slowest rank, which stops before their timeout.

    Returns:
        `[W, 1 + N]` bool: for each rank, true if it cannot resume exactly, and then for each of its
        environments, true if it began a new episode.
    """
    envs, is_alone = buffer.envs, read_launch().world_size == 1
    # every rank tries at the same time, so that none waits for another one's trial
    reason = envs.try_repeating(min(_SECONDS_OF_TRIAL, timeout / 10))
    failed = buffer.rebuild(past, math.inf if is_alone else timeout / 2)
    named = (f"environment {buffer.first_env + k}: {why}" for k, why in enumerate(failed) if why)
    reason = next(named, reason if ranks.rank == 0 else "")
    if reason:
        print_line(f"warning: {envs.spec.env_id} cannot be resumed exactly: {reason}", sys.stderr)
    return ranks.gather(torch.tensor([bool(reason), *map(bool, failed)])).cpu()


def _longest(past: list[PastEpisode]) -> int:
    return max(episode.length for episode in past)


@contextlib.contextmanager
def _printing_after(seconds: float, message: str) -> Iterator[None]:
    """Print a line from rank 0 if the block takes longer than `seconds`."""
    # a thread has a context of its own, in which nothing is muted
    timer = threading.Timer(seconds, contextvars.copy_context().run, [print_from_rank_zero, message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def require_same_run(config: Config, world_size: int, values: Mapping[str, Any]) -> None:
    """Compare the flags of a resumed run with those that it was started with.

    With shared data the number of ranks may change, if all ranks together have the same
    environments and the same minibatches.

    Args:
        config: the present flags.
        world_size: the present number of processes.
        values: values of the checkpoint.

    Raises:
        ConfigError: flags differ that must not; the error names them.
    """
    script = config.script
    # a flag that an older version did not have was at its default
    before, current = type(config)().to_dict() | dict(values["config"]), config.to_dict()
    new_run = functools.partial(_new_run, config, before)
    if values["script"] != script:
        raise ConfigError(f"--resume: the run was started with {values['script']}, this is {script}{new_run()}")
    if current["total_timesteps"] < before["total_timesteps"]:
        raise ConfigError(
            f"--total-timesteps {current['total_timesteps']}: the run had {before['total_timesteps']}; "
            f"that or more is expected{new_run()}"
        )
    if values["world_size"] != world_size and not config.share_data:
        ours, theirs = world_size, values["world_size"]
        raise ConfigError(
            f"--resume: the run has {theirs} processes, these are {ours}: only --share-data allows that; "
            f"{theirs} are expected{new_run()}"
        )
    per_rank = _per_rank_flags(script, values["world_size"], world_size)
    may_differ = set(MAY_DIFFER)
    if not {before.get("env_backend"), current["env_backend"]} <= {"sync", "async"}:
        # these two play the same episodes, EnvPool and batches play others
        may_differ.remove("env_backend")
    differing = []
    for name in current:
        factors = per_rank.get(name, (1, 1))
        same = (
            before.get(name) == current[name]
            if factors == (1, 1)
            else before[name] * factors[0] == current[name] * factors[1]
        )
        if name not in may_differ and not same:
            ours, theirs = (_as_given(each) for each in (current[name], before.get(name)))
            differing.append(f"{flag(name)} {ours} (the run has {theirs})")
    if differing:
        expected = f"--resume: {', '.join(differing)}: the run's own values are expected"
        raise ConfigError(expected + new_run())


def _new_run(config: Config, before: Mapping[str, Any], fits: bool = True) -> str:
    """Return the end of a message: the command for a new run with the refused flags.

    The new run starts with the policy of the run, if it is for these flags and `fits` their agent.
    """
    if config.run_dir is None:
        return ""
    others = {name: value for name, value in config.to_dict().items() if before.get(name) != value}
    others.pop("init_from", None)
    keeps_policy = fits and not others.keys() & _NOT_OF_ITS_POLICY
    on = "on with others" if others else "on"
    goal = f"to train its policy {on}, begin a new run" if keeps_policy else "to begin a new run"
    return f"; {goal}: {begin_from(config, others, keeps_policy)}"


def _as_given(value: Any) -> Any:
    """Return a flag's value as it is written on the command line: a mapping as JSON."""
    return json.dumps(value) if isinstance(value, dict) else value


def _per_rank_flags(script: str, before: int, current: int) -> dict[str, tuple[int, int]]:
    """Return the flags that count per rank: name -> (ranks before, ranks at present).

    Value times ranks must stay the same. Empty if the number of ranks is the same.
    """
    if before == current:
        return {}
    if script == "fabric_decoupled":
        return {"per_rank_batch_size": (before - 1, current - 1)}
    return {name: (before, current) for name in ("num_envs", "per_rank_batch_size")}
