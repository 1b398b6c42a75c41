"""A trained agent that acts on NumPy arrays, without an environment."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from fabric_ppo.agents.agent import Agent, Architecture
from fabric_ppo.agents.code import other_code
from fabric_ppo.agents.hub import is_hub_address
from fabric_ppo.agents.mlp import ROW_MULTIPLE
from fabric_ppo.agents.module import PolicyModule
from fabric_ppo.agents.observations import ObservationReader, Rows
from fabric_ppo.agents.policy_file import described, no_policy, policy_path, read_policy, require_weights
from fabric_ppo.config_call import answering, path_argument, switch_argument
from fabric_ppo.config_given import format_given, python_scalar
from fabric_ppo.config_names import agent_hint
from fabric_ppo.envs.actions import MaskCheck, action_converter
from fabric_ppo.envs.ids import TAKE_CODE_DIR, where_missing
from fabric_ppo.envs.nested_actions import Unpacker
from fabric_ppo.envs.space_text import format_space
from fabric_ppo.envs.spaces import EnvSpec
from fabric_ppo.process.command import running
from fabric_ppo.process.console import print_from_rank_zero
from fabric_ppo.process.errors import ConfigError
from fabric_ppo.seeding import Stream, uniform_of, uniforms

_RUN_DIR = "the folder of a run, as in load_agent('RUN_DIR'),"
"""Description of the first argument of `load_agent`."""


class Policy:
    """A trained agent that takes and returns NumPy arrays; `load_agent` makes one.

    Attributes:
        spec: the environment's spaces; of a Dict observation only the parts that the policy takes.
        module: the agent as a PyTorch module, for other programs.
        noise_size: number of random numbers that sample one action.
        memory_size: number of entries of a recurrent agent's memory; 0 for other agents.
        pack: function that checks one observation and returns its row in a batch. The row of a Dict
            or Tuple is bytes. A Dict is passed whole, also if the policy takes some of its parts.

    Example:
        >>> import numpy as np
        >>> from fabric_ppo import load_agent
        >>> agent = load_agent("RUN_DIR")
        >>> agent.act(np.zeros(4)) in (0, 1), agent.act(np.zeros((3, 4))).shape
        (True, (3,))
        >>> agent.value(np.zeros((3, 4))).shape
        (3,)
    """

    def __init__(self, agent: Agent) -> None:
        """Act with `agent`, on its device; the weights are not copied."""
        if not isinstance(agent, Agent):
            raise ConfigError(f"Policy({format_given(agent)}): load_agent('RUN_DIR') makes one")
        observation = agent.spec.observation
        self.spec = replace(agent.spec, observation=observation.for_policy)
        self.noise_size, self.memory_size = agent.distribution.noise_size, agent.memory_size
        self._agent = agent
        self._read = ObservationReader(self.spec.observation, observation)
        self._read_all = ObservationReader(observation, observation) if observation.num_critic else self._read
        self.pack = self._read.pack
        self._mask_check = MaskCheck(self.spec)
        self._to_env = action_converter(agent.spec.action)
        self._unpack = Unpacker(agent.spec.action) if agent.spec.action.parts else None
        self._device = agent.device
        self._num_drawn = 0

    def __repr__(self) -> str:
        """Return the environment, its spaces, and the kind of memory."""
        spec, recurrent = self.spec, self._agent.architecture.recurrent
        memory = "not recurrent" if recurrent == "none" else f"recurrent ({recurrent})"
        spaces = f"observations {format_space(spec.observation)}, actions {format_space(spec.action)}"
        return f"Policy({spec.env_id}: {spaces}, {memory})"

    if not TYPE_CHECKING:  # to a type checker it would mean that every name exists

        def __getattr__(self, name: str) -> Any:
            """Raise an AttributeError that names the method to use instead, as for `learn` and `save`."""
            own = [each for each in dir(type(self)) if not each.startswith("_")]
            raise AttributeError(f"'Policy' object has no attribute {name!r}{agent_hint(name, own)}")

    @functools.cached_property
    def module(self) -> PolicyModule:
        """Agent as one module with a copy of the weights, for `torch.export` and other programs."""
        weights = self._agent.state_dict()
        return PolicyModule(_build(self._agent.spec, self._agent.architecture, weights)).to(self._device).eval()

    def new_memory(self, batch: int | None = None) -> NDArray[Any]:
        """Return the memory at the start of an episode: zeros.

        Its shape is `[memory_size]`, or with `batch` episodes `[batch, memory_size]`.
        """
        batch = python_scalar(batch)
        if batch is not None and (type(batch) is not int or batch < 0):
            raise ConfigError(f"new_memory({format_given(batch)}): a whole number of episodes is expected")
        shape = (self.memory_size,) if batch is None else (batch, self.memory_size)
        return np.zeros(shape, self._agent.memory_dtype)

    @answering("one observation, or a batch of them,")
    def act(
        self,
        obs: Any,
        noise: NDArray[np.float64] | None = None,
        memory: NDArray[Any] | None = None,
        *,
        deterministic: bool = True,
        seed: int | np.random.Generator | None = None,
    ) -> Any:
        """Choose actions, in the form that the environment takes.

        Args:
            obs: one observation, or a batch `[B, ...]` of them. A batch of Dict or Tuple
                observations is a dict or tuple of arrays, or a list (see `ObservationReader`).
            noise: `[B, noise_size]`, uniform in (0, 1): sample the actions with it.
            memory: memory of a recurrent agent, from `new_memory`; updated in place. None: an
                episode begins.
            deterministic: True: take the most probable actions; False: sample them.
            seed: seed of the sampling. The same number gives the same draws, so take another one
                in each step; or pass a NumPy generator. None: the draws depend only on how many
                such calls this Policy has had, and are the same in every program.

        Returns:
            One action, or `[B, ...]` for a batch. If actions are a Dict or Tuple, a dict or tuple
            of these, as `gymnasium.vector` takes them.

        Raises:
            ValueError: an argument has the wrong shape, `obs` has numbers that its space, or
                float32, cannot hold, or its action mask allows no action. In a batch such masks
                are allowed, for rows whose episode has ended.
        """
        rows = self._read(obs)
        if noise is None and not (deterministic is True or switch_argument("act", "deterministic", deterministic)):
            noise = self._draw(len(rows.array), seed)
        return self._unpacked(rows, self._act(rows, noise, memory))

    @answering("one observation, or a batch of them,")
    def predict(
        self,
        observation: Any,
        state: NDArray[Any] | None = None,
        episode_start: Any = None,
        deterministic: bool = False,
        *,
        seed: int | np.random.Generator | None = None,
    ) -> tuple[Any, NDArray[Any] | None]:
        """Choose actions as Stable-Baselines3's `predict` does.

        Args:
            observation: as in `act`.
            state: memory of a recurrent agent, as the last call returned it; None: episodes begin.
            episode_start: `[B]`, true where an episode begins, so that its memory is reset.
            deterministic, seed: as in `act`.

        Returns:
            The actions, and the memory after them; `state` for an agent without memory.

        Raises:
            ValueError: as in `act`.
        """
        is_greedy = switch_argument("predict", "deterministic", deterministic)
        if isinstance(state, (bool, str)):
            raise ConfigError(f"predict(state={format_given(state)}): the memory from the call before is expected")
        rows = self._read(observation)
        count = len(rows.array)
        memory = self._reset(state, episode_start, None if rows.is_single else count) if self.memory_size else None
        actions = self._unpacked(rows, self._act(rows, None if is_greedy else self._draw(count, seed), memory))
        return actions, state if memory is None else memory

    @answering("one observation, or a batch of them,")
    def value(self, obs: Any, memory: NDArray[Any] | None = None) -> NDArray[Any]:
        """Estimate the discounted return from `obs` on.

        Args:
            obs: as in `act`, with the parts for the value network alone (`--critic-keys`).
            memory: as in `act`; it is not updated.

        Returns:
            A scalar array for one observation, `[B]` for a batch.

        Raises:
            ValueError: as in `act`.
        """
        rows = self._read_all(obs)
        batch = self._padded(rows)
        with torch.inference_mode():
            before = self._padded_memory(memory, batch, rows)
            values: NDArray[Any] = self._agent.values(batch, before).cpu().numpy()
        return values[0] if rows.is_single else values[: len(rows.array)]

    def _act(self, rows: Rows, noise: NDArray[np.float64] | None, memory: NDArray[Any] | None) -> NDArray[Any]:
        """Choose actions `[B, ...]`, of a Dict or Tuple packed; see `act`."""
        if rows.is_single and self._mask_check.has_mask:
            self._mask_check(rows.array[0])
        batch, count = self._padded(rows), len(rows.array)
        transformed = None
        if noise is not None:
            if np.shape(noise) != (count, self.noise_size):
                expected = f"({count}, {self.noise_size}); act(obs, deterministic=False) draws it"
                raise ValueError(f"noise has shape {np.shape(noise)}: {expected}")
            # padding rows are dropped again: their noise only has to be finite
            padded = np.full((len(batch), self.noise_size), 0.5)
            padded[:count] = noise
            transformed = self._agent.distribution.noise(torch.from_numpy(padded)).to(self._device, self._agent.dtype)
        before = self._padded_memory(memory, batch, rows)
        with torch.inference_mode():
            drawn, after = self._agent.act(batch, transformed, before)
            actions = self._to_env(drawn.cpu().numpy())
        if memory is not None:
            memory[...] = after.cpu().numpy()[0 if memory.ndim == 1 else slice(len(memory))]
        return actions[:count]

    def _unpacked(self, rows: Rows, actions: NDArray[Any]) -> Any:
        """Return actions for `rows` as an environment takes them, or as `gymnasium.vector` does."""
        if self._unpack is not None:
            return self._unpack.one(actions[0]) if rows.is_single else self._unpack.batch(actions)
        return actions[0] if rows.is_single else actions

    def _draw(self, count: int, seed: int | np.random.Generator | None) -> NDArray[np.float64]:
        """Return draws that are uniform in (0, 1), `[count, noise_size]`; for `seed` see `act`."""
        shape, index = (count, self.noise_size), (0, 0)
        if isinstance(seed, np.random.Generator):
            return uniform_of(seed.integers(2**64, size=shape, dtype=np.uint64))
        if seed is None:
            seed, index = 0, (self._num_drawn, 1)
            self._num_drawn += 1
        elif isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
            raise ValueError(f"seed {seed!r}: a whole number from 0 to 2**64 - 1, or a numpy Generator, is expected")
        return uniforms(int(seed), Stream.POLICY, index, 0, math.prod(shape)).reshape(shape)

    def _reset(self, state: NDArray[Any] | None, episode_start: Any, given: int | None) -> NDArray[Any]:
        """Return a copy of the memory `state` of `given` rows, with zeros where an episode begins."""
        memory = self.new_memory(given)
        if state is None:
            return memory
        self._require_shape(np.shape(state), memory.shape)
        memory[...] = state
        if episode_start is None:
            return memory
        begins, expected = np.asarray(episode_start), [(given,)] if given is not None else [(), (1,)]
        if begins.shape not in expected or begins.dtype.kind not in "biuf":
            raise ValueError(f"episode_start has shape {begins.shape}: true or false, {expected[-1]}, is expected")
        memory[begins.astype(bool).reshape(() if given is None else (given,))] = 0
        return memory

    def _require_shape(self, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise ValueError(f"memory has shape {found}: {expected}, from new_memory, is expected")

    def _padded_memory(self, memory: NDArray[Any] | None, batch: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Pad `memory` to the rows of `batch`, on its device; None: all rows begin an episode.

        It is `[memory_size]` for a single observation.
        """
        padded = self.new_memory(len(batch))
        if memory is not None:
            given = None if rows.is_single else len(rows.array)
            self._require_shape(np.shape(memory), self.new_memory(given).shape)
            padded[: len(rows.array)] = memory
        return torch.from_numpy(padded).to(self._device)

    def _padded(self, rows: Rows) -> torch.Tensor:
        """Return observations padded to ROW_MULTIPLE, on the agent's device."""
        array = rows.array
        # repeated observations, which the networks can take; zeros need not be valid
        padding = np.repeat(array[:1], -len(array) % ROW_MULTIPLE, axis=0)
        return torch.from_numpy(np.concatenate([array, padding])).to(self._device)


