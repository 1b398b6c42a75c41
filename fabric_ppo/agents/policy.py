"""A trained agent that acts on NumPy arrays, without an environment."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.mlp import ROW_MULTIPLE
from fabric_ppo.agents.policy_file import policy_path, read_policy, require_weights
from fabric_ppo.envs.actions import ActionConverter
from fabric_ppo.envs.spaces import EnvSpec, Packer, reader_of
from fabric_ppo.process.errors import ConfigError, first_line


class Policy:
    """A trained agent that takes and returns NumPy arrays; `load_agent` makes one.

    Attributes:
        spec: the environment's spaces.
        noise_size: number of draws for sampling one action.
        memory_size: number of entries of a recurrent agent's memory; 0 for other agents.
        pack: function from one observation to its row in a batch, checked; a Dict's or Tuple's is
            bytes. It takes a whole Dict also where the agent takes some of its parts.
    """

    def __init__(self, agent: Agent) -> None:
        """Act with `agent`, on its device; the weights are not copied."""
        self.spec = agent.spec
        self.noise_size, self.memory_size = agent.distribution.noise_size, agent.memory_size
        self._agent = agent
        self.pack = Packer(agent.spec.observation)
        self._reader = reader_of(agent.spec.observation)
        self._to_env = ActionConverter(agent.spec.action)
        self._device = agent.device

    def new_memory(self, batch: int | None = None) -> NDArray[Any]:
        """Return the memory with which an episode begins, zeros.

        Its shape is `[memory_size]`, with `batch` episodes `[batch, memory_size]`.
        """
        shape = (self.memory_size,) if batch is None else (batch, self.memory_size)
        return np.zeros(shape, self._agent.memory_dtype)

    def act(
        self, obs: Any, noise: NDArray[np.float64] | None = None, memory: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Choose the most probable actions, in the form that the environment takes.

        Args:
            obs: one observation, or a batch `[B, ...]` of them; a batch of Dict or Tuple
                observations is a list, or an array of what `pack` returned.
            noise: `[B, noise_size]`, uniform in (0, 1): sample the actions with it instead.
            memory: a recurrent agent's, from `new_memory`; updated in place. None: an episode
                begins.

        Returns:
            One action, or `[B, ...]` for a batch.

        Raises:
            ValueError: `obs` or `memory` has another shape, or `obs` numbers that its space, or
                float32, cannot hold.
        """
        batch, is_single = self._batch(obs)
        transformed = None
        if noise is not None:
            # padding rows are dropped again: their noise only has to be finite
            padded = np.full((len(batch), noise.shape[-1]), 0.5)
            padded[: len(noise)] = noise
            transformed = self._agent.distribution.noise(torch.from_numpy(padded)).to(self._device, self._agent.dtype)
        before = self._padded(memory, batch, None if is_single else len(obs))
        with torch.inference_mode():
            drawn, after = self._agent.act(batch, transformed, before)
            actions = self._to_env(drawn.cpu().numpy())
        if memory is not None:
            memory[...] = after.cpu().numpy()[0 if memory.ndim == 1 else slice(len(memory))]
        return actions[0] if is_single else actions[: len(obs)]

    def value(self, obs: Any, memory: NDArray[Any] | None = None) -> NDArray[Any]:
        """Estimate the discounted return from `obs` on.

        Args:
            obs: as in `act`.
            memory: as in `act`; it is not updated.

        Returns:
            A scalar array for one observation, `[B]` for a batch.

        Raises:
            ValueError: `obs` or `memory` has another shape, or `obs` numbers that its space, or
                float32, cannot hold.
        """
        batch, is_single = self._batch(obs)
        with torch.inference_mode():
            padded = self._padded(memory, batch, None if is_single else len(obs))
            values: NDArray[Any] = self._agent.values(batch, padded).cpu().numpy()
        return values[0] if is_single else values[: len(obs)]

    def _padded(self, memory: NDArray[Any] | None, batch: torch.Tensor, given: int | None) -> torch.Tensor:
        """Pad `memory` to the rows of `batch`, on its device; None: all rows begin an episode.

        It has `given` rows, or is `[memory_size]` where `given` is None.
        """
        padded = self.new_memory(len(batch))
        if memory is not None:
            if memory.shape != (expected := self.new_memory(given).shape):
                raise ValueError(f"memory has shape {memory.shape}: {expected}, from new_memory, is expected")
            padded[: 1 if given is None else given] = memory
        return torch.from_numpy(padded).to(self._device)

    def _batch(self, obs: Any) -> tuple[torch.Tensor, bool]:
        """Return `obs` as a batch padded to ROW_MULTIPLE, and True if it was one observation."""
        space = self.spec.observation
        if space.parts and not isinstance(obs, np.ndarray):
            obs = np.stack([self.pack(each) for each in obs]) if isinstance(obs, list) else self.pack(obs)
        array = self._reader.array(obs)
        is_single = array.shape == space.shape
        if not is_single and (array.shape[1:] != space.shape or array.ndim == 0):
            raise ValueError(f"obs has shape {array.shape}: {space.shape} or (B, {', '.join(map(str, space.shape))})")
        self._reader.require_valid(array)
        if is_single:
            array = array[None]
        # repeated observations, which the networks can take; zeros need not be valid
        padding = np.repeat(array[:1], -len(array) % ROW_MULTIPLE, axis=0)
        return torch.from_numpy(np.concatenate([array, padding])).to(self._device), is_single


def load_agent(run_dir: str | os.PathLike[str], own_code: bool = False) -> Policy:
    """Load the policy of a run or of a checkpoint; opens no environment.

    Args:
        run_dir: folder of a run, or a file in its `checkpoints`. The policy of a run that was
            stopped is that of its newest checkpoint, which a line on stderr says.
        own_code: import the module of the user's own encoder, which the file names. Without this,
            loading a file never imports or runs code that it names.

    Raises:
        ConfigError: there is no readable policy, or it needs `own_code`.
    """
    path = policy_path(run_dir)
    try:
        metadata, weights = read_policy(path)
        spec = EnvSpec.from_json(metadata["env_spec"])
        architecture = Architecture.from_json(metadata["agent"])
        if ":" not in architecture.encoder or own_code:
            return Policy(_build(spec, architecture, weights))
    except Exception as error:  # a damaged file fails in many ways
        raise ConfigError(f"{path}: not a policy of this program ({first_line(error)})") from None
    how = "load_agent(..., own_code=True), or evaluate --own-code,"
    raise ConfigError(f"{path}: its encoder is {architecture.encoder}: {how} imports that")


def _build(spec: EnvSpec, architecture: Architecture, weights: dict[str, torch.Tensor]) -> Agent:
    """Build an agent with these weights.

    Raises:
        ValueError: they do not fit the architecture.
    """
    # compared on the meta device first: a damaged file may name a size that fills the memory
    with torch.device("cpu" if ":" in architecture.encoder else "meta"):
        require_weights(weights, Agent(spec, architecture).state_dict())
    agent = Agent(spec, architecture)
    for parameter in agent.parameters():  # running statistics keep their own precision
        parameter.data = parameter.data.to(weights["policy.0.weight"].dtype)
    agent.load_state_dict(weights)
    return agent


def own_modules(spec: EnvSpec) -> list[str]:
    """Return the modules of an environment and its wrappers that the user must provide.

    These are all but Gymnasium's and this package's.
    """
    wrappers = [each.partition(":")[0] for each in spec.wrapper.split(",") if ":" in each]
    modules = [spec.env_id.rpartition(":")[0], *wrappers]
    return [each for each in modules if each.partition(".")[0] not in ("", "gymnasium", "fabric_ppo")]
