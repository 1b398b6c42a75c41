"""A trained agent behind NumPy, for whoever wants to act with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.mlp import ROW_MULTIPLE
from fabric_ppo.agents.policy_file import policy_path, read_policy, require_weights
from fabric_ppo.envs.spaces import ActionConverter, EnvSpec, Packer
from fabric_ppo.process.errors import ConfigError, first_line


class Policy:
    """A trained agent behind NumPy; `load_agent` returns one.

    Attributes:
        spec: the environment's spaces.
        noise_size: draws that sampling one action needs.
        memory_size: numbers that a recurrent agent remembers from step to step; 0 for others.
        pack: a Dict or Tuple observation -> the row of bytes that stands for it in a batch.
    """

    def __init__(self, agent: Agent) -> None:
        """Use `agent` where it is."""
        self.spec = agent.spec
        self.noise_size, self.memory_size = agent.distribution.noise_size, agent.memory_size
        self._agent = agent
        self.pack = Packer(agent.spec.observation)
        self._to_env = ActionConverter(agent.spec.action)
        self._device = agent.device

    def new_memory(self, batch: int | None = None) -> NDArray[Any]:
        """Return the memory with which an episode begins: zeros, `[memory_size]` or `[batch, memory_size]`."""
        shape = (self.memory_size,) if batch is None else (batch, self.memory_size)
        return np.zeros(shape, self._agent.memory_dtype)

    def act(
        self, obs: Any, noise: NDArray[np.float64] | None = None, memory: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """Choose the most probable action, as the environment takes it.

        Args:
            obs: one observation or a batch of them; of Dict or Tuple observations a list or what `pack` gave.
            noise: uniform draws `[B, noise_size]` to sample with instead.
            memory: what a recurrent agent remembers, from `new_memory`; renewed in place. None: an episode begins.

        Raises:
            ValueError: `obs` has neither an observation's shape nor a batch's, or `memory` another.
        """
        batch, is_single = self._batch(obs)
        given = None
        if noise is not None:
            padded = np.full((len(batch), noise.shape[-1]), 0.5)
            padded[: len(noise)] = noise
            given = self._agent.distribution.noise(torch.from_numpy(padded)).to(self._device, self._agent.dtype)
        with torch.inference_mode():
            drawn, after = self._agent.act(batch, given, self._padded(memory, batch, None if is_single else len(obs)))
            actions = self._to_env(drawn.cpu().numpy())
        if memory is not None:
            memory[...] = after.cpu().numpy()[0 if memory.ndim == 1 else slice(len(memory))]
        return actions[0] if is_single else actions[: len(obs)]

    def value(self, obs: Any, memory: NDArray[Any] | None = None) -> NDArray[Any]:
        """Estimate the discounted return from `obs` on: a scalar array for one observation, else `[B]`.

        `memory` is as in `act`, and not renewed.
        """
        batch, is_single = self._batch(obs)
        with torch.inference_mode():
            padded = self._padded(memory, batch, None if is_single else len(obs))
            values: NDArray[Any] = self._agent.values(batch, padded).cpu().numpy()
        return values[0] if is_single else values[: len(obs)]

    def _padded(self, memory: NDArray[Any] | None, batch: torch.Tensor, given: int | None) -> torch.Tensor:
        """Pad `memory`, of `given` rows (None: a single one), to the rows of `batch`, on its device."""
        padded = self.new_memory(len(batch))
        if memory is not None:
            if memory.shape != (expected := self.new_memory(given).shape):
                raise ValueError(f"memory has shape {memory.shape}: {expected}, from new_memory, is expected")
            padded[: 1 if given is None else given] = memory
        return torch.from_numpy(padded).to(self._device)

    def _batch(self, obs: Any) -> tuple[torch.Tensor, bool]:
        """Return `obs` as a batch padded to ROW_MULTIPLE, and whether it was a single observation."""
        space = self.spec.observation
        if space.parts and not isinstance(obs, np.ndarray):
            obs = np.stack([self.pack(each) for each in obs]) if isinstance(obs, list) else self.pack(obs)
        array = np.asarray(obs, space.dtype)
        is_single = array.shape == space.shape
        if is_single:
            array = array[None]
        elif array.shape[1:] != space.shape or array.ndim == 0:
            raise ValueError(f"obs has shape {array.shape}: {space.shape} or (B, {', '.join(map(str, space.shape))})")
        padding = np.repeat(array[:1], -len(array) % ROW_MULTIPLE, axis=0)
        return torch.from_numpy(np.concatenate([array, padding])).to(self._device), is_single


def load_agent(run_dir: str | Path, own_code: bool = False) -> Policy:
    """Load a finished run's policy, or the one in a checkpoint; opens no environment.

    Args:
        run_dir: folder of a finished run, or a file in its `checkpoints`.
        own_code: import the module of an encoder of one's own that the file names; without it, no file can have
            anything imported.

    Raises:
        ConfigError: no readable policy there, or one that needs `own_code`.
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
    """Build the agent whose weights these are."""
    with torch.device("cpu" if ":" in architecture.encoder else "meta"):  # a size that is a lie takes no memory
        require_weights(weights, Agent(spec, architecture).state_dict())
    agent = Agent(spec, architecture)
    for parameter in agent.parameters():  # running statistics keep their own precision
        parameter.data = parameter.data.to(weights["policy.0.weight"].dtype)
    agent.load_state_dict(weights)
    return agent


def own_modules(spec: EnvSpec) -> list[str]:
    """Name the modules of an environment and its wrappers that are neither Gymnasium's nor ours."""
    wrappers = [each.partition(":")[0] for each in spec.wrapper.split(",") if ":" in each]
    modules = [spec.env_id.rpartition(":")[0], *wrappers]
    return [each for each in modules if each.partition(".")[0] not in ("", "gymnasium", "fabric_ppo")]
