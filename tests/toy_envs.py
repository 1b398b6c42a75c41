"""Environments of which everything is known in advance; importing this module registers them with Gymnasium.

An observation says which seed its episode was reset with and how many steps ago (`decode`), a reward is `toy_reward`
of the step and the action. Fixed ids are at the end of this file: `Toy-v0` where this module was imported, otherwise
`tests.toy_envs:Toy-v0`. `toy_env(length=3, ends="both", ...)` registers another in this process and its forks.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

MODULE = "tests.toy_envs"

OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "float32": spaces.Box(0, np.inf, (2, 2), np.float32),
    "float64": spaces.Box(0, np.inf, (4,), np.float64),
    "uint8": spaces.Box(0, 255, (2, 3), np.uint8),
    "discrete": spaces.Discrete(32 * 32, start=-3),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "discrete_start": spaces.Discrete(3, start=5),
    "multi_discrete": spaces.MultiDiscrete([2, 3, 4], start=[0, -1, 7]),
    "multi_discrete_2d": spaces.MultiDiscrete([[2, 3], [4, 2], [3, 3]], start=[[0, 1], [-2, 0], [5, 6]]),
    "multi_binary": spaces.MultiBinary(5),
    "multi_binary_2d": spaces.MultiBinary((2, 3)),
    "box": spaces.Box(np.array([-1, -0.5], np.float32), np.array([0.25, 2], np.float32)),
    "box_half": spaces.Box(
        np.array([[-np.inf, 0]], np.float64), np.array([[0.5, np.inf]], np.float64), (1, 2), np.float64
    ),
    "box_unbounded": spaces.Box(-np.inf, np.inf, (2,), np.float32),
}
Fault = Literal[
    "", "raise", "nan_obs", "inf_obs", "nan_reward", "inf_reward", "raise_reset", "exit", "exit_reset", "hang"
]
HANG_SECONDS = 600.0


def encode(kind: str, seed: int, step: int) -> Any:
    """The observation of `step` in the episode that `reset(seed=seed)` began."""
    if kind == "discrete":
        return np.int64((seed % 32) * 32 + step % 32 - 3)
    if kind == "uint8":
        numbers = [*seed.to_bytes(4, "little"), *step.to_bytes(2, "little")]
    else:
        # numbers below 2**12, which float32 holds exactly
        numbers = [seed & 1023, seed >> 10 & 1023, seed >> 20, step]
    space = OBSERVATIONS[kind]
    return np.array(numbers, space.dtype).reshape(space.shape)


def decode(kind: str, obs: Any) -> tuple[int, int]:
    """The inverse of `encode`: seed and step, both modulo 32 for `discrete`."""
    if kind == "discrete":
        return divmod(int(obs) + 3, 32)
    numbers = [int(x) for x in np.asarray(obs).flatten()]
    if kind == "uint8":
        return int.from_bytes(numbers[:4], "little"), int.from_bytes(numbers[4:], "little")
    return numbers[0] | numbers[1] << 10 | numbers[2] << 20, numbers[3]


def toy_reward(step: int, action: Any) -> float:
    """Reward of `action`, as the environment took it, in step `step` of an episode, counted from 0.

    The action's entries have different weights, so that a wrong order shows.
    """
    entries = np.asarray(action, np.float64).flatten()
    return 100.0 * step + float(entries @ np.arange(1, len(entries) + 1))


class ToyError(Exception):
    """Raised by an environment that was told to."""


class Toy(gymnasium.Env[Any, Any]):
    """Counts the steps of its episode."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        length: int = 5,
        ends: Literal["terminated", "truncated", "both"] = "terminated",
        observation: str = "float32",
        action: str = "discrete",
        fault: Fault = "",
        at: int = 3,
        only_seed: int | None = None,
        reuses_memory: bool = False,
        scribbles: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """Configure it.

        Args:
            length: steps of an episode; 0 for no end.
            ends: how it ends.
            observation: a key of `OBSERVATIONS`.
            action: a key of `ACTIONS`.
            fault: what goes wrong.
            at: in which step of the episode, counted from 0.
            only_seed: the reset seed of the one episode that has the fault; by default every episode has it.
            reuses_memory: return the same array each time, with new content.
            scribbles: overwrite the action that was handed in.
            render_mode: Gymnasium's.
        """
        self.observation_space = OBSERVATIONS[observation]
        self.action_space = ACTIONS[action]
        self.render_mode = render_mode
        self._kind, self._length, self._ends = observation, length, ends
        self._fault, self._at, self._only_seed = fault, at, only_seed
        self._reuses_memory, self._scribbles = reuses_memory, scribbles
        self._memory = np.zeros(self.observation_space.shape or (), self.observation_space.dtype)
        self._seed, self._step = 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; without a seed, with number 0."""
        super().reset(seed=seed)
        self._seed, self._step = seed or 0, 0
        if self._has("raise_reset"):
            raise ToyError("told to raise in reset")
        if self._has("exit_reset"):
            os._exit(7)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Count; raises ToyError for an action outside the action space."""
        if not self.action_space.contains(action if not np.isscalar(action) else np.int64(action)):
            raise ToyError(f"action {action!r} is not in {self.action_space}")
        step, self._step = self._step, self._step + 1
        reward = toy_reward(step, action)
        if self._scribbles:
            action[...] = 1
        broken = step == self._at
        if broken and self._has("raise"):
            self._raise_deep_inside()
        if broken and self._has("exit"):
            os._exit(7)
        if broken and self._has("hang"):
            time.sleep(HANG_SECONDS)
        obs = self._observe()
        if broken and (self._has("nan_obs") or self._has("inf_obs")):
            obs[(-1,) * obs.ndim] = np.nan if self._fault == "nan_obs" else -np.inf
        if broken and (self._has("nan_reward") or self._has("inf_reward")):
            reward = np.nan if self._fault == "nan_reward" else np.inf
        ended = self._step == self._length
        return obs, reward, ended and self._ends != "truncated", ended and self._ends != "terminated", {}

    def render(self) -> Any:
        """A grey picture, brighter with each step."""
        return np.full((64, 64, 3), min(10 * self._step, 255), np.uint8)

    def _has(self, fault: Fault) -> bool:
        return self._fault == fault and self._only_seed in (None, self._seed)

    def _raise_deep_inside(self) -> None:
        raise ToyError("told to raise")

    def _observe(self) -> Any:
        obs = encode(self._kind, self._seed, self._step)
        if not self._reuses_memory:
            return obs
        self._memory[...] = obs
        return self._memory


