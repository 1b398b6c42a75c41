"""A trained agent, tried: greedy (or stochastic) episodes with seeds that training cannot draw."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fabric_ppo.agent import Agent, Architecture
from fabric_ppo.envs.base import all_finite, make_gymnasium_env, record, renew_world
from fabric_ppo.errors import ConfigError, EnvironmentFault, first_line
from fabric_ppo.networks import ROWS_AT_A_TIME
from fabric_ppo.policy_file import policy_path, read_policy, require_weights
from fabric_ppo.seeding import Stream, evaluation_seed, uniforms
from fabric_ppo.spaces import ActionConverter, EnvSpec, Packer

_SLOTS = 8


@dataclass(frozen=True)
class TestResult:
    """Undiscounted returns and lengths of test episodes, in the order of their seeds."""

    returns: list[float]
    lengths: list[int]

    def to_dict(self) -> dict[str, Any]:
        """What `summary.json` and `evaluate --json` hold; the deviation is the population's."""
        return {
            "episodes": len(self.returns),
            "return_mean": float(np.mean(self.returns)),
            "return_std": float(np.std(self.returns)),
            "length_mean": float(np.mean(self.lengths)),
            "returns": self.returns,
        }


class Policy:
    """A trained agent behind numpy: what `load_agent` returns.

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
        """What a recurrent agent remembers as an episode begins: zeros, `[memory_size]` or `[batch, memory_size]`."""
        shape = (self.memory_size,) if batch is None else (batch, self.memory_size)
        return np.zeros(shape, self._agent.memory_dtype)

    def act(
        self, obs: Any, noise: NDArray[np.float64] | None = None, memory: NDArray[Any] | None = None
    ) -> NDArray[Any]:
        """What to do, as the environment takes it: the most probable action.

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
        """Expected discounted return from `obs` on: a scalar array for one observation, `[B]` for a batch.

        `memory` is as in `act`, and not renewed.
        """
        batch, is_single = self._batch(obs)
        with torch.inference_mode():
            padded = self._padded(memory, batch, None if is_single else len(obs))
            values: NDArray[Any] = self._agent.values(batch, padded).cpu().numpy()
        return values[0] if is_single else values[: len(obs)]

    def _padded(self, memory: NDArray[Any] | None, batch: torch.Tensor, given: int | None) -> torch.Tensor:
        """`memory` with as many rows as `batch`, on its device; `given` rows are expected, None: a single one."""
        padded = self.new_memory(len(batch))
        if memory is not None:
            if memory.shape != (expected := self.new_memory(given).shape):
                raise ValueError(f"memory has shape {memory.shape}: {expected}, from new_memory, is expected")
            padded[: 1 if given is None else given] = memory
        return torch.from_numpy(padded).to(self._device)

    def _batch(self, obs: Any) -> tuple[torch.Tensor, bool]:
        """A batch padded to a multiple of 8 rows (fewer would round differently), and whether it was a single one."""
        space = self.spec.observation
        if space.parts and not isinstance(obs, np.ndarray):
            obs = np.stack([self.pack(each) for each in obs]) if isinstance(obs, list) else self.pack(obs)
        array = np.asarray(obs, space.dtype)
        is_single = array.shape == space.shape
        if is_single:
            array = array[None]
        elif array.shape[1:] != space.shape or array.ndim == 0:
            raise ValueError(f"obs has shape {array.shape}: {space.shape} or (B, {', '.join(map(str, space.shape))})")
        padding = np.repeat(array[:1], -len(array) % ROWS_AT_A_TIME, axis=0)
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
    """The agent whose weights these are."""
    with torch.device("cpu" if ":" in architecture.encoder else "meta"):  # a size that is a lie takes no memory
        require_weights(weights, Agent(spec, architecture).state_dict())
    agent = Agent(spec, architecture)
    for parameter in agent.parameters():  # running statistics keep their own precision
        parameter.data = parameter.data.to(weights["policy.0.weight"].dtype)
    agent.load_state_dict(weights)
    return agent


def own_modules(spec: EnvSpec) -> list[str]:
    """The modules that an environment and its wrappers come from, but for Gymnasium's and this program's."""
    wrappers = [each.partition(":")[0] for each in spec.wrapper.split(",") if ":" in each]
    modules = [spec.env_id.rpartition(":")[0], *wrappers]
    return [each for each in modules if each.partition(".")[0] not in ("", "gymnasium", "fabric_ppo")]