@answering(_RUN_DIR)
def load_agent(run_dir: str | os.PathLike[str], own_code: bool = False, device: str | torch.device = "cpu") -> Policy:
    """Load the policy of a run, of a checkpoint or of the Hub, without opening an environment.

    Args:
        run_dir: folder of a run, its `policy.safetensors`, or a file in its `checkpoints`. For a
            run that was stopped, the newest checkpoint is loaded, and a line on stderr reports it.
            Or the address `hf://USER/NAME` or `hf://USER/NAME@REVISION` of a repository on the
            Hugging Face Hub.
        own_code: import the module of the user's own encoder, which the file names. Without this,
            loading a file never imports or runs code that it names.
        device: device of the networks. Actions are the same on each device, up to rounding.

    Raises:
        ConfigError: there is no readable policy, it needs `own_code`, or there is no such device.
        ConnectionError: the network or the Hub failed, and the policy is not in the Hub's cache.

    Example:
        >>> from fabric_ppo import load_agent
        >>> load_agent("RUN_DIR")
        Policy(CartPole-v1: observations Box(4) float32, actions Discrete(2), not recurrent)
    """
    run_dir = path_argument("load_agent", run_dir, _RUN_DIR)
    own_code = switch_argument("load_agent", "own_code", own_code)
    device = _device_argument(device)
    path = policy_path(run_dir)
    named = run_dir if is_hub_address(run_dir) else path
    try:
        metadata, weights = read_policy(path)
        spec, architecture = described(metadata)
        if not (lacks := _lacks(path, architecture.encoder, own_code)):
            policy = Policy(_build(spec, architecture, weights).to(device))
            if other := other_code(metadata):
                print_from_rank_zero(f"{named}: {other}")
            return policy
    except Exception as error:  # a damaged file fails in many ways
        raise ConfigError(f"{named}: {no_policy(error)}") from None
    raise ConfigError(f"{named}: {lacks}")