class Endless(gymnasium.Env[Any, Any]):
    """Every step is worth 1 and nothing ever ends: the value of every state is `1 / (1 - gamma)`."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Observations are noise."""
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Worth 1."""
        return self._observe(), 1.0, False, False, {}

    def _observe(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


class NoArguments(Endless):
    """Has never heard of rendering."""

    def __init__(self) -> None:
        super().__init__()


class BrokenConstructor(gymnasium.Env[Any, Any]):
    """Cannot be made: `gymnasium.make` raises."""

    def __init__(self, render_mode: str | None = None) -> None:
        raise ToyError("told to raise in the constructor")


class TextInDict(gymnasium.Env[Any, Any]):
    """Has an observation space of which a part is not supported."""

    observation_space = spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Text(4)})
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        pass


class Recorded(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Writes each step's seed, observation before it, reward and end as a line into a file of `RECORD_DIR`."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._file = Path(os.environ["RECORD_DIR"], f"{os.getpid()}-{id(self)}.jsonl")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See `gymnasium.Env.reset`."""
        self._seed = seed
        self._seen, info = self.env.reset(seed=seed, options=options)
        return self._seen, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See `gymnasium.Env.step`."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        line = [self._seed, np.asarray(self._seen).tolist(), float(reward), terminated or truncated]
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._seen = obs
        return obs, reward, terminated, truncated, info


def recorded(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """For `--env-wrapper`."""
    return Recorded(env)


def toy_env(**options: Any) -> str:
    """Register a `Toy` with these options and return its id."""
    words = [f"{name}.{value}".replace("-", "m") for name, value in sorted(options.items())]
    name = "-".join(["Toy", *words]) + "-v0"
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point=f"{MODULE}:Toy", kwargs=options)
    return name


_FIXED: dict[str, dict[str, Any]] = {
    "Toy": {},
    "ToyTruncated": {"ends": "truncated"},
    "ToyBoth": {"ends": "both"},
    "ToyEndless": {"length": 0},
    "ToyFloat64": {"observation": "float64"},
    "ToyUint8": {"observation": "uint8"},
    "ToyDiscrete": {"observation": "discrete"},
    "ToyDiscreteStart": {"action": "discrete_start"},
    "ToyMultiDiscrete": {"action": "multi_discrete"},
    "ToyMultiDiscrete2d": {"action": "multi_discrete_2d"},
    "ToyMultiBinary": {"action": "multi_binary"},
    "ToyMultiBinary2d": {"action": "multi_binary_2d"},
    "ToyBox": {"action": "box"},
    "ToyBoxHalf": {"action": "box_half"},
    "ToyBoxUnbounded": {"action": "box_unbounded"},
    "ToyRaise": {"fault": "raise"},
    "ToyRaiseReset": {"fault": "raise_reset"},
    "ToyNanObs": {"fault": "nan_obs"},
    "ToyInfObs": {"fault": "inf_obs"},
    "ToyNanReward": {"fault": "nan_reward"},
    "ToyInfReward": {"fault": "inf_reward"},
    "ToyExit": {"fault": "exit"},
    "ToyHang": {"fault": "hang"},
}
for _name, _options in _FIXED.items():
    gymnasium.register(f"{_name}-v0", entry_point=f"{MODULE}:Toy", kwargs=_options)
gymnasium.register("Endless-v0", entry_point=f"{MODULE}:Endless", max_episode_steps=20)
gymnasium.register("NoArguments-v0", entry_point=f"{MODULE}:NoArguments")
gymnasium.register("BrokenConstructor-v0", entry_point=f"{MODULE}:BrokenConstructor")
gymnasium.register("TextInDict-v0", entry_point=f"{MODULE}:TextInDict")