def evaluate(
    policy: Policy,
    episodes: int,
    seed: int,
    *,
    video_dir: str = "",
    render_mode: str | None = None,
    stochastic: bool = False,
) -> TestResult:
    """Play `episodes` episodes; the same for the same seed, however many environments play them at once.

    Args:
        policy: what acts.
        episodes: how many.
        seed: names the episodes' reset seeds, all outside of what training draws.
        video_dir: the first episode is recorded there.
        render_mode: `human` to watch.
        stochastic: sample actions instead of taking the most probable ones.
    """
    result = TestResult([0.0] * episodes, [0] * episodes)
    waiting = iter(range(episodes))
    with contextlib.ExitStack() as stack:
        slots = [
            _Slot(stack, policy, video_dir if index == 0 else "", render_mode)
            for index in range(1 if render_mode else min(_SLOTS, episodes))
        ]
        playing = [slot for slot in slots if slot.start(seed, waiting)]
        while playing:
            at = [(slot.episode, result.lengths[slot.episode]) for slot in playing]
            noise = _noise(policy, seed, at) if stochastic else None
            memory = np.stack([slot.memory for slot in playing])
            actions = policy.act(np.stack([slot.obs for slot in playing]), noise, memory)
            for slot, after in zip(playing, memory, strict=True):
                slot.memory = after
            ended = []
            for slot, action in zip(playing, actions, strict=True):
                reward, terminated, truncated = slot.step(action)
                result.returns[slot.episode] += reward
                result.lengths[slot.episode] += 1
                if (terminated or truncated) and not slot.start(seed, waiting):
                    ended.append(slot)
            playing = [slot for slot in playing if slot not in ended]
    return result


class _Slot:
    """An environment and the test episode that it plays."""

    def __init__(self, stack: contextlib.ExitStack, policy: Policy, video_dir: str, render_mode: str | None) -> None:
        spec, self._new_memory = policy.spec, policy.new_memory
        env = make_gymnasium_env(spec.env_id, spec.wrapper, "rgb_array" if video_dir else render_mode)
        self.env = record(env, video_dir, lambda number: number == 0) if video_dir else env
        stack.callback(self.env.close)
        self._pack = policy.pack
        self.episode = -1
        self.obs: Any = None

    def step(self, action: NDArray[Any]) -> tuple[float, bool, bool]:
        """Reward, terminated, truncated; `obs` is what follows."""
        try:
            obs, reward, terminated, truncated, _ = self.env.step(action.item() if action.ndim == 0 else action)
            reward = float(reward)
        except (Exception, SystemExit) as error:
            raise self._fault(f"step raised {error}") from error
        if not math.isfinite(reward):
            raise self._fault(f"step returned reward {reward}, which is not finite")
        self.obs = self._checked(obs, "step")
        return reward, terminated, truncated

    def start(self, seed: int, waiting: Iterator[int]) -> bool:
        """Start the next episode that waits, if one does."""
        episode = next(waiting, None)
        if episode is None:
            return False
        self.episode, self.memory = episode, self._new_memory()
        renew_world(self.env)
        self.seed = evaluation_seed(seed, episode)
        try:
            obs, _ = self.env.reset(seed=self.seed)
        except (Exception, SystemExit) as error:
            raise self._fault(f"reset raised {error}") from error
        self.obs = self._checked(obs, "reset")
        return True

    def _checked(self, obs: Any, call: str) -> Any:
        try:
            obs = self._pack(obs)
        except ValueError as error:
            raise self._fault(f"{call} returned {error}") from None
        if np.asarray(obs).dtype.kind == "f" and not all_finite(obs):
            raise self._fault(f"{call} returned an observation that is not finite: {obs}")
        return obs

    def _fault(self, what: str) -> EnvironmentFault:
        return EnvironmentFault(f"test episode {self.episode}, seed {self.seed}: {what}")


def _noise(policy: Policy, seed: int, at: list[tuple[int, int]]) -> NDArray[np.float64]:
    """Draws for each (episode, step), `[len(at), noise_size]`."""
    return np.stack([uniforms(seed, Stream.TEST_ACTION, index, 0, policy.noise_size) for index in at])