def _device_argument(given: Any) -> torch.device:
    """Return the device for `load_agent`; raise a ConfigError if it is not there."""
    try:
        device = torch.device(given)
        torch.zeros(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError):  # what PyTorch raises for its absence
        device = torch.device("meta")
    if device.type == "meta":
        raise ConfigError(f"load_agent(device={format_given(given)}): cpu, or cuda where there is a GPU, is expected")
    return device


def _lacks(path: Path, encoder: str, own_code: bool) -> str:
    """Return the reason why the encoder of a policy is not imported; empty if it is, or is built in."""
    module, colon, _ = encoder.partition(":")
    if not colon:
        return ""
    if where := where_missing([module], path):
        return f"its encoder needs {module}, {where}"
    how = f"{running.get()} --own-code" if running.get() in TAKE_CODE_DIR else "load_agent(..., own_code=True)"
    return "" if own_code else f"its encoder is {encoder}: {how} imports that"


def _build(spec: EnvSpec, architecture: Architecture, weights: dict[str, torch.Tensor]) -> Agent:
    """Build an agent with these weights.

    Raises:
        ValueError: they do not fit the architecture.
    """
    # compared on the meta device first: a damaged file may name a size that fills the memory
    # initial weights are drawn from the global generator, whose state is restored
    with torch.random.fork_rng(devices=[]):
        with torch.device("cpu" if ":" in architecture.encoder else "meta"):
            require_weights(weights, Agent(spec, architecture).state_dict())
        agent = Agent(spec, architecture)
    first, _ = next(agent.policy.named_parameters())
    for parameter in agent.parameters():  # running statistics keep their own precision
        parameter.data = parameter.data.to(weights[f"policy.{first}"].dtype)
    agent.load_state_dict(weights)
    return agent


def own_modules(spec: EnvSpec) -> list[str]:
    """Return the modules of an environment and its wrappers that the user must provide.

    These are all but Gymnasium's and this package's.
    """
    wrappers = [each.partition(":")[0] for each in spec.wrapper.split(",") if ":" in each]
    modules = [spec.env_id.rpartition(":")[0], *wrappers]
    return [each for each in modules if each.partition(".")[0] not in ("", "gymnasium", "fabric_ppo")]


def require_own_modules(
    spec: EnvSpec, run_dir: str | os.PathLike[str], own_code: bool, how: str = "--own-code"
) -> None:
    """Raise a ConfigError if an environment needs modules that cannot be found, or may not be imported.

    Args:
        spec: the environment's.
        run_dir: the run that was trained in it.
        own_code: import what the run's files name.
        how: the call or flag that allows it, for the error's text.
    """
    if modules := own_modules(spec):
        needs = f"{run_dir}: its environment needs {', '.join(modules)}"
        if where := where_missing(modules, Path(run_dir)):
            raise ConfigError(f"{needs}, {where}")
        if not own_code:
            raise ConfigError(f"{needs}: {how} imports that")
