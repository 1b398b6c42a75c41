"""The steps of a rollout: the agent acts, the environments answer, and the buffer is filled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fabric_ppo.agents.agent import Agent
from fabric_ppo.envs.actions import MaskCheck, action_converter, tensor_action_converter
from fabric_ppo.envs.contract import ArrayEnvs
from fabric_ppo.envs.reading import in_entry
from fabric_ppo.envs.tensor_contract import TensorEnvs
from fabric_ppo.envs.torch_settings import torch_settings_kept
from fabric_ppo.process.errors import EnvironmentFault
from fabric_ppo.process.profile import timed
from fabric_ppo.rollouts.actor import Actor
from fabric_ppo.rollouts.buffer import RolloutBuffer


def step_environments(agent: Agent, buffer: RolloutBuffer, noise: Tensor) -> Actor:
    """Fill the buffer with the steps of a rollout; return the actor."""
    tensors, envs, n = buffer.tensors, buffer.envs, buffer.num_envs
    buffer.finals, buffer.endings = [], []
    # the observation after the last rollout is the first of this one
    tensors.obs[0], tensors.memory[0] = tensors.obs[-1], tensors.memory[-1]
    actor = buffer.make_actor(agent, noise, tensors.obs[0])
    actor.memory[:n] = tensors.memory[0]  # from whatever device
    with torch_settings_kept():
        if isinstance(envs, TensorEnvs):
            actor = (buffer.take_steps or step_tensors)(agent, buffer, envs, actor)
            buffer.bring()
            _require_finite(agent, buffer, envs)
            if (check := MaskCheck(envs.spec)).has_mask:
                _require_choices(buffer, envs, check)
        else:
            with _one_thread():
                _step_arrays(agent, buffer, envs, actor)
    return actor


def _step_arrays(agent: Agent, buffer: RolloutBuffer, envs: ArrayEnvs, actor: Actor) -> None:
    """Take the steps of a rollout in environments that write arrays."""
    obs, to_env_actions = buffer.obs[0], action_converter(envs.spec.action)
    act, step = timed("policy")(actor.act), timed("environment")(envs.step)
    # environments write their results into the buffer, without a copy
    outputs = zip(buffer.obs[1:], buffer.rewards, buffer.terminated, buffer.truncated, buffer.valid, strict=True)
    for t, into in enumerate(outputs):
        actions = buffer.actions[t] = act(obs).astype(buffer.actions.dtype, copy=False)
        finals = step(to_env_actions(actions), *into)
        buffer.finals += [(t, final) for final in finals]
        if envs.endings:
            buffer.endings += [(t, ending) for ending in envs.endings]
        if envs.lost_life is not None:
            buffer.lost_life[t] = envs.lost_life
        obs = into[0]
        if agent.memory is not None:
            # a row that is no transition lies between two episodes: the next one begins after it
            begins = ~buffer.valid[t]
            begins[[final.env for final in finals]] = True
            _remember(buffer, actor, t, torch.from_numpy(begins))


def step_tensors(agent: Agent, buffer: RolloutBuffer, envs: TensorEnvs, actor: Actor) -> Actor:
    """Take the steps of a rollout in environments that write tensors, which stay on their device; a `TakeSteps`."""
    tensors, obs = buffer.tensors, buffer.tensors.obs[0]
    to_env_actions = tensor_action_converter(envs.spec.action, envs.device)
    choose, step = timed("policy")(actor.choose), timed("environment")(envs.step)
    for t, outputs in enumerate(buffer.steps()):
        # environments may change the actions that they are given, but not those of the rollout
        tensors.actions[t] = actions = choose(obs)
        step(to_env_actions(actions), outputs)
        if envs.endings:
            buffer.endings += [(t, ending) for ending in envs.endings]
        obs = outputs.obs
        if agent.memory is not None:
            # an episode begins after a row that is no transition, and, but where that is still to
            # come, after the end of another one
            begins = ~outputs.valid
            if envs.finals != "next row":
                begins = begins | outputs.terminated | outputs.truncated
            _remember(buffer, actor, t, begins)
    return actor


def _require_finite(agent: Agent, buffer: RolloutBuffer, envs: TensorEnvs) -> None:
    """Check, once for all steps, that rewards and observations are finite.

    Raises:
        EnvironmentFault: one is not; names the first such environment and its number.
    """
    tensors = buffer.tensors
    first = "observation at the beginning of a rollout"
    columns = {"reward": tensors.rewards, first: tensors.obs[:1], "observation": tensors.obs[1:]}
    if buffer.final_obs is not None and envs.finals == "given":
        cut = tensors.truncated & ~tensors.terminated
        kept = cut.view(*cut.shape, *[1] * (buffer.final_obs.ndim - 2))
        columns["final observation"] = buffer.final_obs.masked_fill(~kept, 0)
    if envs.spec.observation.parts:  # rows of bytes: the numbers of all Boxes in them, as networks see them
        for what in columns.keys() - {"reward"}:
            rows = columns[what].flatten(0, 1)
            encoders = filter(None, (agent.encoder, agent.critic_encoder))
            numbers = torch.cat([each.boxes(rows, torch.float32) for each in encoders], dim=-1)
            columns[what] = numbers.view(*columns[what].shape[:2], numbers.shape[-1])
    floats = {what: column for what, column in columns.items() if column.is_floating_point()}
    # one answer from the device for all of them
    if bool(torch.stack([column.isfinite().all() for column in floats.values()]).all()):
        return
    for what, column in floats.items():
        for t, env, *entry in (~column.isfinite()).nonzero().tolist()[:1]:
            value = f"{float(column[(t, env, *entry)])}{in_entry(tuple(entry))}"
            place = f"{envs.spec.env_id} environment {envs.first_env + env}"
            which = f"reset gave observation {value}"
            if what != first:
                which = f"step {t + 1} of {buffer.num_steps} gave {what} {value}"
            raise EnvironmentFault(f"{place}: {which}, which is not finite")


def _require_choices(buffer: RolloutBuffer, envs: TensorEnvs, check: MaskCheck) -> None:
    """Raise an EnvironmentFault if an action mask allowed no action where the agent has acted."""
    masks = buffer.tensors.obs[:-1, :, check.place].cpu().numpy()
    allowed = check.allows(masks) | ~buffer.valid
    if not allowed.all():
        t, env = np.argwhere(~allowed)[0].tolist()
        place = f"{envs.spec.env_id} environment {envs.first_env + env}"
        raise EnvironmentFault(
            f"{place}: step {t + 1} of {buffer.num_steps} began with an action_mask that allows no action; "
            "at least one is expected where an episode goes on"
        )


def _remember(buffer: RolloutBuffer, actor: Actor, t: int, begins: Tensor) -> None:
    """Store the memory after step `t`, cleared in the environments where an episode `begins`, `[N]`."""
    memory = actor.memory[: buffer.num_envs]
    memory.masked_fill_(begins.to(memory.device).unsqueeze(-1), 0)
    buffer.tensors.begins[t + 1], buffer.tensors.memory[t + 1] = begins, memory


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Limit PyTorch to one thread within the block."""
    # products of a few rows gain nothing from threads, and environments may need the cores
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
